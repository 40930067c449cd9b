use std::os::unix::fs::MetadataExt;

use arch::GuestMemory;
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::*;
use crate::state::SaveState;
use crate::testing::{Buffer, Descriptor, FakeDriver, memory_with_hole};
use crate::virtio::transport::MmioTransport;
use crate::virtio::worker::IoThread;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The first page that the tests put in, in the middle of the first region.
const PAGE: u32 = 512;
const REGION_BYTES: usize = 4 << 20;

struct Bench {
    driver: FakeDriver,
    control: BalloonControl,
    _thread: IoThread,
}

fn all() -> BalloonOptions {
    BalloonOptions {
        target_pages: 7,
        deflate_on_oom: true,
        statistics: Some(Duration::from_millis(5)),
        hinting: true,
        reporting: true,
    }
}

fn bench_in(memory: Arc<GuestMemory>, options: &BalloonOptions) -> Bench {
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let (transport, control) = balloon_in(&memory, options, &thread);
    Bench { driver: FakeDriver::new(transport, memory), control, _thread: thread }
}

fn balloon_in(
    memory: &Arc<GuestMemory>,
    options: &BalloonOptions,
    thread: &IoThread,
) -> (MmioTransport, BalloonControl) {
    let reclaim = Reclaim::new(Arc::clone(memory), None);
    let balloon = Balloon::new("balloon", options, reclaim, Arc::new(|| {}), thread.handle()).unwrap();
    let control = balloon.control();
    (MmioTransport::new("balloon", Box::new(balloon), memory.clone()).unwrap(), control)
}

fn bench(options: &BalloonOptions) -> Bench {
    let mut bench = bench_in(memory_with_hole(REGION_BYTES), options);
    let queues =
        2 + options.statistics.map_or(0, |_| 1) + usize::from(options.hinting) + usize::from(options.reporting);
    bench.driver.initialize(u64::MAX, &vec![16; queues]);
    bench
}

fn plain() -> Bench {
    bench(&BalloonOptions::default())
}

impl Bench {
    /// Runs a chain of page numbers.
    fn pages(&mut self, queue: usize, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        let place = self.driver.place(&bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        assert_eq!(self.driver.run(queue, &[Buffer::Readable(place, length)]).written, 0);
    }

    /// Fills some pages from [`PAGE`] on with a byte that is not 0.
    fn fill(&self, pages: usize) {
        self.driver.memory().write_slice(&vec![7; 4096 * pages], address(PAGE)).unwrap();
    }

    /// For each of some pages from [`PAGE`] on, whether it is still filled.
    fn filled(&self, pages: u32) -> Vec<bool> {
        let page = |page| self.driver.bytes_at(address(PAGE + page), 4096);
        (0..pages).map(|number| page(number).iter().all(|&byte| byte == 7)).collect()
    }

    /// Moves the driver to another balloon, which has the state of this one.
    fn migrate(&mut self, options: &BalloonOptions) {
        let (heir, control) = balloon_in(self.driver.memory(), options, &self._thread);
        self.driver.migrate(heir);
        self.control = control;
        self.driver.transport().lock().unwrap().core().resume();
    }

    fn count(&self, counter: fn(&BalloonCounters) -> &AtomicU64) -> u64 {
        counter(self.control.counters()).load(Ordering::Relaxed)
    }
}

fn address(page: u32) -> GuestAddress {
    GuestAddress(u64::from(page) * 4096)
}

#[test]
fn pages_that_are_put_in_are_the_hosts_and_come_back_empty() {
    let mut bench = plain();
    bench.fill(6);
    bench.pages(INFLATE, &[PAGE + 4, PAGE + 1, PAGE + 2]);
    assert_eq!(bench.filled(6), [true, false, false, true, false, true]);
    assert_eq!(bench.count(|all| &all.discarded_bytes), 3 * 4096);
    bench.pages(DEFLATE, &[PAGE + 4, PAGE + 1]);
    bench.driver.memory().write_slice(&[7; 4096], address(PAGE + 4)).unwrap();
    assert_eq!(bench.filled(6), [true, false, false, true, true, true]);
    assert_eq!((bench.count(|all| &all.inflated_pages), bench.count(|all| &all.deflated_pages)), (3, 2));
    assert_eq!(bench.count(|all| &all.errors), 0);
}

#[test]
fn memory_in_a_file_gets_smaller_when_pages_are_put_in() {
    // A file in memory, as a memfd is.
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(u64::try_from(REGION_BYTES).unwrap()).unwrap();
    let range = (GuestAddress(0), REGION_BYTES, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
    let memory = Arc::new(GuestMemory::from_ranges_with_files([range]).unwrap());
    let mut bench = bench_in(memory, &BalloonOptions::default());
    bench.driver.initialize(u64::MAX, &[16; 2]);
    bench.fill(256);
    let before = file.metadata().unwrap().blocks();
    bench.pages(INFLATE, &(PAGE..PAGE + 200).collect::<Vec<_>>());
    let after = file.metadata().unwrap().blocks();
    assert_eq!((before - after) * 512, 200 * 4096);
    assert_eq!(bench.filled(201).iter().filter(|filled| **filled).count(), 1);
}

#[test]
fn a_target_is_told_by_an_interrupt_and_what_the_driver_says_is_told_on() {
    let mut bench = bench(&all());
    assert_eq!(bench.driver.config(0), 7_u32.to_le_bytes());
    while bench.driver.take_interrupt().is_some() {}
    bench.control.set_target(300).unwrap();
    bench.driver.wait_for("the target", |driver| (driver.config(0) == 300_u32.to_le_bytes()).then_some(()));
    assert!(bench.driver.write_bytes(0x104, &299_u32.to_le_bytes()));
    assert_eq!((bench.control.target_pages(), bench.control.actual_pages()), (300, 299));
    let memory_pages = 2 * u64::try_from(REGION_BYTES).unwrap() / 4096;
    bench.control.set_target(memory_pages).unwrap();
    let too_large = bench.control.set_target(memory_pages + 1);
    assert_eq!(too_large, Err(BalloonError::TooLarge { pages: memory_pages + 1, memory_pages }));
    bench.driver.reset();
    assert_eq!(bench.control.actual_pages(), 0);
}

fn statistics_of(pairs: &[(u16, u64)]) -> Vec<u8> {
    pairs.iter().flat_map(|(tag, value)| tag.to_le_bytes().into_iter().chain(value.to_le_bytes())).collect()
}

#[test]
fn statistics_are_asked_for_again_and_again_and_the_last_are_told() {
    let mut bench = bench(&BalloonOptions { statistics: Some(Duration::from_millis(5)), ..BalloonOptions::default() });
    let place = bench.driver.allocate(64);
    for round in 0..5 {
        let bytes = statistics_of(&[(4, 1000 + round), (15, u64::MAX), (99, 1), (0, round)]);
        bench.driver.memory().write_slice(&bytes, place).unwrap();
        bench.driver.queues[2].want_interrupt();
        // The last pair is cut short.
        bench.driver.queues[2].add(&[Buffer::Readable(place, 39)]);
        bench.driver.kick(2);
        if round == 2 {
            // What the device keeps through a pause it still has after it.
            let transport = bench.driver.transport().clone();
            transport.lock().unwrap().core().pause();
            transport.lock().unwrap().core().resume();
        }
        bench.driver.wait_used(2);
        let told: Vec<_> = bench.control.statistics().unwrap().iter().collect();
        assert_eq!(told, [("free_memory", 1000 + round), ("direct_reclaim", u64::MAX)]);
    }
    // Asked no more: the buffer stays with the device.
    bench.control.set_interval(Duration::ZERO).unwrap();
    bench.driver.queues[2].add(&[Buffer::Readable(place, 10)]);
    bench.driver.kick(2);
    bench.pages(INFLATE, &[PAGE]);
    bench.pages(INFLATE, &[PAGE]);
    assert_eq!(bench.driver.queues[2].device_used_index(), 5);
    assert_eq!(plain().control.statistics(), Err(BalloonError::Without("statistics")));
}

#[test]
fn statistics_of_any_length_are_read_to_a_bound_and_cost_the_host_nothing_more() {
    const READ: usize = 32;
    let mut bench = bench(&BalloonOptions { statistics: Some(Duration::from_millis(5)), ..BalloonOptions::default() });
    let mut pairs = vec![(4, 1); READ];
    pairs.push((0, 9));
    let mut bytes = statistics_of(&pairs);
    bytes.resize(1 << 20, 0xff);
    let place = bench.driver.place(&bytes);
    bench.driver.queues[2].want_interrupt();
    // All of guest memory would not be too much to name, again and again.
    bench.driver.queues[2].add(&[Buffer::Readable(place, 1 << 20); 8]);
    bench.driver.kick(2);
    bench.driver.wait_used(2);
    assert_eq!(bench.control.statistics().unwrap().iter().collect::<Vec<_>>(), [("free_memory", 1)]);
}

#[test]
fn hinted_pages_go_while_their_run_lasts_and_only_then() {
    let options = BalloonOptions { hinting: true, ..BalloonOptions::default() };
    let mut bench = bench(&options);
    let hint = |bench: &mut Bench, page: u32| bench.driver.run(2, &[Buffer::Writable(address(PAGE + page), 4096)]);
    let command = |bench: &mut Bench, command: u32| {
        let place = bench.driver.place(&command.to_le_bytes());
        bench.driver.run(2, &[Buffer::Readable(place, 4)]);
    };
    bench.fill(5);
    hint(&mut bench, 0);
    assert_eq!(bench.filled(1), [true], "no run");
    bench.control.start_hinting(true).unwrap();
    assert_eq!(bench.driver.config(8), 2_u32.to_le_bytes());
    hint(&mut bench, 1);
    command(&mut bench, 2);
    hint(&mut bench, 2);
    command(&mut bench, 77);
    hint(&mut bench, 3);
    assert_eq!(bench.filled(5), [true, true, false, true, true]);
    command(&mut bench, 2);
    command(&mut bench, STOP);
    assert_eq!(bench.driver.config(8), DONE.to_le_bytes(), "acknowledged");
    assert_eq!(bench.control.hinting(), Ok(HintingStatus { host_command: DONE, guest_command: Some(STOP) }));
    bench.control.start_hinting(false).unwrap();
    assert_eq!(bench.driver.config(8), 2_u32.to_le_bytes());
    command(&mut bench, 2);
    command(&mut bench, STOP);
    assert_eq!(bench.driver.config(8), 2_u32.to_le_bytes(), "not acknowledged before it is asked for");
    bench.control.stop_hinting().unwrap();
    assert_eq!(bench.driver.config(8), DONE.to_le_bytes());
    assert_eq!(bench.count(|all| &all.hinted_bytes), 4096);
    assert_eq!(plain().control.start_hinting(true), Err(BalloonError::Without("free page hinting")));
}

#[test]
fn reported_pages_go_on_the_queue_that_their_features_give_them() {
    // Of three optional queues the driver wants the last: it has the number of the first.
    let mut bench = bench_in(memory_with_hole(REGION_BYTES), &all());
    bench.driver.initialize(REPORTING, &[16; 3]);
    bench.fill(6);
    let chain =
        [Buffer::Writable(address(PAGE + 1), 8192), Buffer::Writable(GuestAddress(address(PAGE + 3).0 + 100), 8192)];
    assert_eq!(bench.driver.run(2, &chain).written, 0);
    assert_eq!(bench.filled(6), [true, false, false, true, false, true], "whole pages");
    assert_eq!(bench.count(|all| &all.reported_bytes), 3 * 4096);
}

#[test]
fn a_list_that_is_none_changes_nothing_and_the_next_is_served() {
    let mut bench = plain();
    bench.fill(2);
    let place = bench.driver.allocate(1 << 20);
    let number = bench.driver.place(&PAGE.to_le_bytes());
    for chain in [
        vec![Buffer::Readable(number, 3)],
        vec![Buffer::Readable(number, 4), Buffer::Readable(number, 2)],
        vec![Buffer::Readable(place, 4 * 16385)],
    ] {
        bench.driver.run(INFLATE, &chain);
    }
    assert_eq!((bench.filled(2), bench.count(|all| &all.errors)), (vec![true; 2], 3));
    // Nothing to read, and pages that are no memory.
    bench.driver.run(INFLATE, &[Buffer::Writable(number, 4)]);
    bench.pages(INFLATE, &[u32::MAX, u32::MAX - 1, 1024, PAGE]);
    assert_eq!((bench.filled(2), bench.count(|all| &all.errors)), (vec![false, true], 5));
    bench.pages(DEFLATE, &[u32::MAX, 1024, PAGE]);
    // As many as a chain may name.
    bench.driver.memory().write_slice(&vec![0xff; 4 * 16384], place).unwrap();
    bench.driver.run(INFLATE, &[Buffer::Readable(place, 4 * 16384)]);
    assert_eq!(bench.count(|all| &all.errors), 5);
}

#[test]
fn a_broken_ring_asks_for_reset_and_the_balloon_is_new_after_it() {
    let mut bench = bench(&all());
    bench.driver.queues[DEFLATE].write_descriptor(3, Descriptor { address: u64::MAX, len: 8, flags: 0, next: 0 });
    bench.driver.queues[DEFLATE].make_available(3);
    bench.driver.kick(DEFLATE);
    bench.driver.wait_needs_reset();
    assert_eq!(bench.count(|all| &all.retired_queues), 1);
    bench.driver.initialize(u64::MAX, &[16; 5]);
    bench.fill(1);
    bench.pages(INFLATE, &[PAGE]);
    assert_eq!(bench.filled(1), [false]);
}

#[test]
fn a_driver_that_leaves_a_queue_out_gets_no_balloon() {
    let mut bench = bench_in(memory_with_hole(REGION_BYTES), &all());
    bench.driver.reset();
    let features = bench.driver.offered_features();
    assert!(bench.driver.negotiate(features));
    bench.driver.set_up_queue(16);
    bench.driver.driver_ok();
    bench.driver.wait_needs_reset();
}

#[test]
fn a_balloon_goes_on_in_another_with_what_it_has_and_shall_have() {
    let mut bench = bench(&all());
    bench.driver.write_bytes(0x104, &5_u32.to_le_bytes());
    bench.control.set_interval(Duration::from_secs(3600)).unwrap();
    while bench.driver.take_interrupt().is_some() {}
    bench.driver.transport().lock().unwrap().core().pause();
    bench.control.set_target(9).unwrap();
    bench.fill(3);
    // Made available, and not looked at.
    let place = bench.driver.place(&PAGE.to_le_bytes());
    bench.driver.queues[INFLATE].add(&[Buffer::Readable(place, 4)]);
    bench.migrate(&all());
    bench.driver.wait_used(INFLATE);
    assert_eq!(bench.filled(3), [false, true, true]);
    assert_eq!((bench.control.target_pages(), bench.control.actual_pages()), (9, 5));
    assert_eq!(bench.driver.config(0), 9_u32.to_le_bytes());
    bench.pages(DEFLATE, &[PAGE]);
    assert_eq!(bench.count(|all| &all.deflated_pages), 1);
}

#[test]
fn a_target_that_the_driver_has_not_heard_of_is_told_by_the_other_balloon() {
    let mut bench = plain();
    while bench.driver.take_interrupt().is_some() {}
    bench.driver.transport().lock().unwrap().core().pause();
    bench.control.set_target(3).unwrap();
    bench.migrate(&BalloonOptions::default());
    assert_eq!(bench.driver.take_interrupt(), Some(2));
    bench.migrate(&BalloonOptions::default());
    assert_eq!(bench.driver.take_interrupt(), None, "once");
}

#[test]
fn statistics_and_the_buffer_for_them_go_along() {
    let options = BalloonOptions { statistics: Some(Duration::from_millis(5)), ..BalloonOptions::default() };
    let mut bench = bench(&options);
    let place = bench.driver.allocate(16);
    for round in 0..3 {
        bench.driver.memory().write_slice(&statistics_of(&[(4, 1000 + round)]), place).unwrap();
        bench.driver.queues[2].want_interrupt();
        bench.driver.queues[2].add(&[Buffer::Readable(place, 10)]);
        bench.driver.kick(2);
        bench.migrate(&options);
        bench.driver.wait_used(2);
        assert_eq!(bench.control.statistics().unwrap().iter().collect::<Vec<_>>(), [("free_memory", 1000 + round)]);
    }
    bench.control.set_interval(Duration::from_secs(3600)).unwrap();
    bench.migrate(&options);
    assert_eq!(bench.control.statistics().unwrap().iter().collect::<Vec<_>>(), [("free_memory", 1002)], "and told");
}

#[test]
fn a_hinting_run_lasts_beyond_a_restore() {
    let options = BalloonOptions { hinting: true, ..BalloonOptions::default() };
    let mut bench = bench(&options);
    bench.fill(2);
    bench.control.start_hinting(true).unwrap();
    let command = |bench: &mut Bench, command: u32| {
        let place = bench.driver.place(&command.to_le_bytes());
        bench.driver.run(2, &[Buffer::Readable(place, 4)]);
    };
    command(&mut bench, 2);
    bench.migrate(&options);
    assert_eq!(bench.control.hinting(), Ok(HintingStatus { host_command: 2, guest_command: Some(2) }));
    bench.driver.run(2, &[Buffer::Writable(address(PAGE), 4096)]);
    assert_eq!(bench.filled(2), [false, true]);
    command(&mut bench, STOP);
    assert_eq!(bench.driver.config(8), DONE.to_le_bytes(), "acknowledged, as was asked before");
}

#[test]
fn a_balloon_that_differs_or_has_more_than_there_is_is_refused() {
    let bench = bench(&all());
    let good = bench.driver.save();
    let attempt = |state: &crate::virtio::transport::MmioState, options: &BalloonOptions| {
        let (mut heir, _control) = balloon_in(&memory_with_hole(REGION_BYTES), options, &bench._thread);
        heir.restore(state.clone()).map_err(|error| error.to_string())
    };
    assert_eq!(attempt(&good, &all()), Ok(()));
    let error = attempt(&good, &BalloonOptions { reporting: false, deflate_on_oom: false, ..all() }).unwrap_err();
    assert!(error.contains("VIRTIO_BALLOON_F_DEFLATE_ON_OOM, VIRTIO_BALLOON_F_PAGE_REPORTING,"), "{error}");
    let mut state = good;
    let DeviceState::Balloon(balloon) = &mut state.core.device else { unreachable!("it is a balloon's") };
    balloon.target_pages = 2049;
    assert!(attempt(&state, &all()).unwrap_err().contains("more than the guest's memory"));
}

#[test]
fn after_a_reset_a_balloon_that_was_restored_is_as_new() {
    let mut bench = bench(&all());
    bench.driver.reset();
    let new = bench.driver.save();
    bench.driver.initialize(u64::MAX, &[16; 5]);
    bench.driver.write_bytes(0x104, &5_u32.to_le_bytes());
    bench.control.start_hinting(false).unwrap();
    bench.migrate(&all());
    bench.driver.reset();
    let mut state = bench.driver.save();
    // How often the configuration changed is no driver's affair.
    state.core.interrupt.config_generation = new.core.interrupt.config_generation;
    assert_eq!(state, new);
}

/// Memory that is said to be of a pool whose pages are of 64 KiB, so that the test needs no pool.
const POOL_PAGE_BYTES: u64 = 64 << 10;

fn pool_balloon(memory: &Arc<GuestMemory>, thread: &IoThread) -> MmioTransport {
    let reclaim = Reclaim::new(Arc::clone(memory), Some(POOL_PAGE_BYTES));
    let options = BalloonOptions::default();
    let balloon = Balloon::new("balloon", &options, reclaim, Arc::new(|| {}), thread.handle()).unwrap();
    MmioTransport::new("balloon", Box::new(balloon), memory.clone()).unwrap()
}

#[test]
fn a_huge_page_that_is_put_in_across_a_pause_and_a_restore_goes_when_it_is_whole() {
    let memory = memory_with_hole(REGION_BYTES);
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let driver = FakeDriver::new(pool_balloon(&memory, &thread), memory.clone());
    let (_, control) = balloon_in(&memory, &BalloonOptions::default(), &thread);
    let mut bench = Bench { driver, control, _thread: thread };
    bench.driver.initialize(u64::MAX, &[16; 2]);
    bench.fill(17);
    bench.pages(INFLATE, &(PAGE..PAGE + 5).collect::<Vec<_>>());
    let transport = bench.driver.transport().clone();
    transport.lock().unwrap().core().pause();
    transport.lock().unwrap().core().resume();
    bench.pages(INFLATE, &(PAGE + 5..PAGE + 10).collect::<Vec<_>>());
    let heir = pool_balloon(&memory, &bench._thread);
    bench.driver.migrate(heir);
    bench.driver.transport().lock().unwrap().core().resume();
    assert_eq!(bench.filled(17), [true; 17], "it is not whole yet");
    bench.pages(INFLATE, &(PAGE + 10..PAGE + 16).collect::<Vec<_>>());
    assert_eq!(bench.filled(17).iter().filter(|filled| **filled).count(), 1);
}

#[test]
fn pages_of_a_pool_that_are_put_in_twice_or_are_none_are_refused() {
    let memory = memory_with_hole(REGION_BYTES);
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let good = pool_balloon(&memory, &thread).save();
    let end = u32::try_from(((1_u64 << 32) + u64::try_from(REGION_BYTES).unwrap()) / 4096).unwrap();
    for (runs, fits) in [
        (vec![(0, 1), (2, 3), (end - 1, 1)], true),
        (vec![(0, 1), (1, 1)], false),
        (vec![(4, 1), (2, 1)], false),
        (vec![(4, 0)], false),
        (vec![(end - 1, 2)], false),
        (vec![(u32::MAX, 2)], false),
        (vec![(0, u32::MAX)], false),
    ] {
        let mut state = good.clone();
        let DeviceState::Balloon(balloon) = &mut state.core.device else { unreachable!("it is a balloon's") };
        balloon.pool_runs = runs.clone();
        let mut heir = pool_balloon(&memory, &thread);
        assert_eq!(heir.restore(state.clone()).is_ok(), fits, "{runs:?}");
        if fits {
            assert_eq!(heir.save(), state);
            let (mut of_small_pages, _control) = balloon_in(&memory, &BalloonOptions::default(), &thread);
            let error = of_small_pages.restore(state).unwrap_err().to_string();
            assert!(error.contains("whose memory is of none"), "{error}");
        }
    }
}
