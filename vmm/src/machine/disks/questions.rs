//! What the host is asked before a disk in use changes: apart from the change, since the answer may never come, and whoever
//! changes disks has no time for that.

use std::path::{Path, PathBuf};
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

/// It can: it is open.
#[derive(Debug)]
pub struct OpenedFile {
    pub(super) file: Successor,
    pub(super) path: PathBuf,
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
    /// Waits for the host's answer.
    ///
    /// # Errors
    /// It is no disk, or no disk like the present one.
    pub fn ask(self) -> Result<OpenedFile, DiskChangeError> {
        let Self { id, current, path } = self;
        match current.succeeded_by(&path) {
            Ok(file) => Ok(OpenedFile { file, path }),
            Err(source) => Err(DiskChangeError::Open { id, source }),
        }
    }
}
