//! Steps that the host refuses when a test says so, each on the test's own thread.

#[cfg(not(test))]
use std::io;

#[cfg(test)]
pub(crate) use injected::{Fault, step, with};

/// Whether the host does the next step. In a test it may fail with `errno` instead.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "the tests' twin fails")]
pub(crate) const fn step(_errno: i32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod injected {
    use std::cell::Cell;
    use std::io;

    /// What goes wrong, counted in steps from 0.
    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Fault {
        Never,
        /// This step; the next do not.
        At(u64),
        /// This step and all that follow, as when the process dies before it.
        From(u64),
    }

    thread_local! {
        static FAULT: Cell<Fault> = const { Cell::new(Fault::Never) };
        static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    /// Runs `work` with `fault`; the second is how many steps were taken or tried.
    pub(crate) fn with<T>(fault: Fault, work: impl FnOnce() -> T) -> (T, u64) {
        FAULT.set(fault);
        STEPS.set(0);
        let done = work();
        FAULT.set(Fault::Never);
        (done, STEPS.get())
    }

    pub(crate) fn step(errno: i32) -> io::Result<()> {
        let number = STEPS.replace(STEPS.get() + 1);
        let fails = match FAULT.get() {
            Fault::Never => false,
            Fault::At(at) => number == at,
            Fault::From(from) => number >= from,
        };
        if fails { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
    }
}
