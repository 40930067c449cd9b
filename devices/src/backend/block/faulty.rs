//! A backend for tests: it delays operations, and fails the Nth of them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{BlockAction, BlockBackend, BlockOperation, Completion, DiskGeometry, Submission, Token};
use crate::bus::lock;
use crate::virtio::worker::Source;

/// What the backend does beside its work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fault {
    /// The operation, counted from 0, that fails instead of being done.
    pub fail_nth: Option<u64>,
    /// How many operations from there on fail likewise; 0 stands for one.
    pub fail_count: u64,
    /// What it fails with; 0 stands for EIO.
    pub errno: i32,
    /// How many operations it keeps pending at most; 0 answers at once.
    pub depth: usize,
    /// When pending operations complete.
    pub release: Release,
}

/// When a [`FaultyBackend`] lets go of pending operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// At the next poll, which it asks for.
    #[default]
    Polled,
    /// Only when it is drained, so a test knows what is in flight.
    Drained,
}

/// Another backend with faults: pending operations complete in reverse order, when it is polled or drained.
pub struct FaultyBackend<B> {
    inner: B,
    fault: Fault,
    count: u64,
    pending: VecDeque<(Token, BlockOperation)>,
    wake: EventFd,
    taken: Arc<Mutex<Vec<BlockAction>>>,
}

impl<B: BlockBackend> FaultyBackend<B> {
    /// `inner` with `fault`.
    ///
    /// # Panics
    /// If no eventfd can be had.
    pub fn new(inner: B, fault: Fault) -> Self {
        Self::sharing(inner, fault, Arc::default())
    }

    /// As [`Self::new`], with a record of operations that several backends may share.
    ///
    /// # Panics
    /// If no eventfd can be had.
    pub fn sharing(inner: B, fault: Fault, taken: Arc<Mutex<Vec<BlockAction>>>) -> Self {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("a test has descriptors");
        Self { inner, fault, count: 0, pending: VecDeque::new(), wake, taken }
    }

    /// The operations that were taken, in order.
    pub fn taken(&self) -> Arc<Mutex<Vec<BlockAction>>> {
        Arc::clone(&self.taken)
    }

    fn perform(&mut self, token: Token, operation: BlockOperation) -> Completion {
        let number = self.count;
        self.count += 1;
        let Fault { fail_nth, fail_count, errno, .. } = self.fault;
        if fail_nth.is_some_and(|nth| (nth..nth + fail_count.max(1)).contains(&number)) {
            let errno = if errno == 0 { libc::EIO } else { errno };
            return Completion { token, operation, result: Err(io::Error::from_raw_os_error(errno)) };
        }
        match self.inner.submit(token, operation) {
            Submission::Done(completion) => completion,
            Submission::Pending | Submission::Ripe => {
                let mut completions = Vec::new();
                self.inner.drain(&mut completions);
                completions.pop().expect("what is pending comes back")
            }
            Submission::Full(_) => panic!("the inner backend has nothing to do and yet no room"),
        }
    }
}

impl BlockBackend for Box<dyn BlockBackend> {
    fn geometry(&self) -> DiskGeometry {
        (**self).geometry()
    }

    fn submit(&mut self, token: Token, operation: BlockOperation) -> Submission {
        (**self).submit(token, operation)
    }

    fn commit(&mut self) {
        (**self).commit();
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        (**self).poll(completions);
    }

    fn drain(&mut self, completions: &mut Vec<Completion>) {
        (**self).drain(completions);
    }

    fn leave_thread(&mut self) {
        (**self).leave_thread();
    }

    fn wake_source(&self) -> Option<Source> {
        (**self).wake_source()
    }
}

impl<B: BlockBackend> BlockBackend for FaultyBackend<B> {
    fn geometry(&self) -> DiskGeometry {
        self.inner.geometry()
    }

    fn submit(&mut self, token: Token, operation: BlockOperation) -> Submission {
        if self.fault.depth > 0 && self.pending.len() == self.fault.depth {
            return Submission::Full(operation);
        }
        lock(&self.taken).push(operation.action);
        if self.fault.depth == 0 {
            return Submission::Done(self.perform(token, operation));
        }
        self.pending.push_back((token, operation));
        if self.fault.release == Release::Polled {
            self.wake.write(1).expect("few operations are pending");
        }
        Submission::Pending
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        let _empty = self.wake.read();
        if self.fault.release == Release::Polled {
            self.drain(completions);
        }
    }

    fn drain(&mut self, completions: &mut Vec<Completion>) {
        while let Some((token, operation)) = self.pending.pop_back() {
            let completion = self.perform(token, operation);
            completions.push(completion);
        }
    }

    fn leave_thread(&mut self) {
        self.inner.leave_thread();
    }

    fn wake_source(&self) -> Option<Source> {
        (self.fault.depth > 0).then(|| Source::Level(self.wake.as_raw_fd()))
    }
}
