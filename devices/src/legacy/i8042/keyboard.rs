//! A PS/2 keyboard with three keys: it answers what a driver asks of it, and types Ctrl-Alt-Del.
//!
//! It knows scan code set 2 only: asked for another it agrees, as keyboards do, and says when asked that it is still 2.

use std::collections::VecDeque;

/// What a PS/2 keyboard holds back while nobody reads. A guest that only writes gets no more memory than this.
pub(super) const BYTES_MAX: usize = 16;

const SET_LEDS: u8 = 0xed;
const ECHO: u8 = 0xee;
const SCAN_CODE_SET: u8 = 0xf0;
const GET_ID: u8 = 0xf2;
const SET_REPEAT: u8 = 0xf3;
const ENABLE: u8 = 0xf4;
const DISABLE: u8 = 0xf5;
const SET_DEFAULTS: u8 = 0xf6;
const RESEND: u8 = 0xfe;
const RESET: u8 = 0xff;

/// Commands with a parameter.
pub(super) const PARAMETER_COMMANDS: [u8; 3] = [SET_LEDS, SET_REPEAT, SCAN_CODE_SET];

const ACK: u8 = 0xfa;
const SELF_TEST_PASSED: u8 = 0xaa;
/// An MF2 keyboard.
const ID: [u8; 2] = [0xab, 0x83];
/// Its second byte as the controller translates it.
const ID_TRANSLATED: u8 = 0x41;
const SET: u8 = 2;
const SET_TRANSLATED: u8 = 0x41;

/// Ctrl, Alt and Delete pressed in this order and released in the reverse one, in scan code set 2.
const CTRL_ALT_DEL: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];
/// The same as the controller translates it, to set 1.
const CTRL_ALT_DEL_TRANSLATED: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];

/// In which code the controller passes on what the keyboard sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codes {
    /// As it is: set 2.
    Plain,
    /// Translated to set 1, as a PC/XT had it.
    Translated,
}

/// The keyboard.
pub(super) struct Keyboard {
    /// It sends keys, and not only answers.
    pub(super) scanning: bool,
    /// The command whose parameter the next byte is.
    pub(super) awaiting: Option<u8>,
    pub(super) last_sent: u8,
    pub(super) output: VecDeque<u8>,
}

impl Keyboard {
    pub(super) fn new() -> Self {
        Self { scanning: true, awaiting: None, last_sent: 0, output: VecDeque::with_capacity(BYTES_MAX) }
    }

    /// A byte of the driver's.
    pub(super) fn receive(&mut self, byte: u8, codes: Codes) {
        match (self.awaiting.take(), byte) {
            (Some(SCAN_CODE_SET), 0) => {
                let set = match codes {
                    Codes::Plain => SET,
                    Codes::Translated => SET_TRANSLATED,
                };
                self.answer(&[ACK, set]);
            }
            // The parameter of any: there are no lights, no key is ever held, and the set stays.
            (Some(_), _) => self.answer(&[ACK]),
            (None, SET_LEDS | SET_REPEAT | SCAN_CODE_SET) => {
                self.awaiting = Some(byte);
                self.answer(&[ACK]);
            }
            (None, ECHO) => self.answer(&[ECHO]),
            (None, GET_ID) => {
                let [first, second] = ID;
                let second = match codes {
                    Codes::Plain => second,
                    Codes::Translated => ID_TRANSLATED,
                };
                self.answer(&[ACK, first, second]);
            }
            (None, ENABLE) => self.restart(true),
            (None, DISABLE) => self.restart(false),
            (None, SET_DEFAULTS) => self.answer(&[ACK]),
            (None, RESET) => {
                self.restart(true);
                self.answer(&[SELF_TEST_PASSED]);
            }
            (None, RESEND) => self.answer(&[self.last_sent]),
            (None, _) => self.answer(&[RESEND]),
        }
    }

    /// Types the keys, all or none, and says whether it did: a keyboard that does not scan or whose buffer is too full
    /// drops them.
    pub(super) fn type_ctrl_alt_del(&mut self, codes: Codes) -> bool {
        let keys = match codes {
            Codes::Plain => &CTRL_ALT_DEL[..],
            Codes::Translated => &CTRL_ALT_DEL_TRANSLATED,
        };
        let typed = self.scanning && self.output.len() + keys.len() <= BYTES_MAX;
        if typed {
            self.output.extend(keys);
        }
        typed
    }

    /// Whether a byte waits to be sent.
    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Sends a byte.
    pub(super) fn send(&mut self) -> Option<u8> {
        let byte = self.output.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    /// Forgets what nobody has read, and scans or does not from now on.
    fn restart(&mut self, scanning: bool) {
        self.output.clear();
        self.scanning = scanning;
        self.answer(&[ACK]);
    }

    /// What finds no room is lost.
    fn answer(&mut self, bytes: &[u8]) {
        let room = BYTES_MAX - self.output.len();
        self.output.extend(bytes.iter().take(room));
    }
}
