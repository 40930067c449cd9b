//! The console's input: from a descriptor into the serial port, no faster than the guest reads, and past the escape
//! that ends the machine.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};

/// Whether keys on the console can mean husk instead of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// Every byte is the guest's.
    None,
    /// Ctrl-A x ends the machine; Ctrl-A Ctrl-A is one Ctrl-A for the guest.
    CtrlA,
}

/// The console's input.
#[derive(Debug)]
pub struct Console {
    input: File,
    escape: Escape,
    escaped: bool,
    /// Typed, and not taken by the guest yet.
    pending: Vec<u8>,
}

/// What came of a look at the console.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// There may be more later.
    Some,
    /// The source is at its end, or broken: there will be no more.
    End,
    /// The user asked to quit.
    Quit,
}

const CTRL_A: u8 = 1;
/// A guest that does not read its keys must not keep the escape from being seen: what is typed beyond this is dropped.
const PENDING_MAX: usize = 64 << 10;

impl Console {
    /// Reads from `input`.
    #[must_use]
    pub fn new(input: File, escape: Escape) -> Self {
        Self { input, escape, escaped: false, pending: Vec::new() }
    }

    /// Reads once. The source is readable: this does not block.
    pub(super) fn read(&mut self) -> Typed {
        let mut buffer = [0; 64];
        match self.input.read(&mut buffer) {
            Ok(0) => Typed::End,
            Ok(length) => self.unescape(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Typed::Some,
            Err(_) => Typed::End,
        }
    }

    /// Whether to look at the source again: for an escape always, else when the guest has taken what was read before.
    pub(super) fn wants_more(&self) -> bool {
        self.escape == Escape::CtrlA || self.pending.is_empty()
    }

    /// What is there for the guest.
    pub(super) fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// The guest has taken the first `count` bytes.
    pub(super) fn taken(&mut self, count: usize) {
        self.pending.drain(..count);
    }

    fn unescape(&mut self, typed: &[u8]) -> Typed {
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                _ if self.escape == Escape::None => self.keep(byte),
                (false, CTRL_A) => self.escaped = true,
                (true, b'x' | b'X') => return Typed::Quit,
                // Any other key after Ctrl-A is dropped, as QEMU's multiplexer does, but a second Ctrl-A.
                (true, CTRL_A) | (false, _) => self.keep(byte),
                (true, _) => {}
            }
        }
        Typed::Some
    }

    fn keep(&mut self, byte: u8) {
        if self.pending.len() < PENDING_MAX {
            self.pending.push(byte);
        }
    }
}

impl AsRawFd for Console {
    fn as_raw_fd(&self) -> RawFd {
        self.input.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn console(escape: Escape, content: &[u8]) -> Console {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        Console::new(file, escape)
    }

    /// All that a source of plain files gives, read as the control loop does.
    fn read_all(console: &mut Console) -> Typed {
        loop {
            match console.read() {
                Typed::Some => {}
                end => return end,
            }
        }
    }

    #[test]
    fn without_an_escape_every_byte_is_the_guests_and_the_end_is_told() {
        let mut console = console(Escape::None, b"\x01x");
        assert_eq!(console.read(), Typed::Some);
        assert_eq!(console.pending(), b"\x01x");
        assert!(!console.wants_more(), "a pipe waits for the guest");
        console.taken(1);
        assert_eq!(console.pending(), b"x");
        console.taken(1);
        assert!(console.wants_more());
        assert_eq!(console.read(), Typed::End);
    }

    #[test]
    fn ctrl_a_x_quits_however_much_a_guest_has_left_unread() {
        let mut console = console(Escape::CtrlA, &[&[b'k'; 3 * PENDING_MAX][..], b"\x01x"].concat());
        assert_eq!(read_all(&mut console), Typed::Quit);
        assert_eq!(console.pending().len(), PENDING_MAX);
        assert!(console.wants_more());
    }

    #[test]
    fn ctrl_a_x_quits_also_when_the_keys_come_in_two_reads() {
        let mut console = console(Escape::CtrlA, &[&[b'a'; 63][..], b"\x01x"].concat());
        assert_eq!(console.read(), Typed::Some);
        assert_eq!(console.pending(), [b'a'; 63]);
        assert_eq!(console.read(), Typed::Quit);
    }

    #[test]
    fn ctrl_a_twice_is_one_and_ctrl_a_with_another_key_is_nothing() {
        let mut console = console(Escape::CtrlA, b"\x01\x01x\x01bz");
        assert_eq!(read_all(&mut console), Typed::End);
        assert_eq!(console.pending(), b"\x01xz");
    }
}
