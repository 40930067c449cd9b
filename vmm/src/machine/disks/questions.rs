//! What the host is asked before a disk in use changes: apart from the change, since the answer may never come, and whoever
//! changes disks has no time for that.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::backend::block::{BlockSize, DiskImage, DiskOptions};
use devices::virtio::blk::ResizeError;

use super::super::devices::DiskChangeError;

/// How large is what a disk has?
#[derive(Debug)]
pub struct SizeQuestion {
    pub(super) id: String,
    pub(super) image: Arc<DiskImage>,
    /// For messages.
    pub(super) path: PathBuf,
}

/// So large it is.
#[derive(Debug)]
pub struct BackingSize {
    pub(super) image: Arc<DiskImage>,
    pub(super) sectors: u64,
}

/// Can a disk have what is at `path`?
#[derive(Debug)]
pub struct FileQuestion {
    pub(super) id: String,
    pub(super) current: Arc<DiskImage>,
    pub(super) path: PathBuf,
}

/// It can: it is open, and locked.
#[derive(Debug)]
pub struct OpenedFile {
    pub(super) image: DiskImage,
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
    /// The host does not say.
    pub fn ask(self) -> Result<BackingSize, DiskChangeError> {
        let Self { id, image, .. } = self;
        match image.current_sectors() {
            Ok(sectors) => Ok(BackingSize { image, sectors }),
            Err(source) => Err(DiskChangeError::Resize { id, source: ResizeError::Host(source) }),
        }
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
        let geometry = current.geometry();
        let options = DiskOptions {
            cache: geometry.cache,
            block: BlockSize::of_bytes(geometry.logical_block_bytes),
            ..DiskOptions::default()
        };
        match DiskImage::open_in_place_of(&current, &path, geometry.access, options) {
            Ok(image) => Ok(OpenedFile { image, path }),
            Err(source) => Err(DiskChangeError::Open { id, source }),
        }
    }
}
