//! The thread `husk-api`: it accepts connections, bounds their number, and ends when the process does.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::net::UnixListener;
use tokio::runtime;
use tokio::sync::{Notify, watch};
use tokio::task::LocalSet;

use super::connection::{self, Phase};
use super::{Context, Listener};

/// Connections at a time. One more takes the place of the one that has gone longest without a complete request, and waits
/// while there is none without.
const CONNECTIONS_MAX: usize = 16;
/// How long the end of the process waits for answers to be sent.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long to wait when the host has no descriptor left for a connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What keeps the server from running.
#[derive(Debug, Error)]
#[error("cannot {what} for the API socket")]
pub(crate) struct ServerError {
    /// What was attempted.
    what: &'static str,
    /// What the host said.
    source: io::Error,
}

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    ending: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    /// The socket's file goes when the server does.
    _listener: Listener,
}

impl Server {
    /// Serves `listener` on a thread of its own.
    pub(crate) fn start(listener: Listener, context: Context) -> Result<Self, ServerError> {
        let failed = |what| move |source| ServerError { what, source };
        let socket = listener.socket.try_clone().map_err(failed("duplicate the descriptor"))?;
        socket.set_nonblocking(true).map_err(failed("prepare the descriptor"))?;
        let (ending, ended) = watch::channel(false);
        let thread = Builder::new().name("husk-api".to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || run(socket, context, ended)).map_err(failed("start the thread"))?;
        Ok(Self { ending, thread: Some(thread), _listener: listener })
    }
}

impl Drop for Server {
    /// Lets answers that are on their way arrive, within a limit.
    fn drop(&mut self) {
        self.ending.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok(), "with panic = abort a thread returns or the process ends");
        }
    }
}

const STACK_BYTES: usize = 512 << 10;

fn run(socket: std::os::unix::net::UnixListener, context: Context, ending: watch::Receiver<bool>) {
    // What takes long has one thread more, while it does.
    let mut runtime = runtime::Builder::new_current_thread();
    runtime.enable_io().enable_time().thread_name("husk-api-slow").max_blocking_threads(1);
    let runtime = runtime.build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return log::error!("the API socket is not served: {error}"),
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        match UnixListener::from_std(socket) {
            Ok(socket) => serve(socket, context, ending).await,
            Err(error) => log::error!("the API socket is not served: {error}"),
        }
    });
}

async fn serve(socket: UnixListener, context: Context, mut ending: watch::Receiver<bool>) {
    let context = Arc::new(context);
    let (tell, news) = watch::channel(());
    context.news.listen(move || {
        tell.send_replace(());
    });
    let connections = Rc::new(Connections::default());
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = ending.changed() => break,
        };
        let (stream, _) = match accepted {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // It waits here for its place, and the kernel keeps those that come after it.
        let phase = tokio::select! {
            phase = connections.enter() => phase,
            _ = ending.changed() => break,
        };
        let (connections, context) = (Rc::clone(&connections), Arc::clone(&context));
        let (news, ending) = (news.clone(), ending.clone());
        tokio::task::spawn_local(async move {
            connection::serve(stream, Rc::clone(&phase), context, news, ending).await;
            connections.leave(&phase);
        });
    }
    let _ = tokio::time::timeout(FAREWELL, connections.idle()).await;
}

/// The connections that there are.
#[derive(Default)]
struct Connections {
    open: RefCell<Vec<Rc<Phase>>>,
    /// One has left or stays, or its request is no longer in progress.
    changed: Rc<Notify>,
}

impl Connections {
    /// Takes a place: a free one, or that of the connection that may be closed for the longest time.
    async fn enter(&self) -> Rc<Phase> {
        loop {
            if self.open.borrow().len() >= CONNECTIONS_MAX {
                // What clients have sent already is seen before one of them is told to leave.
                tokio::task::yield_now().await;
            }
            let next = {
                let mut open = self.open.borrow_mut();
                if open.len() < CONNECTIONS_MAX {
                    let phase = Phase::new(Rc::clone(&self.changed));
                    open.push(Rc::clone(&phase));
                    return phase;
                }
                // Who is told to leave does so at once, or has a request by now and stays.
                let leaves = open.iter().any(|phase| phase.is_evicted());
                let closable = open.iter().filter_map(|phase| Some((phase.closable_from()?, phase)));
                let next = closable.min_by_key(|(from, _)| *from).filter(|_| !leaves);
                next.map(|(from, phase)| (from, Rc::clone(phase)))
            };
            match next {
                Some((from, phase)) if from <= Instant::now() => phase.evict(),
                // It may be that the client takes its answer before.
                Some((from, _)) => {
                    let _ = tokio::time::timeout_at(from.into(), self.changed.notified()).await;
                    continue;
                }
                None => {}
            }
            self.changed.notified().await;
        }
    }

    fn leave(&self, phase: &Rc<Phase>) {
        self.open.borrow_mut().retain(|other| !Rc::ptr_eq(other, phase));
        self.changed.notify_one();
    }

    /// Returns when no request is in progress.
    async fn idle(&self) {
        while self.open.borrow().iter().any(|phase| phase.is_busy()) {
            self.changed.notified().await;
        }
    }
}
