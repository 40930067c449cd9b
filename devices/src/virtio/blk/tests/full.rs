//! A host without space for what the guest writes.

use super::*;
use crate::testing::DEADLINE;
use std::sync::mpsc::{Receiver, channel};

const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
const FEATURES: u64 = FLUSH | EVENT_IDX | DISCARD | WRITE_ZEROES;

/// A disk that keeps what has no space, and who is told.
fn keeping(fault: Fault, cache: CacheMode, engine: Engine) -> (Bench, Receiver<()>) {
    let (tell, told) = channel();
    let on_full = OnFull::Keep(Arc::new(move || tell.send(()).unwrap()));
    let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
    let setup = Setup { fault, on_full, options, engine, features: FEATURES, ..Setup::default() };
    (Bench::build(&setup), told)
}

fn no_space(fail_nth: u64, fail_count: u64, depth: usize) -> Fault {
    Fault { fail_nth: Some(fail_nth), fail_count, errno: libc::ENOSPC, depth, ..Fault::default() }
}

#[test]
fn a_write_without_space_waits_for_a_stop_and_is_done_when_the_device_goes_on() {
    for engine in [Engine::Sync, Engine::Uring] {
        for depth in [0, 4] {
            for nth in 0..6 {
                let (mut bench, told) = keeping(no_space(nth, 1, depth), CacheMode::Writeback, engine);
                let statuses: Vec<_> = (0..6).map(|sector| bench.begin_write(sector, 0x40)).collect();
                bench.driver.kick(0);
                told.recv_timeout(DEADLINE).unwrap();
                assert!(bench.control.is_full());
                bench.pause();
                let unwritten = statuses.iter().filter(|at| bench.status(**at) == UNWRITTEN).count();
                assert!(unwritten >= 1, "the one is not answered");
                assert_eq!(bench.count(|all| &all.errors), 0, "and is no error");
                bench.resume();
                for _ in 0..6 {
                    bench.driver.wait_used(0);
                }
                assert!(statuses.iter().all(|at| bench.status(*at) == OK), "{engine:?} {depth} {nth}");
                assert!(!bench.control.is_full() && told.try_recv().is_err(), "told once");
                assert_eq!(bench.disk()[..6 * SECTOR], [0x40; 6 * SECTOR]);
            }
        }
    }
}

#[test]
fn nothing_is_popped_while_one_waits_and_each_vain_attempt_is_told_again() {
    let (mut bench, told) = keeping(no_space(0, 3, 0), CacheMode::Writeback, Engine::Sync);
    let statuses = [bench.begin_write(0, 1), bench.begin_write(1, 2)];
    bench.driver.kick(0);
    for attempt in 1..=3 {
        told.recv_timeout(DEADLINE).unwrap();
        bench.driver.kick(0);
        bench.pause();
        assert_eq!(bench.submitted(), attempt, "a doorbell is no reason to try again");
        assert_eq!(statuses.map(|at| bench.status(at)), [UNWRITTEN; 2]);
        bench.resume();
    }
    bench.driver.wait_used(0);
    bench.driver.wait_used(0);
    assert_eq!(statuses.map(|at| bench.status(at)), [OK; 2]);
}

#[test]
fn a_reset_forgets_what_waits() {
    let (mut bench, told) = keeping(no_space(0, 1, 0), CacheMode::Writeback, Engine::Sync);
    let status = bench.begin_write(0, 0x66);
    bench.driver.kick(0);
    told.recv_timeout(DEADLINE).unwrap();
    bench.driver.initialize(FEATURES, &[16]);
    assert_eq!(bench.read(0, SECTOR), (OK, 513, pattern(0)));
    assert_eq!(bench.status(status), UNWRITTEN);
}

#[test]
fn discards_and_zeroes_wait_too_and_reads_never_do() {
    for (kind, flags) in [(11, 0), (13, 0), (13, 1)] {
        let (mut bench, told) = keeping(no_space(0, 1, 0), CacheMode::Writeback, Engine::Sync);
        let range = [&8_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &u32::to_le_bytes(flags)].concat();
        let data = bench.driver.place(&range);
        let (header, status) = (bench.header(kind, 0), bench.status_byte());
        bench.driver.queues[0].add(&[header, Buffer::Readable(data, 16), Buffer::Writable(status, 1)]);
        bench.driver.kick(0);
        told.recv_timeout(DEADLINE).unwrap();
        bench.pause();
        assert_eq!(bench.status(status), UNWRITTEN);
        bench.resume();
        bench.driver.wait_used(0);
        assert_eq!(bench.status(status), OK);
        assert_eq!(bench.disk()[8 * SECTOR..16 * SECTOR], [0; 8 * SECTOR]);
    }
    let (mut bench, told) = keeping(no_space(0, 1, 0), CacheMode::Writeback, Engine::Sync);
    assert_eq!(bench.read(0, SECTOR).0, IOERR);
    assert!(told.try_recv().is_err());
}

#[test]
fn a_flush_waits_only_where_the_host_has_forgotten_nothing() {
    let (mut bench, told) = keeping(no_space(0, 1, 0), CacheMode::Writeback, Engine::Sync);
    assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, IOERR);
    assert!(told.try_recv().is_err());
    let (mut bench, told) = keeping(no_space(0, 1, 0), CacheMode::Direct, Engine::Sync);
    let (header, status) = (bench.header(FLUSH_REQUEST, 0), bench.status_byte());
    bench.driver.queues[0].add(&[header, Buffer::Writable(status, 1)]);
    bench.driver.kick(0);
    told.recv_timeout(DEADLINE).unwrap();
    bench.pause();
    bench.resume();
    bench.driver.wait_used(0);
    assert_eq!(bench.status(status), OK);
}

#[test]
fn other_errors_and_other_disks_are_reported() {
    let fault = Fault { errno: libc::EIO, ..no_space(0, 1, 0) };
    let (mut bench, told) = keeping(fault, CacheMode::Writeback, Engine::Sync);
    assert_eq!(bench.write(0, &[1; SECTOR]).0, IOERR);
    assert!(told.try_recv().is_err());
    let (mut bench, told) =
        keeping(Fault { errno: libc::EDQUOT, ..no_space(0, 1, 0) }, CacheMode::Writeback, Engine::Sync);
    bench.begin_write(0, 1);
    bench.driver.kick(0);
    told.recv_timeout(DEADLINE).unwrap();
    let mut bench = Bench::with(no_space(0, 1, 0), DiskAccess::ReadWrite, FLUSH);
    assert_eq!(bench.write(0, &[1; SECTOR]).0, IOERR);
}

#[test]
fn a_full_disk_that_is_given_another_file_goes_on_there() {
    let (mut bench, told) = keeping(no_space(0, 1, 0), CacheMode::Writeback, Engine::Sync);
    let status = bench.begin_write(3, 0x99);
    bench.driver.kick(0);
    told.recv_timeout(DEADLINE).unwrap();
    let file = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    file.as_file().set_len(SECTORS * SECTOR_BYTES).unwrap();
    let image = DiskImage::open(file.path(), DiskAccess::ReadWrite, DiskOptions::default()).unwrap();
    let backend = Box::new(FileBackend::new(Arc::new(image)));
    bench.control.replace(vec![backend], std::time::Instant::now() + DEADLINE).unwrap();
    bench.driver.wait_used(0);
    assert_eq!(bench.status(status), OK);
    assert!(!bench.control.is_full());
    assert_eq!(std::fs::read(file.path()).unwrap()[3 * SECTOR..4 * SECTOR], [0x99; SECTOR]);
}
