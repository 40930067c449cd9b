//! A folder of a test's own, gone when the test ends, and what is in it.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A temporary folder.
pub(crate) struct Folder(tempfile::TempDir);

/// Everything that a program could have changed in a folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<PathBuf, Entry>);

#[derive(PartialEq, Eq)]
struct Entry {
    mode: u32,
    modified: (i64, i64),
    len: u64,
    content: Option<Vec<u8>>,
}

/// Files beyond this are compared by size and time only.
const CONTENT_MAX: u64 = 16 << 20;

impl Folder {
    /// An empty one that every user may enter.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of `name` in it, as an argument.
    pub(crate) fn at(&self, name: &str) -> String {
        self.path().join(name).to_str().unwrap().to_owned()
    }

    /// A file with this content; its path.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        fs::write(self.path().join(name), content).unwrap();
        self.at(name)
    }

    /// A file of zeroes that takes no space; its path.
    pub(crate) fn sparse(&self, name: &str, bytes: u64) -> String {
        fs::File::create_new(self.path().join(name)).unwrap().set_len(bytes).unwrap();
        self.at(name)
    }

    /// A pipe with a name; its path.
    pub(crate) fn fifo(&self, name: &str) -> String {
        let made = std::process::Command::new("mkfifo").arg(self.path().join(name)).status().unwrap();
        assert!(made.success());
        self.at(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path().join(name)).unwrap()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        Snapshot(entries.map(|path| (path.clone(), Entry::of(&path))).collect())
    }
}

impl Entry {
    fn of(path: &Path) -> Self {
        let metadata = fs::symlink_metadata(path).unwrap();
        let readable = metadata.is_file() && metadata.len() <= CONTENT_MAX;
        Self {
            mode: metadata.mode(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            len: metadata.len(),
            content: readable.then(|| fs::read(path).unwrap()),
        }
    }
}

/// Without the content, which would fill the screen.
impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mode {:o}, modified {:?}, {} bytes", self.mode, self.modified, self.len)
    }
}
