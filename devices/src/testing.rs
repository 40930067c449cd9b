//! A guest without a guest: a driver that talks to a device through its registers and rings, as a kernel's would, and
//! can break every rule that a hostile one would.
//!
//! Whatever it waits for, it waits for with a deadline, and panics when that passes.

mod driver;
pub mod hostile;
mod namespace;
mod recorder;
mod ring;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::GuestMemory;
use vm_memory::GuestAddress;

pub use driver::FakeDriver;
pub use namespace::{in_network_namespace, ip};
pub use recorder::{Event, Record, Recorder};
pub use ring::{Buffer, Descriptor, DriverRing, Used};
pub use watch::WriteWatch;

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

/// Waits until `holds` does.
///
/// # Panics
/// If it does not in time.
#[track_caller]
pub fn wait_until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "it does not come to pass in time");
        std::thread::yield_now();
    }
}

/// Waits until the thread of this process called `name` sleeps and nothing wakes it.
///
/// # Panics
/// If it goes on waking up, or if there is none.
pub fn wait_asleep(name: &str) {
    // Long beside any work that is left, short beside the deadline.
    const QUIET: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let before = sleeps_of(name);
        std::thread::sleep(QUIET);
        // A thread that waits for a CPU has not gone to sleep either: its state tells.
        if before.is_some() && sleeps_of(name) == before {
            return;
        }
        assert!(Instant::now() < deadline, "{name} does not stay asleep");
    }
}

/// How often the thread of this process called `name` has gone to sleep, if it sleeps.
fn sleeps_of(name: &str) -> Option<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("a process has threads");
    let mut found = tasks.filter_map(|task| {
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let field = |key| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        (field("Name:") == Some(name)).then(|| {
            let sleeps = field("voluntary_ctxt_switches:").expect("a thread has been counted");
            let sleeps = sleeps.parse().expect("it is a number");
            field("State:").is_some_and(|state| state.starts_with('S')).then_some(sleeps)
        })
    });
    found.next().unwrap_or_else(|| panic!("there is no thread {name}"))
}
