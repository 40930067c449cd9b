//! `echo`: repeats the lines that come from the console until one says `end`.

use super::{Facts, Fault, fault};
use crate::sys::{self, Terminal};
use crate::text::{Printable, say};
use crate::words::Words;

pub(super) fn run(_words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    without_echo(|| {
        say!("WAIT echo");
        let mut bytes = 0;
        let lines = each_line(|line| {
            say!("ECHO {}", Printable(line));
            bytes += line.len();
            Ok(())
        })?;
        facts.fact(format_args!("lines={lines} bytes={bytes}"));
        Ok(())
    })
}

/// Runs `body` with a terminal that does not show what comes: else each line would stand on the console twice.
pub(super) fn without_echo(body: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    let terminal = Terminal::of(sys::KEYBOARD).map_err(|errno| fault!("the console is no terminal: {errno}"))?;
    let set =
        |terminal: Terminal| terminal.set(sys::KEYBOARD).map_err(|errno| fault!("cannot set up the terminal: {errno}"));
    set(terminal.silent())?;
    let outcome = body();
    set(terminal)?;
    outcome
}

/// Gives `take` each line of the console up to one that is `end`, and returns how many there were.
pub(super) fn each_line(mut take: impl FnMut(&[u8]) -> Result<(), Fault>) -> Result<u64, Fault> {
    let mut lines = 0;
    // A terminal gives one line a read, or as much of it as fits.
    let mut line = [0; 512];
    loop {
        let read = sys::read(sys::KEYBOARD, &mut line).map_err(|errno| fault!("cannot read the console: {errno}"))?;
        let Some(text) = line.get(..read).filter(|text| !text.is_empty()) else {
            return Err(fault!("the console ended after {lines} lines"));
        };
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        if text == b"end" {
            return Ok(lines);
        }
        take(text)?;
        lines += 1;
    }
}
