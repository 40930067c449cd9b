//! Where a point's pages are read from: guest memory, or what a restored machine came from, for pages that nobody has touched
//! since. Reading never brings a page into memory.

use std::sync::Arc;
use std::thread;

use arch::GuestMemory;
use arch::memory::DIRTY_PAGE_BYTES;
use thiserror::Error;

use crate::epoch::{
    self, CHUNK_PAGES, LayerWriter, PAGE_BYTES, PageRun, PageSet, Pen, Point, PointError, ResidencyError, file_order,
};
use crate::machine::{PageKind, PluggableMemory};

/// Why pages cannot be copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// Where they are, or where they go.
    #[error(transparent)]
    Point(#[from] PointError),
    /// The kernel does not tell which are there.
    #[error(transparent)]
    Look(#[from] ResidencyError),
}

/// Pages that are worth a second thread: 16 MiB.
const PAGES_A_THREAD_MIN: u64 = 4096;
const THREADS_MAX: u64 = 4;

/// Where pages are that are not in memory.
#[derive(Debug, Clone, Default)]
pub(crate) enum Absent {
    /// Nowhere: they are zeros.
    #[default]
    Zero,
    /// In the files of the point that the machine was made from.
    In(Arc<Point>),
    /// With another process, which brings them in when they are touched.
    WithHandler,
}

/// What pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// All that hold anything, wherever that is.
    Held,
    /// Those that were written lately: they are in memory, and nobody needs to look.
    Written,
}

/// A machine's memory, and what it came from.
#[derive(Debug)]
pub(crate) struct Source {
    memory: Arc<GuestMemory>,
    /// What of it can be plugged.
    pluggable: Option<Arc<PluggableMemory>>,
    absent: Absent,
}

impl Source {
    pub(crate) fn new(memory: Arc<GuestMemory>, pluggable: Option<Arc<PluggableMemory>>, absent: Absent) -> Self {
        Self { memory, pluggable, absent }
    }

    pub(crate) fn bytes(&self) -> u64 {
        file_order::bytes(&self.memory)
    }

    /// The pages that may hold something else than zeros.
    pub(crate) fn touched(&self) -> Result<PageSet, ResidencyError> {
        let mut pages = match &self.absent {
            Absent::Zero => epoch::touched(&self.memory)?,
            Absent::In(point) => {
                let mut pages = epoch::touched(&self.memory)?;
                point.runs().for_each(|run| pages.insert_run(PageRun { first: run.first, pages: run.pages }));
                pages
            }
            Absent::WithHandler => {
                let pages = self.bytes() / PAGE_BYTES;
                let mut all = PageSet::new(pages);
                all.insert_run(PageRun { first: 0, pages });
                all
            }
        };
        self.pluggable.iter().for_each(|pluggable| pluggable.plugged().retain(&mut pages));
        Ok(pages)
    }

    /// Copies `pages`, which are `which`, to `writer`, on several threads where there are many. After every piece `go_on` is told how many pages
    /// that were, and says whether there shall be more.
    pub(crate) fn copy(
        &self,
        (which, pages): (Which, &PageSet),
        writer: &LayerWriter,
        go_on: impl Fn(u64) -> bool + Sync,
    ) -> Result<(), CopyError> {
        let here = match &self.absent {
            Absent::In(_) if which == Which::Held => Some(epoch::touched(&self.memory)?),
            Absent::In(_) | Absent::Zero | Absent::WithHandler => None,
        };
        let (here, go_on) = (here.as_ref(), &go_on);
        let threads = threads(pages.count());
        if threads == 1 {
            return self.copy_share(pages, here, writer, (0, pages.pages()), go_on);
        }
        thread::scope(|scope| {
            let share = |number| {
                let bound = |number: u64| number * pages.pages().div_ceil(threads).next_multiple_of(CHUNK_PAGES);
                (bound(number), bound(number + 1))
            };
            let copiers: Vec<_> = (0..threads)
                .map(|number| scope.spawn(move || self.copy_share(pages, here, writer, share(number), go_on)))
                .collect();
            let joined = copiers.into_iter().map(|copier| copier.join().expect("a panic aborts the process"));
            joined.collect::<Result<Vec<_>, _>>().map(|_| ())
        })
    }

    /// Copies those from page `start` on and before `end`.
    fn copy_share(
        &self,
        pages: &PageSet,
        here: Option<&PageSet>,
        writer: &LayerWriter,
        (start, end): (u64, u64),
        go_on: &(impl Fn(u64) -> bool + Sync),
    ) -> Result<(), CopyError> {
        let mut pen = writer.pen();
        let mut chunk = OriginChunk::default();
        for run in pages.runs().skip_while(|run| run.end() <= start).take_while(|run| run.first < end) {
            let (mut first, last) = (run.first.max(start), run.end().min(end));
            while first < last {
                // A chunk at a time, so that a copy that is given up ends soon.
                let piece = PageRun { first, pages: (last - first).min(CHUNK_PAGES - first % CHUNK_PAGES) };
                match here.is_some() || self.pluggable.is_some() {
                    false => self.copy_from_memory(&mut pen, piece)?,
                    true => self.copy_by_place(&mut pen, piece, here, &mut chunk)?,
                }
                first = piece.end();
                if !go_on(piece.pages) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn copy_from_memory(&self, pen: &mut Pen<'_>, run: PageRun) -> Result<(), CopyError> {
        let parts = file_order::slices(&self.memory, run.first * PAGE_BYTES..run.end() * PAGE_BYTES);
        let slices: Vec<_> = parts.map(|(_, slice)| slice).collect();
        Ok(pen.write(run.first, &slices)?)
    }

    /// Copies a run within one chunk, each page from where it is. Meanwhile nothing is unplugged.
    fn copy_by_place(
        &self,
        pen: &mut Pen<'_>,
        run: PageRun,
        here: Option<&PageSet>,
        chunk: &mut OriginChunk,
    ) -> Result<(), CopyError> {
        let plugged = self.pluggable.as_ref().map(|pluggable| pluggable.plugged());
        let place = |page| {
            let kind = plugged.as_ref().map_or(PageKind::Original, |plugged| plugged.kind(page));
            match (kind, here.is_none_or(|here| here.contains(page))) {
                (PageKind::Unplugged, _) | (PageKind::Fresh, false) => Place::Nowhere,
                (PageKind::Original | PageKind::Fresh, true) => Place::Memory,
                (PageKind::Original, false) => Place::Origin,
            }
        };
        let mut first = run.first;
        while first < run.end() {
            let from = place(first);
            let end = (first..run.end()).find(|&page| place(page) != from).unwrap_or(run.end());
            let part = PageRun { first, pages: end - first };
            match (from, &self.absent) {
                (Place::Origin, Absent::In(point)) => pen.write_bytes(part.first, chunk.pages(point, part)?)?,
                (Place::Nowhere, _) => {
                    (part.first..part.end()).try_for_each(|page| pen.write_bytes(page, &[0; DIRTY_PAGE_BYTES]))?;
                }
                (Place::Memory | Place::Origin, _) => self.copy_from_memory(pen, part)?,
            }
            first = end;
        }
        Ok(())
    }
}

/// Where a page is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Memory,
    /// What the machine was made from.
    Origin,
    /// Zeros.
    Nowhere,
}

/// How many threads copy so many pages. The host is not asked for its CPUs where one will do: that reads a dozen files, and
/// the machine may be held meanwhile.
fn threads(pages: u64) -> u64 {
    match (pages / PAGES_A_THREAD_MIN).min(THREADS_MAX) {
        0 | 1 => 1,
        threads => threads.min(thread::available_parallelism().map_or(1, |cores| cores.get() as u64)),
    }
}

/// The chunk of a point that was read last.
#[derive(Debug, Default)]
struct OriginChunk {
    number: Option<u64>,
    bytes: Vec<u8>,
    scratch: Vec<u8>,
}

impl OriginChunk {
    /// Pages of `point`, all of one chunk.
    fn pages(&mut self, point: &Point, run: PageRun) -> Result<&[u8], PointError> {
        let chunk = run.first / CHUNK_PAGES;
        if self.number != Some(chunk) {
            self.number = None;
            self.bytes.resize(usize::try_from(point.chunk_bytes(chunk)).expect("a chunk fits into memory"), 0);
            match point.has_index() {
                true => point.read_chunk(chunk, &mut self.bytes, &mut self.scratch).map(|_| ())?,
                false => point.read_unchecked(chunk, &mut self.bytes)?,
            }
            self.number = Some(chunk);
        }
        let at =
            |page: u64| usize::try_from((page - chunk * CHUNK_PAGES) * PAGE_BYTES).expect("a chunk fits into memory");
        Ok(&self.bytes[at(run.first)..at(run.end())])
    }
}
