//! Used chains that the driver does not see yet, and what is counted of them when it does.

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::counters::{DiskOperation, DiskQueueCounters};
use crate::backend::block::BlockAction;
use crate::virtio::DeviceCounters;

/// The chains of one queue since the driver last saw some.
#[derive(Default)]
pub(super) struct Batch {
    requests: u64,
    bytes: u64,
    /// Those that the backend served, by kind: requests and bytes.
    served: [(u64, u64); DiskOperation::ALL.len()],
    /// When those were noticed.
    noticed: Vec<Instant>,
}

impl Batch {
    /// Of a queue with so many entries.
    pub(super) fn new(entries: usize) -> Self {
        Self { noticed: Vec::with_capacity(entries), ..Self::default() }
    }

    /// How many chains there are.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// A chain was used, and moved so many bytes of the disk.
    pub(super) fn add(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
    }

    /// The backend served a request that was noticed at `since`, and moved so many bytes. [`Self::add`] follows.
    pub(super) fn add_served(&mut self, action: BlockAction, bytes: u64, since: Instant) {
        let (requests, moved) = &mut self.served[DiskOperation::of(action) as usize];
        *requests += 1;
        *moved += bytes;
        self.noticed.push(since);
    }

    /// Adds all of it to the counters of the device and of the queue, and starts anew with the memory that it has. It costs
    /// one look at the clock.
    pub(super) fn count_into(&mut self, device: &DeviceCounters, queue: &DiskQueueCounters) {
        let add = |counter: &AtomicU64, count: u64| {
            if count > 0 {
                DeviceCounters::add(counter, count);
            }
        };
        DeviceCounters::add(&device.requests, self.requests);
        DeviceCounters::add(&device.bytes, self.bytes);
        let mut other = self.requests;
        for (operation, _) in DiskOperation::ALL {
            let (requests, bytes) = std::mem::take(&mut self.served[operation as usize]);
            add(&queue.operation(operation).requests, requests);
            add(&queue.operation(operation).bytes, bytes);
            other -= requests;
        }
        add(&queue.operation(DiskOperation::Other).requests, other);
        add(&queue.batches, 1);
        if !self.noticed.is_empty() {
            let now = Instant::now();
            self.noticed.drain(..).for_each(|since| queue.latency.add(now.duration_since(since)));
        }
        (self.requests, self.bytes) = (0, 0);
    }
}
