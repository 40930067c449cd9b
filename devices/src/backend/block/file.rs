//! A disk in a file or on a block device, by plain synchronous system calls straight from and to guest memory.
#![expect(unsafe_code, reason = "pread and pwrite on addresses of guest memory")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::{
    BlockAction, BlockBackend, BlockOperation, Completion, DiskGeometry, DiskImage, Durability, Submission, Token,
};
use crate::virtio::GuestBuffers;

/// The synchronous backend: every operation is done when it was submitted.
#[derive(Debug)]
pub struct FileBackend {
    image: DiskImage,
}

impl FileBackend {
    /// A backend over an open image.
    pub fn new(image: DiskImage) -> Self {
        Self { image }
    }

    fn perform(&self, operation: &BlockOperation) -> io::Result<()> {
        let BlockOperation { action, offset, ref buffers } = *operation;
        match action {
            BlockAction::Read => {
                let result = self.transfer(buffers, offset, Direction::Read);
                // Also of a read that failed: a part of it may have arrived.
                buffers.mark_written();
                result
            }
            BlockAction::Write(durability) => self.transfer(buffers, offset, Direction::Write(durability)),
            BlockAction::Flush => self.image.file().sync_data(),
        }
    }

    /// Moves all of `buffers`, continuing after short transfers.
    fn transfer(&self, buffers: &GuestBuffers, offset: u64, direction: Direction) -> io::Result<()> {
        let fd = self.image.file().as_raw_fd();
        let mut rest = Rest { iovecs: buffers.iovecs(), skip: 0 };
        let mut offset = offset;
        while !rest.iovecs.is_empty() {
            let position = libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let moved = match rest.transfer(fd, position, direction) {
                Ok(moved) => moved,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if moved == 0 {
                // The file ends where the disk does not: somebody truncated it.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rest.advance(moved);
            offset += u64::try_from(moved).expect("64 bits fit");
        }
        Ok(())
    }
}

impl BlockBackend for FileBackend {
    fn geometry(&self) -> DiskGeometry {
        self.image.geometry()
    }

    fn submit(&mut self, token: Token, operation: BlockOperation) -> Submission {
        let result = self.perform(&operation);
        Submission::Done(Completion { token, operation, result })
    }

    fn poll(&mut self, _completions: &mut Vec<Completion>) {}

    fn drain(&mut self, _completions: &mut Vec<Completion>) {}

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write(Durability),
}

/// What of a list is still to be moved: all but the first `skip` bytes.
struct Rest<'a> {
    iovecs: &'a [libc::iovec],
    skip: usize,
}

impl Rest<'_> {
    /// One system call. A single piece, or the rest of one that was cut, goes without the vector's overhead.
    fn transfer(&self, fd: RawFd, position: libc::off_t, direction: Direction) -> io::Result<usize> {
        let first = self.iovecs[0];
        let start = first.iov_base.wrapping_byte_add(self.skip);
        let len = first.iov_len - self.skip;
        let alone = self.iovecs.len() == 1 || self.skip > 0;
        let count = libc::c_int::try_from(self.iovecs.len()).expect("a chain has few segments");
        let vector = self.iovecs.as_ptr();
        let moved = match direction {
            Direction::Read if alone => {
                // SAFETY: pread writes `len` bytes at `start` = inside a piece of guest memory that the operation
                // owns and keeps mapped, and which nobody here holds a reference to.
                unsafe { libc::pread(fd, start, len, position) }
            }
            Direction::Read => {
                // SAFETY: preadv reads `count` iovecs and writes into their pieces = a live slice of guest memory's
                // pieces that the operation owns and keeps mapped, without any reference into them.
                unsafe { libc::preadv(fd, vector, count, position) }
            }
            Direction::Write(Durability::Cached) if alone => {
                // SAFETY: pwrite reads `len` bytes at `start` = inside a piece of guest memory that the operation
                // owns and keeps mapped.
                unsafe { libc::pwrite(fd, start, len, position) }
            }
            Direction::Write(Durability::Cached) => {
                // SAFETY: pwritev reads `count` iovecs and their pieces = a live slice of guest memory's pieces that
                // the operation owns and keeps mapped.
                unsafe { libc::pwritev(fd, vector, count, position) }
            }
            Direction::Write(Durability::Durable) => {
                let cut = [libc::iovec { iov_base: start, iov_len: len }];
                let (vector, count) = if alone { (cut.as_ptr(), 1) } else { (vector, count) };
                // SAFETY: pwritev2 reads `count` iovecs and their pieces = a live array or slice of guest memory's
                // pieces that the operation owns and keeps mapped.
                unsafe { libc::pwritev2(fd, vector, count, position, libc::RWF_DSYNC) }
            }
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    fn advance(&mut self, moved: usize) {
        self.skip += moved;
        while let Some(first) = self.iovecs.first()
            && self.skip >= first.iov_len
        {
            self.skip -= first.iov_len;
            self.iovecs = &self.iovecs[1..];
        }
    }
}
