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
    assert_eq!(bench.count(|all| &all.pairs[0].received.errors), 3);
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
    assert_eq!(bench.count(|all| &all.pairs[0].received.errors), 3200);
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
    assert!(bench.count(|all| &all.pairs[0].received.frames) >= 1);
    bench.initialize(ALL);
    bench.send(&[&frame(60, 1)]);
    assert_eq!(bench.wire.receive(), frame(60, 1));
}

#[test]
fn configuration_writes_change_nothing_while_the_driver_runs() {
    let mut bench = Bench::with_options(ALL, NetOptions { mtu: Some(1500), ..NetOptions::default() });
    let (before, generation): ([u8; 32], u32) = (bench.driver.config(0), bench.driver.read(0xfc));
    for width in [1, 2, 4, 8] {
        for offset in (0..40).step_by(width) {
            bench.driver.write_bytes(0x100 + u64::try_from(offset).unwrap(), &vec![0xff; width]);
        }
    }
    // Nor do the queues change: of another size, somewhere else, or not at all.
    for queue in [RX, TX] {
        bench.driver.describe_queue(u32::try_from(queue).unwrap(), 2, [0x10, 0x20, 0x30]);
        bench.driver.write(0x44, 0);
    }
    assert_eq!((bench.driver.config::<32>(0), bench.driver.read(0xfc)), (before, generation));
    let sent = frame(100, 1);
    bench.send(&[&sent]);
    assert_eq!(bench.wire.receive(), sent);
    let room = bench.post(2048);
    bench.wire.send(&sent);
    bench.driver.wait_used(RX);
    assert_eq!(bench.driver.bytes_at(room, 112), delivered(&sent, 1));
}

#[test]
fn features_that_a_card_does_not_offer_do_not_start_it() {
    let mut bench = Bench::new(ALL);
    let offered = bench.driver.offered_features();
    for bit in (0..64).map(|bit| 1_u64 << bit).filter(|bit| offered & bit == 0) {
        bench.driver.reset();
        assert!(!bench.driver.negotiate(offered | bit), "{bit:#x}");
        bench.driver.set_up_queue(32);
        bench.driver.set_up_queue(32);
        bench.driver.driver_ok();
        let place = bench.driver.place(&frame(60, 1));
        bench.driver.queues[TX].add(&[Buffer::Readable(place, 72)]);
        bench.driver.kick(TX);
        bench.driver.reset();
        assert_eq!(bench.wire.try_receive(), None, "{bit:#x}");
    }
    bench.initialize(ALL);
    bench.send(&[&frame(60, 2)]);
    assert_eq!(bench.wire.receive(), frame(60, 2));
}

#[test]
fn an_indirect_table_of_every_length_holds_a_frame_or_retires_the_queue() {
    const ENTRY: u32 = 16;
    // The frame and the room have two entries. 32 is the queue's size, 32768 that of the largest.
    let whole = [2, 3, 31, 32, 33, 254, 1000, 32_768].map(|entries| entries * ENTRY);
    let broken = (0..2 * ENTRY).chain([32 * ENTRY + 1, 32_769 * ENTRY, u32::MAX - 15, u32::MAX]);
    let mut bench = Bench::new(INDIRECT);
    let sent = frame(100, 1);
    for (len, is_whole) in whole.map(|len| (len, true)).into_iter().chain(broken.map(|len| (len, false))) {
        for queue in [RX, TX] {
            bench.driver.rewind_heap();
            bench.initialize(INDIRECT);
            let place = if queue == RX { bench.room(112) } else { bench.driver.place(&sent) };
            let flags = if queue == RX { Descriptor::WRITE } else { 0 };
            let table = bench.driver.allocate(64);
            let parts = [
                Descriptor { address: place.0, len: 50, flags: flags | Descriptor::NEXT, next: 1 },
                Descriptor { address: place.0 + 50, len: 62, flags, next: 0 },
            ];
            for (index, part) in (0..).zip(parts) {
                bench.driver.queues[queue].write_table_entry(table, index, part);
            }
            let indirect = Descriptor { address: table.0, len, flags: Descriptor::INDIRECT, next: 0 };
            bench.driver.queues[queue].write_descriptor(31, indirect);
            bench.driver.queues[queue].make_available(31);
            bench.driver.kick(queue);
            if !is_whole {
                bench.driver.wait_needs_reset();
                assert_eq!(bench.driver.queues[queue].device_used_index(), 0, "{len}");
                assert_eq!(bench.wire.try_receive(), None, "{len}");
            } else if queue == RX {
                bench.wire.send(&sent);
                assert_eq!(bench.driver.wait_used(RX).written, 112, "{len}");
                assert_eq!(bench.driver.bytes_at(place, 112), delivered(&sent, 1), "{len}");
            } else {
                bench.driver.wait_used(TX);
                assert_eq!(bench.wire.receive(), sent, "{len}");
            }
        }
    }
}

#[test]
fn a_frame_across_regions_is_whole_and_one_across_the_end_of_memory_retires_the_queue() {
    const MIB: usize = 1 << 20;
    let (fake, wire) = FakeNet::new(Offloads::ALL);
    let ranges = (0..16).map(|mib| (GuestAddress(mib << 20), MIB)).collect::<Vec<_>>();
    let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let net = card(Arc::new(fake), NetOptions::default(), &thread);
    let transport = MmioTransport::new("net0", Box::new(net), memory.clone()).unwrap();
    let mut driver = FakeDriver::new(transport, memory.clone());
    for (queue, at) in [(TX, (2 << 20) - 7), (TX, (2 << 20) - 60), (RX, (3 << 20) - 7), (RX, (3 << 20) - 60)] {
        driver.initialize(MERGE, &[32, 32]);
        let (sent, place) = (frame(100, 1), GuestAddress(at));
        if queue == TX {
            vm_memory::Bytes::write_slice(&*memory, &sent, place).unwrap();
            driver.run(TX, &[Buffer::Readable(place, 112)]);
            assert_eq!(wire.receive(), sent, "{at:#x}");
        } else {
            wire.send(&sent);
            assert_eq!(driver.run(RX, &[Buffer::Writable(place, 112)]).written, 112);
            assert_eq!(driver.bytes_at(place, 112), delivered(&sent, 1), "{at:#x}");
        }
    }
    let edge = GuestAddress((16 << 20) - 60);
    for (queue, flags) in [(TX, 0), (RX, Descriptor::WRITE)] {
        driver.initialize(MERGE, &[32, 32]);
        vm_memory::Bytes::write_slice(&*memory, &[UNWRITTEN; 60], edge).unwrap();
        driver.queues[queue].write_descriptor(0, Descriptor { address: edge.0, len: 112, flags, next: 0 });
        driver.queues[queue].make_available(0);
        wire.send(&frame(100, 2));
        driver.kick(queue);
        driver.wait_needs_reset();
        assert_eq!((driver.bytes_at(edge, 60), wire.try_receive()), (vec![UNWRITTEN; 60], None));
    }
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
        assert_eq!(bench.count(|all| &all.pairs[0].transmitted.errors), errors);
    }
    assert_eq!(bench.wire.receive(), sent[..1031]);
}
