//! A point's memory as it is read: its own layer over those of its ancestors.
//!
//! The state file names the point and the digest of its index, an index names its parent and the digest of the parent's, so
//! a chain is what it was when it was written or it is refused. The ancestors' files are in `M.layers` under their ids.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::folder::{FileError, Folder};
use super::publish::{index_name, layer_name};
use super::state_file::{SamplePage, StateError};
use super::{
    CHUNK_BYTES, CHUNK_PAGES, Digest, Index, IndexError, LAYERS_MAX, PAGE, PAGE_BYTES, PointId, Presence, StateHeader,
    lookup,
};

/// The memory of a point, opened and checked as far as that does not read it.
#[derive(Debug)]
pub struct Point {
    id: PointId,
    memory_bytes: u64,
    index: Digest,
    sample: Vec<SamplePage>,
    /// The point's own first, then its parent's and so on.
    layers: Vec<Layer>,
}

/// Pages that one layer holds, one after the other in the memory and in the layer's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRun {
    /// The first page: where it is in the memory, and in the file.
    pub first: u64,
    /// How many.
    pub pages: u64,
    /// The layer: 0 is the point's own.
    pub layer: usize,
}

/// The memory file of a point and what is in it.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) id: PointId,
    pub(super) memory: File,
    /// None for a plain copy of a full point's memory file.
    pub(super) index: Option<(Index, Digest)>,
    pub(super) folder: Arc<Folder>,
    pub(super) name: OsString,
    pub(super) index_name: OsString,
}

/// What is wrong with a point, or keeps one from coming about.
#[derive(Debug, Error)]
pub enum PointError {
    /// A step on a file that the host refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// A state file.
    #[error("state file {}", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: Box<StateError>,
    },
    /// An index.
    #[error("index {}", path.display())]
    Index {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: IndexError,
    },
    /// No name for a new point.
    #[error("cannot name a new point")]
    Random(#[source] io::Error),
    /// State and memory under one name.
    #[error("the state and the memory cannot both be {}", path.display())]
    SamePath {
        /// Their path.
        path: PathBuf,
    },
    /// A layer that lost a write.
    #[error("a write to the memory file failed before")]
    Unfinished,
    /// A memory file that is shorter or longer than the memory.
    #[error("memory file {} has {found} bytes, the snapshot's memory {want}", path.display())]
    Length {
        /// Which.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The memory's.
        want: u64,
    },
    /// A file of another point.
    #[error("{} is of point {found}, not of {want}", path.display())]
    OtherPoint {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found: PointId,
        /// Whose it should be.
        want: PointId,
    },
    /// A file that says that it is a point's, and does not say which.
    #[error("{} names no point in its attribute user.husk", path.display())]
    Label {
        /// Which.
        path: PathBuf,
    },
    /// An index that is whole, of the right point, and not the one that was written.
    #[error("index {} is not the one that belongs to point {id}", path.display())]
    OtherIndex {
        /// Which.
        path: PathBuf,
        /// The point.
        id: PointId,
    },
    /// An incremental point without its index.
    #[error("index {} is missing, and point {id} is based on another: only a full one is known without", path.display())]
    NoIndex {
        /// Where it should be.
        path: PathBuf,
        /// The point.
        id: PointId,
    },
    /// An ancestor that is not in `M.layers`.
    #[error("the memory of point {id}, on which this one is based, is missing: {} is not there", path.display())]
    NoLayer {
        /// The ancestor.
        id: PointId,
        /// Where it should be.
        path: PathBuf,
    },
    /// A chain that has no end.
    #[error("more than {LAYERS_MAX} points are based on each other: take a full snapshot")]
    TooDeep,
    /// A parent of another memory.
    #[error("the parent has {parent} bytes of memory, this machine {machine}")]
    ParentLength {
        /// The parent's length.
        parent: u64,
        /// This machine's.
        machine: u64,
    },
    /// A parent that cannot be linked.
    #[error("the parent {} is on another filesystem: an incremental snapshot holds links to its parent's files", path.display())]
    OtherFilesystem {
        /// The parent's memory file.
        path: PathBuf,
    },
    /// Pages that are not as they were written.
    #[error("memory file {}: {} at byte {offset} is not what was written", path.display(), what)]
    Damaged {
        /// Which.
        path: PathBuf,
        /// A chunk, or a page of the sample.
        what: &'static str,
        /// Where it starts.
        offset: u64,
    },
    /// Pages that the host does not give.
    #[error("cannot read memory file {}: {} at byte {offset}", path.display(), what)]
    Unread {
        /// Which.
        path: PathBuf,
        /// A chunk, or a page of the sample.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// What the host said.
        source: io::Error,
    },
    /// A plain copy of another point's memory file.
    #[error("memory file {} is not the snapshot's", path.display())]
    OtherMemory {
        /// Which.
        path: PathBuf,
    },
    /// Data where the index has none.
    #[error("memory file {}: there is data at byte {offset}, of which the index does not know", path.display())]
    Stray {
        /// Which.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
}

impl PointError {
    /// Whether the host failed, where no other name or parent would have helped.
    #[must_use]
    pub fn is_the_hosts(&self) -> bool {
        use io::ErrorKind::{
            AlreadyExists, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied,
            ReadOnlyFilesystem,
        };
        match self {
            Self::File(FileError { source, .. }) => !matches!(
                source.kind(),
                AlreadyExists
                    | InvalidFilename
                    | InvalidInput
                    | IsADirectory
                    | NotADirectory
                    | NotFound
                    | PermissionDenied
                    | ReadOnlyFilesystem
            ),
            Self::Random(_) | Self::Unfinished | Self::Unread { .. } => true,
            _ => false,
        }
    }

    pub(super) const fn read(path: PathBuf, source: io::Error) -> Self {
        Self::File(FileError { attempt: "read", path, source })
    }
}

impl Point {
    /// Opens the memory file at `memory` and what it is based on, for the point of `header`.
    ///
    /// # Errors
    /// A file that is missing, of another length or point, damaged, or no plain file.
    pub fn open(memory: &Path, header: &StateHeader) -> Result<Self, PointError> {
        let layers = lookup::layers(memory, header)?;
        let StateHeader { id, memory_bytes, index, sample, .. } = header;
        Ok(Self { id: *id, memory_bytes: *memory_bytes, index: *index, sample: sample.clone(), layers })
    }

    /// The point.
    pub const fn id(&self) -> PointId {
        self.id
    }

    /// Bytes of memory.
    pub const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The points whose layers these are, its own first.
    pub fn layer_ids(&self) -> impl Iterator<Item = PointId> {
        self.layers.iter().map(|layer| layer.id)
    }

    /// Where its own memory file is, for people.
    pub fn path(&self) -> PathBuf {
        self.layers[0].path()
    }

    /// The memory file of a layer.
    pub fn layer_file(&self, layer: usize) -> &File {
        &self.layers[layer].memory
    }

    /// How many pages its own layer holds; `None` without an index.
    pub fn own_pages(&self) -> Option<u64> {
        self.layers.first().and_then(|own| own.index.as_ref()).map(|(index, _)| index.pages())
    }

    /// Whether it has an index: a plain copy of a memory file has none, and is known by its length and sample alone.
    pub fn has_index(&self) -> bool {
        self.layers[0].index.is_some()
    }

    /// The memory that is not zeroes, as runs of pages of one layer, ascending. Without an index it is all one run.
    pub fn runs(&self) -> impl Iterator<Item = LayerRun> {
        let whole = LayerRun { first: 0, pages: self.memory_bytes / PAGE_BYTES, layer: 0 };
        let plain = (!self.has_index()).then_some(whole);
        plain.into_iter().chain(merge(self.chunks().flat_map(|chunk| self.chunk_runs(chunk))))
    }

    /// How many [`Point::runs`] there are.
    pub fn run_count(&self) -> u64 {
        self.runs().fold(0, |count, _| count + 1)
    }

    /// The chunks of which a layer holds pages, ascending.
    pub fn chunks(&self) -> impl Iterator<Item = u64> {
        let mut at = vec![0; self.layers.len()];
        std::iter::from_fn(move || {
            let heads = self.layers.iter().zip(&at).filter_map(|(layer, &at)| layer.records().get(at));
            let chunk = heads.map(|record| record.chunk).min()?;
            for (layer, at) in self.layers.iter().zip(&mut at) {
                *at += usize::from(layer.records().get(*at).is_some_and(|record| record.chunk == chunk));
            }
            Some(chunk)
        })
    }

    /// Reads a chunk into `bytes`, which has the chunk's length; pages that no layer holds are zeroes. What is read is held
    /// against the hashes. True if any page is there.
    ///
    /// # Errors
    /// A file that cannot be read, or is not as it was written; a point without an index, whose chunks have no hash.
    pub fn read_chunk(&self, chunk: u64, bytes: &mut [u8], scratch: &mut Vec<u8>) -> Result<bool, PointError> {
        assert_eq!(bytes.len() as u64, self.chunk_bytes(chunk), "the chunk's length");
        if !self.has_index() {
            let Layer { folder, index_name, id, .. } = &self.layers[0];
            return Err(PointError::NoIndex { path: folder.at(index_name), id: *id });
        }
        bytes.fill(0);
        let mut claimed = Presence::NONE;
        for layer in &self.layers {
            let Some(record) = layer.index.as_ref().and_then(|(index, _)| index.record(chunk)) else { continue };
            let mine = record.present.without(&claimed);
            if mine.is_empty() {
                continue;
            }
            layer.read_record(record, scratch)?;
            let mut from = 0;
            for (first, pages) in record.present.runs() {
                for page in first..first + pages {
                    if mine.contains(page) {
                        page_of(bytes, page).copy_from_slice(&scratch[from..from + PAGE]);
                    }
                    from += PAGE;
                }
            }
            claimed = claimed.union(&mine);
        }
        Ok(!claimed.is_empty())
    }

    /// The pages of a chunk that any layer holds.
    pub fn presence(&self, chunk: u64) -> Presence {
        let records = self.layers.iter().filter_map(|layer| layer.index.as_ref()?.0.record(chunk));
        records.fold(Presence::NONE, |present, record| present.union(&record.present))
    }

    /// As [`Point::read_chunk`], of a full point without an index: there is nothing to hold what is read against.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_unchecked(&self, chunk: u64, bytes: &mut [u8]) -> Result<(), PointError> {
        let layer = &self.layers[0];
        let offset = chunk * CHUNK_BYTES;
        layer.memory.read_exact_at(bytes, offset).map_err(layer.unread(CHUNK, offset))
    }

    /// Bytes of a chunk: fewer than [`CHUNK_BYTES`] where the memory ends in it.
    pub fn chunk_bytes(&self, chunk: u64) -> u64 {
        self.memory_bytes.saturating_sub(chunk.saturating_mul(CHUNK_BYTES)).min(CHUNK_BYTES)
    }

    /// Holds the pages of the sample against what the files have: what [`Point::open`] did not, and reads no more than that.
    ///
    /// # Errors
    /// A file that cannot be read, or is of another memory.
    pub fn check_sample(&self) -> Result<(), PointError> {
        let mut bytes = [0; PAGE];
        for SamplePage { page, digest } in &self.sample {
            let (chunk, within) = (page / CHUNK_PAGES, page % CHUNK_PAGES);
            let holder = |layer: &&Layer| match &layer.index {
                Some((index, _)) => index.record(chunk).is_some_and(|record| record.present.contains(within)),
                None => true,
            };
            let layer = self.layers.iter().find(holder).unwrap_or(&self.layers[0]);
            let offset = page * PAGE_BYTES;
            let what = "the page";
            layer.memory.read_exact_at(&mut bytes, offset).map_err(layer.unread(what, offset))?;
            if Digest::of(&bytes) != *digest {
                return Err(PointError::Damaged { path: layer.path(), what, offset });
            }
        }
        Ok(())
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(super) fn sample(&self) -> &[SamplePage] {
        &self.sample
    }

    pub(super) const fn index_digest(&self) -> Digest {
        self.index
    }

    /// Whether a point of a machine of `memory_bytes` bytes can be based on it.
    pub(super) fn check_child(&self, memory_bytes: u64) -> Result<(), PointError> {
        if self.memory_bytes != memory_bytes {
            return Err(PointError::ParentLength { parent: self.memory_bytes, machine: memory_bytes });
        }
        if self.layers.len() >= LAYERS_MAX {
            return Err(PointError::TooDeep);
        }
        Ok(())
    }

    /// The files of all layers that are there: where they are, and their names in `M.layers`.
    pub(super) fn layer_links(&self) -> impl Iterator<Item = (&Folder, &OsStr, OsString)> {
        self.layers.iter().flat_map(|Layer { folder, name, index_name: index_at, id, index, .. }| {
            let folder: &Folder = folder;
            let index = index.is_some().then(|| (folder, index_at.as_os_str(), index_name(*id)));
            index.into_iter().chain([(folder, name.as_os_str(), layer_name(*id))])
        })
    }

    /// The runs of a chunk, ascending.
    fn chunk_runs(&self, chunk: u64) -> Vec<LayerRun> {
        let mut claimed = Presence::NONE;
        let mut runs = Vec::new();
        for (layer, own) in self.layers.iter().enumerate() {
            let Some(record) = own.index.as_ref().and_then(|(index, _)| index.record(chunk)) else { continue };
            let mine = record.present.without(&claimed);
            claimed = claimed.union(&mine);
            let run = |(first, pages)| LayerRun { first: chunk * CHUNK_PAGES + first, pages, layer };
            runs.extend(mine.runs().map(run));
        }
        runs.sort_unstable_by_key(|run| run.first);
        runs
    }
}

impl Layer {
    pub(super) fn path(&self) -> PathBuf {
        self.folder.at(&self.name)
    }

    fn records(&self) -> &[super::index::ChunkRecord] {
        self.index.as_ref().map_or(&[], |(index, _)| index.records())
    }

    /// Reads the pages of a record into `scratch`, one after the other, and holds them against its hash.
    pub(super) fn read_record(
        &self,
        record: &super::index::ChunkRecord,
        scratch: &mut Vec<u8>,
    ) -> Result<(), PointError> {
        let offset = record.chunk * CHUNK_BYTES;
        let read = read_present(&self.memory, record.chunk, &record.present, scratch);
        let pages = read.map_err(self.unread(CHUNK, offset))?;
        if Digest::of(pages) == record.digest {
            return Ok(());
        }
        Err(PointError::Damaged { path: self.path(), what: CHUNK, offset })
    }

    fn unread(&self, what: &'static str, offset: u64) -> impl FnOnce(io::Error) -> PointError {
        move |source| {
            let source = match source.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::new(source.kind(), "the file ends before its memory does"),
                _ => source,
            };
            PointError::Unread { path: self.path(), what, offset, source }
        }
    }
}

const CHUNK: &str = "the chunk";

/// Reads pages of a chunk into `scratch`, one after the other.
pub(super) fn read_present<'a>(
    file: &File,
    chunk: u64,
    present: &Presence,
    scratch: &'a mut Vec<u8>,
) -> io::Result<&'a [u8]> {
    let bytes = |pages: u64| usize::try_from(pages * PAGE_BYTES).expect("no more than a chunk");
    scratch.resize(bytes(CHUNK_PAGES), 0);
    let mut end = 0;
    for (first, pages) in present.runs() {
        let piece = &mut scratch[end..end + bytes(pages)];
        file.read_exact_at(piece, chunk * CHUNK_BYTES + first * PAGE_BYTES)?;
        end += piece.len();
    }
    Ok(&scratch[..end])
}

fn page_of(chunk: &mut [u8], page: u64) -> &mut [u8] {
    let at = usize::try_from(page * PAGE_BYTES).expect("inside the chunk");
    &mut chunk[at..at + PAGE]
}

/// Runs that meet, in the same layer, as one.
fn merge(runs: impl Iterator<Item = LayerRun>) -> impl Iterator<Item = LayerRun> {
    let mut runs = runs.peekable();
    std::iter::from_fn(move || {
        let mut run = runs.next()?;
        while let Some(next) = runs.next_if(|next| next.layer == run.layer && next.first == run.first + run.pages) {
            run.pages += next.pages;
        }
        Some(run)
    })
}
