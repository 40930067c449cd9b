//! Reads that the page cache may have the answer to, many by one call.
#![expect(unsafe_code, reason = "a burst writes to addresses of guest memory")]

use std::io;
use std::os::fd::AsFd;

use super::file::{Waiting, perform};
use super::job::{PIECES_MAX, Pieces, Step};
use super::{BlockAction, BlockOperation, Completion, DiskImage, Token};
use crate::backend::burst::{BURST_MAX, LazyBurst, Transfer, WORTH_A_RING};
use crate::odds::Odds;

/// Reads that were taken together are answered together, which must not take the driver's time: it goes on with the first
/// while the next are read.
const TOGETHER_MAX: usize = 16;
const _: () = assert!(TOGETHER_MAX <= BURST_MAX);

/// Reads before their attempt, oldest first.
#[derive(Debug)]
pub(super) struct CachedReads {
    knows: Knows,
    /// Of finding all of a read's pages.
    odds: Odds,
    waiting: Vec<(Token, BlockOperation)>,
    answers: Box<[io::Result<usize>]>,
    burst: LazyBurst,
}

/// Whether anybody can say what the cache has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knows {
    Yes,
    /// There is no cache, or the file system does not tell.
    No,
}

impl CachedReads {
    /// Of a disk that is read through the cache, or past it.
    pub(super) fn new(image: &DiskImage) -> Self {
        let answers = (0..TOGETHER_MAX).map(|_| Ok(0)).collect();
        let knows = if image.direct().is_some() { Knows::No } else { Knows::Yes };
        Self { knows, odds: Odds::new(), waiting: Vec::new(), answers, burst: LazyBurst::default() }
    }

    /// Whether an operation should be tried here. It is left out while misses are the rule.
    pub(super) fn suits(&mut self, operation: &BlockOperation) -> bool {
        operation.action == BlockAction::Read
            && self.knows == Knows::Yes
            && (1..=PIECES_MAX).contains(&operation.buffers.iovecs().len())
            && self.odds.favour()
    }

    /// How many wait for their attempt.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether it is time for [`Self::attempt`].
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() == TOGETHER_MAX
    }

    /// Takes one that [`Self::suits`].
    pub(super) fn add(&mut self, token: Token, operation: BlockOperation) {
        self.waiting.push((token, operation));
    }

    /// Reads them all, each in whole or without a result. Those that the cache had not are in `missed` then.
    pub(super) fn attempt(
        &mut self,
        image: &DiskImage,
        done: &mut Vec<Completion>,
        missed: &mut Vec<(Token, BlockOperation)>,
    ) {
        let Self { waiting, answers, .. } = self;
        let burst = if waiting.len() >= WORTH_A_RING { self.burst.get() } else { None };
        match burst {
            Some(burst) => {
                let reads = waiting.iter().map(|(_, operation)| Transfer::Read {
                    vectors: operation.buffers.iovecs(),
                    offset: operation.offset,
                });
                // SAFETY: what the vectors describe may be written until the call returns = pieces of guest memory that
                // the operations in `waiting` own and keep mapped, without any reference into them.
                unsafe { burst.run(image.file().as_fd(), reads, |place, answer| answers[place] = answer) };
            }
            None => {
                for ((_, operation), answer) in waiting.iter().zip(&mut *answers) {
                    let pieces = Pieces::of(&operation.buffers).expect("a call takes its pieces");
                    *answer = perform(image.file(), Step::Read(pieces, operation.offset), Waiting::Refused);
                }
            }
        }
        for ((token, operation), answer) in waiting.drain(..).zip(answers) {
            // Also of a read that found a part only.
            operation.buffers.mark_written();
            match std::mem::replace(answer, Ok(0)) {
                Ok(moved) if u64::try_from(moved) == Ok(operation.buffers.len()) => {
                    self.odds.won();
                    done.push(Completion { token, operation, result: Ok(()) });
                    continue;
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                    self.knows = Knows::No;
                }
                // Who takes its time finds out what it was.
                Ok(_) | Err(_) => self.odds.lost(),
            }
            missed.push((token, operation));
        }
    }
}
