//! What a driver, a broken ring and the machine's owner do to a disk that is working.

use super::*;
use crate::backend::block::Release;
use crate::testing::{DEADLINE, Descriptor};
use std::time::Instant;

#[test]
fn a_broken_ring_retires_the_queue_and_asks_for_reset_and_a_reset_mends_it() {
    let mut bench = Bench::new();
    let looping = Descriptor { address: 0x8000, len: 1, flags: Descriptor::NEXT, next: 7 };
    bench.driver.queues[0].write_descriptor(7, looping);
    bench.driver.queues[0].make_available(7);
    bench.driver.kick(0);
    bench.driver.wait_needs_reset();
    assert_eq!(bench.count(|all| &all.retired_queues), 1);
    // Good chains do not bring it back; a reset does.
    bench.driver.kick(0);
    bench.driver.initialize(FLUSH | INDIRECT, &[32]);
    assert_eq!(bench.read(1, SECTOR), (OK, 513, pattern(1)));
    assert_eq!(bench.count(|all| &all.retired_queues), 1, "once");
}

#[test]
fn what_is_in_flight_when_the_ring_breaks_still_completes() {
    let mut bench = Bench::with(Fault { depth: 8, ..Fault::default() }, DiskAccess::ReadWrite, FLUSH);
    let status = bench.status_byte();
    let data = bench.driver.place(&[0x31; SECTOR]);
    let header = bench.header(OUT, 2);
    let chain = [header, Buffer::Readable(data, 512), Buffer::Writable(status, 1)];
    let head = bench.driver.queues[0].add(&chain);
    bench.driver.queues[0].make_available(u16::MAX);
    bench.driver.kick(0);
    bench.driver.wait_needs_reset();
    assert_eq!(bench.driver.wait_used(0), Used { head, written: 1 });
    assert_eq!(bench.status(status), OK);
    assert_eq!(bench.disk()[2 * SECTOR..3 * SECTOR], [0x31; SECTOR]);
}

#[test]
fn after_a_reset_nothing_of_the_old_rings_is_written() {
    for _ in 0..20 {
        let mut bench = Bench::with(Fault { depth: 64, ..Fault::default() }, DiskAccess::ReadWrite, FLUSH);
        let data = bench.driver.place(&[0; SECTOR]);
        for sector in 0..16 {
            let (header, status) = (bench.header(IN, sector), bench.status_byte());
            bench.driver.queues[0].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
        }
        bench.driver.kick(0);
        bench.driver.reset();
        // The guest frees all of it at once, and it is somebody else's now.
        let memory = bench.driver.memory().clone();
        memory.write_slice(&vec![0x5a; 1 << 20], GuestAddress(0x1000)).unwrap();
        bench.driver.kick(0);
        bench.driver.set_up_queue(8);
        bench.driver.reset();
        let mut bytes = vec![0; (1 << 20) - 4096];
        memory.read_slice(&mut bytes, GuestAddress(0x2000)).unwrap();
        let ring = usize::try_from(bench.driver.allocate(16).0).unwrap();
        assert!(bytes[ring..].iter().all(|byte| *byte == 0x5a));
    }
}

#[test]
fn pause_completes_what_is_in_flight_and_resume_goes_on_with_what_is_not() {
    let mut bench = Bench::with(Fault { depth: 3, ..Fault::default() }, DiskAccess::ReadWrite, FLUSH | EVENT_IDX);
    let transport = bench.driver.transport().clone();
    let mut statuses = Vec::new();
    for round in 0..5 {
        for sector in 0..10 {
            let (header, status) = (bench.header(IN, sector), bench.status_byte());
            let data = bench.driver.allocate(512);
            let chain = [header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)];
            bench.driver.queues[0].add(&chain);
            statuses.push((status, data, sector));
        }
        bench.driver.kick(0);
        transport.lock().unwrap().core().pause();
        let submitted = bench.submitted();
        assert_eq!(bench.count(|all| &all.requests), submitted, "all that was taken is published");
        transport.lock().unwrap().core().resume();
        for _ in 0..10 {
            bench.driver.wait_used(0);
        }
        assert_eq!(bench.submitted(), 10 * (round + 1), "nothing twice");
    }
    for (status, data, sector) in statuses {
        assert_eq!((bench.status(status), bench.driver.bytes_at(data, SECTOR)), (OK, pattern(sector)));
    }
}

#[test]
fn a_pause_with_a_full_backend_completes_also_the_operation_that_had_no_room() {
    let fault = Fault { depth: 2, release: Release::Drained, ..Fault::default() };
    let mut bench = Bench::with(fault, DiskAccess::ReadWrite, FLUSH);
    let transport = bench.driver.transport().clone();
    for sector in 0..5 {
        let (header, status) = (bench.header(IN, sector), bench.status_byte());
        let data = bench.driver.allocate(512);
        bench.driver.queues[0].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
    }
    bench.driver.kick(0);
    // Two are pending, and the third was popped and found no room. Then the other two.
    for (pending, complete) in [(2, 3), (5, 5)] {
        let deadline = Instant::now() + DEADLINE;
        while bench.submitted() < pending {
            assert!(Instant::now() < deadline, "the backend is full in time");
            std::thread::yield_now();
        }
        transport.lock().unwrap().core().pause();
        assert_eq!((bench.submitted(), bench.count(|all| &all.requests)), (complete, complete));
        assert_eq!(u64::from(bench.driver.queues[0].device_used_index()), complete);
        transport.lock().unwrap().core().resume();
    }
}

#[test]
fn a_full_backend_stops_the_popping_and_loses_nothing() {
    for depth in [1, 2, 7] {
        let mut bench = Bench::with(Fault { depth, ..Fault::default() }, DiskAccess::ReadWrite, FLUSH | INDIRECT);
        let statuses: Vec<_> = (0..20)
            .map(|sector| {
                let (header, status) = (bench.header(IN, sector), bench.status_byte());
                let data = bench.driver.allocate(512);
                let chain = [header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)];
                bench.driver.queues[0].add(&chain);
                (status, data)
            })
            .collect();
        bench.driver.kick(0);
        for _ in 0..20 {
            bench.driver.wait_used(0);
        }
        for (sector, (status, data)) in (0..).zip(statuses) {
            assert_eq!((bench.status(status), bench.driver.bytes_at(data, SECTOR)), (OK, pattern(sector)));
        }
    }
}

#[test]
fn more_chains_than_one_wake_serves_are_all_served() {
    let mut bench = Bench::with(Fault::default(), DiskAccess::ReadWrite, INDIRECT);
    bench.driver.initialize(INDIRECT, &[256]);
    let header = bench.header(IN, 1);
    let data = bench.driver.allocate(512);
    let statuses: Vec<_> = (0..256)
        .map(|_| {
            let status = bench.status_byte();
            let table = bench.driver.allocate(48);
            let chain = [header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)];
            bench.driver.queues[0].add_indirect(table, &chain);
            status
        })
        .collect();
    bench.driver.kick(0);
    for _ in 0..256 {
        bench.driver.wait_used(0);
    }
    assert!(statuses.into_iter().all(|status| bench.status(status) == OK));
}

#[test]
fn with_event_indices_a_batch_costs_at_most_one_interrupt() {
    let mut bench = Bench::with(Fault { depth: 64, ..Fault::default() }, DiskAccess::ReadWrite, EVENT_IDX | FLUSH);
    bench.read(0, SECTOR);
    while bench.driver.take_interrupt().is_some() {}
    let transport = bench.driver.transport().clone();
    transport.lock().unwrap().core().pause();
    let header = bench.header(IN, 0);
    for _ in 0..10 {
        let (status, data) = (bench.status_byte(), bench.driver.allocate(512));
        let chain = [header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)];
        bench.driver.queues[0].add(&chain);
    }
    let before = bench.driver.queues[0].device_used_index();
    bench.driver.queues[0].set_used_event(before.wrapping_add(9));
    transport.lock().unwrap().core().resume();
    let deadline = Instant::now() + DEADLINE;
    while bench.driver.queues[0].device_used_index() != before.wrapping_add(10) {
        assert!(Instant::now() < deadline, "ten chains are used in time");
        std::thread::yield_now();
    }
    transport.lock().unwrap().core().pause();
    assert_eq!(transport.lock().unwrap().interrupt_line().read().unwrap(), 1);
}

#[test]
fn a_configuration_without_the_queue_needs_a_reset() {
    let mut bench = Bench::new();
    bench.driver.reset();
    assert!(bench.driver.negotiate(1 << 32));
    bench.driver.driver_ok();
    bench.driver.wait_needs_reset();
    bench.driver.initialize(0, &[8]);
    assert_eq!(bench.read(0, SECTOR).0, OK);
}

#[test]
fn a_pause_gives_up_at_its_deadline_on_a_backend_that_does_not_answer() {
    let fault = Fault { depth: 8, release: Release::Drained, ..Fault::default() };
    let mut bench = Bench::with(fault, DiskAccess::ReadWrite, FLUSH);
    let transport = bench.driver.transport().clone();
    let quiet_by = |deadline| {
        let holding = transport.lock().unwrap().core().hold();
        holding.iter().all(|holding| holding.wait_until(deadline))
    };
    assert!(quiet_by(Instant::now() + DEADLINE), "nothing is in flight");
    transport.lock().unwrap().core().pause();
    transport.lock().unwrap().core().resume();
    for sector in 0..2_u64 {
        let (header, status) = (bench.header(IN, sector), bench.status_byte());
        let data = bench.driver.allocate(512);
        bench.driver.queues[0].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
        bench.driver.kick(0);
        let deadline = Instant::now() + DEADLINE;
        while bench.submitted() <= sector {
            assert!(Instant::now() < deadline, "the queue takes requests, also after a pause that gave up");
            std::thread::yield_now();
        }
        assert!(!quiet_by(Instant::now()));
        transport.lock().unwrap().core().release();
        assert_eq!(bench.driver.queues[0].device_used_index(), 0, "nobody is told of a success");
    }
    transport.lock().unwrap().core().pause();
    assert_eq!(bench.driver.queues[0].device_used_index(), 2);
}
