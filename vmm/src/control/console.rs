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
}

/// What was read from the console.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// Bytes for the guest; none if the source had none just now.
    Bytes(Vec<u8>),
    /// The source is at its end, or broken: there will be no more.
    End,
    /// The user asked to quit.
    Quit,
}

const CTRL_A: u8 = 1;

impl Console {
    /// Reads from `input`.
    #[must_use]
    pub fn new(input: File, escape: Escape) -> Self {
        Self { input, escape, escaped: false }
    }

    /// Reads at most `room` bytes. The source is readable: this does not block.
    pub(super) fn read(&mut self, room: usize) -> Typed {
        let mut buffer = [0; 64];
        let wanted = room.min(buffer.len());
        match self.input.read(&mut buffer[..wanted]) {
            Ok(0) => Typed::End,
            Ok(length) => self.unescape(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                Typed::Bytes(Vec::new())
            }
            Err(_) => Typed::End,
        }
    }

    fn unescape(&mut self, typed: &[u8]) -> Typed {
        if self.escape == Escape::None {
            return Typed::Bytes(typed.to_vec());
        }
        let mut bytes = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x' | b'X') => return Typed::Quit,
                // Any other key after Ctrl-A is dropped, as QEMU's multiplexer does, but a second Ctrl-A.
                (true, CTRL_A) | (false, _) => bytes.push(byte),
                (true, _) => {}
            }
        }
        Typed::Bytes(bytes)
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

    #[test]
    fn without_an_escape_every_byte_is_the_guests_and_the_end_is_told() {
        let mut console = console(Escape::None, b"\x01x");
        assert_eq!(console.read(64), Typed::Bytes(b"\x01x".to_vec()));
        assert_eq!(console.read(64), Typed::End);
    }

    #[test]
    fn no_more_is_read_than_there_is_room_for() {
        let mut console = console(Escape::None, b"abc");
        assert_eq!(console.read(2), Typed::Bytes(b"ab".to_vec()));
        assert_eq!(console.read(2), Typed::Bytes(b"c".to_vec()));
    }

    #[test]
    fn ctrl_a_x_quits_also_when_the_keys_come_one_by_one() {
        let mut console = console(Escape::CtrlA, b"a\x01x");
        assert_eq!(console.read(2), Typed::Bytes(b"a".to_vec()));
        assert_eq!(console.read(1), Typed::Quit);
    }

    #[test]
    fn ctrl_a_twice_is_one_and_ctrl_a_with_another_key_is_nothing() {
        let mut console = console(Escape::CtrlA, b"\x01\x01x\x01bz");
        assert_eq!(console.read(64), Typed::Bytes(b"\x01xz".to_vec()));
    }
}
