//! A transport's state, saved and given to another.

use super::*;
use crate::state::SaveState;
use crate::virtio::DeviceState;
use crate::virtio::rng::RngState;
use crate::virtio::transport::{InterruptState, RunState, SavedQueue, TransportState};

/// A transport whose device has nothing of its own to save.
fn transport(memory: &Arc<GuestMemory>, features: u64, queue_sizes: &[u16]) -> (MmioTransport, Arc<Mutex<Record>>) {
    let log = Arc::<Mutex<Record>>::default();
    let identity = Identity { device_type: DeviceType::Entropy, features, queue_sizes: queue_sizes.to_vec() };
    let device = Recorder::new(identity, log.clone());
    (MmioTransport::new("test", Box::new(device), memory.clone()).unwrap(), log)
}

fn bench() -> (FakeDriver, Arc<Mutex<Record>>) {
    let memory = memory_with_hole(1 << 20);
    let (transport, log) = transport(&memory, FEATURE, &[64, 8]);
    (FakeDriver::new(transport, memory), log)
}

/// A state, through the bytes that it is kept in.
fn kept(state: &MmioState) -> MmioState {
    let bytes = postcard::to_allocvec(state).unwrap();
    let (state, rest) = postcard::take_from_bytes(&bytes).unwrap();
    assert_eq!(rest, []);
    state
}

/// Moves the driver to a device that has the state of its present one.
fn migrate(driver: &mut FakeDriver) -> Arc<Mutex<Record>> {
    let (heir, log) = transport(driver.memory(), FEATURE, &[64, 8]);
    driver.migrate(heir);
    driver.transport().lock().unwrap().core().resume();
    log
}

/// The state of a device that is paused, with a chain held in its first queue.
fn paused() -> (MmioState, Arc<GuestMemory>) {
    let (mut driver, _log) = bench();
    driver.initialize(FEATURE, &[64, 8]);
    let mut state = driver.save();
    (state.core.queues[0].next_avail, state.core.queues[0].held) = (1, vec![5]);
    (state, driver.memory().clone())
}

/// What becomes of a state that is not as it was saved.
fn restore(state: MmioState, memory: &Arc<GuestMemory>) -> Result<(), String> {
    let (mut heir, _log) = transport(memory, FEATURE, &[64, 8]);
    heir.restore(kept(&state)).map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

#[test]
fn a_device_that_runs_goes_on_in_another_where_it_was() {
    let (mut driver, log) = bench();
    driver.initialize(FEATURE, &[32, 8]);
    let data = driver.allocate(16);
    for _ in 0..3 {
        driver.queues[1].add(&[Buffer::Readable(data, 16)]);
    }
    {
        let queue = &mut log.lock().unwrap().queues[1];
        let mut chain = crate::virtio::queue::Chain::new();
        for _ in 0..2 {
            assert_eq!(queue.pop(&mut chain), Ok(true));
            queue.add_used(chain.head(), 0);
        }
        assert_eq!(queue.pop(&mut chain), Ok(true));
        queue.hold(chain.head());
        queue.publish();
    }
    let status = driver.status();
    let heir = migrate(&mut driver);
    let queues = match &events(&heir)[..] {
        [Event::Start { features, queues }] if *features == FEATURE | VERSION_1 => queues.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(queues[0], (0, 32, QueueState::default()));
    let (_, _, state) = &queues[1];
    assert_eq!((state.next_avail, state.next_used, state.held.len()), (3, 2, 1));
    assert_eq!(driver.status(), status);
}

#[test]
fn what_a_driver_has_half_done_is_finished_with_another_device() {
    let (mut driver, _log) = bench();
    driver.write(0x14, 1);
    driver.add_status(ACKNOWLEDGE);
    migrate(&mut driver);
    assert_eq!(driver.read(0x10), 1, "the half of the features that was selected is");
    driver.add_status(DRIVER);
    driver.write(0x24, 1);
    migrate(&mut driver);
    driver.write(0x20, 1);
    driver.write(0x24, 0);
    driver.write(0x20, 1 << 3);
    migrate(&mut driver);
    driver.add_status(FEATURES_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    driver.write(0x30, 1);
    let log = migrate(&mut driver);
    assert_eq!(driver.read(0x34), 8, "the queue that was selected is");
    assert_eq!(events(&log), []);
    driver.set_up_queue(16);
    let log = migrate(&mut driver);
    driver.driver_ok();
    let queues = vec![(0, 16, QueueState::default())];
    assert_eq!(events(&log), [Event::Start { features: FEATURE | VERSION_1, queues }]);
}

#[test]
fn an_interrupt_that_is_not_acknowledged_is_raised_again_when_the_device_goes_on() {
    let (mut driver, _log) = bench();
    driver.initialize(FEATURE, &[64, 8]);
    let interrupt = driver.transport().lock().unwrap().core().interrupt().clone();
    interrupt.config_changed();
    interrupt.queue_used();
    let generation = driver.read(0xfc);
    let state = driver.save();
    let (mut heir, _log) = transport(driver.memory(), FEATURE, &[64, 8]);
    heir.restore(state).unwrap();
    assert!(heir.interrupt_line().read().is_err(), "not before");
    heir.core().resume();
    driver.move_to(heir);
    assert_eq!(driver.read(0xfc), generation);
    assert_eq!(driver.take_interrupt(), Some(3));
    driver.transport().lock().unwrap().core().resume();
    migrate(&mut driver);
    assert_eq!(driver.take_interrupt(), None, "what is acknowledged is not");
}

#[test]
fn a_device_that_needs_a_reset_still_does_and_is_mended_by_one() {
    let (mut driver, log) = bench();
    log.lock().unwrap().refuse_start = true;
    assert!(driver.negotiate(VERSION_1));
    driver.driver_ok();
    let heir = migrate(&mut driver);
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(driver.take_interrupt(), Some(2));
    assert_eq!(events(&heir), [], "nobody starts a dead device");
    driver.initialize(FEATURE, &[8]);
    assert!(heir.lock().unwrap().running);
}

#[test]
fn after_a_reset_a_device_that_was_restored_is_as_new() {
    let (mut driver, _log) = bench();
    driver.write(0x14, 1);
    driver.initialize(FEATURE, &[32, 8]);
    driver.transport().lock().unwrap().core().interrupt().queue_used();
    let log = migrate(&mut driver);
    driver.reset();
    assert_eq!(events(&log)[1..], [Event::Stop, Event::Reset]);
    let (fresh, _log) = transport(driver.memory(), FEATURE, &[64, 8]);
    assert_eq!(driver.save(), fresh.save());
}

#[test]
#[should_panic(expected = "saved while it runs")]
fn a_device_that_runs_is_not_saved() {
    let (mut driver, _log) = bench();
    driver.initialize(FEATURE, &[64]);
    let _state = driver.transport().lock().unwrap().save();
}

#[test]
fn a_device_that_is_configured_in_another_way_refuses_and_says_what_differs() {
    let (state, memory) = paused();
    let refused = |features, sizes: &[u16]| {
        let (mut heir, _log) = transport(&memory, features, sizes);
        heir.restore(state.clone()).unwrap_err().to_string()
    };
    assert_eq!(refused(FEATURE, &[64]), "the guest was told a number of queues of 2, and here it is 1");
    assert_eq!(refused(FEATURE, &[64, 16]), "the guest was told a largest queue of 8, and here it is 16");
    assert_eq!(refused(1 << 4, &[64, 8]), "the driver uses bit 3, which the device does not offer any more");
    let identity = Identity { device_type: DeviceType::Network, features: FEATURE, queue_sizes: vec![64, 8] };
    let device = Recorder::new(identity, Arc::default());
    let mut heir = MmioTransport::new("test", Box::new(device), memory.clone()).unwrap();
    let error = heir.restore(state.clone()).unwrap_err().to_string();
    assert_eq!(error, "the state is that of another kind of device: Entropy, and not Network");
    let (mut heir, _log) = transport(&memory, FEATURE | 1, &[64, 8]);
    heir.restore(state).unwrap();
}

#[test]
fn features_that_were_not_agreed_upon_need_not_be_there() {
    let (driver, _log) = bench();
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    driver.write(0x20, u32::MAX);
    let (mut heir, _log) = transport(driver.memory(), FEATURE, &[64, 8]);
    heir.restore(driver.save()).unwrap();
}

#[test]
fn a_state_that_no_driver_and_no_device_come_to_is_refused() {
    let (good, memory) = paused();
    assert_eq!(restore(good.clone(), &memory), Ok(()));
    type Change = fn(&mut TransportState);
    let cases: [(&str, Change); 20] = [
        ("unknown bits", |state| state.status |= NEEDS_RESET),
        ("unknown bits", |state| state.status |= 0x100),
        ("FEATURES_OK without DRIVER", |state| state.status &= !DRIVER),
        ("DRIVER_OK without FEATURES_OK", |state| state.status &= !FEATURES_OK),
        ("runs for nobody", |state| state.status &= !DRIVER_OK),
        ("runs for nobody", |state| state.run = RunState::Stopped),
        ("dead device", |state| state.run = RunState::Dead),
        ("without a cause", |state| state.interrupt.status = 4),
        ("without VERSION_1", |state| state.driver_features = FEATURE),
        ("bit 63", |state| state.driver_features |= 1 << 63),
        ("number of queues of 0", |state| state.queues.clear()),
        ("lost chains", |state| state.queues[1].next_avail = 1),
        ("lost chains", |state| state.queues[1].next_used = 1),
        ("lost chains", |state| state.queues[0].held.clear()),
        ("lost chains", |state| state.queues[0].held.resize(65, 0)),
        ("cannot have", |state| state.queues[0].held = vec![64]),
        ("holds 65 chains", |state| {
            state.queues[0].next_avail = 65;
            state.queues[0].held = vec![0; 65];
        }),
        ("not a power of two", |state| state.queues[0].size = 63),
        ("not 1024 bytes of guest memory", |state| state.queues[0].descriptor_table = 1 << 20),
        ("used ring", |state| state.queues[1].used_ring = u64::MAX - 3),
    ];
    for (reason, change) in cases {
        let mut state = good.clone();
        change(&mut state.core);
        let error = restore(state, &memory).unwrap_err();
        assert!(error.contains(reason), "{error}, not {reason}");
    }
}

#[test]
fn a_queue_of_a_driver_that_is_not_ready_may_be_anything_but_served() {
    let (driver, _log) = bench();
    driver.describe_queue(0, 77, [1, 2, 3]);
    let mut state = driver.save();
    assert_eq!(restore(state.clone(), driver.memory()), Ok(()));
    state.core.queues[0].next_used = 1;
    state.core.queues[0].retired = true;
    assert!(restore(state, driver.memory()).is_err());
}

#[test]
fn a_retired_queue_stays_retired_however_it_was_left() {
    let (mut state, memory) = paused();
    state.core.queues[0].retired = true;
    state.core.queues[0].next_avail = 77;
    state.core.interrupt.needs_reset = true;
    let (mut heir, log) = transport(&memory, FEATURE, &[64, 8]);
    heir.restore(state).unwrap();
    heir.core().resume();
    assert!(log.lock().unwrap().queues[0].state().retired);
    assert_eq!(heir.core().status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn a_state_that_is_cut_short_is_none() {
    let (state, _memory) = paused();
    let bytes = postcard::to_allocvec(&state).unwrap();
    for len in 0..bytes.len() {
        assert!(postcard::from_bytes::<MmioState>(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
    }
    assert!(bytes.len() < 100, "{} bytes", bytes.len());
}

/// Any state at all, near those that there are.
fn any_state() -> impl Strategy<Value = MmioState> {
    let address = prop_oneof![any::<u64>(), 0..1_u64 << 20, Just(0x1000)];
    let index = || prop_oneof![any::<u16>(), 0..3_u16];
    let held = prop::collection::vec(index(), 0..70);
    let queue = (
        (prop_oneof![Just(64_u16), Just(8), any::<u16>()], prop_oneof![Just(8_u16), any::<u16>()], any::<bool>()),
        [address.clone().boxed(), address.clone().boxed(), address.boxed()],
        (index(), index(), any::<bool>(), held),
    );
    let queue = queue.prop_map(|((size_max, size, ready), rings, (next_avail, next_used, retired, held))| SavedQueue {
        size_max,
        size,
        ready,
        descriptor_table: rings[0] & !0xf,
        avail_ring: rings[1],
        used_ring: rings[2],
        next_avail,
        next_used,
        retired,
        held,
    });
    let status = prop_oneof![Just(15_u32), Just(11), 0..16_u32, any::<u32>()];
    let run = prop_oneof![Just(RunState::Paused), Just(RunState::Stopped), Just(RunState::Dead)];
    let interrupt = (0..5_u32, any::<bool>(), any::<u32>());
    let features = prop_oneof![Just(VERSION_1), Just(VERSION_1 | FEATURE), any::<u64>()];
    let rest = (status, features, any::<u32>(), run, interrupt, prop::collection::vec(queue, 1..4));
    (rest, any::<[u32; 2]>()).prop_map(|((status, driver_features, queue_select, run, interrupt, queues), sel)| {
        let (interrupt, needs_reset, config_generation) = interrupt;
        let interrupt = InterruptState { status: interrupt, needs_reset, config_generation };
        let device = DeviceState::Entropy(RngState::default());
        let core = TransportState { status, driver_features, queue_select, queues, run, interrupt, device };
        MmioState { core, device_features_sel: sel[0], driver_features_sel: sel[1] }
    })
}

/// A device that took a hostile state over does as one with a hostile driver, and a reset mends it.
fn outlive(state: &MmioState, memory: &Arc<GuestMemory>) {
    let (mut heir, log) = transport(memory, FEATURE, &[64, 8]);
    if heir.restore(state.clone()).is_err() {
        return;
    }
    assert_eq!(heir.save(), *state, "what was taken over is what is saved");
    heir.core().resume();
    let mut chain = crate::virtio::queue::Chain::new();
    for queue in &mut log.lock().unwrap().queues {
        while queue.pop(&mut chain) == Ok(true) {
            queue.add_used(chain.head(), 0);
        }
        queue.publish();
    }
    let mut driver = FakeDriver::new(heir, memory.clone());
    driver.initialize(FEATURE, &[64, 8]);
    assert!(log.lock().unwrap().running);
}

proptest! {
    /// Whatever is restored: no panic, and what is taken over is whole.
    #[test]
    fn any_state_is_refused_or_outlived(state in any_state()) {
        outlive(&state, &memory_with_hole(1 << 20));
    }

    /// A state whose bytes were flipped is refused, or is another state that is outlived.
    #[test]
    fn flipped_bits_are_refused_or_outlived(flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
        let (state, memory) = paused();
        let mut bytes = postcard::to_allocvec(&state).unwrap();
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if let Ok(state) = postcard::from_bytes(&bytes) {
            outlive(&state, &memory);
        }
    }
}
