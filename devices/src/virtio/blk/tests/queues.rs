//! Several queues, and a size that changes.

use super::*;

const MQ: u64 = 1 << VIRTIO_BLK_F_MQ;

fn setup(queues: usize) -> Setup {
    Setup { queues, features: FLUSH | MQ | EVENT_IDX, ..Setup::default() }
}

/// A read on one of the queues.
fn read_on(bench: &mut Bench, queue: usize, sector: u64) -> (u8, Vec<u8>) {
    let (header, status, data) = (bench.header(IN, sector), bench.status_byte(), bench.driver.allocate(512));
    bench.driver.run(queue, &[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
    (bench.status(status), bench.driver.bytes_at(data, SECTOR))
}

#[test]
fn every_queue_reads_the_same_disk() {
    for engine in [Engine::Sync, Engine::Uring] {
        let mut bench = Bench::build(&Setup { engine, ..setup(4) });
        assert_ne!(bench.driver.offered_features() & MQ, 0);
        assert_eq!(u16::from_le_bytes(bench.driver.config(34)), 4);
        for round in 0..8 {
            for queue in 0..4 {
                let sector = u64::try_from(queue).unwrap() * 8 + round;
                assert_eq!(read_on(&mut bench, queue, sector), (OK, pattern(sector)));
            }
        }
        let transport = bench.driver.transport().clone();
        transport.lock().unwrap().core().pause();
        transport.lock().unwrap().core().resume();
        for queue in 0..4 {
            assert_eq!(read_on(&mut bench, queue, 1), (OK, pattern(1)));
        }
        assert_eq!(bench.count(|all| &all.requests), 36);
    }
}

#[test]
fn a_driver_may_use_fewer_queues_but_not_leave_out_the_first() {
    let mut bench = Bench::build(&setup(4));
    bench.driver.initialize(FLUSH | MQ, &[64, 64]);
    assert_eq!(read_on(&mut bench, 1, 3), (OK, pattern(3)));
    bench.driver.reset();
    assert!(bench.driver.negotiate((1 << 32) | MQ));
    bench.driver.describe_queue(1, 8, [0x1000, 0x2000, 0x3000]);
    bench.driver.driver_ok();
    bench.driver.wait_needs_reset();
    bench.driver.initialize(FLUSH, &[64]);
    assert_eq!(read_on(&mut bench, 0, 2), (OK, pattern(2)), "one queue needs no agreement");
}

#[test]
fn a_broken_ring_stops_its_own_queue_only() {
    let mut bench = Bench::build(&setup(2));
    bench.driver.queues[1].publish_avail_index(1000);
    bench.driver.kick(1);
    bench.driver.wait_needs_reset();
    assert_eq!(bench.count(|all| &all.retired_queues), 1);
    assert_eq!(read_on(&mut bench, 0, 5), (OK, pattern(5)));
}

#[test]
fn a_new_size_is_told_and_held_to_at_once() {
    let mut bench = Bench::new();
    let image = Arc::clone(&bench.image);
    let generation = bench.driver.read(0xfc);
    assert_eq!(bench.read(SECTORS, SECTOR).0, IOERR);
    let grown = (SECTORS + 8) * SECTOR_BYTES;
    let refused = bench.control.resize(image.current_sectors().unwrap(), grown).unwrap_err();
    assert!(matches!(refused, ResizeError::BeyondBacking { bytes, .. } if bytes == grown), "{refused}");
    assert!(matches!(bench.control.resize(image.current_sectors().unwrap(), 0), Err(ResizeError::Unaligned { .. })));
    assert!(matches!(bench.control.resize(image.current_sectors().unwrap(), 513), Err(ResizeError::Unaligned { .. })));
    assert_eq!(bench.driver.read(0xfc), generation, "nothing has changed");
    bench.file.set_len(grown).unwrap();
    bench.control.resize(image.current_sectors().unwrap(), grown).unwrap();
    bench.driver.wait_for("a changed configuration", |driver| (driver.read(0xfc) != generation).then_some(()));
    assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS + 8);
    assert_eq!(bench.read(SECTORS, SECTOR), (OK, 513, vec![0; SECTOR]));
    bench.control.resize(image.current_sectors().unwrap(), 16 * SECTOR_BYTES).unwrap();
    assert_eq!(bench.read(16, SECTOR).0, IOERR);
    assert_eq!(bench.read(15, SECTOR).0, OK);
}

#[test]
fn a_size_that_changes_during_a_pause_is_told_afterwards() {
    let mut bench = Bench::new();
    let image = Arc::clone(&bench.image);
    let transport = bench.driver.transport().clone();
    transport.lock().unwrap().core().pause();
    while bench.driver.take_interrupt().is_some() {}
    let generation = bench.driver.read(0xfc);
    bench.control.resize(image.current_sectors().unwrap(), 8 * SECTOR_BYTES).unwrap();
    assert_eq!(bench.driver.take_interrupt(), None, "not while the machine is paused");
    transport.lock().unwrap().core().resume();
    assert_eq!(bench.driver.take_interrupt(), Some(2));
    assert_ne!(bench.driver.read(0xfc), generation);
    assert_eq!(bench.read(8, SECTOR).0, IOERR);
}

#[test]
fn a_thread_that_polls_serves_without_doorbells_and_with_them_after_it_gave_up() {
    for features in [0, EVENT_IDX] {
        for engine in [Engine::Sync, Engine::Uring] {
            let poll = Duration::from_millis(2);
            let mut bench = Bench::build(&Setup { engine, poll, features: FLUSH | features, ..Setup::default() });
            for round in 0..200_u64 {
                // A driver that rings only if it is asked to, at every distance from the last request.
                if round % 10 == 0 {
                    std::thread::sleep(Duration::from_micros(250 * (round / 10)));
                }
                let sector = round % SECTORS;
                assert_eq!(read_on(&mut bench, 0, sector), (OK, pattern(sector)));
                if round % 25 == 0 {
                    bench.driver.rewind_heap();
                    bench.driver.initialize(FLUSH | features, &[64]);
                }
            }
        }
    }
}
