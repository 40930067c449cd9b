//! What no driver that means well does.

use super::*;
use crate::testing::{DEADLINE, Descriptor};
use std::sync::mpsc::channel;
use std::time::Instant;

const MIB: usize = 1 << 20;
const ENGINES: [Engine; 2] = [Engine::Sync, Engine::Uring];

/// Chains as no driver library would make them.
impl Bench {
    /// Makes descriptors available as they are, from index 0 on, each followed by the next.
    fn raw(&mut self, descriptors: &[Descriptor]) {
        let last = descriptors.len() - 1;
        for (index, descriptor) in (0_u16..).zip(descriptors) {
            let (flags, next) = match usize::from(index) == last {
                true => (descriptor.flags, 0),
                false => (descriptor.flags | Descriptor::NEXT, index + 1),
            };
            self.driver.queues[0].write_descriptor(index, Descriptor { flags, next, ..*descriptor });
        }
        self.driver.queues[0].make_available(0);
        self.driver.kick(0);
    }

    /// The queue is retired, and after a reset the disk works.
    fn is_broken_until_reset(&mut self, features: u64) {
        self.driver.wait_needs_reset();
        assert_eq!(self.driver.queues[0].device_used_index(), 0, "nothing comes back");
        self.driver.initialize(features, &[64]);
        assert_eq!(self.read(1, SECTOR), (OK, 513, pattern(1)));
    }

    fn wait_until_used(&self, count: u16) {
        let deadline = Instant::now() + DEADLINE;
        while self.driver.queues[0].device_used_index() < count {
            assert!(Instant::now() < deadline, "the requests are served in time");
            std::thread::yield_now();
        }
    }

    fn wait_until_done(&self, count: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.count(|all| &all.requests) < count {
            assert!(Instant::now() < deadline, "the requests are done in time");
            std::thread::yield_now();
        }
    }

    fn wait_until_submitted(&self, count: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.submitted() < count {
            assert!(Instant::now() < deadline, "the requests are taken in time");
            std::thread::yield_now();
        }
    }
}

fn address(buffer: Buffer) -> GuestAddress {
    match buffer {
        Buffer::Readable(address, _) | Buffer::Writable(address, _) => address,
    }
}

#[test]
fn a_header_that_changes_while_it_is_read_is_read_once() {
    let mut bench = Bench::new();
    let (good, bad) = (3_u64, SECTORS + 7);
    let header = match bench.header(IN, good) {
        Buffer::Readable(address, _) => address,
        other => panic!("{other:?}"),
    };
    let sector_at = GuestAddress(header.0 + 8);
    let (data, status) = (bench.driver.allocate(512), bench.status_byte());
    let chain = [Buffer::Readable(header, 16), Buffer::Writable(data, 512), Buffer::Writable(status, 1)];
    // Beyond the disk the file holds something that no guest may see.
    bench.file.write_all_at(&[0xbd; SECTOR], bad * SECTOR_BYTES).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let memory = bench.driver.memory().clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                memory.store(bad, sector_at, Ordering::Relaxed).unwrap();
                memory.store(good, sector_at, Ordering::Relaxed).unwrap();
            }
        });
        for _ in 0..2000 {
            memory.write_slice(&[UNWRITTEN; SECTOR], data).unwrap();
            bench.driver.run(0, &chain);
            let expected = match bench.status(status) {
                OK => pattern(good),
                IOERR => vec![UNWRITTEN; SECTOR],
                other => panic!("status {other}"),
            };
            let seen = bench.driver.bytes_at(data, SECTOR);
            if seen != expected {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(seen, expected);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_sector_beyond_the_end_or_that_wraps_is_an_error_and_touches_nothing() {
    let mut bench = Bench::new();
    let before = bench.disk();
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55, 1 << 63] {
        assert_eq!(bench.write(sector, &[1; 2 * SECTOR]), (IOERR, 1), "{sector:#x}");
        let (status, written, data) = bench.read(sector, 2 * SECTOR);
        assert_eq!((status, written), (IOERR, 1));
        assert_eq!(data, [UNWRITTEN; 2 * SECTOR]);
    }
    assert_eq!(bench.disk(), before);
    assert_eq!(bench.submitted(), 0);
    assert_eq!(bench.count(|all| &all.errors), 14);
}

#[test]
fn a_request_without_a_header_is_an_error_and_one_without_a_status_comes_back() {
    let mut bench = Bench::new();
    let status = bench.status_byte();
    let short = bench.driver.place(&[0; 15]);
    assert_eq!(bench.driver.run(0, &[Buffer::Writable(status, 1)]).written, 1);
    assert_eq!(bench.status(status), IOERR);
    let status = bench.status_byte();
    bench.driver.run(0, &[Buffer::Readable(short, 15), Buffer::Writable(status, 1)]);
    assert_eq!(bench.status(status), IOERR);
    let header = bench.header(IN, 0);
    assert_eq!(bench.driver.run(0, &[header]).written, 0);
    assert_eq!(bench.count(|all| &all.errors), 3);
    assert_eq!(bench.read(0, SECTOR).0, OK, "the disk goes on");
}

/// Three regions, each of which begins where the one before ends.
fn memory_in_pieces() -> Arc<GuestMemory> {
    let ranges = [0, 1, 2].map(|mib| (GuestAddress(mib << 20), MIB));
    Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
}

#[test]
fn a_header_and_data_across_regions_are_whole() {
    for engine in ENGINES {
        for cache in [CacheMode::Writeback, CacheMode::Direct] {
            let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
            let mut bench = Bench::build(&Setup { engine, options, memory: memory_in_pieces, ..Setup::default() });
            let memory = bench.driver.memory().clone();
            let (header, data) = (GuestAddress((1 << 20) - 7), GuestAddress((2 << 20) - 700));
            for (kind, sector) in [(IN, 8_u64), (OUT, 16)] {
                let ours = vec![0x3c; 8 * SECTOR];
                memory.write_slice(&ours, data).unwrap();
                memory.write_slice(&[u64::from(kind), sector].map(u64::to_le_bytes).concat(), header).unwrap();
                let status = bench.status_byte();
                let middle = match kind {
                    IN => Buffer::Writable(data, 4096),
                    _ => Buffer::Readable(data, 4096),
                };
                bench.driver.run(0, &[Buffer::Readable(header, 16), middle, Buffer::Writable(status, 1)]);
                assert_eq!(bench.status(status), OK, "{engine:?} {cache:?}");
                let on_disk = &bench.disk()[usize::try_from(sector).unwrap() * SECTOR..][..8 * SECTOR];
                assert_eq!(bench.driver.bytes_at(data, 8 * SECTOR), on_disk, "{engine:?} {cache:?}");
                assert_eq!(on_disk == ours, kind == OUT);
            }
        }
    }
}

#[test]
fn a_buffer_across_the_end_of_memory_retires_the_queue_and_moves_nothing() {
    for engine in ENGINES {
        for kind in [IN, OUT] {
            let mut bench = Bench::build(&Setup { engine, ..Setup::default() });
            let (before, edge) = (bench.disk(), (4 << 20) - 100);
            let memory = bench.driver.memory().clone();
            memory.write_slice(&[0x3c; 100], GuestAddress(edge)).unwrap();
            let (header, status) = (bench.header(kind, 0), bench.status_byte());
            let flags = if kind == IN { Descriptor::WRITE } else { 0 };
            let data = Descriptor { address: edge, len: 512, flags, next: 0 };
            bench.raw(&[header.descriptor(), data, Buffer::Writable(status, 1).descriptor()]);
            bench.is_broken_until_reset(FLUSH);
            assert_eq!((bench.status(status), bench.disk()), (UNWRITTEN, before));
            assert_eq!(bench.driver.bytes_at(GuestAddress(edge), 100), [0x3c; 100]);
        }
    }
}

#[test]
fn a_buffer_of_no_length_retires_the_queue_wherever_it_is() {
    for empty in 0..3 {
        let mut bench = Bench::new();
        let (header, status, data) = (bench.header(OUT, 0), bench.status_byte(), bench.driver.allocate(512));
        let mut chain = [header, Buffer::Readable(data, 512), Buffer::Writable(status, 1)].map(Buffer::descriptor);
        chain[empty].len = 0;
        bench.raw(&chain);
        bench.is_broken_until_reset(FLUSH);
        assert_eq!(bench.status(status), UNWRITTEN);
    }
}

#[test]
fn buffers_of_the_wrong_direction_are_an_error_and_move_nothing() {
    for engine in ENGINES {
        let mut bench = Bench::build(&Setup { engine, ..Setup::default() });
        let before = bench.disk();
        let data = bench.driver.place(&[UNWRITTEN; SECTOR]);
        let (readable, writable) = (Buffer::Readable(data, 512), Buffer::Writable(data, 512));
        for (kind, data) in [(IN, readable), (OUT, writable), (GET_ID, readable)] {
            let (status, used) = bench.request(kind, 0, &[data]);
            assert_eq!((status, used.written), (IOERR, 1), "{kind} {data:?}");
        }
        // The last byte of what may be written is the status; the data before it is no whole sector then.
        let header = bench.header(IN, 0);
        assert_eq!(bench.driver.run(0, &[header, writable]).written, 1);
        assert_eq!(bench.driver.bytes_at(data, SECTOR), [vec![UNWRITTEN; SECTOR - 1], vec![IOERR]].concat());
        // No byte may be written: there is nobody to tell.
        let (header, status) = (bench.header(OUT, 0), bench.status_byte());
        assert_eq!(bench.driver.run(0, &[header, readable, Buffer::Readable(status, 1)]).written, 0);
        assert_eq!(bench.status(status), UNWRITTEN);
        // The header cannot be read.
        let header = address(bench.header(IN, 0));
        bench.driver.run(0, &[Buffer::Writable(header, 16), Buffer::Writable(status, 1)]);
        assert_eq!(bench.status(status), IOERR);
        assert_eq!(bench.disk(), before);
        assert_eq!(bench.count(|all| &all.errors), 6);
    }
}

#[test]
fn a_readable_buffer_behind_a_writable_one_retires_the_queue() {
    let mut bench = Bench::new();
    let (header, status, data) = (bench.header(OUT, 0), bench.status_byte(), bench.driver.allocate(512));
    bench.raw(&[header, Buffer::Writable(status, 1), Buffer::Readable(data, 512)].map(Buffer::descriptor));
    bench.is_broken_until_reset(FLUSH);
    assert_eq!(bench.status(status), UNWRITTEN);
}

#[test]
fn buffers_that_overlap_hurt_only_the_guest() {
    for engine in ENGINES {
        let mut bench = Bench::build(&Setup { engine, ..Setup::default() });
        // The data falls on its own header, which was copied before.
        let header = bench.driver.allocate(512);
        bench.driver.memory().write_slice(&[0, 9_u64].map(u64::to_le_bytes).concat(), header).unwrap();
        let status = bench.status_byte();
        bench
            .driver
            .run(0, &[Buffer::Readable(header, 16), Buffer::Writable(header, 512), Buffer::Writable(status, 1)]);
        assert_eq!((bench.status(status), bench.driver.bytes_at(header, SECTOR)), (OK, pattern(9)));
        // The status falls into the data, after it.
        let (header, data) = (bench.header(IN, 5), bench.driver.allocate(512));
        let status = GuestAddress(data.0 + 100);
        bench.driver.run(0, &[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
        let mut expected = pattern(5);
        expected[100] = OK;
        assert_eq!(bench.driver.bytes_at(data, SECTOR), expected);
        // All pieces of a write are the same memory.
        let data = bench.driver.place(&[0x5d; SECTOR]);
        assert_eq!(bench.request(OUT, 0, &[Buffer::Readable(data, 512); 16]).0, OK);
        assert_eq!(bench.disk()[..16 * SECTOR], [0x5d; 16 * SECTOR]);
        // The data falls on the rings.
        let table = bench.driver.queues[0].table;
        let (header, status) = (bench.header(IN, 0), bench.status_byte());
        let bytes = u32::try_from(SECTORS * SECTOR_BYTES).unwrap();
        bench.driver.queues[0].add(&[header, Buffer::Writable(table, bytes), Buffer::Writable(status, 1)]);
        bench.driver.kick(0);
        bench.wait_until_done(4);
        bench.driver.initialize(FLUSH, &[64]);
        assert_eq!(bench.read(1, SECTOR).0, OK, "{engine:?}");
    }
}

#[test]
fn an_indirect_table_of_every_length_is_a_request_or_retires_the_queue() {
    const ENTRY: u32 = 16;
    // A whole request has three entries. 64 is the queue's size, 32768 that of the largest.
    let whole = [3, 4, 63, 64, 65, 254, 1000, 32_768].map(|entries| entries * ENTRY);
    let broken = (0..3 * ENTRY).chain([64 * ENTRY + 1, 32_769 * ENTRY, u32::MAX - 15, u32::MAX]);
    let mut bench = Bench::new();
    for (len, is_whole) in whole.map(|len| (len, true)).into_iter().chain(broken.map(|len| (len, false))) {
        bench.driver.rewind_heap();
        bench.driver.initialize(INDIRECT, &[64]);
        let (header, status, data) = (bench.header(IN, 2), bench.status_byte(), bench.driver.allocate(512));
        let chain = [header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)];
        let table = bench.driver.allocate(64);
        for (index, buffer) in (0_u16..).zip(chain) {
            let descriptor = buffer.descriptor();
            let (flags, next) =
                if index < 2 { (descriptor.flags | Descriptor::NEXT, index + 1) } else { (descriptor.flags, 0) };
            bench.driver.queues[0].write_table_entry(table, index, Descriptor { flags, next, ..descriptor });
        }
        bench.driver.queues[0].want_interrupt();
        bench.raw(&[Descriptor { address: table.0, len, flags: Descriptor::INDIRECT, next: 0 }]);
        if is_whole {
            assert_eq!(bench.driver.wait_used(0).written, 513, "{len}");
            assert_eq!((bench.status(status), bench.driver.bytes_at(data, SECTOR)), (OK, pattern(2)), "{len}");
        } else {
            bench.driver.wait_needs_reset();
            assert_eq!((bench.status(status), bench.driver.queues[0].device_used_index()), (UNWRITTEN, 0), "{len}");
        }
    }
}

#[test]
fn an_available_index_that_jumps_retires_the_queue_with_every_engine() {
    for engine in ENGINES {
        for index in [65, 0x8000, u16::MAX] {
            let mut bench = Bench::build(&Setup { engine, ..Setup::default() });
            bench.driver.queues[0].publish_avail_index(index);
            bench.driver.kick(0);
            bench.is_broken_until_reset(FLUSH);
        }
    }
}

#[test]
fn configuration_writes_change_nothing_while_the_driver_runs() {
    for engine in ENGINES {
        let mut bench = Bench::build(&Setup { engine, ..Setup::default() });
        let (before, generation): ([u8; 64], u32) = (bench.driver.config(0), bench.driver.read(0xfc));
        for width in [1, 2, 4, 8] {
            for offset in (0..72).step_by(width) {
                bench.driver.write_bytes(0x100 + u64::try_from(offset).unwrap(), &vec![0xff; width]);
            }
        }
        assert_eq!((bench.driver.config::<64>(0), bench.driver.read(0xfc)), (before, generation));
        assert_eq!(bench.read(SECTORS, SECTOR).0, IOERR, "the disk is as large as it was");
        assert_eq!(bench.read(1, SECTOR), (OK, 513, pattern(1)));
    }
}

#[test]
fn features_that_a_disk_does_not_offer_do_not_start_it() {
    let mut bench = Bench::new();
    let offered = bench.driver.offered_features();
    for bit in (0..64).map(|bit| 1_u64 << bit).filter(|bit| offered & bit == 0) {
        bench.driver.reset();
        assert!(!bench.driver.negotiate(offered | bit), "{bit:#x}");
        bench.driver.set_up_queue(8);
        bench.driver.driver_ok();
        let (header, status) = (bench.header(FLUSH_REQUEST, 0), bench.status_byte());
        bench.driver.queues[0].add(&[header, Buffer::Writable(status, 1)]);
        bench.driver.kick(0);
        bench.driver.reset();
        assert_eq!(bench.status(status), UNWRITTEN, "{bit:#x}");
    }
    bench.driver.initialize(FLUSH, &[64]);
    assert_eq!(bench.read(1, SECTOR).0, OK);
}

#[test]
fn a_size_below_what_is_in_flight_lets_that_end_and_refuses_the_rest() {
    for engine in ENGINES {
        let fault = Fault { depth: 8, release: crate::backend::block::Release::Drained, ..Fault::default() };
        let mut bench = Bench::build(&Setup { engine, fault, ..Setup::default() });
        let image = Arc::clone(&bench.image);
        let data = bench.driver.place(&[UNWRITTEN; 2 * SECTOR]);
        let statuses = [(IN, 40, data.0), (IN, 50, data.0 + 512)].map(|(kind, sector, data)| {
            let (header, status) = (bench.header(kind, sector), bench.status_byte());
            let chain = [header, Buffer::Writable(GuestAddress(data), 512), Buffer::Writable(status, 1)];
            bench.driver.queues[0].add(&chain);
            status
        });
        let written = bench.begin_write(45, 0x6b);
        bench.driver.kick(0);
        bench.wait_until_submitted(3);
        bench.control.resize(image.current_sectors().unwrap(), 16 * SECTOR_BYTES).unwrap();
        // The owner takes the space away from under one of the three.
        bench.file.set_len(50 * SECTOR_BYTES).unwrap();
        bench.pause();
        assert_eq!(statuses.map(|at| bench.status(at)), [OK, IOERR], "{engine:?}");
        assert_eq!(bench.status(written), OK);
        assert_eq!(bench.driver.bytes_at(data, 2 * SECTOR), [pattern(40), vec![UNWRITTEN; SECTOR]].concat());
        bench.resume();
        let refused = bench.begin_write(16, 1);
        bench.driver.kick(0);
        bench.wait_until_used(4);
        assert_eq!((bench.status(refused), bench.submitted()), (IOERR, 3), "{engine:?}");
        assert_eq!(bench.file.metadata().unwrap().len(), 50 * SECTOR_BYTES);
    }
}

/// Resets a disk on io_uring that `begin` has brought into some state. It then works as a new one, and nothing of the
/// old requests comes back.
fn works_after_a_reset(setup: Setup, begin: impl Fn(&mut Bench) -> Vec<GuestAddress>) {
    let mut bench = Bench::build(&Setup { engine: Engine::Uring, ..setup.clone() });
    for round in 0..3 {
        let statuses = begin(&mut bench);
        bench.driver.reset();
        // All of it is the guest's again.
        let memory = bench.driver.memory().clone();
        for status in &statuses {
            memory.write_slice(&[0x5a], *status).unwrap();
        }
        bench.driver.initialize(setup.features, &[64]);
        if let Some(limiter) = &setup.limiter {
            limiter.change(LimiterConfig::default());
        }
        assert_eq!(bench.read(1, SECTOR), (OK, 513, pattern(1)), "round {round}");
        assert_eq!(bench.write(SECTORS - 1, &[0x21; SECTOR]).0, OK);
        assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
        assert!(statuses.iter().all(|at| bench.status(*at) == 0x5a), "round {round}");
    }
    assert_eq!(bench.count(|all| &all.retired_queues), 0);
}

fn writes(bench: &mut Bench, count: u64) -> Vec<GuestAddress> {
    let statuses = (2..2 + count).map(|sector| bench.begin_write(sector, 0x40)).collect();
    bench.driver.kick(0);
    statuses
}

#[test]
fn a_reset_of_an_idle_disk() {
    works_after_a_reset(Setup::default(), |_| Vec::new());
    works_after_a_reset(Setup::default(), |bench| {
        let statuses = writes(bench, 4);
        bench.wait_until_used(4);
        statuses
    });
}

#[test]
fn a_reset_of_a_disk_with_requests_in_the_ring() {
    for cache in [CacheMode::Writeback, CacheMode::Writethrough, CacheMode::Unsafe] {
        let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
        works_after_a_reset(Setup { options, ..Setup::default() }, |bench| writes(bench, 20));
    }
    // As above, and surely not complete before the reset.
    let fault = Fault { depth: 8, release: crate::backend::block::Release::Drained, ..Fault::default() };
    let setup = Setup { fault, ..Setup::default() };
    let mut bench = Bench::build(&Setup { engine: Engine::Uring, ..setup });
    writes(&mut bench, 4);
    bench.wait_until_submitted(4);
    assert_eq!(bench.driver.queues[0].device_used_index(), 0);
    bench.driver.reset();
    assert_eq!(bench.disk()[2 * SECTOR..6 * SECTOR], [0x40; 4 * SECTOR], "what was in flight was waited for");
}

#[test]
fn a_reset_of_a_disk_that_its_limit_holds_up() {
    let hourly = Limits { operations: Rate::new(3, 0, 3_600_000), bytes: None };
    let config = LimiterConfig { total: hourly, ..LimiterConfig::default() };
    let limiter = Limiter::new(config);
    let setup = Setup { limiter: Some(Arc::clone(&limiter)), ..Setup::default() };
    works_after_a_reset(setup, |bench| {
        limiter.change(config);
        let statuses = writes(bench, 8);
        bench.wait_until_used(3);
        statuses
    });
}

#[test]
fn a_reset_of_a_disk_that_waits_for_space() {
    let (tell, told) = channel();
    let on_full = OnFull::Keep(Arc::new(move || tell.send(()).unwrap()));
    // The first of each round: one write that fails, and three requests after the reset.
    let fault = Fault { fail_nth: Some(0), errno: libc::ENOSPC, ..Fault::default() };
    works_after_a_reset(Setup { fault, on_full, ..Setup::default() }, |bench| {
        let statuses = writes(bench, 4);
        if bench.submitted() <= 1 {
            told.recv_timeout(DEADLINE).unwrap();
            assert!(bench.control.is_full());
        }
        statuses
    });
}

#[test]
fn a_reset_of_a_disk_during_a_flush() {
    works_after_a_reset(Setup::default(), |bench| {
        let mut statuses = vec![bench.begin_write(2, 0x40)];
        for _ in 0..8 {
            let (header, status) = (bench.header(FLUSH_REQUEST, 0), bench.status_byte());
            bench.driver.queues[0].add(&[header, Buffer::Writable(status, 1)]);
            statuses.push(status);
        }
        bench.driver.kick(0);
        statuses
    });
}

/// What a guest writes never makes a disk anything but its bytes, nor opens a file that it names.
#[test]
fn a_disk_that_a_guest_makes_look_like_an_image_of_a_backing_file_is_its_bytes() {
    let backing = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    std::fs::write(backing.path(), [0x77; 4 * SECTOR]).unwrap();
    let name = backing.path().to_str().unwrap().as_bytes();
    // qcow2, version 3: where its backing file's name is and how long, clusters of 64 KiB, and a size of 1 TiB.
    let mut qcow2 = b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\x01\0".to_vec();
    qcow2.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
    qcow2.extend(16_u32.to_be_bytes());
    qcow2.extend((1_u64 << 40).to_be_bytes());
    qcow2.resize(256, 0);
    qcow2.extend(name);
    qcow2.resize(SECTOR, 0);
    for engine in ENGINES {
        for magic in [&qcow2[..], b"KDMV\x01\0\0\0", b"conectix", b"vhdxfile", b"QED\0"] {
            let mut bench = Bench::build(&Setup { engine, ..Setup::default() });
            let mut head = magic.to_vec();
            head.resize(SECTOR, 0);
            assert_eq!(bench.write(0, &head).0, OK);
            let file = bench.file.try_clone().unwrap();
            drop(bench);
            // As after a restart of the machine.
            let mut bench = Bench::over(&Setup { engine, ..Setup::default() }, file);
            assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS);
            assert_eq!(bench.read(0, SECTOR), (OK, 513, head));
            assert_eq!(bench.read(SECTORS - 1, SECTOR), (OK, 513, pattern(SECTORS - 1)));
            assert_eq!(bench.read(SECTORS, SECTOR).0, IOERR);
        }
    }
}
