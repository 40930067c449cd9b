//! A disk in a file or on a block device, by plain synchronous system calls straight from and to guest memory.
#![expect(unsafe_code, reason = "pread, pwrite and their kin on addresses of guest memory; fallocate and ioctl")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::bounce::BouncePool;
use super::image::Kind;
use super::job::{Job, Pieces, Step, Verdict};
use super::{BlockBackend, BlockOperation, Completion, DiskGeometry, DiskImage, Durability, Submission, Token};
use crate::virtio::worker::Source;

/// `_IO(0x12, 119)`, linux/fs.h.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// The synchronous backend: every operation is done when it was submitted.
#[derive(Debug)]
pub struct FileBackend {
    image: Arc<DiskImage>,
    pool: BouncePool,
}

impl FileBackend {
    /// A backend over an open image, which it may share with those of other queues.
    pub fn new(image: Arc<DiskImage>) -> Self {
        let align = image.direct().map_or(1, |alignment| alignment.memory);
        Self { image, pool: BouncePool::new(1, align) }
    }
}

impl BlockBackend for FileBackend {
    fn geometry(&self) -> DiskGeometry {
        self.image.geometry()
    }

    fn submit(&mut self, token: Token, operation: BlockOperation) -> Submission {
        let file = self.image.file();
        complete(&self.image, &mut self.pool, token, operation, |step| perform(file, step, Waiting::Allowed))
    }

    fn poll(&mut self, _completions: &mut Vec<Completion>) {}

    fn drain(&mut self, _completions: &mut Vec<Completion>) {}

    fn wake_source(&self) -> Option<Source> {
        None
    }
}

/// Does all of an operation, step by step, each by `answer`. The pool's buffers are free between operations.
pub(super) fn complete(
    image: &DiskImage,
    pool: &mut BouncePool,
    token: Token,
    operation: BlockOperation,
    mut answer: impl FnMut(Step) -> io::Result<usize>,
) -> Submission {
    let job = Job::new(token, operation, image.direct(), pool);
    let mut job = job.expect("the one buffer is free between operations");
    let is_device = image.kind() == Kind::Device;
    loop {
        image.watch(&mut job);
        let answered = answer(job.next(is_device));
        if let Verdict::End(result) = job.advance(answered) {
            // The others are in such calls on threads of their own.
            let result = image.settle(&mut job, result).unwrap_or_else(|doubt| image.syncs().wait(&doubt));
            return Submission::Done(job.finish(result, pool));
        }
    }
}

/// Whether a call may wait for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    Allowed,
    /// A transfer that would have to wait is EAGAIN, or EOPNOTSUPP where the file system does not know.
    Refused,
}

impl Waiting {
    fn flag(self) -> libc::c_int {
        match self {
            Self::Allowed => 0,
            Self::Refused => libc::RWF_NOWAIT,
        }
    }
}

/// Does one step of a job or an operation, which must be alive and own its buffers.
pub(super) fn perform(file: &File, step: Step, waiting: Waiting) -> io::Result<usize> {
    #[cfg(test)]
    super::calls::count_step();
    let fd = file.as_raw_fd();
    match step {
        Step::Read(Pieces::One { address, len }, offset) if waiting == Waiting::Allowed => {
            let offset = position(offset)?;
            // SAFETY: pread writes `len` bytes at `address` = inside a piece of guest memory or a bounce buffer that
            // the job owns and keeps mapped, and which nobody here holds a reference to.
            count(unsafe { libc::pread(fd, address, len, offset) })
        }
        Step::Write(Pieces::One { address, len }, offset, Durability::Cached) if waiting == Waiting::Allowed => {
            let offset = position(offset)?;
            // SAFETY: pwrite reads `len` bytes at `address` = inside a piece of guest memory or a buffer that the
            // job owns and keeps mapped.
            count(unsafe { libc::pwrite(fd, address, len, offset) })
        }
        // Not by the C library's own function, a cancellation point, for which a process of several threads pays.
        Step::Read(pieces, offset) => vector(pieces, |first, pieces| {
            let offset = position(offset)?;
            // SAFETY: preadv2 reads `pieces` iovecs and writes into their pieces = a live slice of pieces of guest
            // memory that the job owns and keeps mapped, without any reference into them. The offset's high half, which
            // a machine of 64 bits does not look at, is 0.
            count(unsafe { libc::syscall(libc::SYS_preadv2, fd, first, pieces, offset, 0, waiting.flag()) })
        }),
        Step::Write(pieces, offset, durability) => vector(pieces, |first, pieces| {
            let offset = position(offset)?;
            let flags = waiting.flag() | durability_flag(durability);
            // SAFETY: pwritev2 reads `pieces` iovecs and their pieces = a live slice of pieces of guest memory that
            // the job owns and keeps mapped.
            count(unsafe { libc::pwritev2(fd, first, pieces, offset, flags) })
        }),
        Step::Sync => file.sync_data().map(|()| 0),
        Step::Allocate(mode, offset, len) => {
            let (offset, len) = (position(offset)?, position(len)?);
            // SAFETY: fallocate takes a descriptor = an open one, and no memory.
            done(unsafe { libc::fallocate(fd, mode, offset, len) })
        }
        Step::DeviceDiscard(offset, len) => {
            let range = [offset, len];
            // SAFETY: BLKDISCARD reads two u64 = `range`, which has two and lives across the call.
            done(unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) })
        }
    }
}

/// The flag of a write that must be durable when it is complete.
pub(super) fn durability_flag(durability: Durability) -> libc::c_int {
    match durability {
        Durability::Cached => 0,
        Durability::Durable => libc::RWF_DSYNC,
    }
}

/// Calls with a vector, which a single piece becomes for as long as the call lasts.
fn vector(
    pieces: Pieces,
    call: impl FnOnce(*const libc::iovec, libc::c_int) -> io::Result<usize>,
) -> io::Result<usize> {
    match pieces {
        Pieces::One { address, len } => {
            let alone = libc::iovec { iov_base: address, iov_len: len };
            call(&raw const alone, 1)
        }
        Pieces::Many { first, count } => call(first, libc::c_int::try_from(count).expect("a step has few pieces")),
    }
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn count(moved: impl TryInto<usize>) -> io::Result<usize> {
    moved.try_into().map_err(|_| io::Error::last_os_error())
}

fn done(result: libc::c_int) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::block::{BlockAction, DiskAccess, DiskOptions, Space};
    use crate::testing::{Buffer, DriverRing, memory_with_hole};
    use crate::virtio::GuestBuffers;
    use crate::virtio::queue::{Chain, QueueState};
    use std::path::Path;
    use std::sync::mpsc::channel;
    use std::time::Duration;
    use vm_memory::GuestAddress;

    fn image() -> DiskImage {
        let file = tempfile::tempfile_in("/tmp").unwrap();
        file.set_len(4096).unwrap();
        let options = DiskOptions::default();
        DiskImage::from_file(file, Path::new("scratch"), DiskAccess::ReadWrite, options).unwrap()
    }

    fn perform_by(
        action: BlockAction,
        image: &DiskImage,
        host: impl FnMut(Step) -> io::Result<usize>,
    ) -> io::Result<()> {
        let memory = memory_with_hole(1 << 16);
        let mut buffers = GuestBuffers::new(memory.clone());
        if let BlockAction::Write(_) = action {
            let mut driver = DriverRing::new(memory.clone(), GuestAddress(0x1000), 8, false);
            driver.add(&[Buffer::Readable(GuestAddress(0x4000), 512)]);
            let mut queue = driver.config(0, 8).validate(&memory, 0, QueueState::default()).unwrap();
            let mut chain = Chain::new();
            assert_eq!(queue.pop(&mut chain), Ok(true));
            assert!(buffers.fill(chain.readable(), 0, 512));
        }
        let operation = BlockOperation { action, offset: 0, buffers };
        match complete(image, &mut BouncePool::new(1, 1), Token(0), operation, host) {
            Submission::Done(completion) => completion.result,
            other => panic!("{other:?}"),
        }
    }

    fn flush(image: &DiskImage, host: impl FnMut(Step) -> io::Result<usize>) -> io::Result<()> {
        perform_by(BlockAction::Flush, image, host)
    }

    fn write(image: &DiskImage, host: impl FnMut(Step) -> io::Result<usize>) -> io::Result<()> {
        perform_by(BlockAction::Write(Durability::Durable), image, host)
    }

    fn zero(image: &DiskImage, host: impl FnMut(Step) -> io::Result<usize>) -> io::Result<()> {
        let durability = Durability::Durable;
        perform_by(BlockAction::WriteZeroes { len: 512, space: Space::Keep, durability }, image, host)
    }

    /// A host that takes all, and says of a sync what `sync` does.
    fn host(mut sync: impl FnMut() -> io::Result<usize>) -> impl FnMut(Step) -> io::Result<usize> {
        move |step| match step {
            Step::Sync | Step::Write(_, _, Durability::Durable) => sync().map(|_| 512),
            _ => Ok(512),
        }
    }

    fn errno(number: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(number))
    }

    /// The kernel tells the first of the error, and then the second that all is well, before the first has said so.
    #[test]
    fn of_two_syncs_at_once_neither_is_believed_if_one_fails() {
        type Sync = fn(&DiskImage, &mut dyn FnMut(Step) -> io::Result<usize>) -> io::Result<()>;
        let syncs: [Sync; 3] =
            [|image, by| flush(image, by), |image, by| write(image, by), |image, by| zero(image, by)];
        for (one, other) in syncs.iter().flat_map(|one| syncs.iter().map(move |other| (one, other))) {
            let image = &image();
            let (begun, first_begun) = channel();
            let (fail, first_fails) = channel::<()>();
            let (end, second_ended) = channel();
            std::thread::scope(|scope| {
                let first = scope.spawn(move || {
                    let sync = move || {
                        begun.send(()).unwrap();
                        first_fails.recv().unwrap();
                        errno(libc::EIO)
                    };
                    one(image, &mut host(sync))
                });
                first_begun.recv().unwrap();
                scope.spawn(move || end.send(other(image, &mut host(|| Ok(0)))));
                assert!(second_ended.recv_timeout(Duration::from_millis(20)).is_err(), "it waits for the first");
                fail.send(()).unwrap();
                assert!(first.join().unwrap().is_err() && second_ended.recv().unwrap().is_err());
            });
            assert!(flush(image, host(|| Ok(0))).is_err(), "nor is any later flush");
            assert!(write(image, host(|| Ok(0))).is_ok(), "a later write brings its bytes along");
        }
    }

    /// What the other sync lost, and was told of, may be what was written here before.
    #[test]
    fn a_durable_write_is_not_believed_if_another_sync_fails_between_it_and_its_own() {
        let image = image();
        let failing = || assert!(flush(&image, host(|| errno(libc::ENOSPC))).is_err());
        let mut then = Some(failing);
        let written = write(&image, |step| {
            if matches!(step, Step::Write(..)) {
                then.take().into_iter().for_each(|failing| failing());
                return Ok(512);
            }
            Ok(0)
        });
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_durable_write_that_fails_before_its_sync_has_lost_nothing() {
        let image = image();
        assert!(write(&image, |_| errno(libc::ENOSPC)).is_err());
        assert!(flush(&image, host(|| Ok(0))).is_ok());
    }
}
