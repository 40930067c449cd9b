//! The maker of a point: a thread of its own that copies guest memory to a file beside the guest, round by round, asks the
//! control loop to hold the machine when little is left, copies that, and writes everything out when the machine goes on.
//!
//! Architecture invariant: whatever happens to the files, the machine goes on, and what was recorded as written since its
//! last good point is still recorded.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use arch::GuestMemory;
use thiserror::Error;

use super::rounds::{self, Next};
use super::source::{Absent, CopyError, Source, Which};
use super::{PointKind, PointReport, Relation, SnapshotFigures, SnapshotRequest};
use crate::config::SaveConfigError;
use crate::control::{EventSender, GuestEvent, Progress};
use crate::epoch::{
    Described, DirtyLog, DirtyLogError, LayerWriter, PAGE_BYTES, PageSet, Point, PointError, PointFiles,
    ResidencyError, Section, SectionError, StateHeader,
};
use crate::machine::{
    AskedStamps, MachineSaveError, MemorySlots, PluggableMemory, STAMP_PATIENCE, SavedMachine, StampQuestion, Stamps,
};
use crate::thread::{END_PATIENCE, Thread};
use crate::time::microseconds;

/// What keeps a point from being made.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// It cannot be an increment.
    #[error(
        "there is nothing that this could be an increment of: the machine's pages are not tracked since an earlier snapshot: make that with track (or track_dirty_pages), or make a full one"
    )]
    NotTracked,
    /// It would be an increment of another point.
    #[error("the machine's last snapshot is {}, and this would be an increment of {}: name that one, or make a full one", last.display(), asked.display())]
    OtherParent {
        /// The machine's last.
        last: std::path::PathBuf,
        /// The one that was asked for.
        asked: std::path::PathBuf,
    },
    /// The machine cannot be described to another process.
    #[error(transparent)]
    Config(#[from] SaveConfigError),
    /// The state of the machine cannot be had.
    #[error("cannot save the machine")]
    Machine(#[from] MachineSaveError),
    /// A part of it has no form in a file.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// The machine does not stand still.
    #[error("cannot hold the machine: {0}")]
    Park(String),
    /// What is written cannot be recorded.
    #[error("cannot track what the machine writes")]
    Track(#[from] DirtyLogError),
    /// Memory cannot be looked at.
    #[error(transparent)]
    Look(#[from] ResidencyError),
    /// Memory cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The files cannot be written.
    #[error(transparent)]
    Point(#[from] PointError),
    /// The host gives no thread.
    #[error("cannot start the thread husk-job-snap")]
    Thread(#[source] io::Error),
    /// Somebody gave it up, or the machine has ended.
    #[error("the snapshot was given up")]
    Cancelled,
    /// The machine has ended, and its maker does not come back.
    #[error("the thread husk-job-snap did not come back from {} or from guest memory within {} s of the machine's end: it is left to the end of the process", memory.display(), patience.as_secs())]
    Left {
        /// The memory file that it makes.
        memory: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
}

impl SnapshotError {
    /// Whether another request would do.
    #[must_use]
    pub fn is_the_requests(&self) -> bool {
        match self {
            Self::NotTracked | Self::OtherParent { .. } | Self::Config(_) => true,
            Self::Point(error) => !error.is_the_hosts(),
            _ => false,
        }
    }
}

/// Whether the machine runs beside the maker at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It does.
    Running,
    /// Somebody has paused it.
    Paused,
}

/// What a maker has to tell the control loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MakerEvent {
    /// Little is left: the machine shall be held.
    Close,
    /// The last page is copied: the machine may go on.
    Copied,
    /// It has ended, one way or the other.
    Finished,
}

/// What the control loop has to tell a maker.
#[derive(Debug)]
pub(crate) enum Order {
    /// The machine is held: nothing writes to its memory, nor to its disks, of which this is to be asked.
    Parked(StampQuestion),
    /// What it is.
    State(Result<Box<SavedMachine>, SnapshotError>),
}

/// A point that a machine's pages can be tracked from.
#[derive(Debug, Clone)]
pub(crate) struct LastPoint {
    pub(crate) files: PointFiles,
    pub(crate) header: StateHeader,
    /// Opened, so that its next increment need not: that takes longer the longer the chain is.
    pub(crate) point: Option<Arc<Point>>,
}

/// What a machine has for the maker of a point.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) slots: Arc<MemorySlots>,
    pub(crate) memory: Arc<GuestMemory>,
    /// What of it can be plugged.
    pub(crate) pluggable: Option<Arc<PluggableMemory>>,
    pub(crate) absent: Absent,
    /// What is written since the last point, if that is recorded.
    pub(crate) log: Option<DirtyLog>,
    pub(crate) last: Option<LastPoint>,
    /// Whether the machine tracks its pages for as long as it lives.
    pub(crate) tracks: bool,
}

/// What is left when a maker has ended.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) log: Option<DirtyLog>,
    pub(crate) result: Result<MadePoint, SnapshotError>,
}

/// A point that was made.
#[derive(Debug)]
pub(crate) struct MadePoint {
    pub(crate) last: LastPoint,
    pub(crate) report: PointReport,
    pub(crate) figures: SnapshotFigures,
}

/// The control loop's end of the thread. Dropped, the thread gives up, unless all is copied, and is waited for.
#[derive(Debug)]
pub(crate) struct Maker {
    orders: Option<Sender<Order>>,
    cancelled: Arc<AtomicBool>,
    copied: Arc<AtomicBool>,
    progress: Arc<Progress>,
    /// What it makes.
    memory: PathBuf,
    thread: Option<Thread<Made>>,
}

/// How long the end of a machine waits for a snapshot whose last page is copied: a disk has gigabytes to write out then.
const WRITE_OUT_PATIENCE: Duration = Duration::from_secs(60);

impl Maker {
    pub(crate) fn start(
        request: SnapshotRequest,
        mode: Mode,
        ground: Ground,
        events: EventSender,
    ) -> Result<Self, SnapshotError> {
        let (orders, ordered) = channel();
        let (cancelled, copied) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let progress = Arc::new(Progress::default());
        let memory = request.files.memory.clone();
        let worker = Worker {
            request,
            mode,
            ordered,
            events,
            cancelled: Arc::clone(&cancelled),
            copied: Arc::clone(&copied),
            progress: Arc::clone(&progress),
            figures: SnapshotFigures::default(),
            started: Instant::now(),
        };
        let thread = Thread::start("husk-job-snap", move || worker.main(ground)).map_err(SnapshotError::Thread)?;
        Ok(Self { orders: Some(orders), cancelled, copied, progress, memory, thread: Some(thread) })
    }

    pub(crate) fn send(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // One that has failed by now does not listen any more.
            let _ = orders.send(order);
        }
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// It will be told nothing more: it ends soon, with a point if all is copied.
    pub(crate) fn give_up(&mut self) {
        self.cancel();
        self.orders = None;
    }

    pub(crate) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// What has come of it; the thread is finished, or given up. One that does not come back is left, and nothing has.
    pub(crate) fn finish(mut self) -> Made {
        self.end().expect("a maker is finished once")
    }

    fn end(&mut self) -> Option<Made> {
        let thread = self.thread.take()?;
        let begun = Instant::now();
        let mut patience = END_PATIENCE;
        let ended = thread.end_by(begun + patience).or_else(|thread| {
            // It was told to give up before, so a point that is not copied by now never will be.
            if self.copied.load(Ordering::Relaxed) {
                patience = WRITE_OUT_PATIENCE;
            }
            thread.end_by(begun + patience)
        });
        let left = || SnapshotError::Left { memory: self.memory.clone(), patience };
        Some(ended.unwrap_or_else(|_| Made { log: None, result: Err(left()) }))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.give_up();
        self.end();
    }
}

struct Worker {
    request: SnapshotRequest,
    mode: Mode,
    ordered: Receiver<Order>,
    events: EventSender,
    cancelled: Arc<AtomicBool>,
    copied: Arc<AtomicBool>,
    progress: Arc<Progress>,
    figures: SnapshotFigures,
    started: Instant,
}

impl Worker {
    fn main(mut self, ground: Ground) -> Made {
        let Ground { slots, memory, pluggable, absent, mut log, last, tracks } = ground;
        let source = Source::new(memory, pluggable, absent);
        let was_tracked = log.is_some();
        let is_tracked = tracks || self.request.track;
        let result = self.make(&slots, &source, &mut log, last, is_tracked);
        // What was harvested for a point that there is not is still to be in the next one.
        let goes_on = if result.is_ok() { is_tracked } else { was_tracked };
        if !goes_on {
            log = stopped(log);
        }
        self.events.send(GuestEvent::Snapshot(MakerEvent::Finished));
        Made { log, result }
    }

    fn make(
        &mut self,
        slots: &Arc<MemorySlots>,
        source: &Source,
        log: &mut Option<DirtyLog>,
        last: Option<LastPoint>,
        is_tracked: bool,
    ) -> Result<MadePoint, SnapshotError> {
        let parent = match &self.request.kind {
            PointKind::Full => None,
            // As for Firecracker, an increment of nothing holds everything.
            PointKind::Increment(None) if last.is_none() || log.is_none() => None,
            PointKind::Increment(asked) => Some(parent(asked.as_deref(), last, log.is_some())?),
        };
        let is_full = parent.is_none();
        let writer = LayerWriter::create(&self.request.files, source.bytes(), parent)?;
        self.figures.id = writer.id().to_string();
        if log.is_none() && (self.mode == Mode::Running || self.request.track) {
            *log = Some(DirtyLog::start(slots)?);
        }
        let (described, sections) = match self.copy_all(source, log.as_mut(), &writer, is_full) {
            Ok(saved) => saved,
            Err(error) => {
                log.iter_mut().for_each(DirtyLog::put_back);
                return Err(error);
            }
        };
        self.copied.store(true, Ordering::Relaxed);
        self.events.send(GuestEvent::Snapshot(MakerEvent::Copied));
        let copied = Instant::now();
        let published = writer.finish().and_then(|layer| {
            let pages = layer.pages();
            layer.publish(&described, &sections).map(|header| (header, pages))
        });
        let (header, pages) = match published {
            Ok(published) => published,
            Err(error) => {
                log.iter_mut().for_each(DirtyLog::put_back);
                return Err(error.into());
            }
        };
        log.iter_mut().for_each(DirtyLog::acknowledge);
        self.figures.sync_us = microseconds(copied.elapsed());
        self.figures.total_us = microseconds(self.started.elapsed());
        let files = self.request.files.clone();
        // The point is there, whether or not it can be opened now: its next increment opens it again, and says why not.
        let point = is_tracked.then(|| Point::open(&files.memory, &header).map(Arc::new)).and_then(Result::ok);
        let report = PointReport::new(Relation::Made, (&files.state, Some(&files.memory)), &header, Some(pages));
        Ok(MadePoint { last: LastPoint { files, header, point }, report, figures: self.figures.clone() })
    }

    /// Copies all that the point holds, the last of it while the machine is held.
    fn copy_all(
        &mut self,
        source: &Source,
        mut log: Option<&mut DirtyLog>,
        writer: &LayerWriter,
        is_full: bool,
    ) -> Result<(Described, Vec<Section>), SnapshotError> {
        let mut stamps = None;
        if self.mode == Mode::Paused {
            stamps = Some(self.wait_until_parked()?);
        }
        // What is dirty from here on is in a later round; for a full point the log's past does not matter.
        let dirty = log.as_deref_mut().map(DirtyLog::harvest).transpose()?;
        let (mut which, mut pages) = match (is_full, dirty) {
            (false, Some(dirty)) => (Which::Written, dirty),
            _ => (Which::Held, source.touched()?),
        };
        if self.mode == Mode::Running {
            let log = log.expect("a machine that runs is logged");
            loop {
                let copied = self.copy(source, writer, (which, &pages))?;
                self.figures.rounds += 1;
                (which, pages) = (Which::Written, log.harvest()?);
                if rounds::next(self.figures.rounds, copied, pages.count()) == Next::Close {
                    break;
                }
            }
            self.events.send(GuestEvent::Snapshot(MakerEvent::Close));
            stamps = Some(self.wait_until_parked()?);
            pages.union_with(&log.harvest()?);
        }
        self.copy(source, writer, (which, &pages))?;
        match self.ordered.recv() {
            Ok(Order::State(saved)) => {
                let saved = saved?;
                let Stamps { told, unanswered } = stamps.map(AskedStamps::wait).unwrap_or_default();
                if let Some((id, path)) = unanswered {
                    log::warn!(
                        "disk `{id}`: nobody says within {} s when {} was written last: a restore will not know whether \
                         it, or a disk after it, was written to since",
                        STAMP_PATIENCE.as_secs(),
                        path.display()
                    );
                }
                Ok(saved.with_stamps(told)?)
            }
            Ok(Order::Parked(_)) | Err(_) => Err(SnapshotError::Cancelled),
        }
    }

    /// What the disks' hosts say of the machine that is held is asked meanwhile.
    fn wait_until_parked(&self) -> Result<AskedStamps, SnapshotError> {
        match self.ordered.recv() {
            Ok(Order::Parked(question)) => Ok(question.ask()),
            Ok(Order::State(Err(error))) => Err(error),
            Ok(Order::State(Ok(_))) | Err(_) => Err(SnapshotError::Cancelled),
        }
    }

    /// Copies `pages`, and returns how many.
    fn copy(
        &mut self,
        source: &Source,
        writer: &LayerWriter,
        (which, pages): (Which, &PageSet),
    ) -> Result<u64, SnapshotError> {
        let count = pages.count();
        self.progress.expect(count * PAGE_BYTES);
        source.copy((which, pages), writer, |pages| {
            self.progress.add(pages * PAGE_BYTES);
            !self.cancelled.load(Ordering::Relaxed)
        })?;
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(SnapshotError::Cancelled);
        }
        self.figures.pages += count;
        Ok(count)
    }
}

/// The point that an increment is based on.
fn parent(
    asked: Option<&std::path::Path>,
    last: Option<LastPoint>,
    is_tracked: bool,
) -> Result<Arc<Point>, SnapshotError> {
    let Some(LastPoint { files, header, point }) = last.filter(|_| is_tracked) else {
        return Err(SnapshotError::NotTracked);
    };
    if let Some(asked) = asked
        && !names_the_same(asked, &files.memory)
    {
        let (last, asked) = (files.memory.clone(), asked.to_owned());
        return Err(SnapshotError::OtherParent { last, asked });
    }
    match point {
        Some(point) => Ok(point),
        None => Ok(Arc::new(Point::open(&files.memory, &header)?)),
    }
}

fn names_the_same(one: &std::path::Path, other: &std::path::Path) -> bool {
    let real = |path: &std::path::Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

fn stopped(log: Option<DirtyLog>) -> Option<DirtyLog> {
    if let Some(log) = log
        && let Err(error) = log.stop()
    {
        log::warn!("pages are still tracked, which costs the guest time: {}", crate::describe(&error));
    }
    None
}
