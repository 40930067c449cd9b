//! Whether a sync of a file through the page cache may be believed. What the kernel could not write it tells of once for an
//! open file, and forgets: so once a sync has failed, no later one is believed; and of several at once it tells one, so that
//! one that went well is believed when all that had begun by its end have ended well, too.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

/// The syncs of one open file, on all its queues.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next one.
    next: u64,
    /// Those that have begun and not ended.
    open: Vec<u64>,
    /// One has failed.
    lost: bool,
    /// Who is told when one ends.
    waiting: Vec<Arc<EventFd>>,
}

/// A sync that has begun.
#[derive(Debug)]
pub(super) struct SyncTicket(u64);

/// A sync that went well while others were open: those before this number decide.
#[derive(Debug)]
pub(super) struct Doubt(u64);

impl Syncs {
    /// One begins.
    pub(super) fn begin(&self) -> SyncTicket {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.open.push(number);
        SyncTicket(number)
    }

    /// One ends, of which the host says this.
    ///
    /// # Errors
    /// It cannot be said yet what it was worth.
    pub(super) fn end(&self, ticket: SyncTicket, told: io::Result<()>) -> Result<io::Result<()>, Doubt> {
        let SyncTicket(number) = ticket;
        let mut state = self.state();
        state.open.retain(|open| *open != number);
        state.lost |= told.is_err();
        for waiting in state.waiting.drain(..) {
            // Fails only when 2^64 - 2 signals are unseen, and then one is pending.
            let _pending = waiting.write(1);
        }
        self.ended.notify_all();
        let doubt = Doubt(state.next);
        match told {
            Err(error) => Ok(Err(error)),
            Ok(()) => state.verdict(&doubt).ok_or(doubt),
        }
    }

    /// What a sync was worth that was in doubt. None as long as it is; `news` is signalled when it is worth asking again.
    pub(super) fn ask(&self, doubt: &Doubt, news: &Arc<EventFd>) -> Option<io::Result<()>> {
        let mut state = self.state();
        let verdict = state.verdict(doubt);
        if verdict.is_none() && !state.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, news)) {
            state.waiting.push(Arc::clone(news));
        }
        verdict
    }

    /// As [`Self::ask`], by a thread that waits. The others must end without it.
    pub(super) fn wait(&self, doubt: &Doubt) -> io::Result<()> {
        let state = self.ended.wait_while(self.state(), |state| state.verdict(doubt).is_none());
        let state = state.expect(NO_PANIC);
        state.verdict(doubt).expect("that was waited for")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

const NO_PANIC: &str = "a thread that panics aborts the process";

impl State {
    fn verdict(&self, Doubt(before): &Doubt) -> Option<io::Result<()>> {
        if self.lost {
            return Some(Err(io::Error::from_raw_os_error(libc::EIO)));
        }
        self.open.iter().all(|open| open >= before).then_some(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn failure() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    fn errno(result: io::Result<()>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    #[test]
    fn after_a_failure_no_later_one_is_believed() {
        let syncs = Syncs::default();
        assert!(syncs.end(syncs.begin(), Ok(())).unwrap().is_ok());
        assert_eq!(errno(syncs.end(syncs.begin(), failure()).unwrap()), Some(libc::ENOSPC));
        assert_eq!(errno(syncs.end(syncs.begin(), Ok(())).unwrap()), Some(libc::EIO));
    }

    #[test]
    fn of_two_at_once_the_one_that_went_well_is_worth_what_the_other_is() {
        for (told, expected) in [(Ok(()), None), (failure(), Some(libc::EIO))] {
            let syncs = Syncs::default();
            let news = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            let (first, second) = (syncs.begin(), syncs.begin());
            let doubt = syncs.end(second, Ok(())).unwrap_err();
            assert!(syncs.ask(&doubt, &news).is_none() && syncs.ask(&doubt, &news).is_none());
            // What begins now has nothing to do with it.
            let _later = syncs.begin();
            assert!(news.read().is_err());
            let _first = syncs.end(first, told);
            assert_eq!(news.read().unwrap(), 1);
            assert_eq!(errno(syncs.ask(&doubt, &news).unwrap()), expected);
        }
    }

    #[test]
    fn a_thread_waits_for_those_of_others() {
        let syncs = Syncs::default();
        let (first, second) = (syncs.begin(), syncs.begin());
        let doubt = syncs.end(second, Ok(())).unwrap_err();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| syncs.wait(&doubt));
            assert!(syncs.end(first, failure()).unwrap().is_err());
            assert_eq!(errno(waits.join().unwrap()), Some(libc::EIO));
        });
    }
}
