//! A file that is to take the place of a disk's while that is in use. To look at it may take for ever, so nothing of the disk's
//! own is held meanwhile: who has that may close it, and with it its lock.

use std::path::Path;
use std::sync::{Arc, Weak};

use super::image::{host, open_file};
use super::{BlockSize, DiskGeometry, DiskImage, DiskImageError, DiskOptions, FileIdentity};

/// What has to be known of a disk's file before another can take its place.
#[derive(Clone, Debug)]
pub struct Predecessor {
    image: Weak<DiskImage>,
    identity: FileIdentity,
    geometry: DiskGeometry,
}

/// A file that can take the place of another, open. It is locked unless it is the same as that. The last of its clones closes
/// it, but for the image that came of it.
#[derive(Clone, Debug)]
pub struct Successor {
    image: Arc<DiskImage>,
    same_as: Option<Weak<DiskImage>>,
}

impl Predecessor {
    /// That of an image, which may be closed meanwhile.
    pub fn of(image: &Arc<DiskImage>) -> Self {
        Self { image: Arc::downgrade(image), identity: image.identity(), geometry: image.geometry() }
    }

    /// Opens what is at `path` for the same access, with the same blocks.
    ///
    /// # Errors
    /// As [`DiskImage::open`].
    pub fn succeeded_by(&self, path: &Path) -> Result<Successor, DiskImageError> {
        let DiskGeometry { access, cache, logical_block_bytes, .. } = self.geometry;
        let block = BlockSize::of_bytes(logical_block_bytes);
        let options = DiskOptions { cache, block, ..DiskOptions::default() };
        let file = open_file(path, access)?;
        let is_same = FileIdentity::of(&file).map_err(host(path, "examine"))? == self.identity;
        let image = if is_same {
            DiskImage::from_unlocked(file, path, access, options)?
        } else {
            DiskImage::from_file(file, path, access, options)?
        };
        Ok(Successor { image: Arc::new(image), same_as: is_same.then(|| self.image.clone()) })
    }
}

impl Successor {
    /// The image that takes the place of `current`, without a question to the host. If it is of the same file, by device and
    /// inode, the open file description of `current` goes on and with it its lock, which is never free in between.
    ///
    /// None if it is of the same file as another image: that one has been replaced since, or its machine has ended.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn succeed(&self, current: &Arc<DiskImage>, path: &Path) -> Result<Option<Arc<DiskImage>>, DiskImageError> {
        match &self.same_as {
            None => Ok(Some(Arc::clone(&self.image))),
            Some(same) if same.as_ptr() == Arc::as_ptr(current) => {
                let again = current.again(self.image.geometry()).map_err(host(path, "open"))?;
                Ok(Some(Arc::new(again)))
            }
            Some(_) => Ok(None),
        }
    }
}
