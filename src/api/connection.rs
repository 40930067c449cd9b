//! One connection: requests in turn, each with a deadline for its arrival. A connection that holds no complete request can
//! be closed at any time, and is when another client needs its place.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Frame, Incoming, SizeHint};
use hyper::header::TRANSFER_ENCODING;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Sleep, sleep_until};

use super::Context;
use super::answer::{self, Answer, Code, Fault, lines};
use super::routes::{self, Plan};

/// How long a request may take to arrive, from its first byte to its last.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);
/// Clients that follow the events: they hold their connections, and others need some too.
const FOLLOWERS_MAX: usize = 8;
/// Batches of events that wait for a client before it misses some.
const EVENT_BATCHES_MAX: usize = 4;

/// How long a client that takes nothing of its answer keeps its place when another needs it.
const STALL_MAX: Duration = Duration::from_secs(2);

/// Where a connection is, for its own task and for the server that may close it.
pub(super) struct Phase {
    now: Cell<Now>,
    /// When its last request was complete, or else when it was accepted.
    last_complete: Cell<Instant>,
    evicted: Cell<bool>,
    waker: Cell<Option<Waker>>,
    /// The last bytes that it sent.
    sent_last: Cell<Ending>,
    /// How its last complete request ends. Where it has sent something else since, that is a part of the next one.
    request_ending: Cell<Ending>,
    /// Told when its request is no longer in progress.
    changed: Rc<Notify>,
}

/// The last bytes of something.
type Ending = [u8; 4];
/// How a head ends, and a body in chunks.
const BLANK_LINE: Ending = *b"\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    /// Nothing has arrived of the next request.
    Idle,
    /// A part of it has, the first at this time.
    Arriving(Instant),
    /// It is complete and being answered.
    Answering,
    /// Its answer is made, and the client took some of it last at this time.
    Sending(Instant),
}

impl Phase {
    pub(super) fn new(changed: Rc<Notify>) -> Rc<Self> {
        let last_complete = Cell::new(Instant::now());
        let (now, evicted) = (Cell::new(Now::Idle), Cell::new(false));
        let (sent_last, request_ending) = (Cell::new(BLANK_LINE), Cell::new(BLANK_LINE));
        Rc::new(Self { now, last_complete, evicted, waker: Cell::new(None), sent_last, request_ending, changed })
    }

    /// From when on its place is another's who needs one; None while its request is in progress.
    pub(super) fn closable_from(&self) -> Option<Instant> {
        match self.now.get() {
            Now::Idle | Now::Arriving(_) => Some(self.last_complete.get()),
            Now::Answering => None,
            Now::Sending(taken) => Some(taken + STALL_MAX),
        }
    }

    /// Whether its client waits for an answer.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.now.get(), Now::Answering | Now::Sending(_))
    }

    /// Closes the connection, unless it turns out to have a request in progress by now.
    pub(super) fn evict(&self) {
        self.evicted.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether it has been told to close and has not done so yet.
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.get()
    }

    /// Whether it closes, as it was told to; else it forgets that.
    fn obeys(&self) -> bool {
        let obeys = self.closable_from().is_some_and(|from| from <= Instant::now());
        if !obeys {
            self.evicted.set(false);
            self.changed.notify_one();
        }
        obeys
    }

    fn set(&self, now: Now) {
        self.now.set(now);
        self.changed.notify_one();
    }

    /// These bytes have come.
    fn received(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.sent_last.set(ending(self.sent_last.get(), bytes));
        if self.now.get() == Now::Idle {
            self.set(Now::Arriving(Instant::now()));
        }
    }

    /// The head of a request is there.
    fn received_head(&self) {
        if !matches!(self.now.get(), Now::Arriving(_)) {
            self.set(Now::Arriving(Instant::now()));
        }
    }

    /// The answer has been written.
    fn sent(&self) {
        // hyper may hold bytes already that came with the request.
        let begun = self.sent_last != self.request_ending;
        self.set(if begun { Now::Arriving(Instant::now()) } else { Now::Idle });
    }

    fn deadline(&self) -> Option<Instant> {
        match self.now.get() {
            Now::Arriving(since) => Some(since + ARRIVAL_MAX),
            Now::Idle | Now::Answering | Now::Sending(_) => None,
        }
    }
}

/// How something ends that ends so and is followed by these bytes.
fn ending(before: Ending, bytes: &[u8]) -> Ending {
    let mut ending = before;
    for byte in bytes.last_chunk::<4>().map_or(bytes, |last| last) {
        ending.rotate_left(1);
        ending[3] = *byte;
    }
    ending
}

/// Serves a connection until either side has enough of it.
pub(super) async fn serve(
    socket: UnixStream,
    phase: Rc<Phase>,
    context: Arc<Context>,
    news: watch::Receiver<()>,
    mut ending: watch::Receiver<bool>,
) {
    let end = ending.clone();
    let socket = Rc::new(RefCell::new(socket));
    let observed = Observed { socket: Rc::clone(&socket), phase: Rc::clone(&phase) };
    let service = service_fn(|request| {
        let (context, phase) = (Arc::clone(&context), Rc::clone(&phase));
        let line = Line { socket: Rc::clone(&socket), news: news.clone(), end: end.clone() };
        async move {
            let (answer, answering) = answer(request, &context, phase, line).await;
            Ok::<_, Infallible>(answer.map(|body| Answered { body, _answering: answering }))
        }
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(context.request_bytes_max.max(HYPER_BUFFER_MIN)).half_close(true);
    let connection = builder.serve_connection(TokioIo::new(observed), service);
    let mut connection = std::pin::pin!(connection);
    let mut overdue = Overdue { phase: Rc::clone(&phase), timer: None };
    loop {
        tokio::select! {
            biased;
            // What ends a connection early is of no interest: its client knows.
            _ = connection.as_mut() => return,
            () = &mut overdue => return,
            changed = ending.changed() => {
                connection.as_mut().graceful_shutdown();
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// hyper's own lower limit.
const HYPER_BUFFER_MIN: usize = 8192;

/// Ready when the connection has to be closed: evicted, or its request takes too long to arrive.
struct Overdue {
    phase: Rc<Phase>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for Overdue {
    type Output = ();

    /// Polled after the connection, in which phases change.
    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        if self.phase.is_evicted() && self.phase.obeys() {
            return Poll::Ready(());
        }
        self.phase.waker.set(Some(cx.waker().clone()));
        let Some(deadline) = self.phase.deadline() else {
            self.timer = None;
            return Poll::Pending;
        };
        let deadline = deadline.into();
        match &mut self.timer {
            Some(timer) if timer.deadline() == deadline => {}
            timer => *timer = Some(Box::pin(sleep_until(deadline))),
        }
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }
}

/// The socket, which notes when the first bytes of a request arrive.
struct Observed {
    socket: Rc<RefCell<UnixStream>>,
    phase: Rc<Phase>,
}

impl AsyncRead for Observed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut *self.socket.borrow_mut()).poll_read(cx, buf);
        self.phase.received(&buf.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Observed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.socket.borrow_mut()).poll_write(cx, buf);
        if polled.is_ready() && matches!(self.phase.now.get(), Now::Sending(_)) {
            self.phase.set(Now::Sending(Instant::now()));
        }
        polled
    }

    /// hyper calls it when it has written all that it had.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.socket.borrow_mut()).poll_flush(cx);
        if polled.is_ready() && matches!(self.phase.now.get(), Now::Sending(_)) {
            self.phase.sent();
        }
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.socket.borrow_mut()).poll_shutdown(cx)
    }
}

/// The request is complete; dropped, its answer is made.
struct Answering(Rc<Phase>);

impl Answering {
    fn begin(phase: Rc<Phase>) -> Self {
        phase.set(Now::Answering);
        Self(phase)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let now = Instant::now();
        self.0.last_complete.set(now);
        self.0.set(Now::Sending(now));
    }
}

/// The body of an answer, which holds its request in progress.
struct Answered {
    body: answer::Body,
    _answering: Answering,
}

impl hyper::body::Body for Answered {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a client that follows the events needs.
struct Line {
    socket: Rc<RefCell<UnixStream>>,
    news: watch::Receiver<()>,
    end: watch::Receiver<bool>,
}

impl Line {
    /// The client's connection once more, to see it hang up: hyper reads nothing while it has an answer to write.
    fn watched(&self) -> Result<UnixStream, Fault> {
        let again = || {
            let socket = self.socket.borrow().as_fd().try_clone_to_owned()?;
            UnixStream::from_std(socket.into())
        };
        again().map_err(|error| Fault::of(Code::Host, format!("cannot watch the connection: {error}")))
    }
}

/// Returns when the client is gone. One that has only ended its side of the connection is not.
async fn hung_up(client: &UnixStream) {
    while client.ready(Interest::WRITABLE).await.is_ok_and(|ready| !ready.is_write_closed()) {
        // That it could be written to is no news until it is so again.
        let _ = client.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    context: &Arc<Context>,
    phase: Rc<Phase>,
    line: Line,
) -> (Answer, Answering) {
    let begun = Instant::now();
    phase.received_head();
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let dialect = routes::dialect(path);
    let found = routes::find(&head.method, path);
    let index = found.as_ref().ok().map(|found| found.index);
    let body = collect(&head, body, context.request_bytes_max).await;
    let is_chunked = head.headers.contains_key(TRANSFER_ENCODING);
    let after_head = body.as_ref().ok().filter(|_| !is_chunked).map_or(&[][..], |body| body);
    phase.request_ending.set(ending(BLANK_LINE, after_head));
    let answering = Answering::begin(phase);
    let result = async {
        let (body, query) = (body?, head.uri.query().unwrap_or_default());
        match found?.plan(context, query, &body)? {
            Plan::Say(answer) => Ok(answer),
            Plan::Ask(command, say) => {
                log::debug!("api: {} {path}", head.method);
                Ok(say(context.ask(command).await??, context))
            }
            Plan::AskSlow(command, say) => {
                let reply = context.ask(command).await??;
                let answer = tokio::task::spawn_blocking(move || say(reply)).await;
                answer.expect("with panic = abort a thread returns or the process ends")
            }
            Plan::Follow(after) => {
                let follower = Follower::enter(context)?;
                Ok(lines(follow(follower, after, line.watched()?, line)))
            }
        }
    };
    let result: Result<Answer, Fault> = result.await;
    context.latency.add(index, begun.elapsed());
    let answer = result.unwrap_or_else(|fault| {
        log::debug!("api: {} {path}: {}", head.method, fault.for_log());
        fault.answer(dialect)
    });
    (answer, answering)
}

/// All of the body, if the request stays within its limit.
async fn collect(head: &hyper::http::request::Parts, body: Incoming, limit: usize) -> Result<Bytes, Fault> {
    let too_large = || {
        let message = format!("the request is larger than {limit} bytes, headers and body together");
        Fault::of(Code::TooLarge, message)
    };
    let headers = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let room = limit.checked_sub(head.uri.path().len() + headers.sum::<usize>()).ok_or_else(too_large)?;
    // What Content-Length announces is not waited for.
    if body.size_hint().lower() > u64::try_from(room).unwrap_or(u64::MAX) {
        return Err(too_large());
    }
    match Limited::new(body, room).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Fault::bad(format!("the body did not arrive whole: {error}"))),
    }
}

/// The events after `after`, one JSON object a line, as they come. A client that does not read them misses some, which their
/// numbers tell.
fn follow(
    follower: Follower,
    mut after: u64,
    client: UnixStream,
    Line { mut news, mut end, .. }: Line,
) -> answer::Body {
    let (lines, body) = mpsc::channel(EVENT_BATCHES_MAX);
    tokio::task::spawn_local(async move {
        loop {
            let last = *end.borrow_and_update();
            news.mark_unchanged();
            let mut batch = String::new();
            for event in follower.0.news.after(after) {
                after = event.seq;
                batch.push_str(&serde_json::to_string(&event).expect("an event has string keys and serialises"));
                batch.push('\n');
            }
            if (!batch.is_empty() && lines.send(Bytes::from(batch)).await.is_err()) || last {
                return;
            }
            tokio::select! {
                changed = end.changed() => if changed.is_err() { return },
                changed = news.changed() => if changed.is_err() { return },
                () = lines.closed() => return,
                () = hung_up(&client) => return,
            }
        }
    });
    Lines(body).boxed_unsync()
}

/// A client that follows the events, counted.
struct Follower(Arc<Context>);

impl Follower {
    fn enter(context: &Arc<Context>) -> Result<Self, Fault> {
        if context.followers.fetch_add(1, Ordering::Relaxed) < FOLLOWERS_MAX {
            return Ok(Self(Arc::clone(context)));
        }
        context.followers.fetch_sub(1, Ordering::Relaxed);
        let message = format!("{FOLLOWERS_MAX} clients follow the events already");
        Err(Fault::of(Code::TooManyFollowers, message))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|batch| batch.map(|batch| Ok(Frame::data(batch))))
    }
}
