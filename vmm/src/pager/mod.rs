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
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use arch::GuestMemory;
use arch::memory::GuestRegionMmap;
use thiserror::Error;
use vm_memory::GuestMemoryRegion;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub(crate) use handler::{Handler, HandlerError};
use plan::{Plan, Wanted};
use userfault::{Put, Range, UserFault, Woken, wait_for};

use crate::control::{EventSender, GuestEvent};
use crate::epoch::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES, Point, PointError, Presence, file_order};

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

/// A region of guest memory in this process.
#[derive(Debug, Clone, Copy)]
struct Span {
    /// Where it is in the memory file.
    offset: u64,
    /// Where it is in this process.
    host: u64,
    bytes: u64,
}

/// The thread that brings memory. Dropped, it brings no more, and who waits gets zeros: the vCPUs have ended by then.
#[derive(Debug)]
pub(crate) struct Pager {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    /// Answers all faults in `memory`, whose pages have `page_bytes`, from `point`. What was wanted first the last time is
    /// read from `record` if it is there, and written to it at the end.
    pub(crate) fn start(
        memory: &GuestMemory,
        page_bytes: u64,
        point: Arc<Point>,
        record: PathBuf,
        events: EventSender,
    ) -> Result<Self, PagerError> {
        let user = |attempt| move |source| PagerError::UserFault { attempt, source };
        let fault = UserFault::new().map_err(user("open a userfaultfd"))?;
        let spans = spans(memory);
        for span in &spans {
            fault.register(span.range()).map_err(user("register guest memory"))?;
        }
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PagerError::Thread)?);
        let unit_bytes = page_bytes.max(CHUNK_BYTES);
        let units = point.memory_bytes().div_ceil(unit_bytes);
        let plan = Plan::new(units, &plan::read_record(&record, units));
        let worker = Worker {
            fault,
            spans,
            unit_bytes,
            page_bytes,
            point,
            plan,
            buffer: vec![0; usize::try_from(unit_bytes).expect("a page fits into memory")],
            scratch: Vec::new(),
            stop: Arc::clone(&stop),
            events,
        };
        let thread = std::thread::Builder::new()
            .name("husk-pager".to_owned())
            .spawn(move || worker.main(&record))
            .map_err(PagerError::Thread)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // It fails only when the counter is full, and then the thread is awake.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok(), "the pager does not unwind");
        }
    }
}

fn spans(memory: &GuestMemory) -> Vec<Span> {
    let span = |(offset, region): (u64, &GuestRegionMmap)| {
        let host = region.as_volatile_slice().expect("a mapped region has a host address").ptr_guard_mut().as_ptr();
        Span { offset, host: host.expose_provenance() as u64, bytes: region.len() }
    };
    file_order::regions(memory).map(span).collect()
}

impl Span {
    fn range(self) -> Range {
        Range { start: self.host, len: self.bytes }
    }

    fn end(self) -> u64 {
        self.offset + self.bytes
    }
}

struct Worker {
    fault: UserFault,
    spans: Vec<Span>,
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
    fn main(mut self, record: &std::path::Path) {
        match self.run() {
            Ok(true) => plan::write_record(record, self.plan.record()),
            Ok(false) => {}
            Err(broken) => {
                self.events.send(GuestEvent::MemoryLost(crate::describe(&broken)));
                // Who waits for a page must not get zeros before the machine has stopped.
                while wait_for(&*self.stop, &*self.stop, FOR_EVER_MS) != Woken::Stop {}
            }
        }
    }

    /// Brings memory until all of it is there (true), or until the machine ends.
    fn run(&mut self) -> Result<bool, Broken> {
        loop {
            match wait_for(&self.fault, &*self.stop, NOT_AT_ALL_MS) {
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
        let read = self.fault.faults(|address| wanted.push(address));
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
            self.put_zeros(offset - offset % self.page_bytes)?;
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

    /// Puts bytes at an offset of the memory file; pages that are there already stay as they are.
    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Broken> {
        let kernel = |source| Broken::Kernel { attempt: "put in a page", source };
        let (mut offset, mut bytes) = (offset, bytes);
        while let Some(span) = self.span_of(offset).filter(|_| !bytes.is_empty()) {
            let len = bytes.len().min(usize::try_from(span.end() - offset).unwrap_or(usize::MAX));
            let done = match self.fault.copy(span.host + (offset - span.offset), &bytes[..len]).map_err(kernel)? {
                Put::Done => len as u64,
                Put::Present(before) => before + self.page_bytes,
                Put::Again(before) => before,
            };
            offset += done;
            bytes = bytes.get(usize::try_from(done).unwrap_or(usize::MAX)..).unwrap_or_default();
        }
        Ok(())
    }

    fn put_zeros(&self, offset: u64) -> Result<(), Broken> {
        if self.page_bytes > PAGE_BYTES {
            // The kernel has no zeros for pages of a pool.
            let zeros = vec![0; usize::try_from(self.page_bytes).expect("a page fits into memory")];
            return self.put(offset, &zeros);
        }
        let Some(span) = self.span_of(offset) else { return Ok(()) };
        let page = Range { start: span.host + (offset - span.offset), len: PAGE_BYTES };
        loop {
            let put = self.fault.zero(page);
            match put.map_err(|source| Broken::Kernel { attempt: "put in a page of zeros", source })? {
                Put::Done | Put::Present(_) => return Ok(()),
                Put::Again(_) => {}
            }
        }
    }

    fn span_of(&self, offset: u64) -> Option<Span> {
        self.spans.iter().find(|span| (span.offset..span.end()).contains(&offset)).copied()
    }

    /// All is there that the point has: what is not is the kernel's again.
    fn give_back(&self) -> Result<(), Broken> {
        let give = |span: &Span| self.fault.unregister(span.range());
        let given = self.spans.iter().try_for_each(give);
        given.map_err(|source| Broken::Kernel { attempt: "give back the faults", source })
    }
}

const NOT_AT_ALL_MS: libc::c_int = 0;
const FOR_EVER_MS: libc::c_int = -1;
const CHUNK_LEN: usize = 2 << 20;
const _: () = assert!(CHUNK_LEN as u64 == CHUNK_BYTES);
