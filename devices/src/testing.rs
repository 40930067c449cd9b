//! A guest without a guest: a driver that talks to a device through its registers and rings, as a kernel's would, and
//! can break every rule that a hostile one would.
//!
//! Whatever it waits for, it waits for with a deadline, and panics when that passes.

mod driver;
pub mod hostile;
mod namespace;
mod recorder;
mod ring;

use std::sync::Arc;
use std::time::Duration;

use arch::GuestMemory;
use vm_memory::GuestAddress;

pub use driver::FakeDriver;
pub use namespace::{in_network_namespace, ip};
pub use recorder::{Event, Record, Recorder};
pub use ring::{Buffer, Descriptor, DriverRing, Used};

/// How long a test waits for something that must happen.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Guest memory of two regions with a hole between them, both of `region_bytes`.
///
/// # Panics
/// If the host has not that much.
pub fn memory_with_hole(region_bytes: usize) -> Arc<GuestMemory> {
    let upper = GuestAddress(1 << 32);
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), region_bytes), (upper, region_bytes)]);
    Arc::new(memory.expect("the host has memory for a test"))
}

/// How often the thread of this process called `name` has gone to sleep.
///
/// # Panics
/// If there is none.
pub fn sleeps_of(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("a process has threads");
    let mut sleeps = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let comm = std::fs::read_to_string(task.join("comm")).ok()?;
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        (comm.trim_end() == name).then(|| line.trim().parse().expect("it is a number"))
    });
    sleeps.next().unwrap_or_else(|| panic!("there is no thread {name}"))
}
