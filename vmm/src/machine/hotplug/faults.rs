//! A kernel that refuses steps, for the tests of this thread.

use std::cell::Cell;
use std::io;

/// Which steps are refused, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refused {
    None,
    /// This one.
    At(u64),
    /// This one and all that follow.
    From(u64),
}

thread_local! {
    static REFUSED: Cell<Refused> = const { Cell::new(Refused::None) };
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// Runs `work`, of which these steps are refused; the second is how many were taken or tried.
pub(super) fn with<T>(refused: Refused, work: impl FnOnce() -> T) -> (T, u64) {
    REFUSED.set(refused);
    STEPS.set(0);
    let done = work();
    REFUSED.set(Refused::None);
    (done, STEPS.get())
}

pub(super) fn step() -> io::Result<()> {
    let number = STEPS.replace(STEPS.get() + 1);
    let is_refused = match REFUSED.get() {
        Refused::None => false,
        Refused::At(at) => number == at,
        Refused::From(from) => number >= from,
    };
    // As where a process has as many mappings as it may have.
    if is_refused { Err(io::Error::from_raw_os_error(libc::ENOMEM)) } else { Ok(()) }
}
