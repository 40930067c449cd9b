//! Transfers of one file, many by one system call, none of which waits.
//!
//! Where a transfer is small, the call costs as much as what it does. An io_uring takes many by one and does each at once
//! and in turn; what would have to wait is EAGAIN instead (`RWF_NOWAIT`). Nothing is in flight between two calls, so a
//! burst may be run on any thread, and its file is not registered: the kernel would keep that for a while after the end of
//! a process that was killed, and with it what the file holds.
#![expect(unsafe_code, reason = "entries with addresses of guest memory are handed to the kernel")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

/// Transfers of one call.
pub(crate) const BURST_MAX: usize = 32;

/// Transfers from which on a ring costs less than a call each.
pub(crate) const WORTH_A_RING: usize = 3;

/// One transfer, as preadv2 and pwritev2 take it. An interface has no offsets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transfer<'a> {
    Read { vectors: &'a [libc::iovec], offset: u64 },
    Write { vectors: &'a [libc::iovec], offset: u64 },
}

/// A burst that is made when it is first wanted.
#[derive(Debug, Default)]
pub(crate) enum LazyBurst {
    #[default]
    Untried,
    Ready(Box<Burst>),
    /// The kernel gives none.
    Refused,
}

impl LazyBurst {
    pub(crate) fn get(&mut self) -> Option<&mut Burst> {
        if let Self::Untried = self {
            *self = Burst::new().map_or(Self::Refused, |burst| Self::Ready(Box::new(burst)));
        }
        match self {
            Self::Ready(burst) => Some(burst),
            Self::Untried | Self::Refused => None,
        }
    }
}

/// A ring that does nothing but transfer.
pub(crate) struct Burst {
    ring: IoUring,
}

impl Burst {
    /// # Errors
    /// The kernel has no such ring for us: then each transfer needs a call of its own.
    pub(crate) fn new() -> io::Result<Self> {
        let entries = u32::try_from(BURST_MAX).expect("32 bits fit");
        let ring = IoUring::builder().setup_r_disabled().setup_submit_all().dontfork().build(entries)?;
        let operations = [opcode::Read::CODE, opcode::Readv::CODE, opcode::Write::CODE, opcode::Writev::CODE];
        let mut restrictions = operations.map(Restriction::sqe_op);
        ring.submitter().register_restrictions(&mut restrictions)?;
        ring.submitter().register_enable_rings()?;
        Ok(Self { ring })
    }

    /// Does at most [`BURST_MAX`] transfers of `file`, and says of each, by its place, what its call would have said.
    ///
    /// # Safety
    /// What the vectors of the transfers describe may be read, or written, until this returns.
    pub(crate) unsafe fn run<'a>(
        &mut self,
        file: BorrowedFd<'_>,
        transfers: impl Iterator<Item = Transfer<'a>>,
        mut done: impl FnMut(usize, io::Result<usize>),
    ) {
        let (file, mut left) = (Fd(file.as_raw_fd()), 0);
        let mut submission = self.ring.submission();
        for transfer in transfers {
            let entry = entry(file, transfer).user_data(u64::try_from(left).expect("64 bits fit"));
            // SAFETY: an entry's pointers must hold until its completion = the caller's to promise until this function
            // returns, which it does when all are complete.
            unsafe { submission.push(&entry) }.expect("a burst has at most BURST_MAX transfers");
            left += 1;
        }
        drop(submission);
        let mut want = 0;
        while left > 0 {
            hand_over(&mut self.ring, want).expect("our own ring takes our entries");
            for completion in self.ring.completion() {
                let index = usize::try_from(completion.user_data()).expect("a completion names its transfer");
                done(index, moved(completion.result()));
                left -= 1;
            }
            // A kernel that has to wait all the same.
            want = left;
        }
    }
}

/// What a completion says.
pub(super) fn moved(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Hands all entries of a ring to the kernel, and waits for `want` completions.
///
/// # Errors
/// The kernel does not take them.
pub(super) fn hand_over(ring: &mut IoUring, want: usize) -> io::Result<()> {
    loop {
        #[cfg(test)]
        super::block::calls::count_enter();
        match ring.submitter().submit_and_wait(want) {
            Ok(_) if ring.submission().is_empty() => return Ok(()),
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // The kernel is short of memory for the moment.
                Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                _ => return Err(error),
            },
        }
    }
}

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Burst").finish_non_exhaustive()
    }
}

fn entry(file: Fd, transfer: Transfer<'_>) -> Entry {
    let count = |vectors: &[libc::iovec]| u32::try_from(vectors.len()).expect("a call takes IOV_MAX pieces");
    let bytes = |vector: &libc::iovec| u32::try_from(vector.iov_len).expect("a piece of guest memory has 32 bits");
    match transfer {
        Transfer::Read { vectors: [alone], offset } => {
            let read = opcode::Read::new(file, alone.iov_base.cast(), bytes(alone));
            read.offset(offset).rw_flags(libc::RWF_NOWAIT).build()
        }
        Transfer::Read { vectors, offset } => {
            let read = opcode::Readv::new(file, vectors.as_ptr(), count(vectors));
            read.offset(offset).rw_flags(libc::RWF_NOWAIT).build()
        }
        Transfer::Write { vectors: [alone], offset } => {
            let write = opcode::Write::new(file, alone.iov_base.cast_const().cast(), bytes(alone));
            write.offset(offset).rw_flags(libc::RWF_NOWAIT).build()
        }
        Transfer::Write { vectors, offset } => {
            let write = opcode::Writev::new(file, vectors.as_ptr(), count(vectors));
            write.offset(offset).rw_flags(libc::RWF_NOWAIT).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    fn vector(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
    }

    #[test]
    fn transfers_are_done_in_turn_and_what_would_wait_says_so() {
        let (near, far) = UnixDatagram::pair().unwrap();
        let mut burst = Burst::new().unwrap();
        let mut frames: Vec<_> = (0..20).map(|number| [number; 8]).collect();
        let vectors: Vec<_> = frames.iter_mut().map(|frame| vector(frame)).collect();
        let mut sent = Vec::new();
        let writes = vectors.chunks(1).map(|vectors| Transfer::Write { vectors, offset: 0 });
        // SAFETY: the vectors describe `frames`, which outlives the call.
        unsafe { burst.run(near.as_fd(), writes, |index, result| sent.push((index, result.unwrap()))) };
        assert_eq!(sent, (0..20).map(|index| (index, 8)).collect::<Vec<_>>());

        // Each in two pieces.
        let mut room = [[0; 8]; 24];
        let vectors: Vec<_> = room.iter_mut().flat_map(|frame| frame.chunks_mut(4)).map(vector).collect();
        let reads = vectors.chunks(2).map(|vectors| Transfer::Read { vectors, offset: 0 });
        let mut read = Vec::new();
        // SAFETY: the vectors describe `room`, which outlives the call.
        unsafe { burst.run(far.as_fd(), reads, |index, result| read.push((index, result))) };
        for (index, result) in read {
            match result {
                Ok(8) if index < 20 => assert_eq!(room[index], frames[index]),
                Err(error) if index >= 20 => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                other => panic!("transfer {index}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_file_is_read_at_each_offset_and_ends_where_it_ends() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        file.write_all(&bytes).unwrap();
        let mut burst = Burst::new().unwrap();
        let mut room = [[0_u8; 16]; BURST_MAX];
        let vectors: Vec<_> = room.iter_mut().map(|frame| vector(frame)).collect();
        let reads = (0..).zip(vectors.chunks(1)).map(|(place, vectors)| Transfer::Read { vectors, offset: 10 * place });
        let mut ends = [usize::MAX; BURST_MAX];
        // SAFETY: the vectors describe `room`, which outlives the call.
        unsafe { burst.run(file.as_fd(), reads, |index, result| ends[index] = result.unwrap()) };
        for (index, end) in ends.into_iter().enumerate() {
            assert_eq!(end, bytes.len().saturating_sub(10 * index).min(16), "{index}");
            assert_eq!(room[index][..end], bytes[(10 * index).min(256)..][..end]);
        }
    }
}
