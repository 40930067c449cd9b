//! What is left of a process: how it ended and what it wrote.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A process that has ended by itself.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The lines of standard output that start so, without that start.
    pub(crate) fn lines(&self, start: &str) -> Vec<String> {
        self.text().lines().filter_map(|line| line.strip_prefix(start)).map(str::to_owned).collect()
    }

    /// The one such line.
    #[track_caller]
    pub(crate) fn line(&self, start: &str) -> String {
        let lines = self.lines(start);
        assert_eq!(lines.len(), 1, "lines that start with `{start}`:\n{self}");
        lines[0].clone()
    }

    /// The figures of a check of the probe that went well; of the last, if it was done more than once.
    #[track_caller]
    pub(crate) fn check(&self, name: &str) -> Facts {
        let lines = self.lines(&format!("CHECK {name} ok "));
        Facts::of(lines.last().unwrap_or_else(|| panic!("check {name} did not go well:\n{self}")))
    }

    /// Ends with code 0, no check failed and nothing to say of it.
    #[track_caller]
    pub(crate) fn went_well(self) -> Self {
        assert_eq!(self.code(), Some(0), "{self}");
        assert!(!self.text().contains(" FAIL "), "{self}");
        assert_eq!(self.stderr, "", "{self}");
        self
    }

    /// The one line that standard error has.
    #[track_caller]
    pub(crate) fn message(&self) -> &str {
        let line = self.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no line on standard error:\n{self}"));
        assert!(!line.contains('\n') && line.starts_with("husk: "), "one line that starts with `husk: `:\n{self}");
        line
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nstandard output:\n{}\nstandard error:\n{}", self.status, self.text(), self.stderr)
    }
}

/// `key=value` words of a line.
pub(crate) struct Facts(HashMap<String, String>);

impl Facts {
    pub(crate) fn of(line: &str) -> Self {
        let pairs = line.split(' ').filter_map(|word| word.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned())).collect())
    }

    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("no `{key}` in {:?}", self.0))
    }

    /// A number in decimal, or in hexadecimal after `0x`.
    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u64 {
        let text = self.get(key);
        let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16));
        parsed.unwrap_or_else(|error| panic!("{key}={text}: {error}"))
    }
}
