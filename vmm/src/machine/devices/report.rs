//! What is told of devices: to clients of the control socket, and to metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use devices::virtio::DeviceCounters;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::blk::{DiskControl, DiskOperation, DiskQueueCounters};
use devices::virtio::mem::MemoryDeviceControl;
use devices::virtio::net::{LinkState, NetCounters, NetQueueCounters};
use devices::virtio::transport;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Devices, Disk, Network, VirtioSlot};
use crate::metrics::{ConsoleFigures, DeviceFigures, DiskQueueFigures, FlowFigures, NetQueueFigures};

/// A virtio device, for whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeviceReport {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Its interrupt.
    pub gsi: u32,
    /// The guest-physical address of its registers.
    pub address: u64,
    /// What its driver has come to.
    pub driver: DriverState,
    /// Of a disk: its size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Of a network: whether frames go through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// Of a network: what its frames may say of their source: `off` (anything), `mac` or `mac+ip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<&'static str>,
    /// What its queues have done.
    pub queues: Vec<QueueReport>,
}

/// What a queue of a device has done since the machine was started. The counters that make it are read, and no guest waits
/// for that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct QueueReport {
    /// Its number; a network's two of a pair have the same.
    pub queue: usize,
    /// Of a network: whether frames for the guest are in it or those from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Requests that were answered, or frames that arrived where they should.
    pub requests: u64,
    /// Their bytes of data.
    pub bytes: u64,
    /// Requests that were answered with an error, or what was lost to one.
    pub errors: u64,
    /// Of a network: frames that were dropped, or refused by its filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    /// Of a disk or a network: how long it waited for its limits, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_ms: Option<u64>,
}

/// Which way a network's frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the guest.
    Receive,
    /// From it.
    Transmit,
}

/// Whether a network's frames go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// They do.
    Up,
    /// Its cable is out, or its tap is gone.
    Down,
}

/// What a virtio device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// virtio-blk.
    Disk,
    /// virtio-net.
    Net,
    /// virtio-rng.
    Entropy,
    /// virtio-balloon.
    Balloon,
    /// virtio-mem.
    Memory,
}

/// What a device's driver has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriverState {
    /// No driver has said that it is ready.
    Absent,
    /// It uses the device.
    Ready,
    /// It, or the host, broke the device, which waits for a reset.
    NeedsReset,
    /// It is touching the device's registers just now.
    Busy,
}

/// What a device counts.
#[derive(Debug, Clone)]
pub(super) enum Counters {
    Disk(DiskControl),
    Requests(Arc<DeviceCounters>),
    Pages(BalloonControl),
    Blocks(MemoryDeviceControl),
    Frames(Arc<NetCounters>),
}

impl Devices {
    pub(in crate::machine) fn reports(&self) -> Vec<DeviceReport> {
        self.virtio.iter().map(|slot| self.report(slot)).collect()
    }

    /// What each virtio device has counted.
    pub(in crate::machine) fn figures(&self) -> Vec<DeviceFigures> {
        self.virtio.iter().map(VirtioSlot::figures).collect()
    }

    /// What became of serial output that was not written.
    pub(in crate::machine) fn console_figures(&self) -> ConsoleFigures {
        let counters = self.console.counters();
        ConsoleFigures {
            dropped_bytes: counters.dropped_bytes.load(Ordering::Relaxed),
            limited_bytes: counters.limited_bytes.load(Ordering::Relaxed),
        }
    }

    fn report(&self, slot: &VirtioSlot) -> DeviceReport {
        // A vCPU may hold the lock for as long as its reset of the device takes, and the control loop waits for no vCPU.
        let driver = slot.transport.try_lock().map_or(DriverState::Busy, |mut transport| {
            match transport.core().driver_state() {
                transport::DriverState::Absent => DriverState::Absent,
                transport::DriverState::Ready => DriverState::Ready,
                transport::DriverState::NeedsReset => DriverState::NeedsReset,
            }
        });
        DeviceReport {
            id: slot.id.clone(),
            kind: slot.kind,
            gsi: slot.window.gsi.get(),
            address: slot.window.base.0,
            driver,
            size_bytes: self.disk(&slot.id).ok().map(Disk::size_bytes),
            link: self.net(&slot.id).ok().map(|net| match net.link() {
                LinkState::Up => Link::Up,
                LinkState::Down => Link::Down,
            }),
            filter: self.net(&slot.id).ok().map(Network::filter),
            queues: slot.figures().queue_reports(),
        }
    }
}

impl DeviceFigures {
    /// Of a device that does not count by queue, the one that requests come in.
    fn queue_reports(&self) -> Vec<QueueReport> {
        let ms = |time: Duration| Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let disk = self.queues.iter().enumerate().map(|(queue, figures)| {
            let sum = |of: fn(&(u64, u64)) -> u64| figures.operations.iter().map(of).sum();
            QueueReport {
                queue,
                direction: None,
                requests: sum(|(requests, _)| *requests),
                bytes: sum(|(_, bytes)| *bytes),
                errors: figures.errors,
                dropped: None,
                throttled_ms: ms(figures.throttled),
            }
        });
        let net = self.net_queues.iter().enumerate().flat_map(|(queue, pair)| {
            [Direction::Receive, Direction::Transmit].into_iter().zip(pair).map(move |(direction, figures)| {
                QueueReport {
                    queue,
                    direction: Some(direction),
                    requests: figures.frames,
                    bytes: figures.bytes,
                    errors: figures.errors,
                    dropped: Some(figures.dropped + figures.filtered),
                    throttled_ms: ms(figures.throttled),
                }
            })
        });
        let requests = self.flows.iter().filter(|_| self.kind == DeviceKind::Entropy).map(|flow| QueueReport {
            queue: 0,
            direction: None,
            requests: flow.operations,
            bytes: flow.bytes,
            errors: flow.errors,
            dropped: None,
            throttled_ms: None,
        });
        disk.chain(net).chain(requests).collect()
    }
}

impl VirtioSlot {
    pub(super) fn figures(&self) -> DeviceFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let requests = |counters: &DeviceCounters| FlowFigures {
            direction: "both",
            operations: read(&counters.requests),
            bytes: read(&counters.bytes),
            errors: read(&counters.errors),
            dropped: 0,
            filtered: 0,
        };
        let (mut queues, mut net_queues) = (Vec::new(), Vec::new());
        let (flows, retired) = match &self.counters {
            Counters::Disk(disk) => {
                queues.extend(disk.queue_counters().iter().map(disk_queue));
                (vec![requests(disk.counters())], &disk.counters().retired_queues)
            }
            Counters::Requests(counters) => (vec![requests(counters)], &counters.retired_queues),
            Counters::Pages(balloon) => {
                let counters = balloon.counters();
                let flow = |direction, pages: &AtomicU64, bytes: u64, errors| FlowFigures {
                    direction,
                    operations: read(pages),
                    bytes,
                    errors,
                    dropped: 0,
                    filtered: 0,
                };
                let given = [&counters.discarded_bytes, &counters.reported_bytes, &counters.hinted_bytes];
                let given = given.into_iter().map(read).sum();
                let flows = vec![
                    flow("inflate", &counters.inflated_pages, given, read(&counters.errors)),
                    flow("deflate", &counters.deflated_pages, 0, read(&counters.exhausted)),
                ];
                (flows, &counters.retired_queues)
            }
            Counters::Blocks(memory) => {
                let counters = memory.counters();
                let flow = |direction, operations, bytes: &AtomicU64, errors| FlowFigures {
                    direction,
                    operations,
                    bytes: read(bytes),
                    errors,
                    dropped: 0,
                    filtered: 0,
                };
                let errors = read(&counters.errors) + read(&counters.exhausted);
                let flows = vec![
                    flow("plug", read(&counters.requests), &counters.plugged_bytes, errors),
                    flow("unplug", 0, &counters.unplugged_bytes, 0),
                ];
                (flows, &counters.retired_queues)
            }
            Counters::Frames(counters) => {
                net_queues.extend(counters.pairs.iter().map(|pair| [&pair.received, &pair.transmitted].map(net_queue)));
                let flow = |direction, of_pair: usize| {
                    let sum = |figure: fn(&NetQueueFigures) -> u64| {
                        net_queues.iter().map(|pair: &[NetQueueFigures; 2]| figure(&pair[of_pair])).sum()
                    };
                    FlowFigures {
                        direction,
                        operations: sum(|queue| queue.frames),
                        bytes: sum(|queue| queue.bytes),
                        errors: sum(|queue| queue.errors),
                        dropped: sum(|queue| queue.dropped),
                        filtered: sum(|queue| queue.filtered),
                    }
                };
                (vec![flow("receive", 0), flow("transmit", 1)], &counters.retired_queues)
            }
        };
        let retired_queues = read(retired);
        DeviceFigures { id: self.id.clone(), kind: self.kind, flows, queues, net_queues, retired_queues }
    }
}

fn disk_queue(counters: &DiskQueueCounters) -> DiskQueueFigures {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let operation = |operation| {
        let counters = counters.operation(operation);
        (read(&counters.requests), read(&counters.bytes))
    };
    DiskQueueFigures {
        operations: DiskOperation::ALL.map(|(kind, _)| operation(kind)),
        errors: read(&counters.errors),
        batches: read(&counters.batches),
        throttled: Duration::from_nanos(read(&counters.throttled_ns)),
        latency: counters.latency.read(),
    }
}

fn net_queue(counters: &NetQueueCounters) -> NetQueueFigures {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    NetQueueFigures {
        frames: read(&counters.frames),
        bytes: read(&counters.bytes),
        errors: read(&counters.errors),
        dropped: read(&counters.dropped),
        filtered: read(&counters.filtered),
        batches: read(&counters.batches),
        throttled: Duration::from_nanos(read(&counters.throttled_ns)),
        latency: counters.latency.read(),
    }
}
