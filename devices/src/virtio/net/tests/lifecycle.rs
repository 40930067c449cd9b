use super::*;
use crate::testing::DEADLINE;
use std::time::Instant;

#[test]
fn offloads_are_the_drivers_from_ready_to_reset() {
    let mut bench = Bench::new(ALL);
    assert_eq!(bench.wire.offloads(), Offloads::ALL);
    bench.initialize(GUEST_CSUM | (1 << 7));
    let expected = Offloads { csum: true, tso4: true, ..Offloads::default() };
    assert_eq!(bench.wire.offloads(), expected);
    bench.pause();
    bench.resume();
    assert_eq!(bench.wire.offloads(), expected);
    bench.driver.reset();
    assert_eq!(bench.wire.offloads(), Offloads::default());
}

#[test]
fn a_backend_that_refuses_the_offloads_needs_a_reset() {
    let mut bench = Bench::new(0);
    bench.driver.reset();
    bench.wire.set_fault(NetFault { offloads: Some(libc::EBADFD), ..NetFault::default() });
    assert!(bench.driver.negotiate(1 << 32));
    bench.driver.set_up_queue(8);
    bench.driver.set_up_queue(8);
    bench.driver.driver_ok();
    bench.driver.wait_needs_reset();
    bench.wire.set_fault(NetFault::default());
    bench.initialize(0);
    bench.send(&[&frame(60, 1)]);
    assert_eq!(bench.wire.receive(), frame(60, 1));
}

#[test]
fn a_driver_without_both_queues_needs_a_reset() {
    let mut bench = Bench::new(0);
    bench.driver.reset();
    assert!(bench.driver.negotiate(1 << 32));
    bench.driver.set_up_queue(8);
    bench.driver.driver_ok();
    bench.driver.wait_needs_reset();
    bench.initialize(0);
    bench.send(&[&frame(60, 1)]);
    assert_eq!(bench.wire.receive(), frame(60, 1));
}

#[test]
fn pause_gives_back_what_was_gathered_and_resume_goes_on() {
    for wanted in [0, ALL] {
        let mut bench = Bench::new(wanted);
        let rooms: Vec<_> = (0..8).map(|_| bench.post(2048)).collect();
        for (seed, room) in rooms.into_iter().enumerate() {
            bench.pause();
            bench.pause();
            let sent = frame(100, seed);
            bench.wire.send(&sent);
            let before = bench.count(|all| &all.pairs[0].received.frames);
            bench.resume();
            bench.driver.wait_used(RX);
            assert_eq!(bench.driver.bytes_at(room, 112), delivered(&sent, 1));
            assert_eq!(bench.count(|all| &all.pairs[0].received.frames), before + 1);
        }
    }
}

#[test]
fn a_frame_that_waits_for_the_wire_waits_through_a_pause() {
    let mut bench = Bench::new(EVENT_IDX);
    let frames: Vec<_> = (0..30).map(|seed| frame(100, seed)).collect();
    for sent in &frames {
        let place = bench.driver.place(sent);
        bench.driver.queues[TX].add(&[Buffer::Readable(place, 112)]);
    }
    bench.driver.kick(TX);
    let first = bench.wire.receive();
    assert_eq!(first, frames[0]);
    for sent in &frames[1..] {
        bench.pause();
        bench.resume();
        assert_eq!(bench.wire.receive(), *sent);
    }
    bench.pause();
    assert_eq!(bench.driver.queues[TX].device_used_index(), 30);
    assert_eq!(bench.wire.try_receive(), None);
}

#[test]
fn a_pause_drops_a_frame_that_waits_for_buffers_and_counts_it() {
    let mut bench = Bench::new(MERGE);
    let first = bench.post(100);
    bench.wire.send(&frame(200, 1));
    (0..8).for_each(|seed| bench.wire.send(&frame(88, 2 + seed)));
    let deadline = Instant::now() + DEADLINE;
    while bench.count(|all| &all.pairs[0].received.dropped) == 0 {
        assert!(Instant::now() < deadline, "it is read and dropped in time");
        bench.pause();
        bench.resume();
    }
    assert_eq!(bench.driver.wait_used(RX).written, 100);
    assert_eq!(bench.driver.bytes_at(first, 100), delivered(&frame(88, 2), 1));
}

#[test]
fn after_a_reset_nothing_of_the_old_buffers_is_written() {
    for _ in 0..20 {
        let mut bench = Bench::new(ALL);
        let rooms: Vec<_> = (0..32).map(|_| bench.post(2048)).collect();
        let memory = bench.driver.memory().clone();
        bench.wire.send(&frame(1000, 1));
        bench.driver.reset();
        // The guest frees all of it at once, and it is somebody else's now.
        let ring = bench.driver.allocate(16).0;
        vm_memory::Bytes::write_slice(&*memory, &vec![0x5a; 1 << 20], GuestAddress(0x1000)).unwrap();
        bench.wire.send(&frame(1000, 2));
        bench.driver.kick(RX);
        bench.driver.reset();
        assert!(rooms.last().unwrap().0 < ring);
        let bytes = bench.driver.bytes_at(GuestAddress(0x1000), 1 << 20);
        assert!(bytes.iter().all(|byte| *byte == 0x5a));
    }
}

#[test]
fn a_reset_in_the_middle_of_traffic_leaves_a_device_as_new() {
    let mut bench = Bench::new(ALL);
    for round in 0..20 {
        for _ in 0..16 {
            bench.post(2048);
            let place = bench.driver.place(&frame(100, 0));
            bench.driver.queues[TX].add(&[Buffer::Readable(place, 112)]);
        }
        bench.driver.kick(TX);
        bench.wire.send(&frame(100, round));
        bench.initialize(if round % 2 == 0 { ALL } else { 0 });
        while bench.wire.try_receive().is_some() {}
        // Frames that the reset left on the wire come first.
        let sent = frame(777, round);
        bench.wire.send(&sent);
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "the frame comes in time");
            let room = bench.post(2048);
            bench.driver.wait_used(RX);
            if bench.driver.bytes_at(room, 789) == delivered(&sent, 1) {
                break;
            }
        }
        bench.send(&[&sent]);
        while bench.wire.receive() != sent {}
    }
}

#[test]
fn a_backend_that_is_gone_is_a_link_that_is_down_until_reset() {
    let mut bench = Bench::new(STATUS | MERGE);
    bench.post(2048);
    bench.wire.set_fault(NetFault { receive: Some(libc::EBADFD), ..NetFault::default() });
    bench.wire.send(&frame(60, 1));
    bench.driver.wait_for("the link to go down", |driver| (driver.config(6) == [0, 0]).then_some(()));
    assert_eq!(bench.count(|all| &all.pairs[0].received.errors), 1);
    // More doorbells change nothing.
    bench.post(2048);
    bench.driver.kick(RX);
    bench.send(&[&frame(60, 1)]);
    assert_eq!(bench.wire.receive(), frame(60, 1));
    assert_eq!(bench.count(|all| &all.pairs[0].received.errors), 1);
    bench.wire.set_fault(NetFault::default());
    bench.initialize(STATUS | MERGE);
    assert_eq!(bench.driver.config(6), [1, 0]);
    bench.post(2048);
    assert_eq!(bench.driver.wait_used(RX).written, 72);
}

#[test]
fn a_frame_that_the_host_cannot_give_is_an_error_and_the_next_one_comes() {
    for errno in [libc::EINVAL, libc::EFAULT, libc::ENOMEM, libc::EIO] {
        let mut bench = Bench::new(STATUS | MERGE);
        bench.wire.set_fault(NetFault { receive: Some(errno), ..NetFault::default() });
        // With room and, later, with the cable out.
        let room = bench.post(2048);
        (0..3).for_each(|seed| bench.wire.send(&frame(60, seed)));
        bench.wait_count(|all| &all.pairs[0].received.errors, 3);
        bench.control.set_link(LinkState::Down);
        bench.wire.send(&frame(60, 4));
        bench.wait_count(|all| &all.pairs[0].received.errors, 4);
        bench.wire.set_fault(NetFault::default());
        bench.control.set_link(LinkState::Up);
        assert_eq!(bench.control.link(), LinkState::Up);
        bench.wire.send(&frame(60, 5));
        bench.driver.wait_used(RX);
        assert_eq!(bench.driver.bytes_at(room, 72), delivered(&frame(60, 5), 1));
    }
}

#[test]
fn a_deleted_interface_takes_the_link_down_from_either_side() {
    let mut bench = Bench::new(STATUS);
    bench.wire.set_fault(NetFault { transmit: Some(libc::EBADFD), ..NetFault::default() });
    bench.send(&[&frame(60, 1)]);
    bench.driver.wait_for("the link to go down", |driver| (driver.config(6) == [0, 0]).then_some(()));
    assert_eq!(bench.count(|all| &all.pairs[0].transmitted.errors), 1);
}

#[test]
fn with_event_indices_a_batch_costs_at_most_one_interrupt() {
    let mut bench = Bench::new(EVENT_IDX | MERGE);
    let (first, place) = (bench.post(2048), bench.driver.place(&frame(100, 1)));
    bench.wire.send(&frame(100, 1));
    bench.driver.wait_used(RX);
    bench.driver.run(TX, &[Buffer::Readable(place, 112)]);
    bench.wire.receive();
    bench.pause();
    while bench.driver.take_interrupt().is_some() {}
    for queue in [RX, TX] {
        for _ in 0..8 {
            match queue {
                RX => bench.driver.queues[RX].add(&[Buffer::Writable(first, 2048)]),
                _ => bench.driver.queues[TX].add(&[Buffer::Readable(place, 112)]),
            };
        }
        bench.driver.queues[queue].set_used_event(8);
    }
    (0..8).for_each(|_| bench.wire.send(&frame(100, 1)));
    bench.resume();
    bench.wait_count(|all| &all.pairs[0].received.frames, 9);
    bench.wait_count(|all| &all.pairs[0].transmitted.frames, 9);
    bench.pause();
    let raised = bench.driver.transport().lock().unwrap().interrupt_line().read().unwrap();
    // After a resume each queue's first batch interrupts, whatever its index says.
    assert!(raised <= 4, "{raised} interrupts for two batches");
}

#[test]
fn a_host_that_cannot_read_now_is_asked_again_by_and_by_and_loses_nothing() {
    const TURNS: u64 = 64;
    const REST_MS: u128 = 10;
    // The doorbell and the cable may still wake it once each.
    const WAKES: u64 = 2;
    for link in [LinkState::Up, LinkState::Down] {
        let mut bench = Bench::new(ALL);
        let room = bench.post(2048);
        bench.control.set_link(link);
        let begin = Instant::now();
        bench.wire.set_fault(NetFault { receive: Some(libc::ENOBUFS), ..NetFault::default() });
        bench.wire.send(&frame(100, 1));
        for rests in 1..=3 {
            while bench.count(|all| &all.pairs[0].received.errors) <= (rests + WAKES) * TURNS {
                assert!(begin.elapsed() < DEADLINE, "it is asked again");
                std::thread::yield_now();
            }
            assert!(begin.elapsed().as_millis() >= u128::from(rests) * REST_MS, "{rests} rests of a thread");
        }
        bench.wire.set_fault(NetFault::default());
        if link == LinkState::Down {
            bench.wait_count(|all| &all.pairs[0].received.dropped, 1);
            continue;
        }
        bench.driver.wait_used(RX);
        assert_eq!(bench.driver.bytes_at(room, 112), delivered(&frame(100, 1), 1));
        assert_eq!(bench.driver.config(6), [1, 0], "the link stays up");
    }
}
