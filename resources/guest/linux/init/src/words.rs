//! The words of the kernel command line that are for this agent: those that start with `husk.`.

use crate::sys;
use crate::text::{Text, say};

/// Every word the agent knows. A misspelt one must not pass for a check that went well.
const KNOWN: [&str; 8] = [
    "husk.check",
    "husk.end",
    "husk.seed",
    "husk.mem",
    "husk.disk",
    "husk.soak",
    "husk.net",
    // The kernel's (patch 0016).
    "husk.keyboard",
];

/// The kernel's own limit for a command line on x86 (COMMAND_LINE_SIZE).
const LINE_MAX: usize = 2048;

/// The kernel command line.
pub(crate) struct Words {
    line: [u8; LINE_MAX],
    len: usize,
}

/// Why a word's value does not do.
pub(crate) type Refusal = Text<96>;

impl Words {
    pub(crate) fn read() -> sys::Result<Self> {
        let mut line = [0; LINE_MAX];
        let len = sys::read_file(c"/proc/cmdline", &mut line)?;
        Ok(Self { line, len })
    }

    /// The value of the last `name=value`, as the kernel does with its own words.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs().filter(|(word, _)| *word == name).last().map(|(_, value)| value)
    }

    /// A value in decimal, or in hexadecimal after `0x`.
    pub(crate) fn number(&self, name: &str, default: u64) -> Result<u64, Refusal> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        let parsed = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        parsed.map_err(|_| Refusal::of(format_args!("{name}={value} is not a number")))
    }

    /// Says which words nobody knows, and how many there are.
    pub(crate) fn refuse_unknown(&self) -> usize {
        let strangers = || self.pairs().map(|(word, _)| word).filter(|word| !KNOWN.contains(word));
        for word in strangers() {
            say!("GUEST FAIL no word {word}");
        }
        strangers().count()
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let line = self.line.get(..self.len).and_then(|line| str::from_utf8(line).ok()).unwrap_or_default();
        line.split_ascii_whitespace()
            .filter(|word| word.starts_with("husk."))
            .map(|word| word.split_once('=').unwrap_or((word, "")))
    }
}
