//! What this host can do for husk: facts in, verdicts out. It runs on the caller's thread, before or without a machine,
//! and must never change the host: what it makes to see whether it can be made (a VM, a ring, a memfd) is gone again
//! before it returns.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `facts` | plain data, as it goes into JSON |
//! | `tree` | /proc and /sys below a root, so that recorded hosts can be read like this one |
//! | `probe` | what only the running kernel can answer: ioctls and system calls |
//! | `read` | the facts from both |
//! | `topology` | of these, how CPUs and nodes hang together |
//! | `limits` | of these, what husk itself is held to |
//! | `memory` | of these, what a machine's memory is held against, read one by one |
//! | `devices` | of these, the disks and networks asked about |
//! | `measure` | figures, where they are asked for |
//! | `capabilities` | the KVM capabilities that husk stands on or profits from |
//! | `verdicts` | the judgement, a pure function of the facts |

mod capabilities;
mod devices;
mod facts;
mod id_list;
mod limits;
mod measure;
mod memory;
mod probe;
mod read;
mod topology;
mod tree;
mod verdicts;

#[cfg(test)]
pub(crate) mod sketch;
#[cfg(test)]
mod tests;

pub use devices::{Asked, AskedError, DiskFacts, IrqFacts, NetFacts};
pub use facts::{
    Attempt, CgroupV2Facts, CpuFacts, Facts, IoFacts, IsolationFacts, KsmFacts, KvmFacts, MemoryFacts, NodeFacts,
    PoolFacts, SeccompFacts, Virtualization,
};
pub use id_list::{IdList, IdListError};
pub use limits::{HugetlbLimit, IoLimit, Limit, LimitFacts};
pub use measure::{
    DiskFigures, DiskMeasured, Measured, MemoryFigures, MemoryMeasured, Outcome, Quantiles, TimerMeasured,
};
#[cfg(test)]
pub(crate) use memory::KnownMemory;
pub(crate) use memory::{HostMemory, MemoryFiles};
pub use read::Switch;
pub(crate) use read::{allowed_cpus, cpus_and_limits, online_cpus};
pub use verdicts::{Group, Level, Verdict, measured_verdicts, obstacle, verdicts};
