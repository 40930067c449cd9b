//! What the host is asked before a disk in use changes: apart from the change, since the answer may never come, and whoever
//! changes disks has no time for that.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};

use devices::backend::block::{DiskImage, Predecessor, Successor};
use devices::virtio::blk::ResizeError;

use super::super::devices::DiskChangeError;

/// How large is what a disk has?
#[derive(Debug)]
pub struct SizeQuestion {
    pub(super) id: String,
    pub(super) image: Weak<DiskImage>,
    /// For messages.
    pub(super) path: PathBuf,
}

/// So large it is.
#[derive(Debug)]
pub struct BackingSize {
    image: Weak<DiskImage>,
    pub(super) sectors: u64,
}

/// Can a disk have what is at `path`?
#[derive(Debug)]
pub struct FileQuestion {
    pub(super) id: String,
    pub(super) current: Predecessor,
    pub(super) path: PathBuf,
}

/// It can: it is open. Who drops it does not close it: the thread that opened it does, which may be left to that.
#[derive(Debug)]
pub struct OpenedFile {
    pub(super) file: Successor,
    pub(super) path: PathBuf,
    /// Takes what came of it and is not wanted. Last, so that nothing is left here when that thread hears of its end.
    pub(super) home: Sender<Arc<DiskImage>>,
}

impl SizeQuestion {
    /// What it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the host's answer.
    ///
    /// # Errors
    /// The host does not say, or the disk has the file no more.
    pub fn ask(self) -> Result<BackingSize, DiskChangeError> {
        let Self { id, image, .. } = self;
        let sectors = image.upgrade().map(|image| image.current_sectors());
        match sectors.ok_or_else(|| DiskChangeError::Replaced(id.clone()))? {
            Ok(sectors) => Ok(BackingSize { image, sectors }),
            Err(source) => Err(DiskChangeError::Resize { id, source: ResizeError::Host(source) }),
        }
    }
}

impl BackingSize {
    /// Whether it is that of `image`.
    pub(super) fn is_of(&self, image: &Arc<DiskImage>) -> bool {
        self.image.as_ptr() == Arc::as_ptr(image)
    }
}

impl OpenedFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl FileQuestion {
    /// Waits for the host's answer, tells it, and closes what is not wanted of it.
    pub fn ask(self, tell: impl FnOnce(Result<OpenedFile, DiskChangeError>)) {
        let Self { id, current, path } = self;
        let file = match current.succeeded_by(&path) {
            Ok(file) => file,
            Err(source) => return tell(Err(DiskChangeError::Open { id, source })),
        };
        let (home, unwanted) = channel();
        tell(Ok(OpenedFile { file: file.clone(), path, home }));
        unwanted.into_iter().for_each(drop);
        drop(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::backend::block::{DiskAccess, DiskOptions};

    #[test]
    fn a_file_that_is_not_wanted_is_closed_by_the_thread_that_opened_it() {
        let folder = tempfile::tempdir().unwrap();
        let [own, other] = ["own", "other"].map(|name| folder.path().join(name));
        for path in [&own, &other] {
            std::fs::write(path, [0; 512]).unwrap();
        }
        let open = |path: &Path| DiskImage::open(path, DiskAccess::ReadWrite, DiskOptions::default());
        let image = Arc::new(open(&own).unwrap());
        let question = FileQuestion { id: "disk0".to_owned(), current: Predecessor::of(&image), path: other.clone() };
        let (give, given) = channel();
        let (go_on, goes_on) = channel::<()>();
        let thread = std::thread::spawn(move || {
            question.ask(|opened| {
                give.send(opened).unwrap();
                goes_on.recv().unwrap();
            });
        });
        drop(given.recv().unwrap().unwrap());
        assert!(open(&other).is_err(), "it is open and locked");
        go_on.send(()).unwrap();
        thread.join().unwrap();
        assert!(open(&other).is_ok());
    }
}
