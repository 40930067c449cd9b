use super::*;
use crate::backend::block::{CacheMode, DiskAccess, DiskOptions};
use crate::testing::memory_with_hole;
use crate::virtio::GuestBuffers;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn image(path: &Path, cache: CacheMode) -> Arc<DiskImage> {
    let options = DiskOptions { cache, block: None };
    Arc::new(DiskImage::open(path, DiskAccess::ReadWrite, options).unwrap())
}

fn disk() -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let path = folder.path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    (folder, path)
}

/// A flush, which always goes through the ring.
fn flush() -> BlockOperation {
    let buffers = GuestBuffers::new(memory_with_hole(1 << 16));
    BlockOperation { action: BlockAction::Flush, offset: 0, buffers }
}

#[test]
fn a_full_ring_gives_the_operation_back_and_takes_it_later() {
    let (_folder, path) = disk();
    let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
    let mut back = Vec::new();
    for round in 0..3 {
        for token in 0..SLOTS {
            assert!(matches!(backend.submit(Token(token), flush()), Submission::Pending), "{round}");
        }
        let Submission::Full(operation) = backend.submit(Token(SLOTS), flush()) else { panic!("there is room") };
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
    assert!(matches!(backend.submit(Token(0), flush()), Submission::Pending));
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
            assert!(matches!(backend.submit(Token(0), flush()), Submission::Pending));
            backend.drain(&mut back);
            assert!(back.pop().unwrap().result.is_ok());
            backend.leave_thread();
            backend
        })
        .join()
        .unwrap();
    }
}

#[test]
fn the_lock_ends_with_the_backend() {
    for used in [false, true] {
        let (_folder, path) = disk();
        let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
        if used {
            let mut back = Vec::new();
            assert!(matches!(backend.submit(Token(0), flush()), Submission::Pending));
            backend.drain(&mut back);
            backend.leave_thread();
        }
        drop(backend);
        let start = Instant::now();
        drop(image(&path, CacheMode::Writeback));
        assert!(start.elapsed() < Duration::from_millis(400), "{used}");
    }
}

#[test]
fn a_backend_that_is_dropped_in_the_middle_waits_for_the_kernel() {
    let (_folder, path) = disk();
    for committed in [false, true] {
        let mut backend = UringBackend::new(image(&path, CacheMode::Writeback)).unwrap();
        for token in 0..SLOTS {
            assert!(matches!(backend.submit(Token(token), flush()), Submission::Pending));
        }
        if committed {
            backend.commit();
        }
        drop(backend);
    }
}
