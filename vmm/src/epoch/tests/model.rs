//! What a point must hold, kept as plain bytes beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arch::memory::VolatileSlice;

use super::super::*;

/// A machine's memory and what was written to it since the last point.
pub(super) struct Machine {
    pub(super) memory: Vec<u8>,
    dirty: std::collections::BTreeSet<u64>,
    random: u64,
}

impl Machine {
    pub(super) fn new(pages: u64, seed: u64) -> Self {
        let bytes = usize::try_from(pages * PAGE_BYTES).unwrap();
        Self { memory: vec![0; bytes], dirty: (0..pages).collect(), random: seed }
    }

    /// A number below `end` (splitmix64).
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// Fills a page with bytes that no other has.
    pub(super) fn scribble(&mut self, page: u64) {
        let word = self.below(u64::MAX).max(1);
        self.page(page).chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&word.to_le_bytes()));
        self.dirty.insert(page);
    }

    pub(super) fn clear(&mut self, page: u64) {
        self.page(page).fill(0);
        self.dirty.insert(page);
    }

    /// Goes on from a point's memory.
    pub(super) fn restore(&mut self, memory: &[u8]) {
        self.memory.copy_from_slice(memory);
        self.dirty.clear();
    }

    fn page(&mut self, page: u64) -> &mut [u8] {
        let at = usize::try_from(page * PAGE_BYTES).unwrap();
        &mut self.memory[at..at + PAGE]
    }

    /// Writes what is dirty as a point in `folder`; of a full one, everything.
    pub(super) fn snapshot(&mut self, folder: &Path, parent: Option<&Saved>) -> Result<Saved, PointError> {
        let files = PointFiles::in_folder(folder);
        self.snapshot_at(&files, parent)
    }

    pub(super) fn snapshot_at(&mut self, files: &PointFiles, parent: Option<&Saved>) -> Result<Saved, PointError> {
        let bytes = self.memory.len() as u64;
        let on = parent.map(|parent| parent.open().map(Arc::new)).transpose()?;
        let layer = LayerWriter::create(files, bytes, on)?;
        let pages: Vec<u64> = match parent {
            Some(_) => self.dirty.iter().copied().collect(),
            None => (0..bytes / PAGE_BYTES).collect(),
        };
        let mut pen = layer.pen();
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            let at = |page: u64| usize::try_from(page * PAGE_BYTES).unwrap();
            let bytes = &mut self.memory[at(run[0])..at(run[run.len() - 1] + 1)];
            if run[0].is_multiple_of(2) {
                pen.write_bytes(run[0], bytes)?;
                continue;
            }
            // As guest memory comes: slices of any length, none of which ends where a buffer of the pen's does.
            let (some, rest) = bytes.split_at_mut(PAGE / 3);
            pen.write(run[0], &[VolatileSlice::from(some), VolatileSlice::from(rest)])?;
        }
        drop(pen);
        let header = layer.finish()?.publish(&described(), &sections())?;
        self.dirty.clear();
        let PointFiles { state, memory, .. } = files;
        Ok(Saved { state: state.clone(), memory: memory.clone(), header, holds: self.memory.clone() })
    }
}

/// A folder on a filesystem in memory, for tests that would wait a thousand times for a disk.
pub(super) fn memory_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// A point, and what it must hold.
#[derive(Clone)]
pub(super) struct Saved {
    pub(super) state: PathBuf,
    pub(super) memory: PathBuf,
    pub(super) header: StateHeader,
    pub(super) holds: Vec<u8>,
}

impl Saved {
    pub(super) fn open(&self) -> Result<Point, PointError> {
        Point::open(&self.memory, &self.header)
    }

    /// Reads it in every way there is.
    pub(super) fn check(&self) {
        self.check_memory();
        self.open().unwrap().verify_all().unwrap();
    }

    /// Reads what is its memory, and no page that a later layer hides.
    pub(super) fn check_memory(&self) {
        let file = StateFile::read(&self.state).unwrap();
        assert_eq!(file.header, self.header);
        let point = self.open().unwrap();
        point.check_sample().unwrap();
        assert_eq!(through_chunks(&point).unwrap(), self.holds, "chunk by chunk");
        assert_eq!(through_runs(&point), self.holds, "as runs of the files");
    }
}

pub(super) fn through_chunks(point: &Point) -> Result<Vec<u8>, PointError> {
    let mut memory = vec![0; usize::try_from(point.memory_bytes()).unwrap()];
    let mut scratch = Vec::new();
    for (chunk, bytes) in (0..).zip(memory.chunks_mut(512 * PAGE)) {
        point.read_chunk(chunk, bytes, &mut scratch)?;
    }
    Ok(memory)
}

pub(super) fn through_runs(point: &Point) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut memory = vec![0; usize::try_from(point.memory_bytes()).unwrap()];
    for LayerRun { first, pages, layer } in point.runs() {
        let at = usize::try_from(first * PAGE_BYTES).unwrap();
        let piece = &mut memory[at..at + usize::try_from(pages * PAGE_BYTES).unwrap()];
        point.layer_file(layer).read_exact_at(piece, first * PAGE_BYTES).unwrap();
    }
    memory
}

pub(super) fn described() -> Described {
    let cpu = Encoded::of(1, &("GenuineIntel", 0x0006_55d4_u32)).unwrap();
    Described { created_ms: 1_795_693_333_000, cpu, config: Digest::of(b"configuration") }
}

pub(super) fn sections() -> Vec<Section> {
    vec![
        Section::of(SectionKind::Vm, "", 1, &vec![7_u8; 300]).unwrap(),
        Section::of(SectionKind::Vcpu, "0", 1, &vec![1_u64; 200]).unwrap(),
        Section::of(SectionKind::Blk, "rootfs", 2, &"queue").unwrap(),
    ]
}
