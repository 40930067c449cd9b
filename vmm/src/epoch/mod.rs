//! Epochs: what changed in a machine since the last time, found exactly, and snapshots as files. A **point** is one
//! snapshot: a state file, and a layer of guest memory on top of those of its parents.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`pages`] | sets of guest pages, and runs of them |
//! | [`harvest`] | which pages were written, by whomever: KVM's log and husk's own bitmap |
//! | `barrier` | a memory barrier in all threads of the process |
//! | `residency` | which pages hold anything, found without reading them |
//! | [`id`] | what names a point, and what names bytes |
//! | [`section`] | one part of the machine's saved state, and all of them |
//! | [`state_file`] | the state file: header, table, sections, all under checksums |
//! | [`index`] | `M.idx`: which pages a memory file holds, and their hashes |
//! | [`layer`] | a point's memory on its way to a file |
//! | [`publish`] | how a point's files take their names: old or new at any crash |
//! | [`point`] | a point's memory as it is read: its own layer over its parents' |
//! | `lookup` | how the files of a point are found |
//! | `verify` | a point read whole |
//! | [`shelf`] | points in folders: found, measured, dropped |
//! | `file_order` | guest memory as the memory file has it |
//! | [`folder`] | files by name in a folder held open, never through a link |
//!
//! Guest memory is one run of bytes here, the regions of `GuestMemory` back to back in address order; a page is 4 KiB of
//! it, a chunk 2 MiB. Every byte that is read was written by a stranger until its checksum says otherwise, and no
//! length is believed before it is held against the file's own.

mod barrier;
pub(crate) mod file_order;
pub mod folder;
pub mod harvest;
pub mod id;
pub mod index;
pub mod layer;
mod lookup;
pub mod pages;
pub mod point;
pub mod publish;
mod residency;
pub mod section;
pub mod shelf;
pub mod state_file;
mod verify;

#[cfg(test)]
#[allow(unfulfilled_lint_expectations, reason = "a unit test may unwrap, those that this is shared with may not")]
#[path = "../../../tests/common/pool.rs"]
pub(crate) mod pool;
#[cfg(test)]
mod tests;

pub use folder::FileError;
pub use harvest::{DirtyLog, DirtyLogError};
pub use id::{Digest, PointId};
pub use index::{Index, IndexError, Presence};
pub use layer::{FinishedLayer, LayerWriter, Pen};
pub use pages::{ChunkPages, PageRun, PageSet};
pub use point::{LayerRun, Point, PointError};
pub use publish::{Described, PointFiles};
pub(crate) use residency::huge;
pub use residency::{ResidencyError, touched};
pub use section::{Encoded, Section, SectionError, SectionHead, SectionKind, Sections};
pub use state_file::{StateError, StateFile, StateHeader};

/// Bytes of a page, the unit that is present in a layer or not.
pub const PAGE_BYTES: u64 = PAGE as u64;
/// Bytes of a chunk, the unit that is hashed.
pub const CHUNK_BYTES: u64 = CHUNK_PAGES * PAGE_BYTES;
/// Pages of a chunk.
pub const CHUNK_PAGES: u64 = 512;
/// Bytes of guest memory that a point can hold: what 52 bits of physical address reach.
pub const MEMORY_BYTES_MAX: u64 = 1 << 52;
/// Layers of a point: each is an open file of the process that restores it.
pub const LAYERS_MAX: usize = 256;
/// [`PAGE_BYTES`], of memory here.
const PAGE: usize = 4096;
