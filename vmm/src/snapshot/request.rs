//! What a client asks of snapshots, and what was measured.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use arch::clock::ClockPolicy;

use crate::config::{Pages, Rate, SerialTarget};
use crate::epoch::PointFiles;

/// What a point holds of guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PointKind {
    /// All that the guest touched.
    Full,
    /// What has changed since the machine's last point; with a path, the memory file that this must be. Without a path, and
    /// without such a point, it is a full one.
    Increment(Option<PathBuf>),
}

/// A point to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// Where it goes.
    pub files: PointFiles,
    /// What it holds.
    pub kind: PointKind,
    /// Whether what is written from now on is recorded, so that the next point can be an increment. A machine that tracks
    /// its pages anyway does.
    pub track: bool,
}

/// What the making of a point took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SnapshotFigures {
    /// The point's id.
    pub id: String,
    /// Pages of 4 KiB that were written, over all rounds.
    pub pages: u64,
    /// Times that memory was gone through while the machine ran.
    pub rounds: u32,
    /// How long the machine was held, in microseconds; of one that was paused already, until it could have been resumed.
    pub pause_us: u64,
    /// How long the files took to be durable after that, in microseconds.
    pub sync_us: u64,
    /// From the request to the end, in microseconds.
    pub total_us: u64,
}

/// A machine to be made from a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// The point's state.
    pub state: PathBuf,
    /// Where its memory comes from.
    pub memory: MemorySource,
    /// Whether it runs at once, or is paused.
    pub resume: bool,
    /// Whether what is written is recorded from its start, so that its first point can be an increment.
    pub track_dirty_pages: bool,
    /// What its clocks do.
    pub clock: ClockPolicy,
    /// What is other than when the point was made.
    pub overrides: Overrides,
}

/// Where a restored machine's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemorySource {
    /// The point's memory file.
    File {
        /// Its path.
        path: PathBuf,
        /// How it gets into memory; without, as fast as its kind and its pages let it.
        mode: Option<MemoryMode>,
    },
    /// A page fault handler on a UNIX socket, which gets the descriptor of a userfaultfd (Firecracker's protocol).
    Handler(PathBuf),
}

/// How a memory file gets into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryMode {
    /// It is mapped, privately.
    Map,
    /// Each page is read when the guest wants it, and the rest behind it.
    Lazy,
    /// All of it is read first.
    Copy,
}

/// What a restored machine has that the one in the point had not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Paths of disks, by id.
    pub disks: Vec<(String, PathBuf)>,
    /// Taps of networks, by id.
    pub nets: Vec<(String, String)>,
    /// The pages of its memory.
    pub pages: Option<Pages>,
    /// The other end of its serial port, and what its output is held to.
    pub serial: Option<(SerialTarget, Option<Rate>)>,
    /// Whether a disk that somebody wrote to since is refused, and not only told of.
    pub strict_disks: bool,
}
