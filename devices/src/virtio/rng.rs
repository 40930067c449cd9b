//! The entropy device (virtio 1.3 §5.4).
#![expect(unsafe_code, reason = "getrandom")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::Bytes;

use super::queue::{Chain, QueueError, QueueState};
use super::state::restore_limits;
use super::throttle::Throttle;
use super::transport::Interrupt;
use super::worker::{AttachError, Attachment, CHAINS_PER_WAKE_MAX, Holding, IoThreadHandle, Progress, Source, Worker};
use super::{
    Activation, ActiveQueue, DeviceCounters, DeviceState, DeviceType, Identity, RestoreError, StartError, VirtioDevice,
    read_config_bytes,
};
use crate::fault::FaultLog;
use crate::limit::{Flow, Limiter, LimiterState};
use crate::state::SaveState;

const QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 64;

/// What one request gets at most: a driver asks again, and one wake stays short.
pub const BYTES_PER_REQUEST_MAX: usize = 4096;

/// A virtio entropy device.
pub struct Rng {
    log: FaultLog,
    identity: Identity,
    thread: IoThreadHandle,
    limiter: Option<Arc<Limiter>>,
    counters: Arc<DeviceCounters>,
    run: Option<Attachment<RngWorker>>,
}

impl Rng {
    /// An entropy source, `id` in the log, whose queue is served on `thread` and held to `limiter`.
    pub fn new(id: &str, limiter: Option<Arc<Limiter>>, thread: IoThreadHandle) -> Self {
        let identity = Identity {
            device_type: DeviceType::Entropy,
            features: (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC),
            queue_sizes: vec![QUEUE_SIZE],
        };
        Self { log: FaultLog::new(id), identity, thread, limiter, counters: Arc::default(), run: None }
    }

    /// What happens in the device.
    pub fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(&self.counters)
    }
}

impl VirtioDevice for Rng {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    /// There is no configuration space.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[], offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, mut activation: Activation) -> Result<(), StartError> {
        let at = activation.queues.iter().position(|queue| queue.ring.index() == QUEUE);
        let queue = activation.queues.swap_remove(at.ok_or(StartError::QueueMissing(QUEUE))?);
        let throttle = self.limiter.as_ref().map(Throttle::new).transpose().map_err(StartError::Attach)?;
        let worker = RngWorker {
            queue,
            throttle,
            interrupt: activation.interrupt,
            chain: Chain::new(),
            bytes: Box::new([0; BYTES_PER_REQUEST_MAX]),
            counters: Arc::clone(&self.counters),
            log: self.log.clone(),
        };
        let attached = self.thread.attach(worker);
        self.run = Some(attached.map_err(|AttachError { error, .. }| StartError::Attach(error))?);
        Ok(())
    }

    fn hold(&self) -> Vec<Holding> {
        self.run.iter().map(Attachment::hold).collect()
    }

    fn release(&self) {
        self.run.iter().for_each(Attachment::release);
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        let worker = self.run.take().map(Attachment::detach);
        worker.map(|worker| (QUEUE, worker.queue.ring.state())).into_iter().collect()
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Entropy(SaveState::save(self))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Entropy(state) => SaveState::restore(self, state),
            other => Err(RestoreError::of_another_kind(&other, self.identity.device_type)),
        }
    }
}

/// What an entropy device saves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    limiter: Option<LimiterState>,
}

impl SaveState for Rng {
    type State = RngState;
    type Error = RestoreError;

    fn save(&self) -> RngState {
        let Self { log: _, identity: _, thread: _, limiter, counters: _, run: _ } = self;
        RngState { limiter: limiter.as_ref().map(|limiter| limiter.save()) }
    }

    fn restore(&mut self, state: RngState) -> Result<(), RestoreError> {
        let RngState { limiter } = state;
        restore_limits(self.limiter.as_deref(), limiter)
    }
}

struct RngWorker {
    queue: ActiveQueue,
    throttle: Option<Throttle>,
    interrupt: Arc<Interrupt>,
    chain: Chain,
    bytes: Box<[u8; BYTES_PER_REQUEST_MAX]>,
    counters: Arc<DeviceCounters>,
    log: FaultLog,
}

impl RngWorker {
    fn serve(&mut self) -> Result<Progress, QueueError> {
        for _ in 0..CHAINS_PER_WAKE_MAX {
            self.queue.ring.disable_notification();
            if !self.queue.ring.pop(&mut self.chain)? && !self.queue.ring.enable_notification()? {
                return Ok(Progress::Idle);
            }
            if self.queue.ring.in_flight() > 0 {
                if !self.is_admitted() {
                    // The throttle wakes us. Until then a doorbell would change nothing.
                    self.queue.ring.unpop(1);
                    return Ok(Progress::Idle);
                }
                let written = self.fill();
                self.queue.ring.add_used(self.chain.head(), written);
            }
        }
        Ok(Progress::More)
    }

    /// Whether the limits let the popped chain be served now.
    fn is_admitted(&mut self) -> bool {
        let bytes = u64::try_from(self.wanted()).expect("64 bits fit");
        self.throttle.as_mut().is_none_or(|throttle| throttle.admit(Flow::In, bytes))
    }

    /// How many bytes the popped chain gets.
    fn wanted(&self) -> usize {
        usize::try_from(self.chain.writable_len()).expect("32 bits fit").min(self.bytes.len())
    }

    /// Fills the chain's writable part, as far as one request goes.
    fn fill(&mut self) -> u32 {
        let wanted = self.wanted();
        let bytes = &mut self.bytes[..wanted];
        if let Err(error) = fill_random(bytes) {
            self.log.report(format_args!("getrandom: {error}"));
            DeviceCounters::add(&self.counters.errors, 1);
            return 0;
        }
        let mut rest = &*bytes;
        for segment in self.chain.writable() {
            let len = rest.len().min(usize::try_from(segment.len()).expect("32 bits fit"));
            let (here, later) = rest.split_at(len);
            let memory = self.queue.ring.memory();
            memory.write_slice(here, segment.address()).expect("the chain was checked to be in memory");
            rest = later;
        }
        DeviceCounters::add(&self.counters.requests, 1);
        DeviceCounters::add(&self.counters.bytes, u64::try_from(wanted).expect("64 bits fit"));
        u32::try_from(wanted).expect("at most a request's worth")
    }

    fn publish(&mut self) {
        if self.queue.ring.publish() {
            self.interrupt.queue_used();
        }
    }
}

impl Worker for RngWorker {
    fn sources(&self) -> Vec<Source> {
        let doorbell = Source::Edge(self.queue.doorbell.as_raw_fd());
        [doorbell].into_iter().chain(self.throttle.iter().flat_map(Throttle::sources)).collect()
    }

    fn wake(&mut self) -> Progress {
        let served = self.serve();
        self.publish();
        served.unwrap_or_else(|error| {
            DeviceCounters::add(&self.counters.retired_queues, 1);
            self.log.report(format_args!("queue retired: {error}"));
            self.interrupt.needs_reset();
            Progress::Idle
        })
    }

    /// Nothing is ever in flight between two wakes.
    fn drain(&mut self) {
        if let Some(throttle) = &mut self.throttle {
            throttle.stop();
        }
    }
}

/// Fills `bytes` from the host's generator.
fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: getrandom writes at most `len` bytes at the pointer = a live slice of that length, ours alone.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => rest = &mut rest[got..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{LimiterConfig, Limits, Rate};
    use crate::testing::{Buffer, Descriptor, FakeDriver, memory_with_hole};
    use crate::virtio::transport::MmioTransport;
    use crate::virtio::worker::IoThread;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};
    use vm_memory::GuestAddress;

    struct Bench {
        driver: FakeDriver,
        counters: Arc<DeviceCounters>,
        _thread: IoThread,
    }

    fn bench() -> Bench {
        bench_limited(None)
    }

    fn bench_limited(limiter: Option<Arc<Limiter>>) -> Bench {
        let thread = IoThread::spawn("husk-io-test").unwrap();
        let rng = Rng::new("rng0", limiter, thread.handle());
        let counters = rng.counters();
        let memory = memory_with_hole(4 << 20);
        let transport = MmioTransport::new("rng0", Box::new(rng), memory.clone()).unwrap();
        let mut driver = FakeDriver::new(transport, memory);
        driver.initialize(u64::MAX, &[16]);
        Bench { driver, counters, _thread: thread }
    }

    #[test]
    fn buffers_are_filled_to_their_end_and_not_further() {
        let mut bench = bench();
        let data = bench.driver.allocate(256);
        let (first, second) = (Buffer::Writable(data, 100), Buffer::Writable(GuestAddress(data.0 + 100), 28));
        let used = bench.driver.run(0, &[first, second]);
        assert_eq!(used.written, 128);
        let bytes = bench.driver.bytes_at(data, 256);
        // A run of 16 zero bytes in 128 random ones has a chance of 2^-121.
        assert!(bytes[..128].chunks(16).all(|chunk| chunk.iter().any(|byte| *byte != 0)));
        assert_eq!(bytes[128..], [0; 128]);
        let again = bench.driver.run(0, &[first, second]);
        assert_eq!(again.written, 128);
        assert_ne!(bench.driver.bytes_at(data, 128), bytes[..128]);
    }

    #[test]
    fn a_request_of_any_size_gets_a_bounded_answer() {
        let mut bench = bench();
        let data = bench.driver.allocate(2 << 20);
        let used = bench.driver.run(0, &[Buffer::Writable(data, 2 << 20); 8]);
        assert_eq!(usize::try_from(used.written).unwrap(), BYTES_PER_REQUEST_MAX);
        assert_eq!(bench.driver.bytes_at(data, 8192)[BYTES_PER_REQUEST_MAX..], [0; 4096]);
        assert_eq!(bench.counters.bytes.load(Ordering::Relaxed), 4096);
    }

    #[test]
    fn a_request_with_nothing_to_write_into_comes_back_empty() {
        let mut bench = bench();
        let data = bench.driver.allocate(16);
        assert_eq!(bench.driver.run(0, &[Buffer::Readable(data, 16)]).written, 0);
    }

    #[test]
    fn a_full_ring_is_served_and_served_again_after_pause_and_reset() {
        let mut bench = bench();
        for round in 0..3 {
            let data = bench.driver.allocate(16);
            for _ in 0..16 {
                bench.driver.queues[0].add(&[Buffer::Writable(data, 8)]);
            }
            bench.driver.kick(0);
            let transport = bench.driver.transport().clone();
            transport.lock().unwrap().core().pause();
            transport.lock().unwrap().core().resume();
            for _ in 0..16 {
                assert_eq!(bench.driver.wait_used(0).written, 8);
            }
            if round == 1 {
                bench.driver.initialize(0, &[16]);
            }
        }
        assert_eq!(bench.counters.requests.load(Ordering::Relaxed), 48);
    }

    #[test]
    fn what_exceeds_the_limit_waits_until_the_bucket_has_filled() {
        const REFILL_MS: u64 = 200;
        let operations = Rate::new(2, 0, REFILL_MS);
        let total = Limits { bytes: None, operations };
        let mut bench = bench_limited(Some(Limiter::new(LimiterConfig { total, ..LimiterConfig::default() })));
        let data = bench.driver.allocate(16);
        let start = Instant::now();
        for _ in 0..4 {
            bench.driver.queues[0].add(&[Buffer::Writable(data, 8)]);
        }
        bench.driver.kick(0);
        let transport = bench.driver.transport().clone();
        for _ in 0..4 {
            assert_eq!(bench.driver.wait_used(0).written, 8);
            // A pause in between neither serves a request nor loses it.
            transport.lock().unwrap().core().pause();
            transport.lock().unwrap().core().resume();
        }
        // Two are there at once, and two more come in a refill time; a tenth for the timer's own tolerance.
        assert!(start.elapsed() >= Duration::from_millis(REFILL_MS * 9 / 10), "{:?}", start.elapsed());
    }

    #[test]
    fn a_broken_ring_asks_for_reset() {
        let mut bench = bench();
        bench.driver.queues[0].write_descriptor(3, Descriptor { address: u64::MAX, len: 8, flags: 2, next: 0 });
        bench.driver.queues[0].make_available(3);
        bench.driver.kick(0);
        bench.driver.wait_needs_reset();
        assert_eq!(bench.counters.retired_queues.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_configuration_space_is_empty() {
        let bench = bench();
        assert_eq!(bench.driver.config(0), [0; 8]);
        assert_eq!(bench.driver.read(0x08), 4);
    }

    #[test]
    fn requests_are_served_once_wherever_the_device_is_saved() {
        let mut bench = bench();
        for _ in 0..3 {
            let data = bench.driver.allocate(16);
            for _ in 0..16 {
                bench.driver.queues[0].add(&[Buffer::Writable(data, 8)]);
            }
            bench.driver.kick(0);
            let rng = Rng::new("rng0", None, bench._thread.handle());
            let heir = MmioTransport::new("rng0", Box::new(rng), bench.driver.memory().clone()).unwrap();
            bench.driver.migrate(heir);
            bench.driver.transport().lock().unwrap().core().resume();
            for _ in 0..16 {
                assert_eq!(bench.driver.wait_used(0).written, 8);
            }
            assert!(bench.driver.queues[0].take_used().is_none());
        }
    }
}
