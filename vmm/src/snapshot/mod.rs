//! Snapshots: the first policy over the epoch engine. What is asked, who makes it, and what becomes a machine again.
//!
//! | module | owns | runs on |
//! | --- | --- | --- |
//! | `request` | what a client asks, and what was measured | |
//! | `report` | what is told of a point that was made, or gone on from | |
//! | `rounds` | when to stop copying beside the guest and close the epoch: a pure decision | |
//! | `maker` | a point's memory and files | `husk-job-snap` |
//! | `source` | where its pages are read from | as the maker |
//! | `restore` | a point that becomes a machine: opened, checked, changed as asked | the control loop |

mod maker;
mod report;
mod request;
mod restore;
mod rounds;
mod source;

pub use crate::epoch::PointFiles;
pub(crate) use maker::{Ground, LastPoint, MadePoint, Maker, Mode, Order};
pub use maker::{MakerEvent, SnapshotError};
pub use report::{PointReport, Relation};
pub use request::{MemoryMode, MemorySource, Overrides, PointKind, RestoreRequest, SnapshotFigures, SnapshotRequest};
pub(crate) use restore::RestoredMemory;
pub use restore::{MAPPED_RUNS_MAX, Restore, RestoreError, Unmapped};
pub(crate) use source::Absent;
pub use source::CopyError;
#[cfg(test)]
pub(crate) use source::{Source, Which};
