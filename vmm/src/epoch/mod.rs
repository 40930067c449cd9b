//! Epochs: what changed in a machine since the last time, found exactly.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`pages`] | sets of guest pages, and runs of them |

pub mod pages;

pub use pages::{ChunkPages, PageRun, PageSet};

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Pages of a chunk.
pub const CHUNK_PAGES: u64 = 512;
