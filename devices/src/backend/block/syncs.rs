//! Whether a sync of a file through the page cache may be believed.
//!
//! The kernel keeps one place for the whole file of what it could not write back (`errseq_t` of its mapping), and one of what an
//! open file has heard (`f_wb_err`), which all queues share. fdatasync and the end of a write by RWF_DSYNC are the same there
//! (`generic_write_sync` is `vfs_fsync_range`, which ends in `file_check_and_advance_wb_err`): whichever looks first hears of all
//! failures, those of others' pages too, and the rest hear that all is well. The pages are clean by then, so nobody hears again.
//!
//! So of several at once, one that went well is believed when all that had begun by its end have ended well, too. Once one has
//! failed, no later flush is believed: what it lost may be of any write before. A durable write answers for its own bytes only,
//! which it brings along: it is not believed if it had begun, which is before its first byte, when the failure was told.

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
    /// The last that has failed.
    failure: Option<Failure>,
    /// Who is told when one ends.
    waiting: Vec<Arc<EventFd>>,
}

#[derive(Debug)]
struct Failure {
    /// The first number that had not begun when it was told.
    before: u64,
    errno: i32,
}

/// What a sync answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All that was written before.
    File,
    /// What is written between its begin and its end.
    Own,
}

/// A sync that has begun.
#[derive(Debug)]
pub(super) struct SyncTicket {
    number: u64,
    scope: Scope,
}

/// A sync that went well while others were open: those before a number decide.
#[derive(Debug)]
pub(super) struct Doubt {
    of: SyncTicket,
    before: u64,
}

impl Syncs {
    /// One begins.
    pub(super) fn begin(&self, scope: Scope) -> SyncTicket {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.open.push(number);
        SyncTicket { number, scope }
    }

    /// One ends before it has asked the host for anything that is durable: it has heard of no failure.
    pub(super) fn withdraw(&self, ticket: &SyncTicket) {
        self.close(&mut self.state(), ticket);
    }

    /// One ends, of which the host says this.
    ///
    /// # Errors
    /// It cannot be said yet what it was worth.
    pub(super) fn end(&self, ticket: SyncTicket, told: io::Result<()>) -> Result<io::Result<()>, Doubt> {
        let mut state = self.state();
        self.close(&mut state, &ticket);
        if let Err(error) = told {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            state.failure = Some(Failure { before: state.next, errno });
            return Ok(Err(error));
        }
        let doubt = Doubt { of: ticket, before: state.next };
        state.verdict(&doubt).ok_or(doubt)
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

    fn close(&self, state: &mut State, ticket: &SyncTicket) {
        state.open.retain(|open| *open != ticket.number);
        for waiting in state.waiting.drain(..) {
            // Fails only when 2^64 - 2 signals are unseen, and then one is pending.
            let _pending = waiting.write(1);
        }
        self.ended.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

const NO_PANIC: &str = "a thread that panics aborts the process";

impl State {
    fn verdict(&self, Doubt { of, before }: &Doubt) -> Option<io::Result<()>> {
        match (&self.failure, of.scope) {
            (Some(_), Scope::File) => Some(Err(io::Error::from_raw_os_error(libc::EIO))),
            // The same, so that who keeps those for which there is no space keeps this one, too.
            (Some(failure), Scope::Own) if of.number < failure.before => {
                Some(Err(io::Error::from_raw_os_error(failure.errno)))
            }
            _ => self.open.iter().all(|open| open >= before).then_some(Ok(())),
        }
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
        assert!(syncs.end(syncs.begin(Scope::File), Ok(())).unwrap().is_ok());
        assert_eq!(errno(syncs.end(syncs.begin(Scope::File), failure()).unwrap()), Some(libc::ENOSPC));
        assert_eq!(errno(syncs.end(syncs.begin(Scope::File), Ok(())).unwrap()), Some(libc::EIO));
    }

    #[test]
    fn of_two_at_once_the_one_that_went_well_is_worth_what_the_other_is() {
        for (told, expected) in [(Ok(()), None), (failure(), Some(libc::EIO))] {
            let syncs = Syncs::default();
            let news = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            let (first, second) = (syncs.begin(Scope::File), syncs.begin(Scope::File));
            let doubt = syncs.end(second, Ok(())).unwrap_err();
            assert!(syncs.ask(&doubt, &news).is_none() && syncs.ask(&doubt, &news).is_none());
            // What begins now has nothing to do with it.
            let _later = syncs.begin(Scope::File);
            assert!(news.read().is_err());
            let _first = syncs.end(first, told);
            assert_eq!(news.read().unwrap(), 1);
            assert_eq!(errno(syncs.ask(&doubt, &news).unwrap()), expected);
        }
    }

    #[test]
    fn a_thread_waits_for_those_of_others() {
        let syncs = Syncs::default();
        let (first, second) = (syncs.begin(Scope::File), syncs.begin(Scope::File));
        let doubt = syncs.end(second, Ok(())).unwrap_err();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| syncs.wait(&doubt));
            assert!(syncs.end(first, failure()).unwrap().is_err());
            assert_eq!(errno(waits.join().unwrap()), Some(libc::EIO));
        });
    }

    #[test]
    fn a_write_that_had_begun_when_a_failure_was_told_failed_too_and_a_later_one_did_not() {
        let syncs = Syncs::default();
        let (before, failed) = (syncs.begin(Scope::Own), syncs.begin(Scope::Own));
        assert_eq!(errno(syncs.end(failed, failure()).unwrap()), Some(libc::ENOSPC));
        let later = syncs.begin(Scope::Own);
        assert_eq!(errno(syncs.end(before, Ok(())).unwrap()), Some(libc::ENOSPC));
        assert!(syncs.end(later, Ok(())).unwrap().is_ok());
    }

    #[test]
    fn one_that_is_withdrawn_says_nothing_of_others() {
        let syncs = Syncs::default();
        for scope in [Scope::Own, Scope::File] {
            let (first, second) = (syncs.begin(Scope::Own), syncs.begin(scope));
            let doubt = syncs.end(second, Ok(())).unwrap_err();
            let news = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            assert!(syncs.ask(&doubt, &news).is_none());
            syncs.withdraw(&first);
            assert_eq!(news.read().unwrap(), 1);
            assert!(syncs.ask(&doubt, &news).unwrap().is_ok());
        }
    }
}
