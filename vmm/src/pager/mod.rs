//! Guest memory that comes when it is wanted: a thread answers the page faults of guest and devices from a point's files,
//! fills the rest in behind them, and ends. It never touches guest memory itself: pages are put in by the kernel.
//!
//! | module | owns |
//! | --- | --- |
//! | [`userfault`] | the system's interface |
//! | [`plan`] | which chunk comes next: wanted, then recorded, then all others; a pure decision |
//! | [`handler`] | another process that answers the faults, by Firecracker's protocol |
//!
//! Architecture invariant: a chunk is checked against its hash before a page of it is put in, and is read once.

mod handler;
mod plan;
mod userfault;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arch::GuestMemory;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub(crate) use handler::HandlerError;
use plan::{Plan, Wanted};
pub(crate) use userfault::UserFault;
use userfault::{Put, Woken, wait_for};

use crate::control::{EventSender, GuestEvent};
use crate::epoch::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, Point, PointError, Presence, file_order};
use crate::thread::{END_PATIENCE, Thread};

/// What keeps memory from coming page by page.
#[derive(Debug, Error)]
pub enum PagerError {
    /// The kernel does not give the faults away.
    #[error("cannot {attempt}: lazy memory needs userfaultfd: run as root, or give access to /dev/userfaultfd")]
    UserFault {
        /// What was attempted.
        attempt: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host gives no thread or descriptor.
    #[error("cannot start the thread husk-pager")]
    Thread(#[source] io::Error),
    /// Another process does not take the faults.
    #[error(transparent)]
    Handler(#[from] HandlerError),
}

/// Why guest memory comes no more.
#[derive(Debug, Error)]
enum Broken {
    #[error("cannot read the memory of the snapshot")]
    Source(#[from] PointError),
    #[error("cannot {attempt} of guest memory (userfaultfd)")]
    Kernel { attempt: &'static str, source: io::Error },
}

/// A part of guest memory whose faults are answered, in the order of the memory file.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Where it is in the memory file.
    offset: u64,
    /// Where it is in this process.
    host: u64,
    bytes: u64,
}

/// A thread that sees to it that memory comes. Dropped, it ends, and who waits gets zeros: the vCPUs have ended by then.
#[derive(Debug)]
pub(crate) struct MemoryThread {
    faults: Arc<UserFault>,
    spans: Arc<[Span]>,
    stop: Arc<EventFd>,
    /// Where it brings memory from.
    source: PathBuf,
    thread: Option<Thread<()>>,
}

impl MemoryThread {
    /// Answers all faults in `held`, parts of `memory` in memory file order whose pages have `page_bytes`, from `point`. What was
    /// wanted first the last time is read from `record` if it is there, and written to it at the end.
    pub(crate) fn bring(
        (memory, held): (&GuestMemory, &[Range<u64>]),
        page_bytes: u64,
        point: Arc<Point>,
        record: PathBuf,
        events: EventSender,
    ) -> Result<Self, PagerError> {
        let spans = spans(memory, held);
        let faults = register(UserFault::new(), &spans)?;
        let unit_bytes = page_bytes.max(CHUNK_BYTES);
        let units = point.memory_bytes().div_ceil(unit_bytes);
        let units_held = point.chunks().map(|chunk| chunk * CHUNK_BYTES / unit_bytes);
        let plan = Plan::new(units, units_held, &plan::read_record(&record, units));
        let buffer = vec![0; usize::try_from(unit_bytes).expect("a page fits into memory")];
        let scratch = Vec::new();
        Self::start(Arc::clone(&faults), Arc::clone(&spans), point.path(), move |stop| {
            Worker { faults, spans, unit_bytes, page_bytes, point, plan, buffer, scratch, stop, events }.main(&record);
        })
    }

    /// Gives all faults in `held` to the process that listens at `path`. If that one goes, so does the machine.
    pub(crate) fn watch(
        (memory, held): (&GuestMemory, &[Range<u64>]),
        page_bytes: u64,
        path: &Path,
        events: EventSender,
    ) -> Result<Self, PagerError> {
        let socket = handler::connect(path)?;
        let spans = spans(memory, held);
        let faults = register(UserFault::with_removals(), &spans)?;
        handler::hand_over(&socket, &spans, page_bytes, &faults, path)?;
        let path = path.to_owned();
        Self::start(faults, spans, path.clone(), move |stop| handler::watch(&socket, &stop, &path, &events))
    }

    fn start(
        faults: Arc<UserFault>,
        spans: Arc<[Span]>,
        source: PathBuf,
        work: impl FnOnce(Arc<EventFd>) + Send + 'static,
    ) -> Result<Self, PagerError> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PagerError::Thread)?);
        let stopped = Arc::clone(&stop);
        let thread = Thread::start("husk-pager", move || work(stopped)).map_err(PagerError::Thread)?;
        Ok(Self { faults, spans, stop, source, thread: Some(thread) })
    }

    /// What the kernel asks for pages by.
    pub(crate) fn faults(&self) -> &Arc<UserFault> {
        &self.faults
    }
}

impl Drop for MemoryThread {
    fn drop(&mut self) {
        // It fails only when the counter is full, and then the thread is awake.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.end_by(Instant::now() + END_PATIENCE).is_err()
        {
            log::error!(
                "memory: the thread husk-pager did not come back from {} within {} s of the machine's end: it is left to the end of the process",
                self.source.display(),
                END_PATIENCE.as_secs()
            );
        }
        // Another process may have the descriptor open still.
        for span in &*self.spans {
            if let Err(error) = self.faults.unregister(span.host, span.bytes) {
                log::warn!("memory: {} bytes are still waited for: {error}", span.bytes);
            }
        }
    }
}

fn spans(memory: &GuestMemory, held: &[Range<u64>]) -> Arc<[Span]> {
    let slices = held.iter().flat_map(|part| file_order::slices(memory, part.clone()));
    let span = |(offset, slice): (u64, arch::memory::VolatileSlice<'_, _>)| {
        let host = slice.ptr_guard_mut().as_ptr().expose_provenance() as u64;
        Span { offset, host, bytes: slice.len() as u64 }
    };
    slices.map(span).collect()
}

fn register(fault: io::Result<UserFault>, spans: &[Span]) -> Result<Arc<UserFault>, PagerError> {
    let user = |attempt| move |source| PagerError::UserFault { attempt, source };
    let fault = fault.map_err(user("open a userfaultfd"))?;
    let registered = spans.iter().try_for_each(|span| fault.register(span.host, span.bytes));
    registered.map_err(user("register guest memory"))?;
    Ok(Arc::new(fault))
}

/// Who waits for a page must not get zeros before the machine has stopped.
fn wait_until_stopped(stop: &EventFd) {
    while wait_for(stop, stop, FOR_EVER_MS) != Woken::Stop {}
}

impl Span {
    fn end(self) -> u64 {
        self.offset + self.bytes
    }
}

struct Worker {
    faults: Arc<UserFault>,
    spans: Arc<[Span]>,
    /// What is brought at once: a chunk, or a page if that is larger.
    unit_bytes: u64,
    page_bytes: u64,
    point: Arc<Point>,
    plan: Plan,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    stop: Arc<EventFd>,
    events: EventSender,
}

impl Worker {
    fn main(mut self, record: &Path) {
        match self.run() {
            Ok(true) => self.plan.record().into_iter().for_each(|units| plan::write_record(record, units)),
            Ok(false) => {}
            Err(broken) => {
                self.events.send(GuestEvent::MemoryLost(crate::describe(&broken)));
                wait_until_stopped(&self.stop);
            }
        }
    }

    /// Brings memory until all of it is there (true), or until the machine ends.
    fn run(&mut self) -> Result<bool, Broken> {
        loop {
            match wait_for(&*self.faults, &*self.stop, NOT_AT_ALL_MS) {
                Woken::Stop => return Ok(false),
                Woken::Other => self.answer_faults()?,
                Woken::Nothing => match self.plan.next() {
                    Some(unit) => self.bring(unit)?,
                    None => return self.give_back().map(|()| true),
                },
            }
        }
    }

    fn answer_faults(&mut self) -> Result<(), Broken> {
        let mut wanted = Vec::with_capacity(8);
        let read = self.faults.faults(|address| wanted.push(address));
        read.map_err(|source| Broken::Kernel { attempt: "read the faults", source })?;
        for address in wanted {
            let Some(span) = self.spans.iter().find(|span| (span.host..span.host + span.bytes).contains(&address))
            else {
                continue;
            };
            let offset = span.offset + (address - span.host);
            match self.plan.want(offset / self.unit_bytes) {
                Wanted::Bring => self.bring(offset / self.unit_bytes)?,
                Wanted::Here => {}
            }
            // The file has no such page, or the guest gave it away since: it is zeros.
            self.put_zeros(address - address % self.page_bytes)?;
        }
        Ok(())
    }

    /// Puts in all that the point has of a unit.
    fn bring(&mut self, unit: u64) -> Result<(), Broken> {
        let start = unit * self.unit_bytes;
        let bytes = self.unit_bytes.min(self.point.memory_bytes() - start);
        let mut buffer = std::mem::take(&mut self.buffer);
        let done = self.read_and_put(start, bytes, &mut buffer);
        self.buffer = buffer;
        done
    }

    fn read_and_put(&mut self, start: u64, bytes: u64, buffer: &mut [u8]) -> Result<(), Broken> {
        let huge = self.page_bytes > PAGE_BYTES;
        let (mut any, mut scratch) = (false, std::mem::take(&mut self.scratch));
        for (chunk, part) in (start / CHUNK_BYTES..).zip(buffer.chunks_mut(CHUNK_LEN)) {
            if chunk * CHUNK_BYTES >= start + bytes {
                break;
            }
            let part = &mut part[..usize::try_from(self.point.chunk_bytes(chunk)).expect("a chunk fits into memory")];
            let is_there = self.point.read_chunk(chunk, part, &mut scratch)?;
            any |= is_there;
            if is_there && !huge {
                self.put_present(chunk, self.point.presence(chunk), part)?;
            }
        }
        self.scratch = scratch;
        // A page of a pool is put in whole or not at all.
        match huge && any {
            true => self.put(start, &buffer[..usize::try_from(bytes).expect("a unit fits into memory")]),
            false => Ok(()),
        }
    }

    fn put_present(&self, chunk: u64, present: Presence, part: &[u8]) -> Result<(), Broken> {
        let mut page = 0;
        while page < CHUNK_PAGES {
            let first = page;
            while page < CHUNK_PAGES && present.contains(page) {
                page += 1;
            }
            let at = |page: u64| usize::try_from(page * PAGE_BYTES).expect("a chunk fits into memory");
            if page > first {
                self.put(chunk * CHUNK_BYTES + first * PAGE_BYTES, &part[at(first)..at(page)])?;
            }
            page += 1;
        }
        Ok(())
    }

    /// Puts bytes at an offset of the memory file, as far as they are held here; pages that are there already stay as they are.
    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Broken> {
        let end = offset + bytes.len() as u64;
        let first = self.spans.partition_point(|span| span.end() <= offset);
        for span in self.spans[first..].iter().take_while(|span| span.offset < end) {
            let (start, end) = (span.offset.max(offset), span.end().min(end));
            let at = |place: u64| usize::try_from(place - offset).expect("it is within the bytes");
            self.put_within(span.host + (start - span.offset), &bytes[at(start)..at(end)])?;
        }
        Ok(())
    }

    /// Puts bytes at a host address.
    fn put_within(&self, mut to: u64, mut bytes: &[u8]) -> Result<(), Broken> {
        let mut at_once = usize::MAX;
        while !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(at_once)];
            let put = self.faults.copy(to, piece);
            let done = match put.map_err(|source| Broken::Kernel { attempt: "put in a page", source })? {
                Put::Done => piece.len() as u64,
                Put::Present(before) => before + self.page_bytes,
                Put::Again(before) => before,
                // This page is not held any more: it was unplugged.
                Put::Foreign if piece.len() as u64 == self.page_bytes => self.page_bytes,
                Put::Foreign => {
                    at_once = usize::try_from(self.page_bytes).expect("a page fits into memory");
                    0
                }
            };
            to += done;
            bytes = bytes.get(usize::try_from(done).unwrap_or(usize::MAX)..).unwrap_or_default();
        }
        Ok(())
    }

    /// Puts a page of zeros at a host address.
    fn put_zeros(&self, to: u64) -> Result<(), Broken> {
        if self.page_bytes > PAGE_BYTES {
            // The kernel has no zeros for pages of a pool.
            return self.put_within(to, &vec![0; usize::try_from(self.page_bytes).expect("a page fits into memory")]);
        }
        loop {
            let put = self.faults.zero(to, PAGE_BYTES);
            match put.map_err(|source| Broken::Kernel { attempt: "put in a page of zeros", source })? {
                Put::Done | Put::Present(_) | Put::Foreign => return Ok(()),
                Put::Again(_) => {}
            }
        }
    }

    /// All is there that the point has: what is not is the kernel's again.
    fn give_back(&self) -> Result<(), Broken> {
        let give = |span: &Span| self.faults.unregister(span.host, span.bytes);
        let given = self.spans.iter().try_for_each(give);
        given.map_err(|source| Broken::Kernel { attempt: "give back the faults", source })
    }
}

const NOT_AT_ALL_MS: libc::c_int = 0;
const FOR_EVER_MS: libc::c_int = -1;
const CHUNK_LEN: usize = 2 << 20;
const _: () = assert!(CHUNK_LEN as u64 == CHUNK_BYTES);
