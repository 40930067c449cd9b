//! A point's memory on its way to a file. Threads that copy guest memory hold a [`Pen`] each; what they write is hashed as it
//! passes, once, and pages of zeroes stay holes. Nothing here waits for the disk: [`FinishedLayer::publish`] does, and
//! the guest runs by then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::folder::Temporary;
use super::index::{ChunkRecord, Parent};
use super::point::read_present;
use super::publish::{Place, PointFiles};
use super::state_file::{SAMPLE_PAGES_MAX, SamplePage};
use super::verify::in_parallel;
use super::{CHUNK_BYTES, CHUNK_PAGES, Digest, Index, PAGE, PAGE_BYTES, Point, PointError, PointId, Presence};

/// Bytes that a pen copies, hashes and writes at once: they stay in a core's second-level cache from the first to the last.
const PEN_BYTES: usize = 512 << 10;
/// Bytes that a pen writes before it has the disk start on them: the disk is busy while the next are copied and hashed.
const BEHIND_BYTES: u64 = 1 << 20;
/// Pages of the sample that are among those written more than once, which no other point of the machine is likely to have.
const REWRITTEN_MAX: usize = SAMPLE_PAGES_MAX / 2;

pub(super) static ZEROES: [u8; PAGE] = [0; PAGE];

/// The memory of a point that is being written. If it is dropped, nothing of it stays.
#[derive(Debug)]
pub struct LayerWriter {
    id: PointId,
    parent: Option<Arc<Point>>,
    memory_bytes: u64,
    memory: Temporary,
    place: Place,
    chunks: Mutex<Chunks>,
    /// A write failed: the hashes are not those of the file.
    broken: AtomicBool,
}

#[derive(Debug, Default)]
struct Chunks {
    written: BTreeMap<u64, Written>,
    /// Pages that were written again, the latest at the end.
    rewritten: VecDeque<u64>,
}

/// What is known of a chunk.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    present: Presence,
    /// Of the present pages; none where only the file knows.
    digest: Option<Digest>,
    /// How often a pen was through with it.
    passes: u32,
}

/// What one thread writes a layer with. It is quickest where pages come in ascending order.
#[derive(Debug)]
pub struct Pen<'a> {
    layer: &'a LayerWriter,
    buffer: Box<[u8]>,
    open: Option<OpenChunk>,
    /// Bytes written that the disk was not told to start on.
    behind: u64,
}

/// The chunk that a pen is at.
#[derive(Debug)]
struct OpenChunk {
    chunk: u64,
    /// As it was when the pen came to it.
    before: Written,
    /// The first page that the pen has not passed.
    next: u64,
    /// Pages that the pen wrote, or left as holes that hide the parent's.
    present: Presence,
    /// Pages that were there before and are zeroes now.
    erased: Presence,
    rewritten: Option<u64>,
    hasher: blake3::Hasher,
}

/// A layer that is all written, and not yet published. If it is dropped, nothing of it stays.
#[derive(Debug)]
pub struct FinishedLayer {
    pub(super) id: PointId,
    pub(super) parent: Option<Arc<Point>>,
    pub(super) memory: Temporary,
    pub(super) place: Place,
    pub(super) index: Index,
    pub(super) sample: Vec<SamplePage>,
}

impl LayerWriter {
    /// A new point's layer, of `memory_bytes` bytes of guest memory, that will be at `files`: on top of `parent`, or of nothing.
    ///
    /// # Errors
    /// A parent of another length, or with as many layers as there can be; a file that cannot be made.
    pub fn create(files: &PointFiles, memory_bytes: u64, parent: Option<Arc<Point>>) -> Result<Self, PointError> {
        let id = PointId::random().map_err(PointError::Random)?;
        Self::create_as(id, files, memory_bytes, parent)
    }

    pub(super) fn create_as(
        id: PointId,
        files: &PointFiles,
        memory_bytes: u64,
        parent: Option<Arc<Point>>,
    ) -> Result<Self, PointError> {
        if let Some(parent) = &parent {
            parent.check_child(memory_bytes)?;
        }
        let place = files.open()?;
        let memory = Temporary::create(&place.memory_folder, &place.memory, id)?;
        memory.set_len(memory_bytes)?;
        memory.label(id);
        let (chunks, broken) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { id, parent, memory_bytes, memory, place, chunks, broken })
    }

    /// The point.
    pub const fn id(&self) -> PointId {
        self.id
    }

    /// What a thread writes with. Two threads do not write the same chunk at a time.
    pub fn pen(&self) -> Pen<'_> {
        Pen { layer: self, buffer: vec![0; PEN_BYTES].into_boxed_slice(), open: None, behind: 0 }
    }

    /// The end of writing. Chunks that were written more than once are hashed anew, from the file's pages.
    ///
    /// # Errors
    /// A write failed, or the file cannot be read.
    pub fn finish(self) -> Result<FinishedLayer, PointError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(PointError::Unfinished);
        }
        // The folder that may have been made is given up last, when it is empty.
        let Self { place, memory, id, parent, memory_bytes, chunks, broken: _ } = self;
        let Chunks { written, rewritten } = chunks.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stale: Vec<u64> = written.iter().filter(|(_, w)| w.digest.is_none()).map(|(&chunk, _)| chunk).collect();
        let rehashed = Mutex::new(BTreeMap::new());
        in_parallel(&stale, |chunk, scratch| {
            let pages = read_present(memory.file(), chunk, &written[&chunk].present, scratch);
            let digest = Digest::of(pages.map_err(|source| PointError::read(memory.path(), source))?);
            rehashed.lock().unwrap_or_else(PoisonError::into_inner).insert(chunk, digest);
            Ok(())
        })?;
        let rehashed = rehashed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let there = written.into_iter().filter(|(_, written)| !written.present.is_empty());
        let records = there.map(|(chunk, Written { present, digest, passes: _ })| {
            let digest = digest.unwrap_or_else(|| rehashed[&chunk]);
            ChunkRecord { chunk, present, digest }
        });
        let records = records.collect();
        let on = parent.as_ref().map(|parent| Parent { id: parent.id(), index: parent.index_digest() });
        let index = Index::new(id, on, memory_bytes, records)
            .map_err(|source| PointError::Index { path: memory.path(), source })?;
        let inherited = parent.as_ref().map_or(&[][..], |parent| parent.sample());
        let sample = sample(&memory, &index, &rewritten, inherited)?;
        Ok(FinishedLayer { id, parent, memory, place, index, sample })
    }

    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FinishedLayer {
    /// How many pages it holds.
    pub fn pages(&self) -> u64 {
        self.index.pages()
    }
}

impl Pen<'_> {
    /// Writes pages from `first` on: what `slices` hold, one after the other, whole pages in all.
    ///
    /// # Errors
    /// The file cannot be written, as on a full disk: the layer is good for nothing then.
    pub fn write<B: BitmapSlice>(&mut self, first: u64, slices: &[VolatileSlice<'_, B>]) -> Result<(), PointError> {
        let bytes: usize = slices.iter().map(VolatileSlice::len).sum();
        let mut slices = slices.iter();
        let mut current = slices.next().cloned();
        self.write_with(first, bytes, |mut buffer| {
            while !buffer.is_empty() {
                let slice = current.take().expect("the slices are as long as the buffers in all");
                let copied = slice.copy_to(buffer);
                buffer = &mut buffer[copied..];
                let rest = slice.offset(copied).ok().filter(|rest| !rest.is_empty());
                current = rest.or_else(|| slices.next().cloned());
            }
        })
    }

    /// As [`Pen::write`], of bytes.
    ///
    /// # Errors
    /// As [`Pen::write`].
    pub fn write_bytes(&mut self, first: u64, mut bytes: &[u8]) -> Result<(), PointError> {
        self.write_with(first, bytes.len(), |buffer| {
            let piece;
            (piece, bytes) = bytes.split_at(buffer.len());
            buffer.copy_from_slice(piece);
        })
    }

    fn write_with(&mut self, first: u64, bytes: usize, mut fill: impl FnMut(&mut [u8])) -> Result<(), PointError> {
        let bytes = bytes as u64;
        let end = first.saturating_mul(PAGE_BYTES).saturating_add(bytes);
        assert!(
            bytes.is_multiple_of(PAGE_BYTES) && end <= self.layer.memory_bytes,
            "whole pages of the guest's memory"
        );
        let mut buffer = std::mem::take(&mut self.buffer);
        let (mut page, end) = (first, end / PAGE_BYTES);
        let mut done = Ok(());
        while page < end && done.is_ok() {
            let chunk_end = (page / CHUNK_PAGES + 1) * CHUNK_PAGES;
            let pages = (end.min(chunk_end) - page).min((PEN_BYTES / PAGE) as u64);
            let piece = &mut buffer[..usize::try_from(pages * PAGE_BYTES).expect("a piece fits the buffer")];
            fill(piece);
            done = self.write_piece(page, piece);
            page += pages;
        }
        self.buffer = buffer;
        if done.is_err() {
            self.layer.broken.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Writes pages of one chunk.
    fn write_piece(&mut self, first: u64, piece: &[u8]) -> Result<(), PointError> {
        let layered = self.layer.parent.is_some();
        let (chunk, start) = (first / CHUNK_PAGES, first % CHUNK_PAGES);
        let open = self.reach(chunk, start);
        let mut writes = Presence::NONE;
        let mut hashes = Presence::NONE;
        for (page, bytes) in (start..).zip(piece.chunks_exact(PAGE)) {
            let zero = bytes == ZEROES;
            let again = open.before.present.contains(page);
            if !zero || again {
                writes.insert(page);
            }
            if !zero || layered {
                hashes.insert(page);
            } else if again {
                open.erased.insert(page);
            }
            if again && !zero {
                open.rewritten = Some(page);
            }
        }
        let bytes = |(page, pages): (u64, u64)| {
            let at = |page: u64| usize::try_from((page - start) * PAGE_BYTES).expect("inside the piece");
            &piece[at(page)..at(page + pages)]
        };
        hashes.runs().for_each(|run| {
            open.hasher.update(bytes(run));
        });
        open.present = open.present.union(&hashes);
        open.next = start + piece.len() as u64 / PAGE_BYTES;
        for run in writes.runs() {
            self.layer.memory.write_at(bytes(run), chunk * CHUNK_BYTES + run.0 * PAGE_BYTES)?;
            self.behind += run.1 * PAGE_BYTES;
        }
        if self.behind >= BEHIND_BYTES {
            self.layer.memory.start_sync();
            self.behind = 0;
        }
        Ok(())
    }

    /// The open chunk, which is `chunk`, with no page from `page` on passed yet.
    fn reach(&mut self, chunk: u64, page: u64) -> &mut OpenChunk {
        let there = self.open.as_ref().is_some_and(|open| open.chunk == chunk && open.next <= page);
        if !there {
            self.close();
        }
        let layer = self.layer;
        self.open.get_or_insert_with(|| OpenChunk {
            chunk,
            before: layer.chunks().written.get(&chunk).copied().unwrap_or_default(),
            next: page,
            present: Presence::NONE,
            erased: Presence::NONE,
            rewritten: None,
            hasher: blake3::Hasher::new(),
        })
    }

    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let digest = Digest::from(&open.hasher);
        let mut chunks = self.layer.chunks();
        let written = chunks.written.entry(open.chunk).or_default();
        let untouched = written.present.without(&open.present).without(&open.erased);
        let alone = written.passes == open.before.passes;
        written.digest = (alone && untouched.is_empty()).then_some(digest);
        written.present = untouched.union(&open.present);
        written.passes += 1;
        if let Some(page) = open.rewritten {
            if chunks.rewritten.len() == REWRITTEN_MAX {
                chunks.rewritten.pop_front();
            }
            chunks.rewritten.push_back(open.chunk * CHUNK_PAGES + page);
        }
    }
}

impl Drop for Pen<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Pages that tell this point's memory from another's: half of them from its own layer (of those first that were written
/// more than once, then evenly spread), the others, where there is a parent, the parent's that are still so.
fn sample(
    memory: &Temporary,
    index: &Index,
    rewritten: &VecDeque<u64>,
    inherited: &[SamplePage],
) -> Result<Vec<SamplePage>, PointError> {
    let mut found = BTreeMap::new();
    let owns = |page: u64| index.record(page / CHUNK_PAGES).is_some_and(|r| r.present.contains(page % CHUNK_PAGES));
    let kept: Vec<_> = inherited.iter().filter(|sample| !owns(sample.page)).collect();
    let own_max = SAMPLE_PAGES_MAX - kept.len().min(SAMPLE_PAGES_MAX / 2);
    let mut bytes = [0; PAGE];
    for page in rewritten.iter().rev().copied().chain(spread(index, SAMPLE_PAGES_MAX as u64)) {
        if found.len() == own_max {
            break;
        }
        let file = memory.file();
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, page * PAGE_BYTES)
            .map_err(|source| PointError::read(memory.path(), source))?;
        if bytes != ZEROES {
            found.insert(page, Digest::of(&bytes));
        }
    }
    for sample in kept {
        if found.len() == SAMPLE_PAGES_MAX {
            break;
        }
        found.insert(sample.page, sample.digest);
    }
    Ok(found.into_iter().map(|(page, digest)| SamplePage { page, digest }).collect())
}

/// Up to `count` of the index's pages, evenly spread.
fn spread(index: &Index, count: u64) -> impl Iterator<Item = u64> {
    let total = index.pages();
    let step = total.div_ceil(count).max(1);
    let mut due = 0;
    let mut passed = 0;
    index.records().iter().flat_map(move |record| {
        let mut pages = Vec::new();
        for (first, run) in record.present.runs() {
            while due < passed + run {
                pages.push(record.chunk * CHUNK_PAGES + first + (due - passed));
                due += step;
            }
            passed += run;
        }
        pages
    })
}
