//! What devices share: I/O threads, and the limiters of groups.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devices::limit::Limiter;
use devices::virtio::worker::{IoThread, IoThreadHandle};

use super::devices::DeviceError;
use crate::config::{IoThreads, LimiterConfig};

/// The threads and limiters of a machine that is being made.
#[derive(Debug, Default)]
pub(super) struct IoPool {
    threads: Vec<IoThread>,
    shared_threads: BTreeMap<String, IoThreadHandle>,
    groups: BTreeMap<String, Arc<Limiter>>,
}

impl IoPool {
    /// The threads, to be ended by their owner.
    pub(super) fn into_threads(self) -> Vec<IoThread> {
        self.threads
    }

    /// The threads of the device `id`, which look for work for so long before they sleep.
    pub(super) fn threads(
        &mut self,
        id: &str,
        threads: &IoThreads,
        poll: Duration,
    ) -> Result<Vec<IoThreadHandle>, DeviceError> {
        match threads {
            IoThreads::Own(_) => names(id, threads).iter().map(|name| self.spawn(name, poll)).collect(),
            IoThreads::Shared(name) => {
                let known = self.shared_threads.get(name).cloned();
                let handle = known.map_or_else(|| self.spawn(name, poll), Ok)?;
                self.shared_threads.insert(name.clone(), handle.clone());
                Ok(vec![handle])
            }
        }
    }

    /// A thread for the device or the group `name`. It runs from the machine's start, or from its first queue.
    pub(super) fn spawn(&mut self, name: &str, poll: Duration) -> Result<IoThreadHandle, DeviceError> {
        let name = format!("husk-io-{name}");
        let thread = IoThread::prepare(&name, poll)
            .map_err(|source| DeviceError::Host { what: format!("the I/O thread {name}"), source })?;
        let handle = thread.handle();
        self.threads.push(thread);
        Ok(handle)
    }

    /// A device's own limiter, or that of its group.
    pub(super) fn limiter(&mut self, limits: LimiterConfig, group: Option<&str>) -> Arc<Limiter> {
        match group {
            None => Limiter::new(limits),
            Some(group) => Arc::clone(self.groups.entry(group.to_owned()).or_insert_with(|| Limiter::new(limits))),
        }
    }
}

/// What the threads of the device `id` are called; one that is shared is so for each device that shares it.
pub(super) fn names(id: &str, threads: &IoThreads) -> Vec<String> {
    match threads {
        IoThreads::Own(1) => vec![id.to_owned()],
        IoThreads::Own(count) => (0..*count).map(|index| format!("{id}-{index}")).collect(),
        IoThreads::Shared(name) => vec![name.clone()],
    }
}

/// The vCPUs that thread `index` of a device works for, whose queues are dealt out to its threads in turn. A guest gives
/// each queue to vCPUs that follow each other, and so to those of one node; what it gives no vCPU of its own counts for one
/// near.
pub(super) fn served(index: usize, threads: &IoThreads, queues: usize, vcpus: usize) -> Vec<u8> {
    let threads = match threads {
        IoThreads::Own(count) => (*count).max(1),
        IoThreads::Shared(_) => 1,
    };
    let of_queue = |queue: usize| (queue * vcpus / queues)..((queue + 1) * vcpus).div_ceil(queues);
    (index..queues).step_by(threads).flat_map(of_queue).filter_map(|vcpu| u8::try_from(vcpu).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_works_for_the_vcpus_of_its_queues() {
        let of = |threads, queues, vcpus| -> Vec<Vec<u8>> {
            (0..threads).map(|index| served(index, &IoThreads::Own(threads), queues, vcpus)).collect()
        };
        assert_eq!(of(2, 2, 4), [[0, 1], [2, 3]]);
        assert_eq!(of(4, 4, 4), [[0], [1], [2], [3]]);
        assert_eq!(of(1, 2, 4), [[0, 1, 2, 3]]);
        assert_eq!(of(2, 4, 4), [[0, 2], [1, 3]], "in turn");
        assert_eq!(of(4, 4, 2), [[0], [0], [1], [1]]);
        assert_eq!(of(2, 2, 3), [vec![0, 1], vec![1, 2]]);
    }
}
