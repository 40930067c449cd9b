//! Frames in guest memory, in the form that system calls take: [`ReceiveRoom`] for those that come, [`TransmitFrame`]
//! for those that go.
//!
//! Both hold the memory itself and belong to the worker of their queue. Nothing here touches a ring.
//!
//! What is large goes between the host and the guest's memory without a copy. What is small is copied, where that spares
//! the system call a piece: the kernel looks at each, for some 70 ns, and fills or reads a place that is in the cache sooner.
#![expect(unsafe_code, reason = "readv, writev and bursts on addresses of guest memory, inside Send types")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;

use arch::GuestMemory;
use vm_memory::GuestAddress;

use super::filter::HEAD_BYTES_MAX;
use super::header::{FRAME_BYTES_MIN, HEADER_BYTES, HEADER_LEN};
use crate::backend::burst::{BURST_MAX, Burst, Transfer};
use crate::virtio::buffers::{iovec, mark_written, read_at, write_at};
use crate::virtio::queue::{Chain, Segment};

/// What one system call takes (`IOV_MAX`).
const VECTORS_MAX: usize = 1024;

/// Room of our own behind the guest's: more than the largest frame with its header, which is 64 KiB of payload behind
/// an Ethernet header with a VLAN tag.
const SPILL_BYTES: usize = 66 << 10;
const _: () = assert!(SPILL_BYTES > HEADER_BYTES + 14 + 4 + 65536);

/// Frames that are read at once, if there are as many.
pub(super) const SEVERAL_MAX: usize = 16;
const _: () = assert!(SEVERAL_MAX <= BURST_MAX);

/// Frames that are read at once, and so copied, are expected to be no larger with their headers: those of the usual MTU are
/// not.
const SEVERAL_BYTES_MAX: usize = 2048;

/// Frames after which little is left of the expectation of a larger one.
const EXPECTATION_FADES: usize = 16;

/// Frames up to which all of a frame to be sent is copied with its header.
const COPIED_MAX: u32 = 128;
const _: () = assert!(COPIED_MAX as usize <= HEAD_BYTES_MAX);

/// The shortest frame with its header.
const SHORTEST_BYTES: usize = HEADER_BYTES + FRAME_BYTES_MIN as usize;

/// Chains in which frames are received, oldest first.
///
/// A frame is read into as many of them as frames took of late, since a system call pays for each piece that it is
/// shown. What does not fit goes to a buffer of our own, the spill, and is moved on to the other chains, or to more when
/// they come: so no frame is ever cut. Small ones are read several at once, into places of our own, and copied.
pub struct ReceiveRoom {
    memory: Arc<GuestMemory>,
    chains: VecDeque<RoomChain>,
    /// The pieces of all chains, from `start` on, and beside them the same for system calls.
    pieces: Vec<Segment>,
    vectors: Vec<libc::iovec>,
    start: usize,
    /// Bytes in all chains.
    bytes: usize,
    /// Bytes that the next frame is expected to have.
    expected: usize,
    /// What the last read was shown of the chains.
    offered: usize,
    spill: Box<[u8]>,
    spilled: Option<Spilled>,
    several: Several,
}

/// What reads of several frames at once need.
#[derive(Default)]
struct Several {
    /// Places for a frame each. What is never written to takes no memory.
    places: Vec<u8>,
    vectors: Vec<libc::iovec>,
    /// What came of those that found something, oldest first, until somebody asks.
    reads: VecDeque<Read>,
}

/// What came of a read into a place.
struct Read {
    place: usize,
    result: io::Result<usize>,
}

#[derive(Clone, Copy)]
struct RoomChain {
    head: u16,
    pieces: usize,
    bytes: usize,
}

/// A frame that is partly in the spill.
#[derive(Clone, Copy)]
struct Spilled {
    /// Bytes of the whole frame.
    total: usize,
    /// Bytes of it that are in chains.
    filled: usize,
    /// Where in the spill the rest begins.
    at: usize,
}

/// What became of a frame that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// All of it is in the chains.
    Whole,
    /// Its end is in the spill until there are more chains, or until it is dropped.
    Partial,
    /// It is shorter or longer than any frame, and counts for nothing.
    Never,
}

// SAFETY: an iovec is not Send because of its pointer. Ours point into `memory` and into spills, which are Send and travel
// along, and nothing is reached through them except by `read_from`, which takes guest memory as it is, and `read_several_from`.
unsafe impl Send for ReceiveRoom {}

impl ReceiveRoom {
    /// No room yet, in `memory`.
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        Self {
            memory,
            chains: VecDeque::new(),
            pieces: Vec::new(),
            vectors: Vec::new(),
            start: 0,
            bytes: 0,
            expected: 0,
            offered: 0,
            spill: vec![0; SPILL_BYTES].into_boxed_slice(),
            spilled: None,
            several: Several::default(),
        }
    }

    /// Bytes in all chains.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many chains there are.
    pub(super) fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Whether no read can fill more chains.
    pub(super) fn is_crowded(&self) -> bool {
        self.vectors.len() - self.start >= VECTORS_MAX - 1
    }

    /// The whole length of a frame whose end is in the spill.
    pub(super) fn spilled(&self) -> Option<usize> {
        self.spilled.map(|spilled| spilled.total)
    }

    /// Adds the writable part of a chain of this memory.
    pub(super) fn push(&mut self, chain: &Chain) {
        if self.start >= VECTORS_MAX || self.chains.is_empty() {
            self.pieces.drain(..self.start);
            self.vectors.drain(..self.start);
            self.start = 0;
        }
        self.pieces.extend_from_slice(chain.writable());
        self.vectors.extend(chain.writable().iter().map(iovec));
        let bytes = usize::try_from(chain.writable_len()).expect("32 bits fit");
        self.chains.push_back(RoomChain { head: chain.head(), pieces: chain.writable().len(), bytes });
        self.bytes += bytes;
    }

    /// Reads one frame from `fd` by one system call. Returns its bytes, for [`Self::settle`].
    ///
    /// # Errors
    /// Those of readv.
    pub(crate) fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let count = self.offer();
        let end = self.start + count;
        self.vectors.push(libc::iovec { iov_base: self.spill.as_mut_ptr().cast(), iov_len: self.spill.len() });
        let last = self.vectors.len() - 1;
        self.vectors.swap(end, last);
        let vectors = self.vectors[self.start..=end].as_ptr();
        let count = libc::c_int::try_from(count + 1).expect("at most VECTORS_MAX");
        // SAFETY: readv reads `count` iovecs at `vectors` = a live slice of so many, and writes into what they
        // describe = pieces of guest memory that `memory` keeps mapped and nobody holds a reference to, and last the
        // spill, which is ours alone.
        let read = unsafe { libc::readv(fd.as_raw_fd(), vectors, count) };
        self.vectors.swap(end, last);
        self.vectors.truncate(last);
        let len = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        // Whatever becomes of the frame, it is in the chains now.
        self.mark(len.min(self.offered));
        Ok(len)
    }

    /// For how many frames at once there is room, up to `wanted`, if they are no larger than is expected: a chain for each.
    /// None while frames wait that have been read.
    pub(super) fn room_for(&self, wanted: usize) -> usize {
        if self.holds_frames() || self.expected > SEVERAL_BYTES_MAX {
            return 0;
        }
        let suits = |chain: &&RoomChain| chain.bytes >= self.expected;
        self.chains.iter().take(wanted.min(SEVERAL_MAX)).take_while(suits).count()
    }

    /// Whether a frame that has been read waits for chains, or for those before it.
    pub(super) fn holds_frames(&self) -> bool {
        self.spilled.is_some() || !self.several.reads.is_empty()
    }

    /// Whether the oldest of several reads can be taken, and its frame is whole then.
    pub(super) fn has_room_for_next(&self) -> bool {
        let (Some(read), Some(chain)) = (self.several.reads.front(), self.chains.front()) else { return false };
        self.spilled.is_none() && read.result.as_ref().map_or(true, |len| *len <= chain.bytes)
    }

    /// Reads up to `count` frames from `fd` by one system call, of as many as [`Self::room_for`] has said. Returns how many
    /// reads found a frame, or failed: [`Self::next_read`] tells of each.
    pub(crate) fn read_several_from(&mut self, fd: BorrowedFd<'_>, burst: &mut Burst, count: usize) -> usize {
        let Several { places, vectors, reads } = &mut self.several;
        if places.is_empty() {
            *places = vec![0; SEVERAL_MAX * SPILL_BYTES];
        }
        vectors.clear();
        let vector = |place: &mut [u8]| libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
        vectors.extend(places.chunks_mut(SPILL_BYTES).take(count).map(vector));
        let transfers = vectors.chunks(1).map(|vectors| Transfer::Read { vectors, offset: 0 });
        let done = |place, result| {
            let found_nothing = matches!(&result, Err(error) if io::Error::kind(error) == io::ErrorKind::WouldBlock);
            if !found_nothing {
                reads.push_back(Read { place, result });
            }
        };
        // SAFETY: what the vectors describe may be written until the call returns = `places`, which is ours alone.
        unsafe { burst.run(fd, transfers, done) };
        reads.len()
    }

    /// What the oldest of several reads would have said as [`Self::read_from`].
    pub(super) fn next_read(&mut self) -> Option<io::Result<usize>> {
        let Read { place, result } = self.several.reads.pop_front()?;
        if let Ok(len) = result {
            self.offer();
            let frame = &self.several.places[place * SPILL_BYTES..][..len];
            let (here, beyond) = frame.split_at(len.min(self.offered));
            self.write(0, here);
            self.spill[..beyond.len()].copy_from_slice(beyond);
        }
        Some(result)
    }

    /// Forgets what several reads brought. Returns how many frames those were.
    pub(super) fn forget_reads(&mut self) -> usize {
        self.several.reads.drain(..).filter(|read| read.result.is_ok()).count()
    }

    /// Says how a frame of `len` bytes, just read, fits.
    pub(super) fn settle(&mut self, len: usize) -> Fit {
        let offered = self.offered;
        // Down slowly: small frames among large ones are as usual as one size only.
        self.expected = len.max(self.expected - self.expected / EXPECTATION_FADES);
        // No frame is as long as the spill: the end of that one may be missing.
        let is_frame = (SHORTEST_BYTES..SPILL_BYTES).contains(&len);
        if is_frame && len <= offered {
            return Fit::Whole;
        }
        if !is_frame {
            return Fit::Never;
        }
        self.spilled = Some(Spilled { total: len, filled: offered, at: 0 });
        Fit::Partial
    }

    /// Moves as much of the spill as has room by now. True if the frame is whole, and no longer spilled.
    pub(super) fn unspill(&mut self) -> bool {
        let Some(Spilled { total, mut filled, mut at }) = self.spilled.take() else { return true };
        let moved = total.min(self.bytes) - filled;
        self.write(filled, &self.spill[at..at + moved]);
        filled += moved;
        at += moved;
        self.spilled = (filled < total).then_some(Spilled { total, filled, at });
        self.spilled.is_none()
    }

    /// Forgets a frame whose end is in the spill. Its chains are as they were.
    pub(super) fn forget_spilled(&mut self) {
        self.spilled = None;
    }

    /// How many chains a frame of `len` bytes takes.
    pub(super) fn chains_for(&self, len: usize) -> usize {
        let mut left = len;
        let whole = self.chains.iter().take_while(|chain| {
            let goes_on = left > 0;
            left = left.saturating_sub(chain.bytes);
            goes_on
        });
        whole.count()
    }

    /// Writes into the chains, `offset` bytes behind their beginning.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        let (mut offset, mut rest) = (offset, bytes);
        for piece in &self.pieces[self.start..] {
            if rest.is_empty() {
                return;
            }
            let len = usize::try_from(piece.len()).expect("32 bits fit");
            if offset >= len {
                offset -= len;
                continue;
            }
            let (here, later) = rest.split_at(rest.len().min(len - offset));
            let address = piece.address().0 + u64::try_from(offset).expect("64 bits fit");
            write_at(&self.memory, GuestAddress(address), here);
            (offset, rest) = (0, later);
        }
        assert!(rest.is_empty(), "a frame is written beyond the room that it was said to fit");
    }

    /// Reads what is in the chains, `offset` bytes behind their beginning. The guest may change it at any time.
    pub(super) fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let (mut bytes, mut done, mut offset) = ([0; N], 0, offset);
        for piece in &self.pieces[self.start..] {
            let len = usize::try_from(piece.len()).expect("32 bits fit");
            if offset >= len {
                offset -= len;
                continue;
            }
            let part = (N - done).min(len - offset);
            let address = piece.address().0 + u64::try_from(offset).expect("64 bits fit");
            read_at(&self.memory, GuestAddress(address), &mut bytes[done..done + part]);
            (offset, done) = (0, done + part);
            if done == N {
                break;
            }
        }
        bytes
    }

    /// Takes the chains that hold a frame of `len` bytes out, and passes on each chain's head and bytes.
    pub(super) fn take(&mut self, len: usize, mut used: impl FnMut(u16, u32)) {
        let mut left = len;
        while left > 0 {
            let chain = self.chains.pop_front().expect("a frame is in the chains that it was read into");
            let written = left.min(chain.bytes);
            self.start += chain.pieces;
            self.bytes -= chain.bytes;
            left -= written;
            used(chain.head, u32::try_from(written).expect("a chain has less than 4 GiB"));
        }
    }

    /// Gives all chains up. Returns how many there were.
    pub(super) fn clear(&mut self) -> u16 {
        let chains = u16::try_from(self.chains.len()).expect("a queue has at most 32768 entries");
        self.chains.clear();
        self.pieces.clear();
        self.vectors.clear();
        self.spilled = None;
        (self.start, self.bytes) = (0, 0);
        chains
    }

    /// How many pieces the next read fills before the spill: enough for a frame as expected, and one at least.
    fn offer(&mut self) -> usize {
        let mut count = 0;
        self.offered = 0;
        for vector in self.vectors[self.start..].iter().take(VECTORS_MAX - 1) {
            if count > 0 && self.offered >= self.expected {
                break;
            }
            self.offered += vector.iov_len;
            count += 1;
        }
        count
    }

    /// Records that the kernel wrote the first `len` bytes of the chains.
    fn mark(&self, len: usize) {
        let mut left = u32::try_from(len).expect("a read is below 2 GiB");
        let written = self.pieces[self.start..].iter().map_while(|piece| {
            let part = piece.part(0, left)?;
            left -= part.len();
            Some(part)
        });
        mark_written(&self.memory, written);
    }
}

/// A frame to be sent: its header and as much of it as is to be checked, copied, and the rest where the guest has it.
pub struct TransmitFrame {
    memory: Arc<GuestMemory>,
    copy: [u8; HEADER_BYTES + HEAD_BYTES_MAX],
    /// Bytes that are copied, of a frame that has as many.
    copy_bytes: usize,
    /// The first is for the copy, whose address is filled in when it is known to stay.
    vectors: Vec<libc::iovec>,
    bytes: u32,
}

// SAFETY: an iovec is not Send because of its pointer. The first of ours is null between calls of those two; the
// others point into `memory`, which is Send and travels along, and are used only by `write_to` and `write_all_to`, which
// take guest memory as it is.
unsafe impl Send for TransmitFrame {}

impl TransmitFrame {
    /// No frame yet, in `memory`. Of each, the first `head_bytes` are copied beside its header.
    ///
    /// # Panics
    /// If those are more than `HEAD_BYTES_MAX`.
    pub(super) fn new(memory: Arc<GuestMemory>, head_bytes: usize) -> Self {
        assert!(head_bytes <= HEAD_BYTES_MAX, "{head_bytes} bytes of each frame are to be copied");
        let copy = [0; HEADER_BYTES + HEAD_BYTES_MAX];
        Self { memory, copy, copy_bytes: HEADER_BYTES + head_bytes, vectors: Vec::new(), bytes: 0 }
    }

    /// Takes over the readable part of a chain of this memory, and copies its beginning. False if there is no whole
    /// header, or more pieces than one system call takes.
    pub(super) fn load(&mut self, chain: &Chain) -> bool {
        self.vectors.clear();
        let Some(bytes) = chain.readable_len().checked_sub(HEADER_LEN) else { return false };
        self.bytes = bytes;
        self.vectors.push(libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 });
        let copy_bytes = if bytes <= COPIED_MAX { self.copy.len() } else { self.copy_bytes };
        let mut copied = 0;
        for segment in chain.readable() {
            let len = usize::try_from(segment.len()).expect("32 bits fit").min(copy_bytes - copied);
            if len > 0 {
                let copy = &mut self.copy[copied..copied + len];
                read_at(&self.memory, segment.address(), copy);
                copied += len;
            }
            let skip = u32::try_from(len).expect("at most a copy");
            self.vectors.extend(segment.part(skip, u32::MAX).as_ref().map(iovec));
        }
        self.vectors[0].iov_len = copied;
        self.vectors.len() <= VECTORS_MAX
    }

    /// The header, ours to check and to change.
    pub(super) fn header(&mut self) -> &mut [u8; HEADER_BYTES] {
        self.copy.first_chunk_mut().expect("a copy begins with a header")
    }

    /// The first bytes of the frame, as they will be sent.
    pub(super) fn head(&self) -> &[u8] {
        &self.copy[HEADER_BYTES..self.vectors[0].iov_len]
    }

    /// Bytes of the frame, without the header.
    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Writes header and frame to `fd` by one system call.
    ///
    /// # Errors
    /// Those of writev, and a short write.
    pub(crate) fn write_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let count = libc::c_int::try_from(self.vectors.len()).expect("at most VECTORS_MAX");
        self.vectors[0].iov_base = self.copy.as_mut_ptr().cast();
        // SAFETY: writev reads `count` iovecs = all that there are, and what they describe = our copy, which `self` keeps
        // in place during the call, and pieces of guest memory that `memory` keeps mapped.
        let written = unsafe { libc::writev(fd.as_raw_fd(), self.vectors.as_ptr(), count) };
        self.vectors[0].iov_base = ptr::null_mut();
        self.settle(usize::try_from(written).map_err(|_| io::Error::last_os_error()))
    }

    /// Writes frames to `fd` as [`Self::write_to`] does each, by one system call. What became of each is passed on with its
    /// place.
    ///
    /// # Panics
    /// If there are more than [`BURST_MAX`].
    pub(crate) fn write_all_to(
        frames: &mut [Self],
        fd: BorrowedFd<'_>,
        burst: &mut Burst,
        mut done: impl FnMut(usize, io::Result<()>),
    ) {
        for frame in &mut *frames {
            frame.vectors[0].iov_base = frame.copy.as_mut_ptr().cast();
        }
        let writes = frames.iter().map(|frame| Transfer::Write { vectors: &frame.vectors, offset: 0 });
        // SAFETY: what the vectors describe must be there until the call returns = copies in `frames`, which is borrowed for
        // as long, and pieces of guest memory that each frame's `memory` keeps mapped.
        unsafe { burst.run(fd, writes, |place, written| done(place, frames[place].settle(written))) };
        for frame in frames {
            frame.vectors[0].iov_base = ptr::null_mut();
        }
    }

    /// What it means that so many bytes were written.
    fn settle(&self, written: io::Result<usize>) -> io::Result<()> {
        let all = u64::from(self.bytes) + u64::from(HEADER_LEN);
        if u64::try_from(written?) == Ok(all) { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}
