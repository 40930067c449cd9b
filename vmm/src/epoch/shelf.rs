//! Points as they lie in folders: found, measured, dropped.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::folder::{self, FileError, Folder};
use super::{Point, PointFiles, PointId, index, state_file};

/// Bytes of a block, the unit in which a file's room is counted (man 2 stat).
const BLOCK_BYTES: u64 = 512;

/// One layer of a point, as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerFacts {
    /// The point whose layer it is.
    pub id: PointId,
    /// Pages that it holds; `None` without an index.
    pub pages: Option<u64>,
    /// Bytes that its memory file takes on disk.
    pub disk_bytes: u64,
}

/// Why a point is not dropped.
#[derive(Debug, Error)]
pub enum DropError {
    /// A step on a file that the host refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something else is in the folder.
    #[error("{} is not a point's folder: it has `{}`", path.display(), name.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        name: OsString,
    },
    /// Nothing of a point is in the folder.
    #[error("{} is not a point's folder: it has no state file of husk's", path.display())]
    NoPoint {
        /// The folder.
        path: PathBuf,
    },
}

/// The points in `folder`: the one whose folder it is, or those whose folders are in it, by name.
///
/// # Errors
/// The folder cannot be read.
pub fn points_in(folder: &Path) -> Result<Vec<PointFiles>, FileError> {
    let opened = Folder::open(folder)?;
    let has_state = |folder: &Folder| folder.read(OsStr::new("state")).is_ok();
    if has_state(&opened) {
        return Ok(vec![PointFiles::in_folder(folder)]);
    }
    let mut names = opened.names()?;
    names.sort();
    let points = names.into_iter().filter(|name| opened.folder(name).is_ok_and(|inside| has_state(&inside)));
    Ok(points.map(|name| PointFiles::in_folder(&folder.join(name))).collect())
}

/// Removes the folder of one point, whose files others may hold links to: theirs stay. Returns the bytes that this gave back.
///
/// # Errors
/// What is in the folder is not a point's, which is found before anything is removed; the host refuses.
pub fn drop_point(folder: &Path) -> Result<u64, DropError> {
    let (around, name) = Folder::around(folder)?;
    let inside = around.folder(&name)?;
    let layers = inside.folder_if_there(OsStr::new("memory.layers"))?;
    let mut names = inside.names()?;
    let is_layers = |name: &OsString| name == "memory.layers";
    let foreign = |name: OsString| DropError::Foreign { path: folder.to_owned(), name };
    if let Some(name) = names.iter().find(|name| !(is_points(name) || is_layers(name) && layers.is_some())) {
        return Err(foreign(name.clone()));
    }
    let linked = layers.as_ref().map_or(Ok(Vec::new()), Folder::names)?;
    if let Some(name) = linked.iter().find(|name| !is_layer(name)) {
        return Err(foreign(Path::new("memory.layers").join(name).into()));
    }
    if !names.iter().any(|name| is_certain(&inside, name)) {
        return Err(DropError::NoPoint { path: folder.to_owned() });
    }
    // The state file first: whatever stops this, what is left is no point, and can be dropped again.
    names.retain(|name| !is_layers(name));
    names.sort_by_key(|name| (name == "memory.idx", name != "state"));
    let mut freed = 0;
    let mut remove = |folder: &Folder, name: &OsString| {
        let file = folder.read_if_there(name).ok().flatten().and_then(|file| file.metadata().ok());
        let last = file.filter(|file| file.nlink() == 1).map_or(0, |file| file.blocks() * BLOCK_BYTES);
        folder.remove(name).map(|()| freed += last)
    };
    let (index, before) = names.split_last().expect("something in it is certain to be a point's");
    before.iter().try_for_each(|name| remove(&inside, name))?;
    if let Some(layers) = layers {
        linked.iter().try_for_each(|name| remove(&layers, name))?;
        inside.remove_folder(OsStr::new("memory.layers"))?;
    }
    remove(&inside, index)?;
    around.remove_folder(&name)?;
    around.sync()?;
    Ok(freed)
}

impl Point {
    /// Its layers as they lie on disk, its own first.
    ///
    /// # Errors
    /// The host does not say.
    pub fn layer_facts(&self) -> Result<Vec<LayerFacts>, FileError> {
        let facts = self.layers().iter().map(|layer| {
            let metadata = layer.memory.metadata();
            let metadata = metadata.map_err(|source| FileError { attempt: "read", path: layer.path(), source })?;
            let pages = layer.index.as_ref().map(|(index, _)| index.pages());
            Ok(LayerFacts { id: layer.id, pages, disk_bytes: metadata.blocks() * BLOCK_BYTES })
        });
        facts.collect()
    }
}

/// Whether a file of this name can be in a point's folder.
fn is_points(name: &OsStr) -> bool {
    // The last two are the pager's.
    matches!(name.to_str(), Some("state" | "memory" | "memory.idx" | "memory.ws" | "memory.ws.new"))
        || is_temporary(name)
}

/// Of a writer that died.
fn is_temporary(name: &OsStr) -> bool {
    let name = folder::temporary_of(name).and_then(OsStr::to_str);
    matches!(name, Some("state" | "memory" | "memory.idx"))
}

fn is_layer(name: &OsStr) -> bool {
    let id = name.to_str().map(|name| name.strip_suffix(".idx").unwrap_or(name));
    id.is_some_and(|id| id.parse::<PointId>().is_ok())
}

/// Whether this file is one that nobody but husk makes.
fn is_certain(folder: &Folder, name: &OsStr) -> bool {
    let magic = match name.to_str() {
        Some("state") => state_file::MAGIC,
        Some("memory.idx") => index::MAGIC,
        _ => return is_temporary(name),
    };
    let mut start = [0; 8];
    folder.read(name).is_ok_and(|mut file| file.read_exact(&mut start).is_ok() && start == *magic)
}
