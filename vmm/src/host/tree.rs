//! /proc and /sys below a root: the running host's, or a recorded one's. Whatever a file holds, and whether or not it is
//! there, the answer is a value and never an error; a file that is there and holds something else than it should is
//! remembered with what is wrong.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// /proc/cpuinfo and /proc/interrupts of the largest machines fit; of a longer file the beginning is looked at.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Most files are shorter: they come by one read, and not by ever larger ones.
const USUAL_BYTES: usize = 4096;
/// Of what a file holds in place of a value.
const SHOWN_CHARS_MAX: usize = 40;
/// Enough to see what is wrong with a host.
const MALFORMED_MAX: usize = 32;

/// A host's files.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    malformed: RefCell<BTreeMap<String, String>>,
}

impl Tree {
    /// The files below `root`.
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), malformed: RefCell::default() }
    }

    /// The files that hold something else than they should, so far, and what is wrong with each.
    pub(super) fn malformed(&self) -> BTreeMap<String, String> {
        self.malformed.borrow().clone()
    }

    /// A file's text without the space around it, and with no control characters but line ends and tabs.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        let file = File::open(self.at_root(path)).ok()?;
        if file.take(TEXT_BYTES_MAX).read_to_end(&mut bytes).ok()? as u64 == TEXT_BYTES_MAX {
            self.note(path, format!("longer than {TEXT_BYTES_MAX} bytes"));
        }
        let text = String::from_utf8_lossy(&bytes);
        let printable = |c: char| if c.is_control() && !"\n\t".contains(c) { '\u{fffd}' } else { c };
        Some(text.trim().chars().map(printable).collect())
    }

    /// A file that holds one value.
    pub(super) fn value<T: FromStr>(&self, path: &str) -> Option<T> {
        let text = self.text(path)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.note(path, format!("holds `{}`", text.chars().take(SHOWN_CHARS_MAX).collect::<String>()));
        }
        value
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
        let entries = fs::read_dir(self.at_root(folder));
        let mut names: Vec<_> =
            entries.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Whether there is such a file or folder.
    pub(super) fn has(&self, path: &str) -> bool {
        self.at_root(path).exists()
    }

    /// Where a path leads, links followed; `None` if nowhere, or out of the tree.
    pub(super) fn resolve(&self, path: &str) -> Option<String> {
        let root = fs::canonicalize(&self.root).ok()?;
        let target = fs::canonicalize(self.at_root(path)).ok()?;
        Some(target.strip_prefix(root).ok()?.to_str()?.to_owned())
    }

    fn at_root(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn note(&self, path: &str, problem: String) {
        let mut malformed = self.malformed.borrow_mut();
        if malformed.len() < MALFORMED_MAX {
            malformed.insert(format!("/{}", path.trim_start_matches('/')), problem);
        }
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
