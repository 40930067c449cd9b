//! A disk that is given another file while its driver uses it.

use super::*;
use crate::backend::block::{
    BlockOperation, BlockSize, Completion, DiskImageError, Predecessor, Release, Submission, Token, try_lock_whole,
};
use crate::testing::DEADLINE;
use crate::virtio::worker::Source;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tempfile::TempDir;

const CONFIG_CHANGE: u32 = 2;

fn soon() -> Instant {
    Instant::now() + DEADLINE
}

fn disk_of(byte: u8, sectors: u64) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let path = folder.path().join("disk");
    std::fs::write(&path, vec![byte; usize::try_from(sectors * SECTOR_BYTES).unwrap()]).unwrap();
    (folder, path)
}

fn engines(engine: Engine, image: &Arc<DiskImage>, count: usize) -> Vec<Box<dyn BlockBackend>> {
    let make = |_| -> Box<dyn BlockBackend> {
        match engine {
            Engine::Sync => Box::new(FileBackend::new(Arc::clone(image))),
            Engine::Uring => Box::new(UringBackend::new(Arc::clone(image)).unwrap()),
        }
    };
    (0..count).map(make).collect()
}

fn open(bench: &Bench, path: &Path) -> Result<Arc<DiskImage>, DiskImageError> {
    Ok(Predecessor::of(&bench.image).succeeded_by(path)?.succeed(&bench.image, path)?.expect("it is the current one"))
}

#[test]
fn requests_go_to_the_new_file_and_the_driver_is_told_its_size() {
    for engine in [Engine::Sync, Engine::Uring] {
        let mut bench = Bench::build(&Setup { engine, ..Setup::default() });
        let (_folder, path) = disk_of(0x77, 2 * SECTORS);
        assert_eq!(bench.read(SECTORS, SECTOR).0, IOERR);
        assert_eq!(bench.write(1, &[0x11; SECTOR]).0, OK);
        while bench.driver.take_interrupt().is_some() {}
        let generation = bench.driver.read(0xfc);
        let image = open(&bench, &path).unwrap();
        bench.control.replace(engines(engine, &image, 1), soon()).unwrap();
        assert_eq!(bench.driver.take_interrupt(), Some(CONFIG_CHANGE));
        assert_ne!(bench.driver.read(0xfc), generation);
        assert_eq!(u64::from_le_bytes(bench.driver.config(0)), 2 * SECTORS);
        assert_eq!(bench.read(2 * SECTORS - 1, SECTOR), (OK, 513, vec![0x77; SECTOR]));
        assert_eq!(bench.write(0, &[0x22; SECTOR]).0, OK);
        assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
        assert_eq!(std::fs::read(&path).unwrap()[..SECTOR], [0x22; SECTOR]);
        assert_eq!(bench.disk()[..2 * SECTOR], [pattern(0), vec![0x11; SECTOR]].concat(), "the old file is left alone");
    }
}

#[test]
fn a_stopped_or_paused_disk_is_replaced_for_when_it_goes_on() {
    let mut bench = Bench::new();
    let transport = bench.driver.transport().clone();
    let (_folder, path) = disk_of(0x78, 8);
    let image = open(&bench, &path).unwrap();
    transport.lock().unwrap().core().pause();
    bench.control.replace(engines(Engine::Sync, &image, 1), soon()).unwrap();
    transport.lock().unwrap().core().resume();
    assert_eq!(bench.read(7, SECTOR), (OK, 513, vec![0x78; SECTOR]));
    bench.driver.reset();
    bench.image = image;
    let again = open(&bench, &path).unwrap();
    bench.control.replace(engines(Engine::Uring, &again, 1), soon()).unwrap();
    bench.driver.initialize(FLUSH, &[16]);
    assert_eq!(bench.read(7, SECTOR), (OK, 513, vec![0x78; SECTOR]));
}

#[test]
fn what_is_in_flight_completes_on_the_old_file_and_what_waits_on_the_new_one() {
    for engine in [Engine::Sync, Engine::Uring] {
        let mut bench = Bench::build(&Setup { engine, queues: 2, features: u64::MAX, ..Setup::default() });
        for round in 0..20_u8 {
            let (_folder, path) = disk_of(round, SECTORS);
            let image = open(&bench, &path).unwrap();
            let mut reads = Vec::new();
            for queue in 0..2 {
                for sector in 0..10 {
                    let (header, status) = (bench.header(IN, sector), bench.status_byte());
                    let data = bench.driver.allocate(512);
                    bench.driver.queues[queue].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
                    reads.push((status, data));
                }
                bench.driver.kick(queue);
            }
            bench.control.replace(engines(engine, &image, 2), soon()).unwrap();
            for queue in 0..2 {
                for _ in 0..10 {
                    bench.driver.wait_used(queue);
                }
            }
            for (at, (status, data)) in reads.into_iter().enumerate() {
                let old = if round == 0 { pattern(u64::try_from(at % 10).unwrap()) } else { vec![round - 1; SECTOR] };
                let found = bench.driver.bytes_at(data, SECTOR);
                assert_eq!(bench.status(status), OK);
                assert!(found == old || found == [round; SECTOR], "whole, from one of the two");
            }
            assert_eq!(bench.read(3, SECTOR).2, [round; SECTOR]);
        }
    }
}

#[test]
fn the_same_file_again_has_its_new_size_and_nobody_else_gets_its_lock_in_between() {
    let (_folder, path) = disk_of(1, SECTORS);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    for engine in [Engine::Sync, Engine::Uring] {
        let mut bench = Bench::over(&Setup { engine, ..Setup::default() }, file.try_clone().unwrap());
        let over = Arc::new(AtomicBool::new(false));
        let (thief_path, thief_over) = (path.clone(), Arc::clone(&over));
        let at_work = Arc::new(std::sync::Barrier::new(2));
        let thief_at_work = Arc::clone(&at_work);
        let thief = std::thread::spawn(move || {
            thief_at_work.wait();
            loop {
                let file = File::options().read(true).write(true).open(&thief_path).unwrap();
                assert!(try_lock_whole(&file, DiskAccess::ReadWrite).is_err(), "the lock was free for a moment");
                if thief_over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        at_work.wait();
        for round in 1..50 {
            file.set_len((SECTORS + round) * SECTOR_BYTES).unwrap();
            let image = open(&bench, &path).unwrap();
            bench.image = Arc::clone(&image);
            bench.control.replace(engines(engine, &image, 1), soon()).unwrap();
            assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS + round);
            assert_eq!(bench.read(SECTORS + round - 1, SECTOR), (OK, 513, vec![0; SECTOR]));
        }
        over.store(true, Ordering::Relaxed);
        thief.join().unwrap();
        file.set_len(SECTORS * SECTOR_BYTES).unwrap();
    }
}

#[test]
fn whoever_looks_for_another_file_holds_neither_the_disks_own_nor_its_lock() {
    let (_folder, path) = disk_of(1, SECTORS);
    let open_own = || Arc::new(DiskImage::open(&path, DiskAccess::ReadWrite, DiskOptions::default()).unwrap());
    let image = open_own();
    let predecessor = Predecessor::of(&image);
    drop(image);
    let image = open_own();
    // It is the same file as that of the one before, whose lock is gone with its machine.
    let successor = predecessor.succeeded_by(&path).unwrap();
    assert!(successor.succeed(&image, &path).unwrap().is_none());
    let successor = Predecessor::of(&image).succeeded_by(&path).unwrap();
    drop(image);
    let image = open_own();
    assert!(successor.succeed(&image, &path).unwrap().is_none());
}

#[test]
fn what_does_not_suit_the_driver_is_refused_and_the_disk_goes_on() {
    let mut bench = Bench::new();
    let (_folder, path) = disk_of(0x55, SECTORS);
    let refuse = |options, access| {
        let image = Arc::new(DiskImage::open(&path, access, options).unwrap());
        bench.control.replace(engines(Engine::Sync, &image, 1), soon()).map(drop).unwrap_err()
    };
    let large = DiskOptions { cache: CacheMode::Writeback, block: Some(BlockSize::B4096), ..DiskOptions::default() };
    assert!(matches!(refuse(large, DiskAccess::ReadWrite), ReplaceError::Block { new: 4096, old: 512 }));
    assert!(matches!(refuse(DiskOptions::default(), DiskAccess::ReadOnly), ReplaceError::Access));
    let absent = open(&bench, Path::new("/tmp/no/such/disk")).unwrap_err();
    assert!(matches!(absent, DiskImageError::Absent(_)));
    assert_eq!(bench.read(4, SECTOR), (OK, 513, pattern(4)));
    assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS);
}

#[test]
fn a_disk_that_does_not_answer_keeps_its_file_and_its_requests() {
    let fault = Fault { depth: 8, release: Release::Drained, ..Fault::default() };
    let mut bench = Bench::with(fault, DiskAccess::ReadWrite, FLUSH);
    let (header, status, data) = (bench.header(IN, 5), bench.status_byte(), bench.driver.allocate(512));
    bench.driver.queues[0].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
    bench.driver.kick(0);
    while bench.submitted() < 1 {
        std::thread::yield_now();
    }
    let (_folder, path) = disk_of(0x55, SECTORS);
    let image = open(&bench, &path).unwrap();
    let refused = bench.control.replace(engines(Engine::Sync, &image, 1), Instant::now()).map(drop).unwrap_err();
    assert!(matches!(refused, ReplaceError::Held));
    assert_eq!(bench.status(status), UNWRITTEN);
    // It takes requests again, and a pause completes them all, on the old file.
    let (header, second) = (bench.header(IN, 6), bench.status_byte());
    bench.driver.queues[0].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(second, 1)]);
    bench.driver.kick(0);
    let deadline = soon();
    while bench.submitted() < 2 {
        assert!(Instant::now() < deadline, "a queue that was held goes on");
        std::thread::yield_now();
    }
    bench.driver.transport().lock().unwrap().core().pause();
    assert_eq!([bench.status(status), bench.status(second)], [OK, OK]);
    assert_eq!(bench.driver.bytes_at(data, SECTOR), pattern(5), "the drained backend goes backwards");
}

/// A backend of its own mind about its thread.
struct Stubborn {
    inner: FileBackend,
    /// What wakes it.
    source: Option<Source>,
    /// While it is locked, a thread that has come there stands still.
    gate: Arc<Mutex<()>>,
    came: Arc<AtomicBool>,
}

impl BlockBackend for Stubborn {
    fn geometry(&self) -> DiskGeometry {
        self.inner.geometry()
    }

    fn submit(&mut self, token: Token, operation: BlockOperation) -> Submission {
        self.inner.submit(token, operation)
    }

    fn poll(&mut self, _completions: &mut Vec<Completion>) {
        self.came.store(true, Ordering::Relaxed);
        let _open = self.gate.lock().unwrap();
    }

    fn drain(&mut self, _completions: &mut Vec<Completion>) {}

    /// One that the thread will not take is told of when another's has come to the gate.
    fn wake_source(&self) -> Option<Source> {
        while self.source.is_some() && !self.came.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        self.source
    }
}

/// Replaces the file of a disk of two queues by one that the second queue's thread does not take; the first one's stands still
/// while `gate` is locked. A regular file is nothing that an epoll waits for.
fn refuse(bench: &Bench, gate: &Arc<Mutex<()>>, path: &Path, deadline: Instant) -> ReplaceError {
    let image = open(bench, path).unwrap();
    let (file, came) = (Source::Edge(image.file().as_raw_fd()), Arc::<AtomicBool>::default());
    let backends = [None, Some(file)].map(|source| -> Box<dyn BlockBackend> {
        let (inner, gate, came) = (FileBackend::new(Arc::clone(&image)), Arc::clone(gate), Arc::clone(&came));
        Box::new(Stubborn { inner, source, gate, came })
    });
    bench.control.replace(backends.into(), deadline).map(drop).unwrap_err()
}

fn read_on(bench: &mut Bench, queue: usize) -> Vec<u8> {
    let (header, status, data) = (bench.header(IN, 3), bench.status_byte(), bench.driver.allocate(512));
    bench.driver.run(queue, &[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
    assert_eq!(bench.status(status), OK);
    bench.driver.bytes_at(data, SECTOR)
}

#[test]
fn a_disk_that_a_thread_does_not_take_back_goes_on_with_the_file_that_it_had() {
    let features = FLUSH | 1 << VIRTIO_BLK_F_MQ;
    let mut bench = Bench::build(&Setup { queues: 2, features, ..Setup::default() });
    let (_folder, path) = disk_of(0x55, 2 * SECTORS);
    assert!(matches!(refuse(&bench, &Arc::default(), &path, soon()), ReplaceError::Attach(_)));
    assert_eq!([0, 1].map(|queue| read_on(&mut bench, queue)), [pattern(3), pattern(3)]);
    assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS);
}

#[test]
fn a_disk_that_can_have_neither_file_serves_none_until_it_is_reset_and_then_the_one_that_it_had() {
    let features = FLUSH | 1 << VIRTIO_BLK_F_MQ;
    let mut bench = Bench::build(&Setup { queues: 2, features, ..Setup::default() });
    let (_folder, path) = disk_of(0x55, 2 * SECTORS);
    let gate = Arc::<Mutex<()>>::default();
    let locked = gate.lock().unwrap();
    let refused = refuse(&bench, &gate, &path, Instant::now() + std::time::Duration::from_millis(200));
    assert!(matches!(refused, ReplaceError::Attach(_)));
    bench.driver.wait_needs_reset();
    drop(locked);
    // Nor does another file, by which one queue would have another than its sister.
    let (_other_folder, other) = disk_of(0x77, SECTORS);
    let image = open(&bench, &other).unwrap();
    let again = bench.control.replace(engines(Engine::Sync, &image, 2), soon()).map(drop).unwrap_err();
    assert!(matches!(again, ReplaceError::Broken), "{again}");
    // Who lets all of a machine's devices go on does not let these.
    lock(&bench.driver.transport().clone()).core().release();
    let statuses = [0, 1].map(|queue| {
        let (header, status, data) = (bench.header(IN, 3), bench.status_byte(), bench.driver.allocate(512));
        bench.driver.queues[queue].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
        bench.driver.kick(queue);
        status
    });
    bench.driver.reset();
    assert_eq!(statuses.map(|status| bench.status(status)), [UNWRITTEN; 2], "nothing was served");
    bench.driver.initialize(features, &[64, 64]);
    assert_eq!([0, 1].map(|queue| read_on(&mut bench, queue)), [pattern(3), pattern(3)]);
    assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS);
}
