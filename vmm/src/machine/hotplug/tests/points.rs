//! Points of memory that is plugged and unplugged, held against a plain model of it, through every way of restoring.

use std::collections::BTreeSet;
use std::path::Path;

use arch::memory::Bytes as _;

use super::*;
use crate::control::{EventReceiver, event_queue};
use crate::epoch::{Described, Digest, DirtyLog, Encoded, LayerWriter, Point, StateHeader};
use crate::machine::Assembly;
use crate::machine::memory::Hotplug;
use crate::machine::restored::{self, Brought};
use crate::pager::MemoryThread;
use crate::snapshot::{Absent, LastPoint, MemoryMode, PointFiles, RestoredMemory, Source, Which};

const RAM: u64 = 16 * MIB;
const BLOCKS: u64 = 3 * SLOT / BLOCK;
const BLOCK_PAGES: u64 = BLOCK / PAGE_BYTES;
const PAGES: u64 = (RAM + 3 * SLOT) / PAGE_BYTES;
/// So that all of it can be looked at often.
const PLUGGED_MAX: usize = 12;

/// A machine's memory beside what must be in it: a number for each page, which all of its bytes are.
struct Model {
    // Before the memory that it brings.
    _thread: Option<MemoryThread>,
    _events: EventReceiver,
    store: Arc<PluggableMemory>,
    log: DirtyLog,
    memory: Arc<GuestMemory>,
    start: u64,
    absent: Absent,
    pages: Vec<u8>,
    plugged: BTreeSet<u64>,
    random: u64,
}

/// A point, and what it must hold.
struct Kept {
    files: PointFiles,
    header: StateHeader,
    pages: Vec<u8>,
    plugged: BTreeSet<u64>,
}

impl Model {
    fn new(from: Option<(&Kept, MemoryMode)>, backing: MemoryBacking, random: u64) -> Self {
        let config = MemoryConfig { backing, ..MemoryConfig::new(RAM) };
        let hotplug = HotplugConfig::new(3 * SLOT);
        let mut settled = Settled::as_asked(&config.placement, vec![MemoryPart { bytes: RAM, nodes: None }]);
        let start = hotplug.start(&config).0;
        let plugged = from.map_or_else(BTreeSet::new, |(kept, _)| kept.plugged.clone());
        let ranges: Vec<_> = plugged.iter().map(|block| (GuestAddress(start + block * BLOCK), BLOCK)).collect();
        let of = Hotplug { config: &hotplug, plugged: &ranges };
        let map = |settled: &mut Settled| MachineMemory::map(&config, Some(of), settled);
        let mut memory = map(&mut settled).unwrap();
        let (sender, events) = event_queue().unwrap();
        let brought = from.map(|(kept, mode)| {
            let point = Arc::new(Point::open(&kept.files.memory, &kept.header).unwrap());
            let last = LastPoint { files: kept.files.clone(), header: kept.header.clone(), point: None };
            let record = kept.files.memory.with_extension("ws");
            let from = RestoredMemory::Files { point, mode, record, last: Box::new(last) };
            restored::bring(&mut memory, map, &mut settled, from, &sender, &Assembly::default()).unwrap()
        });
        let Brought { thread, tracking, origin } = brought.unwrap_or_default();
        memory.pluggable.as_mut().unwrap().origin = origin;
        let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
        let slots = Arc::new(MemorySlots::new(&vm, &memory).unwrap());
        let store = Arc::new(PluggableMemory::new(&memory, memory.pluggable.as_ref().unwrap(), &hotplug));
        store.connect(&slots);
        let pages = from.map_or_else(|| vec![0; usize::try_from(PAGES).unwrap()], |(kept, _)| kept.pages.clone());
        let (log, memory, absent) = (DirtyLog::start(&slots).unwrap(), memory.all, tracking.absent);
        Self { _thread: thread, _events: events, store, log, memory, start, absent, pages, plugged, random }
    }

    /// A number below `end` (splitmix64).
    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn address(&self, page: u64) -> GuestAddress {
        let bytes = page * PAGE_BYTES;
        GuestAddress(if bytes < RAM { bytes } else { self.start + bytes - RAM })
    }

    /// Plugs, unplugs, or writes to what is plugged.
    fn step(&mut self) {
        let block = self.below(BLOCKS);
        let at = GuestAddress(self.start + block * BLOCK);
        match self.below(8) {
            0 | 1 if self.plugged.len() < PLUGGED_MAX && !self.plugged.contains(&block) => {
                if self.refused(|store| store.plug(at, BLOCK)).is_ok() {
                    self.plugged.insert(block);
                }
            }
            2 if !self.plugged.is_empty() => {
                let nth = usize::try_from(self.below(self.plugged.len() as u64)).unwrap();
                let block = *self.plugged.iter().nth(nth).unwrap();
                let at = GuestAddress(self.start + block * BLOCK);
                let first = usize::try_from(RAM / PAGE_BYTES + block * BLOCK_PAGES).unwrap();
                let last = first + usize::try_from(BLOCK_PAGES).unwrap();
                if self.refused(|store| store.unplug(at, BLOCK)).is_ok() {
                    self.plugged.remove(&block);
                    self.pages[first..last].fill(0);
                } else {
                    // Of what was in it, some may be gone.
                    (first..last).for_each(|page| self.look(page));
                }
            }
            _ => {
                let held = self.held();
                let page = held[usize::try_from(self.below(held.len() as u64)).unwrap()];
                let byte = u8::try_from(self.below(256)).unwrap();
                self.memory.write_slice(&[byte; 4096], self.address(page)).unwrap();
                self.pages[usize::try_from(page).unwrap()] = byte;
            }
        }
    }

    /// Does it, now and then such that one step is refused.
    fn refused(&mut self, work: impl FnOnce(&PluggableMemory) -> io::Result<()>) -> io::Result<()> {
        let refused = Fault::At(self.below(12));
        faults::with(refused, || work(&self.store)).0
    }

    /// Takes note of what is in a page, which is what was there or zeros.
    fn look(&mut self, page: usize) {
        let mut bytes = [0; 4096];
        self.memory.read_slice(&mut bytes, self.address(page as u64)).unwrap();
        assert!(bytes == [bytes[0]; 4096] && [0, self.pages[page]].contains(&bytes[0]), "page {page} is {}", bytes[0]);
        self.pages[page] = bytes[0];
    }

    /// The pages that the guest has.
    fn held(&self) -> Vec<u64> {
        let of_block = |block: &u64| {
            let first = RAM / PAGE_BYTES + block * BLOCK_PAGES;
            first..first + BLOCK_PAGES
        };
        (0..RAM / PAGE_BYTES).chain(self.plugged.iter().flat_map(of_block)).collect()
    }

    fn check(&self, what: &str) {
        let mut bytes = [0; 4096];
        for page in self.held() {
            self.memory.read_slice(&mut bytes, self.address(page)).unwrap();
            let wanted = self.pages[usize::try_from(page).unwrap()];
            assert!(bytes == [wanted; 4096], "{what}: page {page} is {} and not {wanted}", bytes[0]);
        }
    }

    /// A point on top of `parent`, or a full one; held against the model.
    fn point(&mut self, folder: &Path, parent: Option<&Kept>) -> Kept {
        let source = Source::new(Arc::clone(&self.memory), Some(Arc::clone(&self.store)), self.absent.clone());
        let files = PointFiles::in_folder(folder);
        let on = parent.map(|parent| Arc::new(Point::open(&parent.files.memory, &parent.header).unwrap()));
        let writer = LayerWriter::create(&files, source.bytes(), on).unwrap();
        let written = self.log.harvest().unwrap();
        let (which, pages) = match parent {
            Some(_) => (Which::Written, written),
            None => (Which::Held, source.touched().unwrap()),
        };
        source.copy((which, &pages), &writer, |_| true).unwrap();
        let described = Described { created_ms: 1, cpu: Encoded::of(1, &0).unwrap(), config: Digest::of(b"") };
        let header = writer.finish().unwrap().publish(&described, &[]).unwrap();
        self.log.acknowledge();
        let kept = Kept { files, header, pages: self.pages.clone(), plugged: self.plugged.clone() };
        kept.check(&folder.display().to_string());
        kept
    }
}

impl Kept {
    fn check(&self, what: &str) {
        let point = Point::open(&self.files.memory, &self.header).unwrap();
        point.verify_all().unwrap();
        let (mut bytes, mut scratch) = (vec![0; 512 * 4096], Vec::new());
        for (chunk, wanted) in (0..).zip(self.pages.chunks(512)) {
            let is_there = point.read_chunk(chunk, &mut bytes[..wanted.len() * 4096], &mut scratch).unwrap();
            assert!(is_there || wanted.iter().all(|&byte| byte == 0), "{what}: chunk {chunk} is missing");
            for (page, (bytes, &wanted)) in bytes.chunks(4096).zip(wanted).enumerate().filter(|_| is_there) {
                let at = chunk * 512 + page as u64;
                assert!(bytes == [wanted; 4096], "{what}: page {at} is {} and not {wanted}", bytes[0]);
            }
        }
    }
}

#[test]
fn points_hold_what_is_plugged_and_never_what_was_before_it_went() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let modes = [MemoryMode::Map, MemoryMode::Lazy, MemoryMode::Copy];
    for (backing, modes) in [(MemoryBacking::Anonymous, &modes[..]), (MemoryBacking::Memfd, &modes[1..])] {
        let at = |name: String| folder.path().join(format!("{backing:?}-{name}"));
        let mut model = Model::new(None, backing, 1);
        let mut last: Option<Kept> = None;
        for round in 0..3 {
            (0..60).for_each(|_| model.step());
            // Of a chain, and now and then of nothing.
            let kept = model.point(&at(format!("{round}")), last.as_ref().filter(|_| round != 1));
            for mode in modes {
                let mut clone = Model::new(Some((&kept, *mode)), backing, round + 2);
                clone.check(&format!("{round} by {mode:?}"));
                (0..60).for_each(|_| clone.step());
                let increment = clone.point(&at(format!("{round}-{mode:?}")), Some(&kept));
                (0..60).for_each(|_| clone.step());
                clone.point(&at(format!("{round}-{mode:?}-on")), Some(&increment));
                clone.point(&at(format!("{round}-{mode:?}-full")), None);
                clone.check(&format!("{round} after {mode:?}"));
            }
            last = Some(kept);
        }
    }
}

/// One access to a block that is gone, and this process is.
#[test]
fn what_is_unplugged_while_it_is_copied_is_copied_or_gone() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut model = Model::new(None, MemoryBacking::Anonymous, 1);
    let source = Source::new(Arc::clone(&model.memory), Some(Arc::clone(&model.store)), Absent::Zero);
    let at = GuestAddress(model.start);
    let mut pages = PageSet::new(PAGES);
    pages.insert_run(PageRun { first: RAM / PAGE_BYTES, pages: 4 * BLOCK_PAGES });
    for round in 0..20 {
        model.store.plug(at, 4 * BLOCK).unwrap();
        model.memory.write_slice(&[7; 4096], at).unwrap();
        let files = PointFiles::in_folder(&folder.path().join(round.to_string()));
        let writer = LayerWriter::create(&files, source.bytes(), None).unwrap();
        std::thread::scope(|scope| {
            let copied = scope.spawn(|| source.copy((Which::Written, &pages), &writer, |_| true));
            (0..4).for_each(|block| model.store.unplug(GuestAddress(at.0 + block * BLOCK), BLOCK).unwrap());
            copied.join().unwrap().unwrap();
        });
    }
    assert!(model.log.harvest().unwrap().contains(RAM / PAGE_BYTES), "the next point has what is not there any more");
}
