use super::*;
use crate::backend::block::calls::{self, Calls};
use crate::backend::block::syncs::{Scope, SyncTicket};
use crate::backend::block::{CacheMode, DiskAccess, DiskOptions, Durability, try_lock_whole};
use crate::testing::{Buffer, DEADLINE, DriverRing, memory_with_hole};
use crate::virtio::GuestBuffers;
use crate::virtio::queue::{Chain, QueueState};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vm_memory::GuestAddress;

fn image(path: &Path, cache: CacheMode) -> Arc<DiskImage> {
    let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
    Arc::new(DiskImage::open(path, DiskAccess::ReadWrite, options).unwrap())
}

fn disk() -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    (folder, path)
}

fn operation(action: BlockAction) -> BlockOperation {
    BlockOperation { action, offset: 0, buffers: GuestBuffers::new(memory_with_hole(1 << 16)) }
}

/// A discard in a file, which always goes through the ring.
fn discard() -> BlockOperation {
    operation(BlockAction::Discard { len: 4096 })
}

#[test]
fn a_full_ring_gives_the_operation_back_and_takes_it_later() {
    let (_folder, path) = disk();
    let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
    let mut back = Vec::new();
    for round in 0..3 {
        for token in 0..SLOTS {
            assert!(matches!(backend.submit(Token(token), discard()), Submission::Pending), "{round}");
        }
        let Submission::Full(operation) = backend.submit(Token(SLOTS), discard()) else { panic!("there is room") };
        backend.commit();
        backend.drain(&mut back);
        assert!(matches!(backend.submit(Token(SLOTS), operation), Submission::Pending));
        backend.drain(&mut back);
        let mut tokens: Vec<_> =
            back.drain(..).map(|Completion { token, result, .. }| (token, result.is_ok())).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..=SLOTS).map(|token| (Token(token), true)).collect::<Vec<_>>(), "each once");
    }
}

#[test]
fn the_kernel_lets_a_ring_do_nothing_else() {
    let (_folder, path) = disk();
    let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
    let mut back = Vec::new();
    assert!(matches!(backend.submit(Token(0), discard()), Submission::Pending));
    backend.drain(&mut back);
    let ring = backend.ring.as_mut().unwrap();
    let forbidden = [
        opcode::Nop::new().build().flags(Flags::FIXED_FILE),
        opcode::Close::new(FILE).build().flags(Flags::FIXED_FILE),
        opcode::Fsync::new(io_uring::types::Fd(1)).build(),
        opcode::Fsync::new(FILE).build().flags(Flags::FIXED_FILE | Flags::IO_LINK),
    ];
    for entry in forbidden {
        // SAFETY: an entry's pointers must hold until its completion = it has none.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        let answer = ring.completion().next().unwrap();
        assert_eq!(answer.result(), -libc::EACCES);
    }
    assert!(ring.submitter().register_files(&[0]).is_err());
    assert!(ring.submitter().register_eventfd(0).is_err());
}

#[test]
fn another_thread_may_go_on_after_the_first_has_left() {
    let (_folder, path) = disk();
    let mut backend = UringBackend::new(image(&path, CacheMode::Direct)).unwrap();
    for _ in 0..3 {
        backend = std::thread::spawn(move || {
            let mut back = Vec::new();
            assert!(matches!(backend.submit(Token(0), discard()), Submission::Pending));
            backend.drain(&mut back);
            assert!(back.pop().unwrap().result.is_ok());
            backend.leave_thread();
            backend
        })
        .join()
        .unwrap();
    }
}

/// A list such as `Cpus_allowed_list` of a task, which proc(5) has by its name.
fn cpus_of(task: &Path) -> Option<(String, String)> {
    let status = std::fs::read_to_string(task.join("status")).ok()?;
    let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
    Some((field("Name:")?, field("Cpus_allowed_list:")?))
}

#[test]
fn the_kernels_threads_for_what_blocks_run_where_the_rings_thread_does() {
    let (_folder, path) = disk();
    let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
    std::thread::spawn(move || {
        let own = cpus_of(Path::new("/proc/thread-self")).unwrap().1;
        let first: usize = own.split(['-', ',']).next().unwrap().parse().unwrap();
        let mut cpus = allowed_cpus().unwrap();
        for cpu in 0..usize::try_from(libc::CPU_SETSIZE).unwrap() {
            if cpu != first {
                // SAFETY: CPU_CLR takes a set and a CPU that it has a bit for.
                unsafe { libc::CPU_CLR(cpu, &mut cpus) };
            }
        }
        // SAFETY: sched_setaffinity reads the set's bytes.
        assert_eq!(unsafe { libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus) }, 0);
        keep_workers_here(backend.ring.as_mut().unwrap()).unwrap();
        assert!(matches!(backend.submit(Token(0), discard()), Submission::Pending));
        backend.drain(&mut Vec::new());
        // They are named after it, and stay for some seconds.
        let own = std::fs::read_link("/proc/thread-self").unwrap();
        let name = format!("iou-wrk-{}", own.file_name().unwrap().to_str().unwrap());
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let workers = tasks.filter_map(|task| cpus_of(&task.unwrap().path())).filter(|(of, _)| *of == name);
        let places: Vec<String> = workers.map(|(_, cpus)| cpus).collect();
        assert!(!places.is_empty() && places.iter().all(|cpus| *cpus == first.to_string()), "{places:?}");
    })
    .join()
    .unwrap();
}

#[test]
fn the_lock_ends_with_the_backend() {
    for used in [false, true] {
        let (_folder, path) = disk();
        let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
        if used {
            let mut back = Vec::new();
            assert!(matches!(backend.submit(Token(0), discard()), Submission::Pending));
            backend.drain(&mut back);
            backend.leave_thread();
        }
        drop(backend);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        // The kernel takes its time over the end of a ring.
        let deadline = Instant::now() + DEADLINE;
        while try_lock_whole(&file, DiskAccess::ReadWrite).is_err() {
            assert!(Instant::now() < deadline, "{used}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_backend_that_is_dropped_in_the_middle_waits_for_the_kernel() {
    let (_folder, path) = disk();
    for committed in [false, true] {
        let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
        for token in 0..SLOTS {
            assert!(matches!(backend.submit(Token(token), discard()), Submission::Pending));
        }
        if committed {
            backend.commit();
        }
        drop(backend);
    }
}

#[test]
fn a_flush_is_done_at_once_if_it_is_alone_and_the_last_one_was_quick() {
    let (_folder, path) = disk();
    let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
    let mut back = Vec::new();
    let flush = || operation(BlockAction::Flush);
    assert_eq!(backend.lone_flush, Route::Ring, "nothing is known of the first one");
    for (route, others) in [(Route::Ring, 0), (Route::Call, 0), (Route::Call, 1), (Route::Ring, 1)] {
        backend.lone_flush = route;
        for _ in 0..others {
            assert!(matches!(backend.submit(Token(0), discard()), Submission::Pending));
        }
        let at_once = route == Route::Call && others == 0;
        match backend.submit(Token(1), flush()) {
            Submission::Done(done) => assert!(at_once && done.result.is_ok()),
            Submission::Pending => assert!(!at_once, "{route:?} {others}"),
            Submission::Ripe | Submission::Full(_) => panic!("a flush waits for nothing"),
        }
        backend.drain(&mut back);
        assert_eq!(back.len(), others + usize::from(!at_once));
        assert!(back.drain(..).all(|done| done.result.is_ok()));
    }
    assert_eq!(
        [Duration::ZERO, QUICK_FLUSH, 2 * QUICK_FLUSH].map(lone_flush_after),
        [Route::Call, Route::Call, Route::Ring]
    );
}

/// A read of the `number`th block of 4 KiB.
fn read(number: u64) -> BlockOperation {
    transfer(BlockAction::Read, number)
}

/// A transfer of the `number`th block of 4 KiB.
fn transfer(action: BlockAction, number: u64) -> BlockOperation {
    const BLOCK: u32 = 4096;
    let memory = memory_with_hole(1 << 16);
    let mut driver = DriverRing::new(memory.clone(), GuestAddress(0x1000), 8, false);
    driver.add(&[Buffer::Writable(GuestAddress(0x4000), BLOCK)]);
    let mut queue = driver.config(0, 8).validate(&memory, 0, QueueState::default()).unwrap();
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&mut chain), Ok(true));
    let mut buffers = GuestBuffers::new(memory);
    assert!(buffers.fill(chain.writable(), 0, BLOCK));
    BlockOperation { action, offset: number * u64::from(BLOCK), buffers }
}

#[test]
fn a_read_is_one_system_call_if_it_is_alone_and_so_is_a_batch_of_them() {
    let (_folder, path) = disk();
    std::fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    let mut back = Vec::new();
    let mut cached = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
    calls::take();
    for (batch, ripe, expected) in [
        (1, None, Calls { steps: 1, enters: 0 }),
        (2, None, Calls { steps: 2, enters: 0 }),
        (9, None, Calls { steps: 0, enters: 1 }),
        // The driver goes on with half of them while the others are read.
        (32, Some([15, 31]), Calls { steps: 0, enters: 2 }),
    ] {
        for number in 0..batch {
            match cached.submit(Token(number), read(number.into())) {
                Submission::Pending => assert!(ripe.is_none_or(|ripe| !ripe.contains(&number)), "{number}"),
                Submission::Ripe => {
                    assert!(ripe.is_some_and(|ripe| ripe.contains(&number)), "{number}");
                    cached.poll(&mut back);
                }
                other => panic!("{number}: {other:?}"),
            }
        }
        cached.poll(&mut back);
        let mut tokens: Vec<_> = back.iter().map(|done| done.token.0).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..batch).collect::<Vec<_>>());
        for done in back.drain(..) {
            done.result.unwrap();
            let mut bytes = [0; 4096];
            done.operation.buffers.copy_out(0, &mut bytes);
            assert_eq!(bytes, [0x5a; 4096]);
        }
        assert_eq!(calls::take(), expected);
    }
    drop(cached);
    let mut direct = UringBackend::new(image(&path, CacheMode::Direct)).unwrap();
    for number in 0..32 {
        assert!(matches!(direct.submit(Token(number), read(number.into())), Submission::Pending), "{number}");
    }
    direct.commit();
    assert_eq!(calls::take(), Calls { steps: 0, enters: 1 });
    direct.drain(&mut back);
    assert_eq!(back.len(), 32);
}

#[test]
fn reads_that_the_cache_does_not_have_are_hardly_tried_there() {
    const READS: u64 = 2000;
    let (_folder, path) = disk();
    std::fs::write(&path, vec![0x5a; usize::try_from(READS * 4096).unwrap()]).unwrap();
    let image = image(&path, CacheMode::Writeback);
    image.file().sync_all().unwrap();
    for advice in [libc::POSIX_FADV_RANDOM, libc::POSIX_FADV_DONTNEED] {
        // SAFETY: posix_fadvise takes an open descriptor, numbers, and no memory.
        assert_eq!(unsafe { libc::posix_fadvise(image.file().as_raw_fd(), 0, 0, advice) }, 0);
    }
    let mut backend = UringBackend::new(image).unwrap();
    let (mut attempts, mut hits, mut back) = (0, 0, Vec::new());
    calls::take();
    for number in 0..READS {
        assert!(matches!(backend.submit(Token(0), read(number)), Submission::Pending));
        backend.poll(&mut back);
        let tried = calls::take().steps;
        attempts += tried;
        hits += tried * u64::try_from(back.len()).unwrap();
        backend.drain(&mut back);
        assert_eq!(back.len(), 1);
        assert!(back.drain(..).all(|done| done.result.is_ok()));
    }
    // A file system may keep some; as many attempts again may be in vain, and a few more in a row and now and then.
    assert!(attempts <= 2 * hits + 8 + READS / 32 + 1, "{attempts} attempts, {hits} hits, {READS} reads");
}

/// A flush that the kernel has answered well while a sync of another queue was open, and that one's ticket.
fn doubted_flush(backend: &mut UringBackend, way: Route) -> SyncTicket {
    let other = backend.image.syncs().begin(Scope::File);
    backend.lone_flush = way;
    assert!(matches!(backend.submit(Token(0), operation(BlockAction::Flush)), Submission::Pending));
    if way == Route::Ring {
        backend.enter_own(1);
    } else {
        assert_eq!(backend.news.read().unwrap(), 1, "the thread is woken to ask");
    }
    let mut back = Vec::new();
    backend.poll(&mut back);
    assert_eq!((back.len(), backend.doubted.len()), (0, 1));
    while backend.news.read().is_ok() {}
    other
}

#[test]
fn a_flush_that_another_queues_overlaps_is_worth_what_that_one_is() {
    let failure = || io::Error::from_raw_os_error(libc::ENOSPC);
    for way in [Route::Ring, Route::Call] {
        for (told, believed) in [(Ok(()), true), (Err(failure()), false)] {
            let (_folder, path) = disk();
            let image = image(&path, CacheMode::Writeback);
            let mut backend = UringBackend::new(Arc::clone(&image)).unwrap();
            let other = doubted_flush(&mut backend, way);
            let _told = image.syncs().end(other, told);
            assert_eq!(backend.news.read().unwrap(), 1, "it is told");
            let mut back = Vec::new();
            backend.poll(&mut back);
            let results: Vec<_> = back.iter().map(|completion| (completion.token, completion.result.is_ok())).collect();
            assert_eq!((results, backend.busy()), (vec![(Token(0), believed)], 0));
        }
    }
}

#[test]
fn a_flush_in_doubt_does_not_hold_up_a_stop_and_is_not_believed() {
    let (_folder, path) = disk();
    let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
    let other = doubted_flush(&mut backend, Route::Ring);
    let mut back = Vec::new();
    backend.drain(&mut back);
    assert!(back[0].result.is_err());
    // That says nothing of later ones.
    backend.image.syncs().end(other, Ok(())).unwrap().unwrap();
    backend.submit(Token(0), operation(BlockAction::Flush));
    backend.drain(&mut back);
    assert!(back[1..].iter().all(|completion| completion.result.is_ok()));
}

#[test]
fn a_durable_write_is_written_here_synced_in_the_ring_and_worth_what_other_queues_syncs_are() {
    let failure = || io::Error::from_raw_os_error(libc::EIO);
    for (told, believed) in [(Ok(()), true), (Err(failure()), false)] {
        let (_folder, path) = disk();
        let image = image(&path, CacheMode::Writethrough);
        let mut backend = UringBackend::new(Arc::clone(&image)).unwrap();
        let other = image.syncs().begin(Scope::Own);
        calls::take();
        let write = transfer(BlockAction::Write(Durability::Durable), 0);
        assert!(matches!(backend.submit(Token(0), write), Submission::Pending));
        assert_eq!(calls::take(), Calls { steps: 1, enters: 0 });
        backend.enter_own(1);
        let mut back = Vec::new();
        backend.poll(&mut back);
        assert_eq!((back.len(), backend.doubted.len()), (0, 1), "it is done, and in doubt");
        let _told = image.syncs().end(other, told);
        backend.poll(&mut back);
        assert_eq!(back.iter().map(|done| done.result.is_ok()).collect::<Vec<_>>(), [believed]);
    }
}
