//! A disk that is held to a rate.

use super::*;
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
    bench.control.resize(&bench.image, (SECTORS - 8) * SECTOR_BYTES).unwrap();
    limiter.change(operations(Rate::new(1, 0, 3_600_000)));
    bench.driver.wait_used(0);
    bench.driver.wait_used(1);
    assert_eq!(statuses.map(|status| bench.status(status)), [IOERR, OK]);
}

#[test]
fn a_queue_that_waits_costs_no_cpu() {
    let limiter = Limiter::new(operations(Rate::new(1, 0, 3_600_000)));
    let thread = "husk-io-waits";
    let mut bench = Bench::build(&Setup { limiter: Some(limiter), thread, ..Setup::default() });
    add_reads(&mut bench, 20);
    wait_until_used(&bench, 1);
    wait_asleep(thread);
    assert_eq!(bench.submitted(), 1);
}
