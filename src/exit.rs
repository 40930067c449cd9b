//! How the process ends: exit codes and the one line that says why.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

/// The exit codes of CONTRACT.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitStatus {
    /// The guest powered off, reset itself or was asked to stop.
    Success = 0,
    /// The host or the configuration is wrong.
    Failure = 1,
    /// The guest crashed.
    GuestCrashed = 3,
}

/// Says one line on standard error. That nobody may be there to read it changes nothing.
pub(crate) fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("husk: {text}\n").as_bytes());
}

/// An error as one line: `what: why: hint`.
pub(crate) fn describe(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(line, ": {error}").expect("a String takes every write");
        cause = error.source();
    }
    // Whatever a path or an id holds, a line stays one line.
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("disk `a\nb`")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_of_causes_is_one_line() {
        let error = Outer(std::io::Error::other("no such file"));
        assert_eq!(describe(&error), "disk `a\u{fffd}b`: no such file");
    }
}
