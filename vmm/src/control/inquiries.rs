//! What the host is asked about files before a command is carried out. It may never answer, as when the server behind a
//! path is gone: so it is asked on a thread of its own, whose answer comes back as a command, and who waits for that is told
//! after a while that there is none. Nobody else waits.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::command::{Answered, Command, CommandError, CommandReceiver, CommandSender, HostAnswer, ReplyTo, Request};
use crate::errand::{ErrandError, PATIENCE, THREADS_MAX, Threads};

/// What was asked and is not answered yet.
#[derive(Debug, Default)]
pub(super) struct Inquiries {
    open: Vec<Inquiry>,
    threads: Threads,
}

struct Inquiry {
    path: PathBuf,
    deadline: Instant,
    waiter: Waiter,
}

/// Who waits. The thread with the answer or the loop without patience takes it, who comes first.
type Waiter = Arc<Mutex<Option<ReplyTo>>>;

/// Who asked, as the thread sees it that has the answer.
pub(super) struct Asker {
    waiter: Waiter,
    answers: CommandSender,
}

impl Asker {
    /// Gives the answer, as a command of the one who waits. One that comes too late goes here: to close a file may take as long
    /// as to open it.
    pub(super) fn answer(self, answer: HostAnswer) {
        let command = Command::Answered(Answered(Box::new(answer)));
        if let Some(reply) = take(&self.waiter) {
            self.answers.give(Request { command, reply });
        }
    }
}

impl Inquiries {
    /// Has `question` answered about what is at `path`. The answer goes to `answers`.
    pub(super) fn ask(
        &mut self,
        path: PathBuf,
        reply: ReplyTo,
        answers: &CommandReceiver,
        question: impl FnOnce(Asker) + Send + 'static,
    ) {
        let waiter: Waiter = Arc::new(Mutex::new(Some(reply)));
        let asker = Asker { waiter: Arc::clone(&waiter), answers: answers.sender() };
        let error = match self.threads.start(move || question(asker)) {
            Ok(()) => return self.open.push(Inquiry { path, deadline: Instant::now() + PATIENCE, waiter }),
            Err(ErrandError::Crowded) => CommandError::Unasked { path, asked: THREADS_MAX },
            Err(ErrandError::Thread(cause)) => {
                CommandError::Held(format!("cannot start a thread to open {}: {cause}", path.display()))
            }
        };
        if let Some(reply) = take(&waiter) {
            reply(Err(error));
        }
    }

    /// When somebody has waited for long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.open.iter().map(|inquiry| inquiry.deadline).min()
    }

    /// Tells those who have waited for long enough that there is no answer.
    pub(super) fn end_late(&mut self) {
        let now = Instant::now();
        self.open.retain(|inquiry| {
            if inquiry.deadline <= now
                && let Some(reply) = take(&inquiry.waiter)
            {
                let path = inquiry.path.clone();
                reply(Err(CommandError::Unanswered { path, seconds: PATIENCE.as_secs() }));
            }
            lock(&inquiry.waiter).is_some()
        });
    }
}

fn take(waiter: &Waiter) -> Option<ReplyTo> {
    lock(waiter).take()
}

fn lock(waiter: &Waiter) -> MutexGuard<'_, Option<ReplyTo>> {
    waiter.lock().expect("a thread that panics aborts the process")
}

impl fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inquiry").field("path", &self.path).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
