use super::*;
use crate::limit::{LimiterConfig, Limits, Rate};

#[test]
fn a_frame_comes_into_the_first_buffer_and_only_there() {
    for wanted in [0, MERGE, ALL] {
        let mut bench = Bench::new(wanted);
        let rooms: Vec<_> = (0..4).map(|_| bench.post(2048)).collect();
        for (seed, len) in [(0, 14), (1, 60), (2, 1514)] {
            let sent = frame(len, seed);
            bench.wire.send(&sent);
            let used = bench.driver.wait_used(RX);
            assert_eq!(usize::try_from(used.written).unwrap(), sent.len());
            let mut expected = delivered(&sent, 1);
            expected.resize(2048, UNWRITTEN);
            assert_eq!(bench.driver.bytes_at(rooms[seed], 2048), expected);
        }
        assert_eq!(bench.driver.bytes_at(rooms[3], 2048), [UNWRITTEN; 2048]);
        assert_eq!(
            (bench.count(|all| &all.pairs[0].received.frames), bench.count(|all| &all.pairs[0].received.bytes)),
            (3, 1588)
        );
    }
}

#[test]
fn a_large_frame_is_merged_from_as_many_buffers_as_it_needs() {
    let mut bench = Bench::new(ALL);
    bench.driver.initialize(ALL, &[256, 32]);
    bench.driver.queues[RX].want_interrupt();
    let rooms: Vec<_> = (0..200).map(|_| bench.post(512)).collect();
    let mut next = 0;
    for (seed, len) in [65554, 100, 500, 501, 30_000].into_iter().enumerate() {
        let sent = frame(len, seed);
        bench.wire.send(&sent);
        let buffers = sent.len().div_ceil(512);
        let mut got = Vec::new();
        for buffer in 0..buffers {
            let used = bench.driver.wait_used(RX);
            let written = usize::try_from(used.written).unwrap();
            assert_eq!(written == 512, got.len() + 512 <= sent.len(), "buffer {buffer}");
            got.extend(bench.driver.bytes_at(rooms[next], written));
            next += 1;
        }
        assert_eq!(got, delivered(&sent, u16::try_from(buffers).unwrap()));
    }
    assert_eq!(bench.count(|all| &all.pairs[0].received.dropped), 0);
}

#[test]
fn a_header_in_pieces_gets_its_count() {
    let mut bench = Bench::new(MERGE);
    let room = bench.room(64);
    let piece = |at: u64, len: u32| Buffer::Writable(GuestAddress(room.0 + at), len);
    bench.driver.queues[RX].add(&[piece(0, 3), piece(3, 8), piece(11, 1), piece(12, 2), piece(14, 50)]);
    bench.driver.kick(RX);
    let sent = frame(52, 4);
    bench.wire.send(&sent);
    assert_eq!(bench.driver.wait_used(RX).written, 64);
    assert_eq!(bench.driver.bytes_at(room, 64), delivered(&sent, 1));
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_dropped_whole_and_the_buffer_stays() {
    for wanted in [0, EVENT_IDX] {
        let mut bench = Bench::new(wanted);
        let room = bench.post(112);
        bench.wire.send(&frame(101, 1));
        bench.wire.send(&frame(5000, 2));
        bench.wait_count(|all| &all.pairs[0].received.dropped, 2);
        let sent = frame(100, 3);
        bench.wire.send(&sent);
        assert_eq!(bench.driver.wait_used(RX).written, 112);
        assert_eq!(bench.driver.bytes_at(room, 112), delivered(&sent, 1));
        assert_eq!(bench.count(|all| &all.pairs[0].received.frames), 1);
    }
}

#[test]
fn with_merging_a_frame_waits_for_the_buffers_that_it_lacks() {
    for wanted in [MERGE, MERGE | EVENT_IDX] {
        let mut bench = Bench::new(wanted);
        let mut rooms = vec![bench.post(100), bench.post(100)];
        let (first, second) = (frame(488, 1), frame(88, 2));
        bench.wire.send(&first);
        bench.wire.send(&second);
        for _ in 0..2 {
            rooms.push(bench.post(100));
            assert_eq!(bench.driver.queues[RX].device_used_index(), 0, "no part of it is shown");
        }
        rooms.extend([bench.post(100), bench.post(100)]);
        let mut got = Vec::new();
        for room in rooms {
            assert_eq!(bench.driver.wait_used(RX).written, 100);
            got.extend(bench.driver.bytes_at(room, 100));
        }
        assert_eq!(got, [delivered(&first, 5), delivered(&second, 1)].concat());
        assert_eq!(bench.count(|all| &all.pairs[0].received.dropped), 0);
    }
}

#[test]
fn a_frame_that_a_full_ring_cannot_hold_is_dropped() {
    let mut bench = Bench::new(MERGE);
    let rooms: Vec<_> = (0..32).map(|_| bench.add_room(20)).collect();
    bench.driver.kick(RX);
    bench.wire.send(&frame(700, 1));
    bench.wait_count(|all| &all.pairs[0].received.dropped, 1);
    let sent = frame(628, 2);
    bench.wire.send(&sent);
    let mut got = Vec::new();
    for room in rooms {
        assert_eq!(bench.driver.wait_used(RX).written, 20);
        got.extend(bench.driver.bytes_at(room, 20));
    }
    assert_eq!(got, delivered(&sent, 32));
}

#[test]
fn more_pieces_than_one_read_takes_still_hold_a_frame() {
    let mut bench = Bench::new(MERGE | INDIRECT);
    let room = bench.room(3000);
    for chain in 0..3 {
        let table = bench.driver.allocate(16 * 1000);
        let byte = |at: u64| Buffer::Writable(GuestAddress(room.0 + chain * 1000 + at), 1);
        let pieces: Vec<_> = (0..1000).map(byte).collect();
        bench.driver.queues[RX].add_indirect(table, &pieces);
    }
    bench.driver.kick(RX);
    let sent = frame(2500, 5);
    bench.wire.send(&sent);
    let written: Vec<_> = (0..3).map(|_| bench.driver.wait_used(RX).written).collect();
    assert_eq!(written, [1000, 1000, 512]);
    assert_eq!(bench.driver.bytes_at(room, 2512), delivered(&sent, 3));
}

#[test]
fn frames_that_are_none_are_dropped() {
    let mut bench = Bench::new(ALL);
    let room = bench.post(2048);
    bench.wire.send(&[1; 25]);
    bench.wire.send(&vec![1; 70_000]);
    bench.wait_count(|all| &all.pairs[0].received.dropped, 2);
    let sent = frame(60, 1);
    bench.wire.send(&sent);
    bench.driver.wait_used(RX);
    assert_eq!(bench.driver.bytes_at(room, 72), delivered(&sent, 1));
}

#[test]
fn a_driver_that_knows_no_checksums_is_told_nothing_of_them() {
    for (wanted, flags) in [(MERGE, 0), (MERGE | GUEST_CSUM, 2)] {
        let mut bench = Bench::new(wanted);
        let room = bench.post(2048);
        let mut sent = frame(60, 1);
        sent[0] = 2;
        bench.wire.send(&sent);
        bench.driver.wait_used(RX);
        assert_eq!(bench.driver.bytes_at(room, 1), [flags]);
    }
}

#[test]
fn without_buffers_nothing_is_read_and_nothing_is_lost() {
    let mut bench = Bench::new(ALL);
    let frames: Vec<_> = (0..8).map(|seed| frame(60 + seed, seed)).collect();
    for sent in &frames {
        bench.wire.send(sent);
    }
    for sent in &frames {
        let room = bench.post(128);
        bench.driver.wait_used(RX);
        assert_eq!(bench.driver.bytes_at(room, sent.len()), delivered(sent, 1));
    }
    assert_eq!(
        (bench.count(|all| &all.pairs[0].received.frames), bench.count(|all| &all.pairs[0].received.dropped)),
        (8, 0)
    );
}

#[test]
fn frames_that_are_there_together_come_in_order_whatever_their_sizes() {
    const SMALL: [usize; 8] = [60, 100, 14, 90, 60, 61, 62, 63];
    const MIXED: [[usize; 8]; 2] = [[60, 60, 3000, 60, 60, 20_000, 70, 60], [14, 5000, 5001, 60, 60, 5002, 60, 60]];
    // Larger ones come when they are no longer expected.
    let rounds = MIXED.into_iter().flat_map(|mixed| [SMALL; 12].into_iter().chain([mixed, SMALL]));
    let none = LimiterConfig::default();
    let roomy = Limits { operations: Rate::per_second(1 << 20), bytes: None };
    let roomy = LimiterConfig { total: roomy, ..none };
    // Every machine's card has a limiter, whose limits may come at any time.
    for (wanted, limits, at_once) in
        [(MERGE, None, true), (MERGE | EVENT_IDX, Some(none), true), (ALL, Some(none), true), (ALL, Some(roomy), false)]
    {
        let limiter = limits.map(Limiter::new);
        let mut bench = Bench::with_options(wanted, NetOptions { limiter, ..NetOptions::default() });
        bench.driver.initialize(wanted, &[256, 32]);
        bench.driver.queues[RX].want_interrupt();
        let mut posted = std::collections::VecDeque::new();
        for sizes in rounds.clone() {
            let frames: Vec<_> = sizes.into_iter().zip(0..).map(|(len, seed)| frame(len, seed)).collect();
            // Without buffers the device leaves them where they are.
            frames.iter().for_each(|sent| bench.wire.send(sent));
            for _ in 0..frames.iter().map(|sent| sent.len().div_ceil(600)).sum() {
                posted.push_back(bench.add_room(600));
            }
            bench.driver.kick(RX);
            for sent in frames {
                let buffers = sent.len().div_ceil(600);
                let mut got = Vec::new();
                for _ in 0..buffers {
                    let used = bench.driver.wait_used(RX);
                    let written = usize::try_from(used.written).unwrap();
                    got.extend(bench.driver.bytes_at(posted.pop_front().unwrap(), written));
                }
                assert_eq!(got, delivered(&sent, u16::try_from(buffers).unwrap()));
            }
        }
        let received = &bench.counters.pairs[0].received;
        assert_eq!(received.frames.load(Ordering::Relaxed), 2 * 14 * 8);
        assert_eq!(bench.wire.reads_of_several() > 0, at_once);
        assert_eq!(received.dropped.load(Ordering::Relaxed) + received.errors.load(Ordering::Relaxed), 0);
    }
}
