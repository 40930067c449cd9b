//! A disk that is held to a rate.

use super::*;
use crate::limit::{Admission, Flow};
use crate::testing::{DEADLINE, wait_asleep, wait_until};
use std::time::Instant;

const MULTI_QUEUE: u64 = FLUSH | EVENT_IDX | 1 << VIRTIO_BLK_F_MQ;

fn operations(rate: Option<Rate>) -> LimiterConfig {
    LimiterConfig { total: Limits { operations: rate, bytes: None }, ..LimiterConfig::default() }
}

fn limited(config: LimiterConfig) -> (Bench, Arc<Limiter>) {
    let limiter = Limiter::new(config);
    (Bench::build(&Setup { limiter: Some(Arc::clone(&limiter)), ..Setup::default() }), limiter)
}

fn add_reads(bench: &mut Bench, count: usize) -> Vec<GuestAddress> {
    let data = bench.driver.allocate(512);
    let statuses = (0..count).map(|_| {
        let (header, status) = (bench.header(IN, 1), bench.status_byte());
        bench.driver.queues[0].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
        status
    });
    let statuses = statuses.collect();
    bench.driver.kick(0);
    statuses
}

fn wait_until_used(bench: &Bench, count: u16) {
    let deadline = Instant::now() + DEADLINE;
    while bench.driver.queues[0].device_used_index() < count {
        assert!(Instant::now() < deadline, "the requests are served in time");
        std::thread::yield_now();
    }
}

#[test]
fn a_drained_bucket_lets_its_rate_through_and_no_more() {
    // 10 at once, then one each 10 ms.
    let (mut bench, _) = limited(operations(Rate::new(10, 0, 100)));
    let start = Instant::now();
    let statuses = add_reads(&mut bench, 20);
    for _ in 0..20 {
        bench.driver.wait_used(0);
    }
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_millis(99), "{elapsed:?}");
    assert!(statuses.into_iter().all(|status| bench.status(status) == OK));
    assert_eq!(bench.count(|all| &all.requests), 20);
    let throttled = bench.control.queue_counters()[0].throttled_ns.load(Ordering::Relaxed);
    assert!(throttled >= 90_000_000, "{throttled} ns");
}

#[test]
fn a_thousand_a_second_are_a_thousand_a_second_once_the_bucket_is_empty() {
    const SECONDS: u64 = 3;
    const SECOND_NS: u64 = 1_000_000_000;
    let now_ns = Arc::new(AtomicU64::new(0));
    let limiter = Limiter::by_hand(&now_ns, operations(Rate::per_second(1000)));
    let mut bench = Bench::build(&Setup { limiter: Some(Arc::clone(&limiter)), ..Setup::default() });
    let (header, data, status) = (bench.header(IN, 1), bench.driver.allocate(512), bench.status_byte());
    let chain = [header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)];
    let entries = bench.driver.queues[0].free();
    let mut taken = 0;
    // Has the queue take all that it may have at this moment.
    let mut take_all = || loop {
        while bench.driver.queues[0].free() >= chain.len() {
            bench.driver.queues[0].add(&chain);
        }
        // Who stops leaves the line: who stands there afterwards has asked since.
        bench.pause();
        bench.resume();
        let mut waits = false;
        wait_until(|| {
            waits = limiter.waiting() == 1;
            while bench.driver.queues[0].take_used().is_some() {
                taken += 1;
            }
            taken == bench.submitted() && (waits || bench.driver.queues[0].free() == entries)
        });
        if waits {
            return taken;
        }
    };
    let drained = take_all();
    assert_eq!(drained, 1000, "what the bucket had");
    // It looks between one and twelve milliseconds late each time.
    let (mut now, mut random) = (0, 0x9e37_79b9_u64);
    while now < SECONDS * SECOND_NS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        now = (now + 1_000_000 + random % 11_000_000).min(SECONDS * SECOND_NS);
        now_ns.store(now, Ordering::Relaxed);
        take_all();
    }
    let served = take_all() - drained;
    assert!((990 * SECONDS..=1010 * SECONDS).contains(&served), "{served} in {SECONDS} s");
}

/// By the host's clock and its timers. This thread may be late by more than the hundredth that is asked, but not always.
#[test]
fn a_thousand_a_second_are_a_thousand_a_second_by_the_hosts_timers() {
    const WINDOW: Duration = Duration::from_secs(3);
    const ATTEMPTS: u32 = 5;
    let (mut bench, _) = limited(operations(Rate::new(100, 0, 100)));
    let (header, data, status) = (bench.header(IN, 1), bench.driver.allocate(512), bench.status_byte());
    let chain = [header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)];
    let mut served = 0_u32;
    // Keeps the queue busy until so many are served and the last of them just now.
    let mut serve = |least: u32, until: Instant| loop {
        let queue = &mut bench.driver.queues[0];
        let before = served;
        while queue.take_used().is_some() {
            served += 1;
        }
        if served > before && served >= least && Instant::now() >= until {
            return (served, Instant::now());
        }
        while queue.free() >= chain.len() {
            queue.add(&chain);
        }
        bench.driver.kick(0);
        std::thread::sleep(Duration::from_micros(500));
    };
    let mut rates = (0..ATTEMPTS).map(|_| {
        let (drained, start) = serve(200, Instant::now());
        let (count, end) = serve(0, start + WINDOW);
        f64::from(count - drained) / end.duration_since(start).as_secs_f64()
    });
    assert!(rates.any(|rate| (990.0..=1010.0).contains(&rate)), "not once in {ATTEMPTS} times");
}

#[test]
fn a_queue_that_waits_pauses_at_once_and_goes_on_where_it_was() {
    let (mut bench, limiter) = limited(operations(Rate::new(3, 0, 3_600_000)));
    let statuses = add_reads(&mut bench, 8);
    wait_until_used(&bench, 3);
    let transport = bench.driver.transport().clone();
    for _ in 0..3 {
        transport.lock().unwrap().core().pause();
        assert_eq!(bench.submitted(), 3);
        transport.lock().unwrap().core().resume();
    }
    limiter.change(operations(Rate::new(2, 0, 3_600_000)));
    wait_until_used(&bench, 5);
    transport.lock().unwrap().core().pause();
    assert_eq!(bench.submitted(), 5, "the new limits hold at once");
    transport.lock().unwrap().core().resume();
    limiter.change(LimiterConfig::default());
    wait_until_used(&bench, 8);
    assert!(statuses.into_iter().all(|status| bench.status(status) == OK));
    bench.driver.reset();
}

#[test]
fn bytes_and_directions_are_limited_apart() {
    let hourly = |bytes| Limits { bytes: Rate::new(bytes, 0, 3_600_000), operations: None };
    let config = LimiterConfig { inward: hourly(1024), outward: hourly(512), ..LimiterConfig::default() };
    let (mut bench, limiter) = limited(config);
    assert_eq!(bench.read(0, 2 * SECTOR).0, OK);
    assert_eq!(bench.write(0, &[1; SECTOR]).0, OK);
    assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK, "it moves no bytes");
    add_reads(&mut bench, 1);
    let transport = bench.driver.transport().clone();
    transport.lock().unwrap().core().pause();
    assert_eq!(bench.submitted(), 3);
    transport.lock().unwrap().core().resume();
    limiter.change(LimiterConfig::default());
    bench.driver.wait_used(0);
}

/// Makes a write of so many sectors of zeroes available, and rings.
fn add_zeroes(bench: &mut Bench, sectors: u32) -> GuestAddress {
    let range = [&0_u64.to_le_bytes()[..], &sectors.to_le_bytes(), &0_u32.to_le_bytes()].concat();
    let (data, header, status) = (bench.driver.place(&range), bench.header(13, 0), bench.status_byte());
    bench.driver.queues[0].add(&[header, Buffer::Readable(data, 16), Buffer::Writable(status, 1)]);
    bench.driver.kick(0);
    status
}

fn bytes_out(bytes: u64) -> LimiterConfig {
    let outward = Limits { bytes: Rate::new(bytes, 0, 3_600_000), operations: None };
    LimiterConfig { outward, ..LimiterConfig::default() }
}

#[test]
fn zeroes_are_bytes_that_are_written() {
    let limiter = Limiter::new(bytes_out(8 * SECTOR_BYTES));
    let features = FLUSH | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    let mut bench = Bench::build(&Setup { limiter: Some(Arc::clone(&limiter)), features, ..Setup::default() });
    let first = add_zeroes(&mut bench, 7);
    bench.driver.wait_used(0);
    let second = add_zeroes(&mut bench, 2);
    wait_until(|| limiter.waiting() == 1);
    assert_eq!([first, second].map(|status| bench.status(status)), [OK, UNWRITTEN]);
    limiter.change(LimiterConfig::default());
    bench.driver.wait_used(0);
    assert_eq!(bench.status(second), OK);
}

/// A disk whose first write of one sector, through an indirect table, finds no space, and a second one behind it; where the
/// table and the statuses are.
fn with_a_kept_write(limiter: &Arc<Limiter>) -> (Bench, GuestAddress, [GuestAddress; 2]) {
    let (tell, full) = std::sync::mpsc::channel();
    let setup = Setup {
        limiter: Some(Arc::clone(limiter)),
        fault: Fault { fail_nth: Some(0), errno: libc::ENOSPC, ..Fault::default() },
        on_full: OnFull::Keep(Arc::new(move || tell.send(()).unwrap())),
        ..Setup::default()
    };
    let mut bench = Bench::build(&setup);
    let (header, status) = (bench.header(OUT, 0), bench.status_byte());
    let (data, table) = (bench.driver.place(&[0x31; 4 * SECTOR]), bench.driver.allocate(64));
    let chain = [header, Buffer::Readable(data, 512), Buffer::Writable(status, 1)];
    bench.driver.queues[0].add_indirect(table, &chain);
    let other = bench.begin_write(0, 0x32);
    bench.driver.kick(0);
    full.recv_timeout(DEADLINE).unwrap();
    (bench, table, [status, other])
}

#[test]
fn a_kept_request_that_the_driver_makes_larger_pays_for_what_it_has_become() {
    let limiter = Limiter::new(bytes_out(4 * SECTOR_BYTES));
    let (mut bench, table, statuses) = with_a_kept_write(&limiter);
    // The length of the second descriptor.
    let len = GuestAddress(table.0 + 16 + 8);
    bench.driver.memory().write_slice(&2048_u32.to_le_bytes(), len).unwrap();
    bench.pause();
    bench.resume();
    bench.driver.wait_used(0);
    wait_until(|| limiter.waiting() == 1);
    assert_eq!(statuses.map(|status| bench.status(status)), [OK, UNWRITTEN]);
    assert_eq!(bench.disk()[..4 * SECTOR], [0x31; 4 * SECTOR]);
}

#[test]
fn a_kept_request_that_waits_for_the_limiter_stays_before_all_others_through_a_pause() {
    let limiter = Limiter::new(bytes_out(4 * SECTOR_BYTES));
    let (mut bench, _, statuses) = with_a_kept_write(&limiter);
    let rival = limiter.join().unwrap();
    assert_eq!(rival.admit(Flow::Out, 2048), Admission::Granted, "what was kept has cost nothing");
    for _ in 0..2 {
        bench.pause();
        bench.resume();
        wait_until(|| limiter.waiting() == 1);
        assert_eq!(statuses.map(|status| bench.status(status)), [UNWRITTEN; 2]);
    }
    limiter.change(LimiterConfig::default());
    bench.driver.wait_used(0);
    bench.driver.wait_used(0);
    assert_eq!(statuses.map(|status| bench.status(status)), [OK; 2]);
    assert_eq!(bench.disk()[..SECTOR], [0x32; SECTOR], "the later one came later");
}

#[test]
fn disks_of_a_group_share_its_rate() {
    let limiter = Limiter::new(operations(Rate::new(6, 0, 3_600_000)));
    let setup = Setup { limiter: Some(Arc::clone(&limiter)), ..Setup::default() };
    let mut disks = [Bench::build(&setup), Bench::build(&setup)];
    for bench in &mut disks {
        add_reads(bench, 5);
    }
    let deadline = Instant::now() + DEADLINE;
    while disks.iter().map(Bench::submitted).sum::<u64>() < 6 {
        assert!(Instant::now() < deadline, "six requests are served in time");
        std::thread::yield_now();
    }
    limiter.change(operations(Rate::new(3, 0, 3_600_000)));
    while disks.iter().map(Bench::submitted).sum::<u64>() < 9 {
        assert!(Instant::now() < deadline, "three more");
        std::thread::yield_now();
    }
    limiter.change(LimiterConfig::default());
    for bench in &mut disks {
        wait_until_used(bench, 5);
    }
}

#[test]
fn a_queue_whose_request_is_refused_while_it_waits_leaves_the_line() {
    let limiter = Limiter::new(operations(Rate::new(1, 0, 3_600_000)));
    let setup = Setup { limiter: Some(Arc::clone(&limiter)), queues: 2, features: MULTI_QUEUE, ..Setup::default() };
    let mut bench = Bench::build(&setup);
    assert_eq!(bench.read(0, SECTOR).0, OK);
    let statuses = [(0, SECTORS - 1), (1, 0)].map(|(queue, sector)| {
        let (data, header, status) = (bench.driver.allocate(512), bench.header(IN, sector), bench.status_byte());
        bench.driver.queues[queue].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
        bench.driver.kick(queue);
        wait_until(|| limiter.waiting() == queue + 1);
        status
    });
    // What the first asks for is not there any more when it may go.
    bench.control.resize(bench.image.current_sectors().unwrap(), (SECTORS - 8) * SECTOR_BYTES).unwrap();
    limiter.change(operations(Rate::new(1, 0, 3_600_000)));
    bench.driver.wait_used(0);
    bench.driver.wait_used(1);
    assert_eq!(statuses.map(|status| bench.status(status)), [IOERR, OK]);
}

#[test]
fn a_queue_that_waits_costs_no_cpu_whether_its_thread_polls_or_not() {
    for poll in [Duration::ZERO, Duration::from_millis(1)] {
        let limiter = Limiter::new(operations(Rate::new(1, 0, 3_600_000)));
        let thread = "husk-io-waits";
        let mut bench = Bench::build(&Setup { limiter: Some(limiter), thread, poll, ..Setup::default() });
        add_reads(&mut bench, 20);
        wait_until_used(&bench, 1);
        wait_asleep(thread);
        assert_eq!(bench.submitted(), 1);
    }
}

#[test]
fn a_disk_whose_thread_polls_is_asleep_when_there_is_nothing_to_do() {
    for engine in [Engine::Sync, Engine::Uring] {
        let (thread, poll) = ("husk-io-polls", Duration::from_millis(1));
        let mut bench = Bench::build(&Setup { engine, thread, poll, ..Setup::default() });
        for _ in 0..3 {
            assert_eq!(bench.read(1, SECTOR).0, OK);
            wait_asleep(thread);
        }
    }
}
