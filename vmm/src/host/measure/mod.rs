//! What a host does, beside what it says: memory by pair of nodes, timers by CPU, disks asked about. Each figure takes a
//! bounded time on threads of its own, which end with it; disks are read and never written.

mod disk;
mod memory;
mod timer;

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::facts::Facts;
use super::id_list::IdList;

/// How long one figure is taken.
const FIGURE_TIME: Duration = Duration::from_millis(200);

/// All figures. The field names are those of `husk host --measure --json` and stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// For each node with CPUs, each node with memory.
    pub memory: Vec<MemoryMeasured>,
    /// For each CPU that husk may use.
    pub timers: Vec<TimerMeasured>,
    /// For each disk asked about.
    pub disks: Vec<DiskMeasured>,
}

/// A node's memory from a node's CPUs, one of them at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryMeasured {
    /// Whose CPU.
    pub cpu_node: u16,
    /// Whose memory.
    pub memory_node: u16,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome<MemoryFigures>,
}

/// A CPU's timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimerMeasured {
    /// The CPU.
    pub cpu: u16,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome<Quantiles>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskMeasured {
    /// As it was asked about.
    pub path: PathBuf,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome<DiskFigures>,
}

/// A figure, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Outcome<T> {
    /// It was taken.
    Taken(T),
    /// It could not be.
    Failed {
        /// What the host said.
        error: String,
    },
}

/// Memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryFigures {
    /// Read in a row, in MiB a second.
    pub read_mib_s: u64,
    /// One dependent read at a random place, a TLB miss included, in nanoseconds.
    pub latency_ns: u64,
}

/// How a time is distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// Half are below, in microseconds.
    pub p50_us: u64,
    /// All but one in a hundred are.
    pub p99_us: u64,
    /// All are.
    pub max_us: u64,
}

/// Reads of 4 KiB at random places, past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiskFigures {
    /// One at a time.
    #[serde(flatten)]
    pub latency: Quantiles,
    /// Many at a time, a second.
    pub reads_s: u64,
}

impl Measured {
    /// Takes all figures of the running host, whose facts are `facts`. Memory takes half a second by pair of nodes,
    /// timers a second in all, each disk about a second.
    #[must_use]
    pub fn take(facts: &Facts) -> Self {
        let online = facts.cpu.online.clone().unwrap_or_default();
        let cpus = facts.limits.cpuset_cpus.as_ref().map_or_else(|| online.clone(), |cpus| cpus.and(&online));
        let disks = facts.io.disks.iter().map(|disk| {
            let outcome = Outcome::of(disk::measure(&disk.path));
            DiskMeasured { path: disk.path.clone(), outcome }
        });
        Self { memory: memory::measure(&facts.cpu.nodes, &cpus), timers: timer::measure(&cpus), disks: disks.collect() }
    }
}

impl<T> Outcome<T> {
    fn of(result: io::Result<T>) -> Self {
        match result {
            Ok(figures) => Self::Taken(figures),
            Err(error) => Self::Failed { error: error.to_string() },
        }
    }
}

impl Quantiles {
    /// Of some times; `None` of none.
    fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().checked_sub(1)?);
            u64::try_from(times[index].as_micros()).ok()
        };
        Some(Self { p50_us: at(50)?, p99_us: at(99)?, max_us: at(100)? })
    }
}

/// Runs `work` on a thread of its own on one of `cpus`, so that whatever it sets of its thread ends with it.
fn on_cpus<T: Send>(cpus: &IdList, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    const SELF: libc::pid_t = 0;
    let pinned = || crate::placement::set_affinity(SELF, cpus).and_then(|()| work());
    thread::scope(|scope| scope.spawn(pinned).join().expect("a measurement does not panic"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Asked;

    #[test]
    fn quantiles_are_those_of_the_times() {
        let times = (1..=1000).rev().map(Duration::from_micros).collect();
        assert_eq!(Quantiles::of(times), Some(Quantiles { p50_us: 501, p99_us: 991, max_us: 1000 }));
        assert_eq!(Quantiles::of(Vec::new()), None);
    }

    #[test]
    fn this_host_has_a_figure_for_each_pair_of_nodes_each_cpu_and_each_disk() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let (disk, empty) = (folder.path().join("disk"), folder.path().join("empty"));
        std::fs::write(&disk, vec![1; 1 << 20]).unwrap();
        std::fs::write(&empty, "").unwrap();
        let asked = Asked { disks: vec![disk.clone(), empty.clone()], nets: Vec::new() };
        let facts = Facts::read(&asked).unwrap();
        let measured = Measured::take(&facts);
        let nodes = facts.cpu.nodes.len();
        assert_eq!(measured.memory.len(), nodes * nodes);
        assert!((1..=facts.cpu.online.unwrap().len()).contains(&measured.timers.len()));
        for memory in &measured.memory {
            let Outcome::Taken(figures) = &memory.outcome else { panic!("{memory:?}") };
            assert!(figures.read_mib_s > 0 && figures.latency_ns > 0, "{figures:?}");
        }
        for timer in &measured.timers {
            let Outcome::Taken(Quantiles { p50_us, p99_us, max_us }) = timer.outcome else { panic!("{timer:?}") };
            assert!(p50_us <= p99_us && p99_us <= max_us);
        }
        let Outcome::Taken(figures) = &measured.disks[0].outcome else { panic!("{measured:?}") };
        assert!(figures.reads_s > 0);
        assert_eq!(std::fs::read(&disk).unwrap(), vec![1; 1 << 20], "a disk is only read");
        let Outcome::Failed { error } = &measured.disks[1].outcome else { panic!("{measured:?}") };
        assert_eq!(error, "it is smaller than the 4096 bytes of one read");
    }
}
