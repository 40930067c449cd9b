//! Errors as people read them.

use std::error::Error;
use std::fmt::Write as _;

/// An error with its causes as one line: `what: why: hint`.
#[must_use]
pub fn describe(error: &dyn Error) -> String {
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
