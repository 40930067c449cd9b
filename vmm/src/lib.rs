//! The machine and its life. This crate owns the VM file descriptor and every thread of the process.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`config`] | what a VM is; `validate` is the only place where limits live |
//! | [`machine`] | assembly (`build`), guest memory, interrupts, doorbells, the device registry |
//! | [`plan`] | where VMs would fit on a host, a pure function |
//! | [`placement`] | guest memory on the asked pages and nodes: checked, applied, looked up |
//! | [`vcpu`] | the vCPU thread: exit in, entry out; asks answered; kicks that cannot be lost |
//! | [`host`] | what this host can do: facts and verdicts |
//! | [`line_file`] | files that lines are appended to without waiting |
//! | [`metrics`] | what the machine and the process count, and its two forms |
//! | [`memfd`] | files that live in memory |
//! | [`epoch`] | what changed in a machine: harvested, written, read back |
//! | `errand` | what the host is asked on threads of their own, because it may never answer |
//! | `faults` | steps that the host refuses when a test says so |
//! | `random` | random numbers from the host |
//! | `thread` | threads that may be left to the end of the process |
//! | `pager` | guest memory that comes when it is wanted |
//! | [`snapshot`] | points of a machine: made, and made a machine again |
//! | [`control`] | commands, the lifecycle table and the control loop |

pub mod config;
pub mod control;
pub mod epoch;
mod errand;
mod error;
mod faults;
#[cfg(test)]
mod golden;
pub mod host;
pub mod line_file;
pub mod machine;
pub mod memfd;
pub mod metrics;
mod pager;
pub mod placement;
pub mod plan;
mod random;
pub mod snapshot;
mod thread;
mod time;
pub mod vcpu;

pub use error::describe;
