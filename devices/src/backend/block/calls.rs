//! The system calls that this thread's backends make on a request's way, counted for tests.

use std::cell::Cell;

/// Calls by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Calls {
    /// Reads, writes and whatever else does a step of a job at once.
    pub(super) steps: u64,
    /// `io_uring_enter`.
    pub(super) enters: u64,
}

thread_local! {
    static CALLS: Cell<Calls> = const { Cell::new(Calls { steps: 0, enters: 0 }) };
}

pub(super) fn count_step() {
    CALLS.set(Calls { steps: CALLS.get().steps + 1, ..CALLS.get() });
}

pub(in crate::backend) fn count_enter() {
    CALLS.set(Calls { enters: CALLS.get().enters + 1, ..CALLS.get() });
}

/// The calls since this was last asked.
pub(super) fn take() -> Calls {
    CALLS.take()
}
