//! A network that is held to rates.

use super::*;
use crate::limit::{LimiterConfig, Limits, Rate};
use crate::testing::{DEADLINE, wait_asleep, wait_until};
use std::time::{Duration, Instant};

const HOUR_MS: u64 = 3_600_000;

/// So many frames at once, and hardly more.
fn frames(count: u64) -> Limits {
    Limits { operations: Rate::new(count, 0, HOUR_MS), bytes: None }
}

fn inward(limits: Limits) -> LimiterConfig {
    LimiterConfig { inward: limits, ..LimiterConfig::default() }
}

fn outward(limits: Limits) -> LimiterConfig {
    LimiterConfig { outward: limits, ..LimiterConfig::default() }
}

fn limited(config: LimiterConfig) -> (Bench, Arc<Limiter>) {
    let limiter = Limiter::new(config);
    (in_group(&limiter), limiter)
}

fn in_group(limiter: &Arc<Limiter>) -> Bench {
    Bench::with_options(ALL, NetOptions { limiter: Some(Arc::clone(limiter)), ..NetOptions::default() })
}

/// Makes frames available that are different each, and kicks.
fn add_frames(bench: &mut Bench, count: usize) -> Vec<Vec<u8>> {
    let frames: Vec<_> = (0..count).map(|seed| frame(100, seed)).collect();
    for frame in &frames {
        let place = bench.driver.place(frame);
        bench.driver.queues[TX].add(&[Buffer::Readable(place, 112)]);
    }
    bench.driver.kick(TX);
    frames
}

fn wait_for_used(bench: &mut Bench, queue: usize, count: u16) {
    bench.driver.wait_for("used chains", |driver| {
        driver.queues[queue].want_interrupt_at(count);
        (driver.queues[queue].device_used_index() == count).then_some(())
    });
}

#[test]
fn transmitted_frames_wait_in_the_ring_and_none_is_lost() {
    // 10 at once, then one each 10 ms.
    let (mut bench, _) = limited(outward(Limits { operations: Rate::new(10, 0, 100), bytes: None }));
    let start = Instant::now();
    for sent in add_frames(&mut bench, 20) {
        assert_eq!(bench.wire.receive(), sent);
    }
    assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());
    // Counted before they are used, not before they are on the wire.
    wait_for_used(&mut bench, TX, 20);
    assert_eq!(bench.count(|all| &all.pairs[0].transmitted.frames), 20);
    assert!(bench.count(|all| &all.pairs[0].transmitted.throttled_ns) >= 90_000_000);
    assert_eq!(bench.count(|all| &all.pairs[0].received.throttled_ns), 0);
    assert_eq!(bench.wire.try_receive(), None);
}

#[test]
fn received_frames_wait_in_the_tap_and_none_is_lost() {
    for wanted in [0, MERGE, ALL] {
        let limiter = Limiter::new(inward(Limits { operations: Rate::new(5, 0, 50), bytes: None }));
        let options = NetOptions { limiter: Some(limiter), ..NetOptions::default() };
        let mut bench = Bench::with_options(wanted, options);
        let rooms: Vec<_> = (0..15).map(|_| bench.post(128)).collect();
        let start = Instant::now();
        for seed in 0..15 {
            bench.wire.send(&frame(100, seed));
        }
        for (seed, room) in rooms.into_iter().enumerate() {
            bench.driver.wait_used(RX);
            assert_eq!(bench.driver.bytes_at(room, 112), delivered(&frame(100, seed), 1));
        }
        assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());
        assert_eq!(bench.count(|all| &all.pairs[0].received.dropped), 0);
        assert!(bench.count(|all| &all.pairs[0].received.throttled_ns) >= 90_000_000);
    }
}

#[test]
fn bytes_are_those_of_frames_without_their_headers() {
    let hourly = |bytes| Limits { bytes: Rate::new(bytes, 0, HOUR_MS), operations: None };
    let config = LimiterConfig { inward: hourly(300), outward: hourly(200), ..LimiterConfig::default() };
    let (mut bench, limiter) = limited(config);
    let sent = add_frames(&mut bench, 3);
    for seed in 0..4 {
        bench.post(128);
        bench.wire.send(&frame(100, seed));
    }
    wait_for_used(&mut bench, TX, 2);
    wait_for_used(&mut bench, RX, 3);
    limiter.change(LimiterConfig::default());
    wait_for_used(&mut bench, TX, 3);
    wait_for_used(&mut bench, RX, 4);
    assert_eq!([(); 3].map(|()| bench.wire.receive()), sent[..]);
}

#[test]
fn a_direction_that_waits_does_not_hold_up_the_other() {
    let (mut bench, _) = limited(inward(frames(1)));
    for seed in 0..3 {
        bench.post(128);
        bench.wire.send(&frame(100, seed));
    }
    wait_for_used(&mut bench, RX, 1);
    for sent in add_frames(&mut bench, 20) {
        assert_eq!(bench.wire.receive(), sent);
    }
    assert_eq!(bench.driver.queues[RX].device_used_index(), 1);
}

#[test]
fn both_directions_share_what_is_in_total() {
    let (mut bench, limiter) = limited(LimiterConfig { total: frames(8), ..LimiterConfig::default() });
    let sent = add_frames(&mut bench, 5);
    sent.iter().for_each(|sent| assert_eq!(bench.wire.receive(), *sent));
    for seed in 0..5 {
        bench.post(128);
        bench.wire.send(&frame(100, seed));
    }
    wait_for_used(&mut bench, RX, 3);
    limiter.change(LimiterConfig { total: frames(2), ..LimiterConfig::default() });
    wait_for_used(&mut bench, RX, 5);
}

#[test]
fn networks_of_a_group_share_its_rate() {
    let limiter = Limiter::new(outward(frames(6)));
    let mut benches = [in_group(&limiter), in_group(&limiter)];
    for bench in &mut benches {
        add_frames(bench, 5);
    }
    let used = || benches.iter().map(|bench| bench.driver.queues[TX].device_used_index()).sum::<u16>();
    let wait_for = |count| {
        let deadline = Instant::now() + DEADLINE;
        while used() < count {
            assert!(Instant::now() < deadline, "{count} frames go in time");
            std::thread::yield_now();
        }
        assert_eq!(used(), count);
    };
    wait_for(6);
    limiter.change(outward(frames(3)));
    wait_for(9);
    limiter.change(LimiterConfig::default());
    wait_for(10);
}

/// How a frame that waits comes to wait no longer.
#[derive(Debug, Clone, Copy)]
enum Spoil {
    Cable,
    Header,
    Ring,
}

#[test]
fn a_network_that_loses_the_frame_it_waits_with_leaves_the_line() {
    for spoil in [Spoil::Cable, Spoil::Header, Spoil::Ring] {
        let limiter = Limiter::new(outward(frames(1)));
        let [mut waits, mut behind] = [in_group(&limiter), in_group(&limiter)];
        waits.send(&[&frame(60, 1)]);
        assert_eq!(waits.wire.receive(), frame(60, 1));
        let add = |bench: &mut Bench, waiting| {
            let place = bench.driver.place(&frame(60, waiting));
            let head = bench.driver.queues[TX].add(&[Buffer::Readable(place, 72)]);
            bench.driver.kick(TX);
            wait_until(|| limiter.waiting() == waiting);
            (place, head)
        };
        let (place, head) = add(&mut waits, 1);
        add(&mut behind, 2);
        match spoil {
            Spoil::Cable => waits.control.set_link(LinkState::Down),
            // A checksum that begins far behind the frame's end.
            Spoil::Header => {
                vm_memory::Bytes::write_slice(&**waits.driver.memory(), &[1, 0, 0, 0, 0, 0, 0xff, 0xff], place)
                    .unwrap();
            }
            Spoil::Ring => {
                let nowhere = Descriptor { address: u64::MAX - 4, len: 72, flags: 0, next: 0 };
                waits.driver.queues[TX].write_descriptor(head, nowhere);
            }
        }
        limiter.change(outward(frames(1)));
        assert_eq!(behind.wire.receive(), frame(60, 2), "{spoil:?}");
        assert_eq!(waits.wire.try_receive(), None, "{spoil:?}");
    }
}

#[test]
fn a_received_frame_that_its_driver_changes_while_it_waits_keeps_neither_others_nor_itself_waiting() {
    let limiter = Limiter::new(inward(frames(1)));
    let options = NetOptions { limiter: Some(Arc::clone(&limiter)), mtu: Some(1000), ..NetOptions::default() };
    let [mut waits, mut behind] = [Bench::with_options(ALL, options), in_group(&limiter)];
    waits.post(8192);
    waits.wire.send(&frame(60, 1));
    wait_for_used(&mut waits, RX, 1);
    // Longer than the MTU, which a frame that is segmented later may be.
    let mut large = frame(5000, 2);
    large[1] = 1;
    let room = waits.post(8192);
    waits.wire.send(&large);
    wait_until(|| limiter.waiting() == 1);
    behind.post(128);
    behind.wire.send(&frame(60, 3));
    wait_until(|| limiter.waiting() == 2);
    vm_memory::Bytes::write_slice(&**waits.driver.memory(), &[0; HEADER], room).unwrap();
    limiter.change(inward(frames(2)));
    wait_for_used(&mut behind, RX, 1);
    wait_for_used(&mut waits, RX, 2);
    assert_eq!(waits.count(|all| &all.pairs[0].received.dropped), 0);
}

#[test]
fn a_network_that_waits_pauses_at_once_and_loses_nothing() {
    let config = LimiterConfig { inward: frames(2), outward: frames(2), ..LimiterConfig::default() };
    let (mut bench, limiter) = limited(config);
    let sent = add_frames(&mut bench, 6);
    let rooms: Vec<_> = (0..6).map(|_| bench.post(128)).collect();
    for seed in 0..6 {
        bench.wire.send(&frame(100, seed));
    }
    wait_for_used(&mut bench, TX, 2);
    wait_for_used(&mut bench, RX, 2);
    bench.pause();
    assert_eq!(bench.driver.queues[TX].device_used_index(), 2);
    // What was read already is not given back to the wire.
    assert!(bench.driver.queues[RX].device_used_index() <= 3);
    bench.resume();
    limiter.change(LimiterConfig::default());
    sent.iter().for_each(|sent| assert_eq!(bench.wire.receive(), *sent));
    for (seed, room) in rooms.into_iter().enumerate() {
        bench.driver.wait_used(RX);
        assert_eq!(bench.driver.bytes_at(room, 112), delivered(&frame(100, seed), 1));
    }
}

#[test]
fn resets_and_pauses_give_no_more_than_one_frame_beyond_the_limit() {
    for resets in [true, false] {
        let (mut bench, limiter) = limited(inward(frames(1)));
        bench.wire.send(&frame(100, 0));
        for seed in 1..10 {
            bench.wire.send(&frame(100, seed));
            bench.post(128);
            bench.post(128);
            wait_until(|| limiter.waiting() == 1);
            if resets {
                bench.initialize(ALL);
            } else {
                bench.pause();
                bench.resume();
            }
        }
        assert_eq!(bench.count(|all| &all.pairs[0].received.frames), 2, "one within the limit, and one on credit");
        assert_eq!(bench.count(|all| &all.pairs[0].received.dropped), 8);
    }
}

#[test]
fn a_frame_that_waits_for_the_wire_through_pauses_is_charged_when_it_goes() {
    let (mut bench, limiter) = limited(outward(frames(1)));
    let full = limiter.save();
    bench.wire.set_fault(NetFault { transmit: Some(libc::EAGAIN), ..NetFault::default() });
    let sent = add_frames(&mut bench, 1);
    for _ in 0..5 {
        wait_until(|| limiter.save() != full);
        bench.pause();
        assert_eq!(limiter.save(), full, "it did not go");
        bench.resume();
    }
    bench.wire.set_fault(NetFault::default());
    assert_eq!(bench.wire.receive(), sent[0]);
    assert_ne!(limiter.save(), full);
}

#[test]
fn a_network_that_waits_is_reset_like_any_other() {
    let (mut bench, limiter) = limited(outward(frames(1)));
    for _ in 0..10 {
        add_frames(&mut bench, 3);
        bench.initialize(ALL);
    }
    limiter.change(LimiterConfig::default());
    while bench.wire.try_receive().is_some() {}
    bench.send(&[&frame(60, 99)]);
    assert_eq!(bench.wire.receive(), frame(60, 99));
}

#[test]
fn a_network_that_waits_costs_no_cpu_whether_its_thread_polls_or_not() {
    for poll in [Duration::ZERO, Duration::from_millis(1)] {
        let limiter = Limiter::new(LimiterConfig { inward: frames(1), outward: frames(1), ..LimiterConfig::default() });
        let (name, options) = ("husk-io-netwait", NetOptions { limiter: Some(limiter), ..NetOptions::default() });
        let mut bench = Bench::build(ALL, options, IoThread::spawn_polling(name, poll).unwrap());
        add_frames(&mut bench, 5);
        for seed in 0..5 {
            bench.post(128);
            bench.wire.send(&frame(100, seed));
        }
        wait_for_used(&mut bench, TX, 1);
        wait_for_used(&mut bench, RX, 1);
        wait_asleep(name);
    }
}

#[test]
fn a_network_whose_thread_polls_is_asleep_when_there_is_nothing_to_do() {
    let (name, poll) = ("husk-io-netpoll", Duration::from_millis(1));
    let mut bench = Bench::build(ALL, NetOptions::default(), IoThread::spawn_polling(name, poll).unwrap());
    for seed in 0..3 {
        bench.send(&[&frame(60, seed)]);
        assert_eq!(bench.wire.receive(), frame(60, seed));
        // With room for frames, and without.
        wait_asleep(name);
        bench.post(128);
        wait_asleep(name);
        bench.wire.send(&frame(60, seed));
        bench.driver.wait_used(RX);
        wait_asleep(name);
    }
}
