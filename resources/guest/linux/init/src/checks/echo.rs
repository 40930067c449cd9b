//! `echo`: repeats the lines that come from the console until one says `end`.

use super::{Facts, Fault, fault};
use crate::sys::{self, Terminal};
use crate::text::{Printable, say};
use crate::words::Words;

pub(super) fn run(_words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let terminal = Terminal::of(sys::KEYBOARD).map_err(|errno| fault!("the console is no terminal: {errno}"))?;
    let set =
        |terminal: Terminal| terminal.set(sys::KEYBOARD).map_err(|errno| fault!("cannot set up the terminal: {errno}"));
    // Else each line would stand on the console twice, once by the terminal's own echo.
    set(terminal.silent())?;
    say!("WAIT echo");
    let outcome = repeat();
    set(terminal)?;
    let (lines, bytes) = outcome?;
    facts.fact(format_args!("lines={lines} bytes={bytes}"));
    Ok(())
}

fn repeat() -> Result<(u64, usize), Fault> {
    let (mut lines, mut bytes) = (0, 0);
    // A terminal gives one line a read, or as much of it as fits.
    let mut line = [0; 512];
    loop {
        let read = sys::read(sys::KEYBOARD, &mut line).map_err(|errno| fault!("cannot read the console: {errno}"))?;
        let Some(text) = line.get(..read).filter(|text| !text.is_empty()) else {
            return Err(fault!("the console ended after {lines} lines"));
        };
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        if text == b"end" {
            return Ok((lines, bytes));
        }
        say!("ECHO {}", Printable(text));
        lines += 1;
        bytes += text.len();
    }
}
