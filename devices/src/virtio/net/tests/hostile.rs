//! What a hostile driver does to a network device's rings.

use super::*;
use crate::testing::Used;

fn broken(bench: &mut Bench, queue: usize) {
    bench.driver.kick(queue);
    bench.driver.wait_needs_reset();
}

#[test]
fn a_broken_ring_retires_its_queue_and_the_other_goes_on_until_reset() {
    for queue in [RX, TX] {
        for descriptor in [
            Descriptor { address: u64::MAX - 4, len: 64, flags: Descriptor::WRITE, next: 0 },
            Descriptor { address: 0x8000, len: 0, flags: Descriptor::WRITE, next: 0 },
            Descriptor { address: 0x8000, len: 64, flags: Descriptor::NEXT, next: 31 },
            Descriptor { address: 0x8000, len: 15, flags: Descriptor::INDIRECT, next: 0 },
        ] {
            let mut bench = Bench::new(ALL);
            bench.driver.queues[queue].write_descriptor(31, descriptor);
            bench.driver.queues[queue].make_available(31);
            broken(&mut bench, queue);
            assert_eq!(bench.count(|all| &all.retired_queues), 1);
            let sent = frame(100, 1);
            if queue == RX {
                bench.send(&[&sent]);
                assert_eq!(bench.wire.receive(), sent);
            } else {
                let room = bench.post(2048);
                bench.wire.send(&sent);
                bench.driver.wait_used(RX);
                assert_eq!(bench.driver.bytes_at(room, 112), delivered(&sent, 1));
            }
            bench.initialize(ALL);
            bench.send(&[&sent]);
            assert_eq!(bench.wire.receive(), sent);
        }
    }
}

#[test]
fn an_index_that_jumps_retires_the_queue() {
    for queue in [RX, TX] {
        let mut bench = Bench::new(ALL);
        bench.driver.queues[queue].publish_avail_index(33);
        broken(&mut bench, queue);
        assert_eq!(bench.count(|all| &all.retired_queues), 1);
    }
}

#[test]
fn receive_buffers_that_are_none_come_back_empty_and_do_not_stop_the_rest() {
    let mut bench = Bench::new(ALL);
    let room = bench.room(64);
    let bad: [&[Buffer]; 3] = [
        &[Buffer::Writable(room, 11)],
        &[Buffer::Readable(room, 64)],
        &[Buffer::Readable(room, 32), Buffer::Writable(GuestAddress(room.0 + 32), 32)],
    ];
    for buffers in bad {
        assert_eq!(bench.driver.run(RX, buffers).written, 0);
    }
    assert_eq!(bench.count(|all| &all.received.errors), 3);
    let good = bench.post(2048);
    bench.wire.send(&frame(60, 1));
    assert_eq!(bench.driver.wait_used(RX).written, 72);
    assert_eq!(bench.driver.bytes_at(good, 72), delivered(&frame(60, 1), 1));
    assert_eq!(bench.driver.bytes_at(room, 64), [UNWRITTEN; 64]);
}

#[test]
fn a_buffer_that_is_none_behind_good_ones_makes_no_chain_come_back_twice() {
    let mut bench = Bench::new(ALL);
    let good = bench.room(256);
    let (good, bad) = (Buffer::Writable(good, 256), Buffer::Writable(good, 1));
    let heads = [good, bad, good].map(|buffer| bench.driver.queues[RX].add(&[buffer]));
    bench.driver.kick(RX);
    assert_eq!(bench.driver.wait_used(RX), Used { head: heads[1], written: 0 });
    // Gathered ones would have been taken back, and with them the wrong one.
    bench.pause();
    bench.resume();
    let given_back = [0, 2].map(|_| bench.driver.wait_used(RX));
    assert_eq!(given_back, [0, 2].map(|at| Used { head: heads[at], written: 0 }));
    let room = bench.post(2048);
    bench.wire.send(&frame(60, 1));
    assert_eq!(bench.driver.wait_used(RX).written, 72);
    assert_eq!(bench.driver.bytes_at(room, 72), delivered(&frame(60, 1), 1));
}

#[test]
fn a_ring_that_never_has_an_end_of_bad_buffers_starves_nobody() {
    let mut bench = Bench::new(0);
    let room = bench.room(64);
    for _ in 0..100 {
        for _ in 0..32 {
            bench.driver.queues[RX].add(&[Buffer::Writable(room, 1)]);
        }
        bench.driver.kick(RX);
        bench.send(&[&frame(60, 1)]);
        assert_eq!(bench.wire.receive(), frame(60, 1));
        for _ in 0..32 {
            assert_eq!(bench.driver.wait_used(RX).written, 0);
        }
    }
    assert_eq!(bench.count(|all| &all.received.errors), 3200);
}

#[test]
fn overlapping_buffers_and_rings_as_buffers_hurt_only_the_guest() {
    let mut bench = Bench::new(ALL);
    // The frame is written over the very rings that the device works on.
    let ring = bench.driver.queues[RX].table;
    for _ in 0..8 {
        bench.driver.queues[RX].add(&[Buffer::Writable(ring, 4096), Buffer::Writable(ring, 4096)]);
    }
    bench.driver.kick(RX);
    (0..8).for_each(|seed| bench.wire.send(&frame(1500, seed)));
    bench.driver.wait_needs_reset();
    assert!(bench.count(|all| &all.received.frames) >= 1);
    bench.initialize(ALL);
    bench.send(&[&frame(60, 1)]);
    assert_eq!(bench.wire.receive(), frame(60, 1));
}

#[test]
fn a_frame_of_more_pieces_than_a_system_call_takes_is_an_error() {
    let mut bench = Bench::new(INDIRECT);
    let sent = frame(1023, 1);
    let place = bench.driver.place(&sent);
    let byte = |at: u64| Buffer::Readable(GuestAddress(place.0 + at), 1);
    for (pieces, errors) in [(1020, 0), (1026, 1)] {
        let table = bench.driver.allocate(16 * 1026);
        let mut chain = vec![Buffer::Readable(place, 12)];
        chain.extend((12..11 + pieces).map(byte));
        assert_eq!(u64::try_from(chain.len()).unwrap(), pieces);
        bench.driver.queues[TX].add_indirect(table, &chain);
        bench.driver.kick(TX);
        bench.driver.wait_used(TX);
        assert_eq!(bench.count(|all| &all.transmitted.errors), errors);
    }
    assert_eq!(bench.wire.receive(), sent[..1031]);
}
