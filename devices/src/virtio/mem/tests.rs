use std::collections::BTreeSet;

use arch::GuestMemory;
use proptest::prelude::*;

use super::*;
use crate::testing::{Buffer, Descriptor, FakeDriver, memory_with_hole};
use crate::virtio::transport::MmioTransport;
use crate::virtio::worker::IoThread;

const BLOCK: u64 = 2 << 20;
const AREA: MemoryArea =
    MemoryArea { start: GuestAddress(8 << 30), bytes: 100 * BLOCK, block_bytes: BLOCK, node: Some(3) };

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: u8 = 0;
const NACK: u8 = 1;
const BUSY: u8 = 2;
const ERROR: u8 = 3;

/// A host that keeps account, and has only so many blocks.
#[derive(Debug)]
struct Account {
    blocks: Mutex<BTreeSet<u64>>,
    limit: usize,
}

impl Account {
    fn numbers(start: GuestAddress, bytes: u64) -> std::ops::Range<u64> {
        assert!((start.0 - AREA.start.0).is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK) && bytes > 0);
        let first = (start.0 - AREA.start.0) / BLOCK;
        first..first + bytes / BLOCK
    }
}

impl BlockStore for Account {
    fn plug(&self, start: GuestAddress, bytes: u64) -> io::Result<()> {
        let mut blocks = self.blocks.lock().unwrap();
        let wanted = Self::numbers(start, bytes);
        if blocks.len() + wanted.clone().count() > self.limit {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        wanted.for_each(|block| assert!(block < 100 && blocks.insert(block), "block {block} is plugged once"));
        Ok(())
    }

    fn unplug(&self, start: GuestAddress, bytes: u64) -> io::Result<()> {
        let mut blocks = self.blocks.lock().unwrap();
        Self::numbers(start, bytes).for_each(|block| assert!(blocks.remove(&block), "block {block} was plugged"));
        Ok(())
    }
}

struct Bench {
    driver: FakeDriver,
    control: MemoryDeviceControl,
    account: Arc<Account>,
    exhausted: Arc<AtomicU64>,
    _thread: IoThread,
}

/// A device with a driver, asked for so many blocks of which the host has at most `limit`.
fn bench(requested: u64, limit: usize) -> Bench {
    let memory: Arc<GuestMemory> = memory_with_hole(4 << 20);
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let account = Arc::new(Account { blocks: Mutex::default(), limit });
    let device = device(requested, &account, &thread);
    let exhausted = device.1;
    let control = device.0.control();
    let transport = MmioTransport::new("mem", Box::new(device.0), memory.clone()).unwrap();
    let mut driver = FakeDriver::new(transport, memory);
    driver.initialize(u64::MAX, &[16]);
    Bench { driver, control, account, exhausted, _thread: thread }
}

fn device(requested: u64, account: &Arc<Account>, thread: &IoThread) -> (MemoryDevice, Arc<AtomicU64>) {
    let exhausted = Arc::new(AtomicU64::new(0));
    let on_exhausted = {
        let exhausted = Arc::clone(&exhausted);
        Arc::new(move || {
            exhausted.fetch_add(1, Ordering::Relaxed);
        })
    };
    let store = Arc::clone(account) as Arc<dyn BlockStore>;
    let device = MemoryDevice::new("mem", AREA, requested * BLOCK, store, on_exhausted, thread.handle());
    (device.unwrap(), exhausted)
}

fn request(kind: u16, address: u64, count: u16) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

impl Bench {
    /// What the device answers: a type and, where one was asked for, a state.
    fn ask(&mut self, kind: u16, block: u64, count: u16) -> (u8, u8) {
        self.ask_at(kind, AREA.start.0.wrapping_add(block.wrapping_mul(BLOCK)), count)
    }

    fn ask_at(&mut self, kind: u16, address: u64, count: u16) -> (u8, u8) {
        let asked = self.driver.place(&request(kind, address, count));
        let answer = self.driver.place(&[0xff; 10]);
        // In two pieces each, cut inside the fields.
        let chain = [
            Buffer::Readable(asked, 3),
            Buffer::Readable(GuestAddress(asked.0 + 3), 21),
            Buffer::Writable(answer, 1),
            Buffer::Writable(GuestAddress(answer.0 + 1), 9),
        ];
        assert_eq!(self.driver.run(0, &chain).written, 10);
        let bytes = self.driver.bytes_at(answer, 10);
        assert!(bytes[1..8].iter().chain(&bytes[9..]).all(|&byte| byte == 0), "{bytes:x?}");
        (bytes[0], bytes[8])
    }

    fn blocks(&self) -> Vec<u64> {
        self.account.blocks.lock().unwrap().iter().copied().collect()
    }

    fn count(&self, counter: fn(&MemoryCounters) -> &AtomicU64) -> u64 {
        counter(self.control.counters()).load(Ordering::Relaxed)
    }

    /// A 64-bit field of the configuration space.
    fn field(&self, offset: u64) -> u64 {
        u64::from_le_bytes(self.driver.config(offset))
    }
}

#[test]
fn the_configuration_space_says_what_there_is_what_is_plugged_and_what_shall_be() {
    let mut bench = bench(10, 100);
    assert_eq!(bench.driver.offered_features() & 0b111, ACPI_PXM | UNPLUGGED_INACCESSIBLE);
    assert_eq!((bench.field(0), bench.field(8)), (BLOCK, 3));
    assert_eq!((bench.field(16), bench.field(24), bench.field(32)), (AREA.start.0, AREA.bytes, AREA.bytes));
    assert_eq!((bench.field(40), bench.field(48), bench.field(56)), (0, 10 * BLOCK, 0));
    assert_eq!(bench.ask(PLUG, 4, 3), (ACK, 0));
    assert_eq!((bench.field(40), bench.control.plugged_bytes()), (3 * BLOCK, 3 * BLOCK));
    while bench.driver.take_interrupt().is_some() {}
    bench.control.request(2 * BLOCK).unwrap();
    bench.driver.wait_for("what shall be", |driver| (driver.config(48) == (2 * BLOCK).to_le_bytes()).then_some(()));
    let (requested, block) = (BLOCK + 1, BLOCK);
    assert_eq!(bench.control.request(requested), Err(MemoryRequestError::NotWhole { requested, block }));
    let (requested, area) = (101 * BLOCK, 100 * BLOCK);
    assert_eq!(bench.control.request(requested), Err(MemoryRequestError::TooLarge { requested, area }));
    assert_eq!(bench.control.requested_bytes(), 2 * BLOCK);
}

/// virtio 1.3 §5.15.6
#[test]
fn blocks_are_plugged_asked_for_and_unplugged() {
    let mut bench = bench(100, 100);
    assert_eq!(bench.ask(STATE, 0, 100), (ACK, 1), "unplugged");
    assert_eq!(bench.ask(PLUG, 0, 1), (ACK, 0));
    assert_eq!(bench.ask(PLUG, 60, 10), (ACK, 0));
    assert_eq!((bench.ask(STATE, 60, 10), bench.ask(STATE, 59, 2)), ((ACK, 0), (ACK, 2)), "plugged, mixed");
    assert_eq!(bench.ask(UNPLUG, 61, 8), (ACK, 0));
    assert_eq!(bench.blocks(), [0, 60, 69]);
    assert_eq!(bench.control.plugged_bytes(), 3 * BLOCK);
    assert_eq!(bench.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert!(bench.blocks().is_empty() && bench.control.plugged_bytes() == 0);
    assert_eq!(bench.ask(UNPLUG_ALL, 0, 0), (ACK, 0), "there is none");
    assert_eq!(bench.count(|all| &all.plugged_bytes), 11 * BLOCK);
    assert_eq!((bench.count(|all| &all.unplugged_bytes), bench.count(|all| &all.errors)), (11 * BLOCK, 0));
}

/// virtio 1.3 §5.15.6.1
#[test]
fn a_driver_plugs_no_more_than_the_host_asks_for() {
    let mut bench = bench(4, 100);
    assert_eq!(bench.ask(PLUG, 0, 5), (NACK, 0));
    assert_eq!(bench.ask(PLUG, 0, 4), (ACK, 0));
    assert_eq!(bench.ask(PLUG, 9, 1), (NACK, 0));
    bench.control.request(BLOCK).unwrap();
    assert_eq!(bench.ask(UNPLUG, 1, 2), (ACK, 0));
    assert_eq!(bench.ask(PLUG, 9, 1), (NACK, 0));
    assert_eq!(bench.blocks(), [0, 3]);
}

#[test]
fn a_host_without_memory_is_busy_and_its_owner_hears_of_it() {
    let mut bench = bench(100, 2);
    assert_eq!(bench.ask(PLUG, 0, 3), (BUSY, 0));
    assert_eq!((bench.blocks().len(), bench.field(40), bench.exhausted.load(Ordering::Relaxed)), (0, 0, 1));
    assert_eq!(bench.ask(PLUG, 0, 2), (ACK, 0));
}

#[test]
fn an_owner_hears_once_that_the_host_has_no_memory_however_often_a_driver_asks() {
    let mut bench = bench(4, 2);
    let told = |bench: &Bench| bench.exhausted.load(Ordering::Relaxed);
    for _ in 0..1000 {
        assert_eq!(bench.ask(PLUG, 0, 3), (BUSY, 0));
        assert_eq!(bench.ask(PLUG, 0, 2), (ACK, 0));
        assert_eq!(bench.ask(UNPLUG, 0, 2), (ACK, 0));
    }
    bench.driver.initialize(u64::MAX, &[16]);
    assert_eq!((bench.ask(PLUG, 0, 3), told(&bench)), ((BUSY, 0), 1));
    assert_eq!(bench.count(|all| &all.exhausted), 1001);
    // Another size is another matter.
    bench.control.request(3 * BLOCK).unwrap();
    assert_eq!((bench.ask(PLUG, 0, 3), told(&bench)), ((BUSY, 0), 2));
}

#[test]
fn what_makes_no_sense_is_an_error_and_changes_nothing() {
    let mut bench = bench(100, 100);
    assert_eq!(bench.ask(PLUG, 10, 5), (ACK, 0));
    for (kind, block, count) in [
        (PLUG, 10, 1),
        (PLUG, 8, 3),
        (PLUG, 0, 0),
        (PLUG, 100, 1),
        (PLUG, 99, 2),
        (PLUG, u64::MAX, 1),
        (PLUG, 0, u16::MAX),
        (UNPLUG, 0, 1),
        (UNPLUG, 9, 2),
        (UNPLUG, 10, 0),
        (STATE, 100, 1),
        (STATE, 0, 0),
        (4, 0, 1),
        (u16::MAX, 0, 1),
    ] {
        assert_eq!(bench.ask(kind, block, count), (ERROR, 0), "{kind} {block} {count}");
    }
    assert_eq!(bench.ask_at(PLUG, AREA.start.0 + 4096, 1), (ERROR, 0));
    assert_eq!(bench.ask_at(UNPLUG, u64::MAX, u16::MAX), (ERROR, 0));
    assert_eq!((bench.blocks(), bench.count(|all| &all.errors)), (vec![10, 11, 12, 13, 14], 16));
}

#[test]
fn a_chain_without_room_for_a_request_or_its_answer_is_given_back() {
    let mut bench = bench(100, 100);
    let asked = bench.driver.place(&request(PLUG, AREA.start.0, 1));
    let answer = bench.driver.place(&[0xff; 10]);
    let short = [Buffer::Readable(asked, 23), Buffer::Writable(answer, 10)];
    assert_eq!(bench.driver.run(0, &short).written, 10);
    assert_eq!((bench.driver.bytes_at(answer, 1), bench.blocks().len()), (vec![ERROR], 0));
    assert_eq!(bench.driver.run(0, &[Buffer::Writable(answer, 10)]).written, 10);
    assert_eq!(bench.driver.run(0, &[Buffer::Readable(asked, 24)]).written, 0);
    assert_eq!(bench.driver.run(0, &[Buffer::Readable(asked, 24), Buffer::Writable(answer, 9)]).written, 0);
    assert_eq!(bench.count(|all| &all.errors), 4);
}

#[test]
fn blocks_outlive_a_broken_ring_and_a_reset() {
    let mut bench = bench(100, 100);
    assert_eq!(bench.ask(PLUG, 10, 5), (ACK, 0));
    bench.driver.queues[0].write_descriptor(3, Descriptor { address: u64::MAX, len: 8, flags: 0, next: 0 });
    bench.driver.queues[0].make_available(3);
    bench.driver.kick(0);
    bench.driver.wait_needs_reset();
    assert_eq!(bench.count(|all| &all.retired_queues), 1);
    bench.driver.initialize(u64::MAX, &[16]);
    assert_eq!((bench.field(40), bench.ask(STATE, 10, 5)), (5 * BLOCK, (ACK, 0)));
    assert_eq!((bench.ask(UNPLUG_ALL, 0, 0), bench.blocks().len()), ((ACK, 0), 0));
}

#[test]
fn a_device_goes_on_from_anothers_state() {
    let mut bench = bench(7, 100);
    assert_eq!(bench.ask(PLUG, 62, 4), (ACK, 0));
    assert_eq!(bench.ask(PLUG, 0, 1), (ACK, 0));
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let state = MemoryState {
        start: AREA.start.0,
        bytes: AREA.bytes,
        block_bytes: BLOCK,
        requested_bytes: 7 * BLOCK,
        runs: vec![(0, 1), (62, 4)],
        news: crate::virtio::voice::ConfigVoice::new().news(),
    };
    let plugged = [(AREA.start, BLOCK), (GuestAddress(AREA.start.0 + 62 * BLOCK), 4 * BLOCK)];
    assert_eq!(state.plugged(AREA).unwrap(), plugged);
    let (mut other, _) = device(0, &bench.account, &thread);
    SaveState::restore(&mut other, state.clone()).unwrap();
    assert_eq!(SaveState::save(&other), state);
    assert_eq!(bench.blocks().len(), 5, "its owner has plugged them");
    let control = other.control();
    assert_eq!((control.plugged_bytes(), control.requested_bytes()), (5 * BLOCK, 7 * BLOCK));
    for broken in [
        MemoryState { runs: vec![(0, 1), (0, 1)], ..state.clone() },
        MemoryState { runs: vec![(0, 1), (1, 1)], ..state.clone() },
        MemoryState { runs: vec![(62, 4), (0, 1)], ..state.clone() },
        MemoryState { runs: vec![(99, 2)], ..state.clone() },
        MemoryState { runs: vec![(u64::MAX, 2)], ..state.clone() },
        MemoryState { runs: vec![(5, 0)], ..state.clone() },
        MemoryState { requested_bytes: 101 * BLOCK, ..state.clone() },
        MemoryState { requested_bytes: 1, ..state.clone() },
        MemoryState { block_bytes: BLOCK / 2, ..state.clone() },
        MemoryState { start: 0, ..state },
    ] {
        let (mut other, _) = device(0, &bench.account, &thread);
        let told = format!("{broken:?}");
        assert!(broken.plugged(AREA).is_err(), "{told}");
        assert!(SaveState::restore(&mut other, broken).is_err(), "{told}");
    }
}

#[test]
fn a_driver_plugs_and_unplugs_on_with_another_device() {
    let mut bench = bench(9, 100);
    assert_eq!(bench.ask(PLUG, 62, 4), (ACK, 0));
    for round in 0..3 {
        bench.driver.transport().lock().unwrap().core().pause();
        // Made available, and not looked at.
        let (asked, answer) = (request(PLUG, AREA.start.0 + round * BLOCK, 1), bench.driver.place(&[0xff; 10]));
        let asked = bench.driver.place(&asked);
        bench.driver.queues[0].add(&[Buffer::Readable(asked, 24), Buffer::Writable(answer, 10)]);
        let (heir, exhausted) = device(0, &bench.account, &bench._thread);
        (bench.control, bench.exhausted) = (heir.control(), exhausted);
        let heir = MmioTransport::new("mem", Box::new(heir), bench.driver.memory().clone()).unwrap();
        bench.driver.migrate(heir);
        bench.driver.transport().lock().unwrap().core().resume();
        assert_eq!(bench.driver.wait_used(0).written, 10);
        assert_eq!(bench.driver.bytes_at(answer, 1), [ACK]);
    }
    assert_eq!(bench.blocks(), [0, 1, 2, 62, 63, 64, 65]);
    assert_eq!(bench.ask(UNPLUG, 62, 4), (ACK, 0));
    assert_eq!((bench.blocks(), bench.field(40)), (vec![0, 1, 2], 3 * BLOCK));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The host's account panics at a block that is plugged twice or was not plugged.
    #[test]
    fn a_hostile_driver_moves_no_block_that_is_not_its_own(
        requests in prop::collection::vec((0_u16..6, 0_u64..120, 0_u16..40, any::<bool>()), 1..30),
        requested in 0_u64..100,
    ) {
        let mut bench = bench(requested, 50);
        for (kind, block, count, aligned) in requests {
            let address = AREA.start.0 + block * BLOCK + u64::from(!aligned);
            let (answer, _) = bench.ask_at(kind, address, count);
            prop_assert!(answer <= ERROR);
            let plugged = u64::try_from(bench.blocks().len()).unwrap() * BLOCK;
            prop_assert_eq!(bench.control.plugged_bytes(), plugged);
            prop_assert!(plugged <= requested * BLOCK);
        }
    }
}
