//! The serial port: a 16550 at COM1, written a line at a time.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu;

/// COM1.
pub const PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const GSI: u32 = 4;

/// Writes formatted text.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::write(format_args!($($arg)*)) };
}

/// Writes a formatted line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::console::write(format_args!("{}\n", format_args!($($arg)*))) };
}

/// Whether a line ends in CR LF, as a terminal in raw mode wants it.
static CARRIAGE_RETURNS: AtomicBool = AtomicBool::new(false);

/// Ends lines in CR LF from now on: for people, who watch on a terminal.
pub fn end_lines_for_a_terminal() {
    CARRIAGE_RETURNS.store(true, Ordering::Relaxed);
}

/// Gathers text, so that each call of `write` costs few calls down to ring 0.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn push(&mut self, byte: u8) {
        if self.len == self.bytes.len() {
            self.flush();
        }
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn flush(&mut self) {
        write_bytes(&self.bytes[..self.len]);
        self.len = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let for_terminal = CARRIAGE_RETURNS.load(Ordering::Relaxed);
        for &byte in text.as_bytes() {
            if byte == b'\n' && for_terminal {
                self.push(b'\r');
            }
            self.push(byte);
        }
        Ok(())
    }
}

/// What `print!` and `println!` call.
pub fn write(text: fmt::Arguments) {
    let mut line = Line { bytes: [0; 256], len: 0 };
    // It cannot fail: `write_str` above never does.
    let _ = line.write_fmt(text);
    line.flush();
}

/// Writes bytes as they are. A virtual 16550 takes a byte whenever it is given one, so the transmitter is not asked first.
pub fn write_bytes(bytes: &[u8]) {
    cpu::out_bytes(PORT, bytes);
}

/// The next byte that arrived, if one did.
pub fn poll_byte() -> Option<u8> {
    const DATA_READY: u8 = 1;
    (cpu::in8(PORT + 5) & DATA_READY != 0).then(|| cpu::in8(PORT))
}

/// Asks for an interrupt when a byte arrives. OUT2 connects the line on a PC.
pub fn interrupt_on_input() {
    cpu::out8(PORT + 4, 0x0b);
    cpu::out8(PORT + 1, 1);
}
