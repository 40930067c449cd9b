mod state;

use super::*;
use crate::testing::{Buffer, DriverRing, Event, FakeDriver, Record, Recorder, memory_with_hole};
use crate::virtio::queue::QueueState;
use crate::virtio::{DeviceType, Identity};
use proptest::prelude::*;
use std::sync::Mutex;
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use vm_memory::GuestAddress;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 0x40;
const FAILED: u32 = 0x80;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const FEATURE: u64 = 1 << 3;

fn bench() -> (FakeDriver, Arc<Mutex<Record>>) {
    let log = Arc::<Mutex<Record>>::default();
    let features = FEATURE | (1 << 40);
    let identity = Identity { device_type: DeviceType::Block, features, queue_sizes: vec![64, 8] };
    let memory = memory_with_hole(1 << 20);
    let device = Recorder::new(identity, log.clone());
    let transport = MmioTransport::new("test", Box::new(device), memory.clone()).unwrap();
    (FakeDriver::new(transport, memory), log)
}

fn events(log: &Mutex<Record>) -> Vec<Event> {
    std::mem::take(&mut log.lock().unwrap().events)
}

#[test]
fn the_window_says_what_it_is() {
    let (driver, _) = bench();
    let registers = [0x00, 0x04, 0x08, 0x0c].map(|offset| driver.read(offset));
    assert_eq!(registers, [0x7472_6976, 2, 2, u32::from_le_bytes(*b"husk")]);
    assert_eq!(driver.offered_features(), FEATURE | (1 << 40) | VERSION_1);
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0, "there are 64 features");
    driver.write(0xac, 0);
    assert_eq!((driver.read(0xb0), driver.read(0xb4)), (u32::MAX, u32::MAX), "there is no shared memory");
}

#[test]
fn registers_take_only_aligned_32_bit_accesses() {
    let (driver, _) = bench();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 4), (0x70, 1)] {
        let mut data = vec![0; len];
        assert!(driver.read_bytes(offset, &mut data));
        assert_eq!(data, vec![0xff; len], "{offset:#x}");
    }
    driver.write_bytes(0x70, &[1]);
    driver.write_bytes(0x70, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.status(), 0);
}

#[test]
fn the_configuration_space_takes_any_access_once_a_driver_is_there() {
    let (driver, log) = bench();
    assert_eq!(driver.config(0), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(driver.config(3), [4]);
    assert_eq!(driver.config(5), [6, 7]);
    assert_eq!(driver.config(6), [7, 8, 0, 0]);
    assert_eq!(driver.config(0xe00), [0; 4]);
    driver.write_bytes(0x102, &[9]);
    assert_eq!(events(&log), []);
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    driver.write_bytes(0x102, &[9, 8]);
    assert_eq!(events(&log), [Event::WriteConfig(2, vec![9, 8])]);
}

#[test]
fn a_driver_starts_the_device_with_what_was_negotiated() {
    let (mut driver, log) = bench();
    driver.initialize(FEATURE, &[32, 8]);
    let fresh = QueueState::default();
    let start = Event::Start { features: FEATURE | VERSION_1, queues: vec![(0, 32, fresh.clone()), (1, 8, fresh)] };
    assert_eq!(events(&log), [Event::Reset, start]);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.driver_ok();
    assert_eq!(events(&log), [], "once");
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for features in [VERSION_1 | (1 << VIRTIO_F_RING_PACKED), FEATURE, 0, VERSION_1 | 1, u64::MAX] {
        let (mut driver, log) = bench();
        assert!(!driver.negotiate(features), "{features:#x}");
        driver.set_up_queue(8);
        driver.driver_ok();
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
        assert_eq!(events(&log), []);
    }
    let (mut driver, _) = bench();
    driver.write(0x24, 7);
    driver.write(0x20, u32::MAX);
    assert!(driver.negotiate(VERSION_1), "a word of features that does not exist changes none");
}

#[test]
fn features_are_frozen_by_features_ok() {
    let (mut driver, log) = bench();
    assert!(driver.negotiate(VERSION_1));
    driver.write(0x24, 0);
    driver.write(0x20, 0xffff_ffff);
    driver.driver_ok();
    assert_eq!(events(&log), [Event::Start { features: VERSION_1, queues: vec![] }]);
}

#[test]
fn status_bits_only_ever_come_in_order_and_only_a_reset_takes_them() {
    let (driver, log) = bench();
    driver.write(0x70, FEATURES_OK);
    driver.write(0x70, DRIVER_OK);
    driver.write(0x70, NEEDS_RESET | 0xffff_ff00);
    assert_eq!(driver.status(), 0);
    driver.write(0x70, ACKNOWLEDGE | DRIVER);
    driver.write(0x70, ACKNOWLEDGE);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    driver.add_status(FAILED);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FAILED);
    driver.write(0x70, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(events(&log), [Event::Reset]);
}

#[test]
fn queues_are_frozen_by_driver_ok() {
    let (mut driver, log) = bench();
    driver.initialize(0, &[32, 8]);
    events(&log);
    driver.describe_queue(0, 4, [0xdead_0000, 1, 2]);
    driver.write(0x44, 0);
    assert_eq!(driver.read(0x44), 1);
    // Pause and resume use the description again: it is still the one that was good.
    let transport = driver.transport().clone();
    transport.lock().unwrap().core().pause();
    transport.lock().unwrap().core().resume();
    let fresh = QueueState::default();
    let start = Event::Start { features: VERSION_1, queues: vec![(0, 32, fresh.clone()), (1, 8, fresh)] };
    assert_eq!(events(&log), [Event::Stop, start]);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

#[test]
fn a_ready_queue_is_not_described_again_until_it_is_taken_back() {
    let (mut driver, log) = bench();
    assert!(driver.negotiate(VERSION_1));
    driver.set_up_queue(16);
    driver.write(0x38, 3);
    driver.write(0x80, 0xdead_beef);
    driver.driver_ok();
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    let queues = vec![(0, 16, QueueState::default())];
    assert_eq!(events(&log), [Event::Start { features: VERSION_1, queues }]);
}

#[test]
fn a_queue_that_does_not_exist_has_no_room() {
    let (driver, _) = bench();
    for (index, room) in [(0, 64), (1, 8), (2, 0), (u32::MAX, 0)] {
        driver.write(0x30, index);
        assert_eq!(driver.read(0x34), room);
    }
    driver.describe_queue(2, 8, [0, 0, 0]);
    assert_eq!(driver.read(0x44), 0);
    driver.kick(2);
}

#[test]
fn a_bad_queue_needs_a_reset_and_after_it_a_good_one_works() {
    let good = [0x1000, 0x2000, 0x3000];
    let cases = [
        (65, good),
        (3, good),
        (0, good),
        (1 << 16, good),
        ((1 << 16) + 8, good),
        (8, [0x1008, 0x2000, 0x3000]),
        (8, [0x1000, 0x2001, 0x3000]),
        (8, [0x1000, 0x2000, 0x3002]),
        (8, [1 << 20, 0x2000, 0x3000]),
        (8, [0x1000, (1 << 20) - 4, 0x3000]),
        (8, [0x1000, 0x2000, u64::MAX - 3]),
    ];
    for (size, rings) in cases {
        let (mut driver, log) = bench();
        assert!(driver.negotiate(VERSION_1));
        driver.describe_queue(0, size, rings);
        driver.driver_ok();
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET, "{size} {rings:x?}");
        assert_eq!(driver.take_interrupt(), Some(2), "a configuration interrupt");
        assert_eq!(events(&log), []);
        driver.initialize(0, &[64]);
        assert_eq!(driver.status() & NEEDS_RESET, 0);
        assert!(log.lock().unwrap().running);
    }
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let (mut driver, log) = bench();
    log.lock().unwrap().refuse_start = true;
    assert!(driver.negotiate(VERSION_1));
    driver.driver_ok();
    assert_eq!(driver.status() & (NEEDS_RESET | DRIVER_OK), NEEDS_RESET | DRIVER_OK);
    let transport = driver.transport().clone();
    transport.lock().unwrap().core().pause();
    transport.lock().unwrap().core().resume();
    assert_eq!(events(&log).len(), 1, "a dead device is not started by a resume");
    log.lock().unwrap().refuse_start = false;
    driver.initialize(0, &[8]);
}

#[test]
fn a_reset_stops_the_device_and_forgets_everything() {
    let (mut driver, log) = bench();
    driver.initialize(FEATURE, &[32]);
    log.lock().unwrap().queues[0].disable_notification();
    events(&log);
    driver.reset();
    assert_eq!(events(&log), [Event::Stop, Event::Reset]);
    assert_eq!((driver.status(), driver.read(0x44), driver.read(0x60)), (0, 0, 0));
    driver.reset();
    assert_eq!(events(&log), [Event::Reset]);
    driver.initialize(0, &[8]);
    let queues = vec![(0, 8, QueueState::default())];
    assert_eq!(events(&log)[1..], [Event::Start { features: VERSION_1, queues }]);
}

#[test]
fn pause_and_resume_carry_the_queues_over_and_are_idempotent() {
    let (mut driver, log) = bench();
    let transport = driver.transport().clone();
    transport.lock().unwrap().core().resume();
    transport.lock().unwrap().core().pause();
    assert_eq!(events(&log), [], "nobody is there");
    driver.initialize(0, &[8]);
    events(&log);
    let data = driver.allocate(16);
    driver.queues[0].add(&[Buffer::Readable(data, 16)]);
    {
        let queue = &mut log.lock().unwrap().queues[0];
        let mut chain = crate::virtio::queue::Chain::new();
        assert_eq!(queue.pop(&mut chain), Ok(true));
        queue.add_used(chain.head(), 0);
        queue.publish();
    }
    for _ in 0..2 {
        transport.lock().unwrap().core().pause();
    }
    for _ in 0..2 {
        transport.lock().unwrap().core().resume();
    }
    let queues = vec![(0, 8, QueueState { next_avail: 1, next_used: 1, retired: false, held: Vec::new() })];
    assert_eq!(events(&log), [Event::Stop, Event::Start { features: VERSION_1, queues }]);
}

#[test]
fn a_reset_while_paused_stays_reset() {
    let (mut driver, log) = bench();
    let transport = driver.transport().clone();
    driver.initialize(0, &[8]);
    transport.lock().unwrap().core().pause();
    driver.reset();
    events(&log);
    transport.lock().unwrap().core().resume();
    assert_eq!(events(&log), []);
}

#[test]
fn a_doorbell_write_signals_the_queue_s_eventfd() {
    let (mut driver, _) = bench();
    driver.initialize(0, &[8, 8]);
    driver.kick(1);
    driver.kick(1);
    driver.write(0x50, 0xffff_0001);
    let transport = driver.transport().lock().unwrap();
    assert!(transport.doorbells()[0].read().is_err());
    assert_eq!(transport.doorbells()[1].read().unwrap(), 2);
}

#[test]
fn interrupts_keep_their_causes_until_acknowledged() {
    let (driver, _) = bench();
    let interrupt = driver.transport().lock().unwrap().core().interrupt().clone();
    let generation = driver.read(0xfc);
    interrupt.queue_used();
    interrupt.config_changed();
    assert_eq!(driver.read(0x60), 3);
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 2);
    assert_eq!(interrupt.line().read().unwrap(), 2, "an edge each");
    assert_ne!(driver.read(0xfc), generation);
    driver.write(0x64, 0xffff_ffff);
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn a_transport_that_goes_takes_its_device_off_the_thread() {
    let (mut driver, log) = bench();
    driver.initialize(0, &[8]);
    events(&log);
    drop(driver);
    assert_eq!(events(&log), [Event::Stop]);
}

#[test]
fn rings_may_lie_above_4_gib() {
    let (mut driver, log) = bench();
    assert!(driver.negotiate(VERSION_1));
    let ring = DriverRing::new(driver.memory().clone(), GuestAddress(1 << 32), 8, false);
    driver.describe_queue(0, 8, [ring.table.0, ring.avail.0, ring.used.0]);
    driver.driver_ok();
    assert!(log.lock().unwrap().running);
}

proptest! {
    /// Whatever is written where: no panic, and the contract's order of calls holds (asserted in the recorder).
    #[test]
    fn random_register_writes_never_break_the_contract(
        writes in prop::collection::vec((0..0x120_u64, any::<u32>(), 0..6_u8), 0..200),
    ) {
        let (driver, _log) = bench();
        let registers = [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x90, 0xa0];
        for (offset, value, kind) in writes {
            let (offset, value) = match kind {
                0 => (offset, value),
                1 => (0x70, 1 << (value % 9) >> 1),
                2 => (0x70, 0xf),
                _ => (registers[usize::try_from(offset).unwrap() % registers.len()], value % 4096),
            };
            driver.write_bytes(offset, &value.to_le_bytes());
            let mut data = [0; 4];
            driver.read_bytes(offset, &mut data);
        }
    }
}
