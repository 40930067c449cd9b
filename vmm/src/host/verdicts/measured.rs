//! What was measured.

use super::{Group, Line, Verdict};
use crate::host::measure::{DiskFigures, Measured, MemoryFigures, MemoryMeasured, Outcome, Quantiles};

/// A guest's timer that is later than its own period of 1 ms has missed it.
const LATE_US: u64 = 1000;

/// The lines of the figures.
#[must_use]
pub fn measured_verdicts(measured: &Measured) -> Vec<Verdict> {
    let memory = measured.memory.iter().map(memory);
    let timers = measured.timers.iter().map(|timer| {
        let line =
            Line::new(Group::Measured, format!("timer of CPU {}", timer.cpu), "how late a sleeping thread wakes");
        match &timer.outcome {
            Outcome::Taken(late) if late.p99_us >= LATE_US => line
                .degraded(quantiles(late), format!("stop what runs on CPU {}, or boot with isolcpus={0}", timer.cpu)),
            Outcome::Taken(late) => line.ok(quantiles(late)),
            Outcome::Failed { error } => line.info(error),
        }
    });
    let disks = measured.disks.iter().map(|disk| {
        let line = Line::new(Group::Measured, format!("reads of {}", disk.path.display()), "4 KiB at random places");
        match &disk.outcome {
            Outcome::Taken(DiskFigures { latency, reads_s }) => {
                line.info(format!("{}; 16 at once: {reads_s} a second", quantiles(latency)))
            }
            Outcome::Failed { error } => line.info(error),
        }
    });
    memory.chain(timers).chain(disks).collect()
}

fn memory(MemoryMeasured { cpu_node, memory_node, outcome }: &MemoryMeasured) -> Verdict {
    let name = format!("CPUs of node {cpu_node}, memory of {memory_node}");
    let line = Line::new(Group::Measured, name, "one CPU's reads, in a row and at random");
    match outcome {
        Outcome::Taken(MemoryFigures { read_mib_s, latency_ns }) => {
            line.info(format!("{read_mib_s} MiB/s, {latency_ns} ns"))
        }
        Outcome::Failed { error } => line.info(error),
    }
}

fn quantiles(Quantiles { p50_us, p99_us, max_us }: &Quantiles) -> String {
    format!("p50 {p50_us} us, p99 {p99_us} us, max {max_us} us")
}
