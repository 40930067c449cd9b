//! What the machine and the process count, read by whoever asks, and told in two forms. Counting costs a relaxed add where
//! it happens; the rest is done here, by the reader.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`Snapshot`] | the machine's counts at one moment: plain data |
//! | [`process`] | this process's own: CPU by thread, memory by kind |
//! | [`prometheus()`] | both as Prometheus reads them |
//! | [`FirecrackerFile`] | the machine's as Firecracker writes them, a line of JSON at a time |

mod firecracker;
pub mod process;
mod prometheus;

use std::time::Duration;

use devices::virtio::blk::DiskOperation;

pub use devices::latency::{Latency, LatencyFigures};
pub use firecracker::{FirecrackerFile, MetricsFileError};
pub use process::ProcessFigures;
pub use prometheus::prometheus;

use crate::control::State;
use crate::machine::DeviceKind;
use crate::vcpu::ExitKind;

/// The machine's counts at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Where the machine is in its life.
    pub state: State,
    /// Size of guest memory, in bytes.
    pub memory_bytes: u64,
    /// Its vCPUs, in order.
    pub vcpus: Vec<VcpuFigures>,
    /// Its virtio devices, in order of their interrupts.
    pub devices: Vec<DeviceFigures>,
    /// What became of serial output that was not written.
    pub console: ConsoleFigures,
    /// Threads, and memory as one, that were not where they were asked to be at the last look; `None` if nothing was asked.
    pub placement_drift: Option<u64>,
}

/// Serial output that was not written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConsoleFigures {
    /// Bytes that the console did not take.
    pub dropped_bytes: u64,
    /// Bytes beyond its limit.
    pub limited_bytes: u64,
}

/// What a vCPU has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VcpuFigures {
    /// How often it came back to husk, in the order of [`ExitKind::ALL`].
    pub exits: [u64; ExitKind::ALL.len()],
    /// How long it was in husk for that.
    pub outside: Duration,
}

/// What a device has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFigures {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Requests, or frames, by direction.
    pub flows: Vec<FlowFigures>,
    /// Of a disk: its queues, in order.
    pub queues: Vec<DiskQueueFigures>,
    /// Of a network: its queues by pair, the one that receives first.
    pub net_queues: Vec<[NetQueueFigures; 2]>,
    /// Queues that a driver broke.
    pub retired_queues: u64,
}

/// What went one way through a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowFigures {
    /// `both`, `receive` or `transmit`.
    pub direction: &'static str,
    /// Requests or frames that were completed.
    pub operations: u64,
    /// Their bytes of data.
    pub bytes: u64,
    /// Those that were answered with an error, or lost to one.
    pub errors: u64,
    /// Frames that were dropped.
    pub dropped: u64,
    /// Frames that the source filter refused.
    pub filtered: u64,
}

/// What a queue of a disk has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskQueueFigures {
    /// Requests that were answered and their bytes of data, in the order of [`DiskOperation::ALL`].
    pub operations: [(u64, u64); DiskOperation::ALL.len()],
    /// Those that were answered with an error.
    pub errors: u64,
    /// How often answers were shown to the driver together.
    pub batches: u64,
    /// How long it waited for its limiter.
    pub throttled: Duration,
    /// From the time a request was noticed to the time its answer could be seen.
    pub latency: LatencyFigures,
}

/// What a queue of a network has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetQueueFigures {
    /// Frames that arrived where they should.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was lost to an error.
    pub errors: u64,
    /// Frames that were dropped.
    pub dropped: u64,
    /// Frames that the source filter refused.
    pub filtered: u64,
    /// How often frames were shown to the driver together.
    pub batches: u64,
    /// How long it waited for its limiter.
    pub throttled: Duration,
    /// From the time that a batch was begun to the time that the driver could see it, of each frame.
    pub latency: LatencyFigures,
}

/// How long the requests of a route of the control socket took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteFigures {
    /// Its method.
    pub method: String,
    /// Its path, with its argument's name in braces.
    pub route: &'static str,
    /// From a request's head to its answer's.
    pub latency: LatencyFigures,
}

impl Snapshot {
    /// Of a machine that is not there yet.
    #[must_use]
    pub fn of_no_machine() -> Self {
        Self {
            state: State::NotStarted,
            memory_bytes: 0,
            vcpus: Vec::new(),
            devices: Vec::new(),
            console: ConsoleFigures::default(),
            placement_drift: None,
        }
    }
}
