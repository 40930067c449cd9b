//! An operation as the system calls that it takes, one after another: what every engine has in common.
//!
//! [`Job::next`] says what to ask the host for, [`Job::advance`] what its answer means. Short transfers go on,
//! interrupted calls are repeated, what a host cannot do in one way is done in another. An engine only carries the
//! questions, so all of them fail alike.

use std::ffi::c_void;
use std::io;
use std::sync::LazyLock;

use super::bounce::{BounceBuffer, BouncePool};
use super::syncs::{Scope, SyncTicket};
use super::{BlockAction, BlockOperation, Completion, Durability, Space, Token};
use crate::virtio::GuestBuffers;

/// The most pieces of one system call (`IOV_MAX`).
pub(super) const PIECES_MAX: usize = 1024;

/// A host that says EAGAIN to a blocking call is broken, not busy.
const REPEATS_MAX: u8 = 8;

const KEEP_SIZE: libc::c_int = libc::FALLOC_FL_KEEP_SIZE;

/// What zeroes are written from where the host has no better way. Only ever read.
static ZEROES: LazyLock<BounceBuffer> = LazyLock::new(|| {
    let mut pool = BouncePool::new(1, ZEROES_ALIGN);
    pool.take().expect("a pool of one has one")
});
/// Enough for every device's O_DIRECT.
const ZEROES_ALIGN: u32 = 4096;

/// What a disk's file wants of memory and lengths when the page cache is bypassed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses, in bytes; a power of two.
    pub(super) memory: u32,
    /// Of offsets and lengths, in bytes; a power of two.
    pub(super) offset: u32,
}

impl Alignment {
    fn suits(self, buffers: &GuestBuffers) -> bool {
        let aligned = |value: usize, align: u32| value & (usize::try_from(align).expect("32 bits fit") - 1) == 0;
        let fits =
            |iovec: &libc::iovec| aligned(iovec.iov_base.addr(), self.memory) && aligned(iovec.iov_len, self.offset);
        buffers.iovecs().iter().all(fits)
    }
}

/// One system call. The pointers hold as long as the job does that they came from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Read(Pieces, u64),
    Write(Pieces, u64, Durability),
    Sync,
    /// fallocate with a mode, at an offset, of a length.
    Allocate(libc::c_int, u64, u64),
    /// BLKDISCARD of an offset and a length.
    DeviceDiscard(u64, u64),
}

/// Where the bytes of a transfer are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pieces {
    One { address: *mut c_void, len: usize },
    Many { first: *const libc::iovec, count: usize },
}

impl Pieces {
    /// All of `buffers`, if one system call takes them.
    pub(super) fn of(buffers: &GuestBuffers) -> Option<Self> {
        match buffers.iovecs() {
            [] => None,
            [piece] => Some(Self::One { address: piece.iov_base, len: piece.iov_len }),
            pieces if pieces.len() <= PIECES_MAX => Some(Self::Many { first: pieces.as_ptr(), count: pieces.len() }),
            _ => None,
        }
    }
}

/// What follows from an answer.
#[derive(Debug)]
pub(super) enum Verdict {
    /// There is a next step.
    Again,
    /// There is none.
    End(io::Result<()>),
}

/// An operation on its way.
#[derive(Debug)]
pub(super) struct Job {
    token: Token,
    operation: BlockOperation,
    stage: Stage,
    /// Bytes that are done.
    done: u64,
    /// The first piece that is not done, and what of it is.
    piece: usize,
    skip: usize,
    bounce: Option<BounceBuffer>,
    repeats: u8,
    route: Route,
    /// That of its sync, if that is watched.
    pub(super) ticket: Option<SyncTicket>,
}

/// Which way bytes take to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Those of a durable write are synced by a call of its own: of one that does both, nobody could say whether it was the
    /// write that failed, and has lost nothing, or the sync.
    Cached,
    /// A durable write is durable by itself.
    Direct,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Transfer,
    Sync,
    Discard,
    Zero(ZeroBy),
}

/// Ways to zero, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroBy {
    Punching,
    Converting,
    Writing,
}

impl Job {
    /// The operation's first step is next. `direct` is what O_DIRECT wants, if it is used; the operation comes back
    /// if it needs a buffer of `pool` and all are in use.
    pub(super) fn new(
        token: Token,
        operation: BlockOperation,
        direct: Option<Alignment>,
        pool: &mut BouncePool,
    ) -> Result<Self, BlockOperation> {
        let stage = match operation.action {
            BlockAction::Read | BlockAction::Write(_) => Stage::Transfer,
            BlockAction::Flush => Stage::Sync,
            BlockAction::Discard { .. } => Stage::Discard,
            BlockAction::WriteZeroes { space: Space::MayFree, .. } => Stage::Zero(ZeroBy::Punching),
            BlockAction::WriteZeroes { space: Space::Keep, .. } => Stage::Zero(ZeroBy::Converting),
        };
        let bounce = match direct {
            Some(alignment) if !alignment.suits(&operation.buffers) => match pool.take() {
                Some(buffer) => Some(buffer),
                None => return Err(operation),
            },
            _ => None,
        };
        let route = if direct.is_some() { Route::Direct } else { Route::Cached };
        Ok(Self { token, operation, stage, done: 0, piece: 0, skip: 0, bounce, repeats: 0, route, ticket: None })
    }

    pub(super) fn action(&self) -> BlockAction {
        self.operation.action
    }

    /// Whether the last or next step makes what came before durable.
    pub(super) fn is_syncing(&self) -> bool {
        self.stage == Stage::Sync
    }

    /// What it answers for if it makes something durable.
    pub(super) fn scope(&self) -> Option<Scope> {
        match self.operation.action {
            BlockAction::Flush => Some(Scope::File),
            BlockAction::Write(Durability::Durable)
            | BlockAction::WriteZeroes { durability: Durability::Durable, .. } => Some(Scope::Own),
            BlockAction::Read
            | BlockAction::Write(Durability::Cached)
            | BlockAction::WriteZeroes { durability: Durability::Cached, .. }
            | BlockAction::Discard { .. } => None,
        }
    }

    /// What to ask the host for. `is_device` says that the disk is a block device.
    pub(super) fn next(&mut self, is_device: bool) -> Step {
        let offset = self.operation.offset + self.done;
        let left = self.len() - self.done;
        match (self.stage, self.operation.action) {
            (Stage::Transfer, BlockAction::Write(durability)) => {
                let durability = if self.route == Route::Cached { Durability::Cached } else { durability };
                Step::Write(self.pieces(left), offset, durability)
            }
            (Stage::Transfer, _) => Step::Read(self.pieces(left), offset),
            (Stage::Sync, _) => Step::Sync,
            (Stage::Discard, _) if is_device => Step::DeviceDiscard(offset, left),
            (Stage::Discard, _) | (Stage::Zero(ZeroBy::Punching), _) => {
                Step::Allocate(libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE, offset, left)
            }
            (Stage::Zero(ZeroBy::Converting), _) => {
                Step::Allocate(libc::FALLOC_FL_ZERO_RANGE | KEEP_SIZE, offset, left)
            }
            (Stage::Zero(ZeroBy::Writing), _) => {
                let zeroes = ZEROES.bytes();
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(zeroes.len());
                let address = zeroes.as_ptr().cast_mut().cast();
                Step::Write(Pieces::One { address, len }, offset, Durability::Cached)
            }
        }
    }

    /// Takes the host's answer to the last step: bytes for a transfer, anything for the rest.
    pub(super) fn advance(&mut self, answer: io::Result<usize>) -> Verdict {
        match answer {
            Ok(moved) => self.succeed(moved),
            Err(error) => self.fail(error),
        }
    }

    /// The operation with its result. Its bounce buffer goes back.
    pub(super) fn finish(mut self, result: io::Result<()>, pool: &mut BouncePool) -> Completion {
        if self.operation.action == BlockAction::Read {
            // Also of a read that failed: a part of it may have arrived.
            self.operation.buffers.mark_written();
        }
        if let Some(buffer) = self.bounce.take() {
            pool.give_back(buffer);
        }
        Completion { token: self.token, operation: self.operation, result }
    }

    fn len(&self) -> u64 {
        match self.operation.action {
            BlockAction::Read | BlockAction::Write(_) => self.operation.buffers.len(),
            BlockAction::Flush => 0,
            BlockAction::Discard { len } | BlockAction::WriteZeroes { len, .. } => len,
        }
    }

    fn pieces(&mut self, left: u64) -> Pieces {
        if let Some(bounce) = &mut self.bounce {
            let bytes = bounce.bytes_mut();
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            if let BlockAction::Write(_) = self.operation.action {
                self.operation.buffers.copy_out(self.done, &mut bytes[..len]);
            }
            return Pieces::One { address: bytes.as_mut_ptr().cast(), len };
        }
        let rest = &self.operation.buffers.iovecs()[self.piece..];
        // A single piece, or the rest of one that was cut, goes without the vector's overhead.
        if rest.len() == 1 || self.skip > 0 {
            let address = rest[0].iov_base.wrapping_byte_add(self.skip);
            return Pieces::One { address, len: rest[0].iov_len - self.skip };
        }
        Pieces::Many { first: rest.as_ptr(), count: rest.len().min(PIECES_MAX) }
    }

    fn succeed(&mut self, moved: usize) -> Verdict {
        self.repeats = 0;
        match self.stage {
            Stage::Sync | Stage::Discard => Verdict::End(Ok(())),
            Stage::Zero(ZeroBy::Punching | ZeroBy::Converting) => self.zeroed(),
            // The file ends where the disk does not: somebody truncated it.
            Stage::Transfer | Stage::Zero(ZeroBy::Writing) if moved == 0 => {
                Verdict::End(Err(io::ErrorKind::UnexpectedEof.into()))
            }
            Stage::Transfer => {
                if let (BlockAction::Read, Some(bounce)) = (self.operation.action, &self.bounce) {
                    self.operation.buffers.copy_in(self.done, &bounce.bytes()[..moved]);
                }
                self.move_on(moved);
                if self.done == self.len() { self.transferred() } else { Verdict::Again }
            }
            Stage::Zero(ZeroBy::Writing) => {
                self.done += u64::try_from(moved).expect("64 bits fit");
                if self.done == self.len() { self.zeroed() } else { Verdict::Again }
            }
        }
    }

    fn move_on(&mut self, moved: usize) {
        self.done += u64::try_from(moved).expect("64 bits fit");
        self.skip += moved;
        let iovecs = self.operation.buffers.iovecs();
        while let Some(piece) = iovecs.get(self.piece)
            && self.skip >= piece.iov_len
        {
            self.skip -= piece.iov_len;
            self.piece += 1;
        }
    }

    fn transferred(&mut self) -> Verdict {
        match (self.operation.action, self.route) {
            (BlockAction::Write(Durability::Durable), Route::Cached) => self.sync(),
            _ => Verdict::End(Ok(())),
        }
    }

    fn zeroed(&mut self) -> Verdict {
        match self.operation.action {
            BlockAction::WriteZeroes { durability: Durability::Durable, .. } => self.sync(),
            _ => Verdict::End(Ok(())),
        }
    }

    fn sync(&mut self) -> Verdict {
        self.stage = Stage::Sync;
        Verdict::Again
    }

    fn fail(&mut self, error: io::Error) -> Verdict {
        let unsupported = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV));
        match (error.kind(), self.stage) {
            (io::ErrorKind::Interrupted, _) => Verdict::Again,
            (io::ErrorKind::WouldBlock, _) if self.repeats < REPEATS_MAX => {
                self.repeats += 1;
                Verdict::Again
            }
            (_, Stage::Zero(ZeroBy::Punching)) if unsupported => self.zero_by(ZeroBy::Converting),
            (_, Stage::Zero(ZeroBy::Converting)) if unsupported => self.zero_by(ZeroBy::Writing),
            // A hint that cannot be taken is no error (virtio 1.3 §5.2.6.2).
            (_, Stage::Discard) if unsupported => Verdict::End(Ok(())),
            _ => Verdict::End(Err(error)),
        }
    }

    fn zero_by(&mut self, way: ZeroBy) -> Verdict {
        self.stage = Stage::Zero(way);
        Verdict::Again
    }
}
