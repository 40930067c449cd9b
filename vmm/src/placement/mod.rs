//! Memory and threads where they were promised: what was asked is held against the host before anything is made, then applied before
//! the first touch, then looked up page by page.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `check` | what the host can honour, a pure function of its nodes and pools |
//! | `apply` | policy, advice, prefault and lock on a mapping |
//! | `verify` | bound memory against its nodes, before anything runs in it |
//! | `residency` | the node and the kind of every page that is there |
//! | `auto` | CPUs for threads that shall have some, a pure function of the host's cores |
//! | `threads` | CPUs and priorities of husk's threads |
//! | `report` | asked against is, for `GET /husk/v1/placement` |
//! | `watch` | the thread that looks again, and tells of drift |

mod apply;
mod auto;
mod check;
mod report;
mod residency;
mod threads;
mod verify;
mod watch;

pub use apply::ApplyError;
pub(crate) use apply::{advise, lock, prefault};
pub(crate) use auto::choose as choose_cpus;
#[cfg(test)]
pub(crate) use auto::choose_on as choose_cpus_on;
pub use check::{PlacementError, Settled, Shortage};
pub(crate) use check::{group_bytes, settle, settle_before_mapping};
pub use report::{MemoryReport, PlacementReport, PlacementSource};
pub(crate) use threads::{
    HostCpus, PlacedThread, SettledThreads, Thread, leave_inherited_place, named as thread_named,
    place as place_threads, set_affinity, settle as settle_threads,
};
pub use threads::{ThreadError, ThreadReport};
pub use verify::Elsewhere;
pub(crate) use verify::verify;
pub(crate) use watch::{EVERY as WATCH_EVERY, Watch};
