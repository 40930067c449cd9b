//! /proc and /sys below a root: the running host's, or a recorded one's. Whatever a file holds, and whether or not it is
//! there, the answer is a value and never an error.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// /proc/cpuinfo of the largest machines; only its beginning is looked at.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// A host's files.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The files below `root`.
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A file's text without the space around it, and with no control characters but line ends and tabs.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let file = File::open(self.root.join(path.trim_start_matches('/'))).ok()?;
        file.take(TEXT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let printable = |c: char| if c.is_control() && !"\n\t".contains(c) { '\u{fffd}' } else { c };
        Some(text.trim().chars().map(printable).collect())
    }

    /// A file that holds one value.
    pub(super) fn value<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// The words of a file that holds a list of them.
    pub(super) fn words(&self, path: &str) -> Option<Vec<String>> {
        Some(self.text(path)?.split_whitespace().map(str::to_owned).collect())
    }

    /// The word in brackets of a file like `always [madvise] never`.
    pub(super) fn choice(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        let (chosen, _) = text.split_once('[')?.1.split_once(']')?;
        Some(chosen.to_owned())
    }

    /// The names in a folder, sorted; none if it is not there.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(folder.trim_start_matches('/')));
        let mut names: Vec<_> =
            entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// The text after `key` and a colon in the first line that begins with it, as in /proc/cpuinfo and /proc/meminfo.
pub(super) fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let after = |line: &'a str| line.trim_start().strip_prefix(key)?.trim_start().strip_prefix(':');
    text.lines().find_map(after).map(str::trim)
}

/// A field in kB, as bytes.
pub(super) fn field_bytes(text: &str, key: &str) -> Option<u64> {
    let kib: u64 = field(text, key)?.strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_key() {
        let text = "MemTotal:  16 kB\nSwapTotal:\t0 kB\nmodel name\t: A\nmodel : 7\nBig: 18446744073709551615 kB";
        assert_eq!(field_bytes(text, "MemTotal"), Some(16384));
        assert_eq!(field_bytes(text, "SwapTotal"), Some(0));
        assert_eq!(field(text, "model"), Some("7"));
        assert_eq!(field(text, "model name"), Some("A"));
        assert_eq!(field_bytes(text, "Mem"), None);
        assert_eq!(field_bytes(text, "Big"), None);
        assert_eq!(field_bytes(text, "model"), None);
    }
}
