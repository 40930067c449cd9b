mod points;

use arch::GuestMemory;
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestMemoryBackend};

use super::*;
use crate::config::{MIB, MemoryBacking, MemoryPart, Pages};
use crate::epoch::pool::Pool;
use crate::faults::Fault;
use crate::machine::memory::Hotplug;
use crate::placement::{PlacementSource, Settled};

const BLOCK: u64 = 2 * MIB;
const SLOT: u64 = 128 * MIB;

struct Bench {
    store: PluggableMemory,
    slots: Arc<MemorySlots>,
    memory: Arc<GuestMemory>,
    start: u64,
}

fn bench(change: impl FnOnce(&mut MemoryConfig)) -> Bench {
    bench_with(&[], Origin::Memory, change)
}

/// One of which blocks are plugged from the start: the first of each run, and how many.
fn bench_with(plugged: &[(u64, u64)], origin: Origin, change: impl FnOnce(&mut MemoryConfig)) -> Bench {
    let mut config = MemoryConfig::new(16 * MIB);
    change(&mut config);
    let hotplug = HotplugConfig::new(3 * SLOT);
    let parts = vec![MemoryPart { bytes: config.size_bytes, nodes: None }];
    let mut settled = Settled::as_asked(&config.placement, parts);
    let start = hotplug.start(&config).0;
    let range = |&(first, count): &(u64, u64)| (GuestAddress(start + first * BLOCK), count * BLOCK);
    let plugged: Vec<_> = plugged.iter().map(range).collect();
    let hotplug_of = Hotplug { config: &hotplug, plugged: &plugged };
    let mut memory = MachineMemory::map(&config, Some(hotplug_of), &mut settled).unwrap();
    memory.pluggable.as_mut().unwrap().origin = origin;
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    let slots = Arc::new(MemorySlots::new(&vm, &memory).unwrap());
    let pluggable = memory.pluggable.as_ref().unwrap();
    let store = PluggableMemory::new(&memory, pluggable, &hotplug);
    store.connect(&slots);
    Bench { store, slots, start: pluggable.start.0, memory: memory.all }
}

impl Bench {
    fn at(&self, block: u64) -> GuestAddress {
        GuestAddress(self.start + block * BLOCK)
    }

    fn plug(&self, block: u64, count: u64) {
        self.store.plug(self.at(block), count * BLOCK).unwrap();
    }

    fn unplug(&self, block: u64, count: u64) {
        self.store.unplug(self.at(block), count * BLOCK).unwrap();
    }

    /// Where the slots begin that the guest has beside RAM, in slots.
    fn present(&self) -> Vec<u64> {
        let beside = self.slots.present().into_iter().filter(|slot| slot.guest.0 >= self.start);
        beside.map(|slot| (slot.guest.0 - self.start) / SLOT).collect()
    }

    fn fill(&self, block: u64) {
        self.memory.write_slice(&vec![7; 1 << 21], self.at(block)).unwrap();
    }

    /// Whether a block is what it was filled with; if not, it is empty.
    fn filled(&self, block: u64) -> bool {
        let mut bytes = vec![1; 1 << 21];
        self.memory.read_slice(&mut bytes, self.at(block)).unwrap();
        let first = bytes[0];
        assert!(bytes.iter().all(|&byte| byte == first) && (first == 0 || first == 7));
        first == 7
    }

    /// Whether a block can be reached from here. A system call answers where an access of our own would be a signal.
    fn reach(&self, block: u64) -> bool {
        let (mut end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        self.memory.write_volatile_to(self.at(block), &mut end, 1).is_ok()
    }

    /// How much of the pluggable memory is there, in bytes.
    fn resident(&self) -> u64 {
        let host = self.memory.get_host_address(self.at(0)).unwrap().addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut here, mut kib) = (false, 0);
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            let (first, second) = (words.next().unwrap(), words.next());
            let range = first.split_once('-').and_then(|(start, end)| {
                Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
            });
            if let Some((start, end)) = range {
                here = start < host + 3 * (128 << 20) && host < end;
            } else if here && first == "Rss:" {
                kib += second.unwrap().parse::<u64>().unwrap();
            }
        }
        kib * 1024
    }
}

fn comes_and_goes(bench: &Bench) {
    assert!(bench.present().is_empty() && bench.resident() == 0);
    // From the middle of the first slot into the second one.
    bench.plug(60, 8);
    assert_eq!(bench.present(), [0, 1]);
    (60..68).for_each(|block| bench.fill(block));
    assert_eq!(bench.resident(), 8 * BLOCK);
    bench.unplug(60, 2);
    assert_eq!((bench.present(), bench.resident()), (vec![0, 1], 6 * BLOCK));
    bench.unplug(62, 2);
    assert_eq!((bench.present(), bench.resident()), (vec![1], 4 * BLOCK));
    assert!(bench.filled(64) && bench.filled(67), "the others keep what they hold");
    bench.plug(62, 2);
    assert!(!bench.filled(62) && !bench.filled(63), "what comes back is empty");
    bench.plug(128, 64);
    assert_eq!(bench.present(), [0, 1, 2]);
    bench.unplug(62, 6);
    bench.unplug(128, 64);
    assert!(bench.present().is_empty() && bench.resident() == 0);
}

#[test]
fn slots_are_the_guests_while_a_block_of_them_is_plugged_and_their_pages_go_back() {
    comes_and_goes(&bench(|_| {}));
}

#[test]
fn the_slots_that_the_guest_has_are_in_its_placement() {
    let bench = bench(|_| {});
    let settled = Settled::as_asked(&Default::default(), vec![MemoryPart { bytes: 16 * MIB, nodes: None }]);
    let source = PlacementSource::new(&bench.memory, Arc::downgrade(&bench.slots), settled, (Vec::new(), Vec::new()));
    let plugged = || {
        let regions = source.report().unwrap().memory.regions;
        let plugged = regions.iter().filter(|region| region.plugged);
        plugged.map(|region| (region.guest_address, region.bytes, region.resident_by_node.values().sum())).collect()
    };
    let all: Vec<(u64, u64, u64)> = plugged();
    assert_eq!(all, []);
    bench.plug(60, 8);
    bench.fill(61);
    assert_eq!(plugged(), [(bench.start, 2 * SLOT, BLOCK)]);
    bench.plug(190, 1);
    bench.unplug(64, 4);
    assert_eq!(plugged(), [(bench.start, SLOT, BLOCK), (bench.start + 2 * SLOT, SLOT, 0)]);
}

#[test]
fn so_it_is_with_memory_in_a_file() {
    comes_and_goes(&bench(|config| config.backing = MemoryBacking::Memfd));
}

#[test]
fn memory_that_is_there_from_the_start_is_there_when_it_is_plugged() {
    let bench = bench(|config| config.placement.prefault = true);
    bench.plug(3, 4);
    assert_eq!(bench.resident(), 4 * BLOCK);
}

#[test]
fn what_is_not_plugged_cannot_be_reached_from_here() {
    let bench = bench(|_| {});
    bench.plug(0, 1);
    assert!(bench.reach(0) && !bench.reach(64));
    bench.unplug(0, 1);
    assert!(!bench.reach(0));
}

#[test]
fn what_a_dry_pool_cannot_plug_leaves_nothing_behind_of_hugepages() {
    // RAM has 8 of them.
    let pool = Pool::of_2m(8 + 4);
    let bench = bench(|config| config.placement.pages = Pages::Huge2M);
    let before = pool.free();
    // Of a slot, and across two.
    for block in [0, 60] {
        bench.store.plug(bench.at(block), 8 * BLOCK).unwrap_err();
        assert_eq!((pool.free(), bench.present()), (before, vec![]));
        assert!(!bench.reach(block) && !bench.reach(64));
    }
    bench.plug(60, 4);
    bench.store.plug(bench.at(64), BLOCK).unwrap_err();
    assert_eq!((pool.free(), bench.present()), (before - 4, vec![0]));
    bench.unplug(60, 4);
    assert_eq!((pool.free(), bench.present()), (before, vec![]));
}

#[test]
fn what_comes_and_goes_while_writes_are_logged_is_in_the_log_by_what_changed() {
    use crate::epoch::DirtyLog;
    let bench = bench(|_| {});
    let mut log = DirtyLog::start(&bench.slots).unwrap();
    let mut harvest = || log.harvest().unwrap().runs().map(|run| (run.first, run.pages)).collect::<Vec<_>>();
    let first = |block: u64| (16 * MIB + block * BLOCK) / 4096;
    bench.plug(60, 8);
    assert_eq!(harvest(), [], "nobody has written to it");
    bench.fill(61);
    bench.fill(64);
    assert_eq!(harvest(), [(first(61), 512), (first(64), 512)]);
    bench.unplug(60, 8);
    assert_eq!(harvest(), [(first(60), 8 * 512)], "what was in it is not there any more");
    bench.plug(60, 8);
    bench.fill(66);
    assert_eq!(harvest(), [(first(66), 512)]);
}

#[test]
fn what_is_plugged_from_the_start_is_the_guests_from_the_start_and_goes_as_any_other_block() {
    let bench = bench_with(&[(3, 2), (60, 8)], Origin::Memory, |_| {});
    assert_eq!(bench.present(), [0, 1]);
    assert!(bench.reach(3) && bench.reach(64) && !bench.reach(128));
    assert_eq!(bench.resident(), 0);
    bench.fill(64);
    bench.unplug(64, 4);
    assert_eq!((bench.present(), bench.resident()), (vec![0], 0));
    bench.unplug(3, 2);
    bench.unplug(60, 4);
    assert!(bench.present().is_empty() && !bench.reach(3));
}

#[test]
fn pages_are_told_apart_by_when_they_were_plugged() {
    let bench = bench_with(&[(2, 3)], Origin::Memory, |_| {});
    bench.unplug(3, 1);
    bench.plug(64, 1);
    let first = |block: u64| (16 * MIB + block * BLOCK) / 4096;
    let kinds = || {
        let plugged = bench.store.plugged();
        let kind = |page: u64| match plugged.kind(page) {
            PageKind::Original => 'o',
            PageKind::Fresh => 'f',
            PageKind::Unplugged => '-',
        };
        [0, first(0) - 1, first(1), first(2), first(3) - 1, first(3), first(4), first(5), first(64), first(65) - 1]
            .map(kind)
            .iter()
            .collect::<String>()
    };
    assert_eq!(kinds(), "oo-oo-o-ff");
    bench.plug(3, 1);
    assert_eq!(kinds(), "oo-oofo-ff", "what comes back is not what was there");
    let mut pages = PageSet::new((16 * MIB + 3 * SLOT) / 4096);
    pages.insert_run(PageRun { first: 0, pages: pages.pages() });
    bench.store.plugged().retain(&mut pages);
    let run = |first: u64, end: u64| PageRun { first, pages: end - first };
    let held = [run(0, first(0)), run(first(2), first(5)), run(first(64), first(65))];
    assert_eq!(pages.runs().collect::<Vec<_>>(), held);
}

#[test]
fn a_block_that_was_mapped_from_a_file_comes_back_empty_and_is_told_of_as_any_other() {
    let bench = bench_with(&[(60, 8)], Origin::Files(MemoryPlacement::default()), |_| {});
    let file = crate::memfd::create("husk-test", 16 * BLOCK).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 16 << 21], 0).unwrap();
    let host = bench.memory.get_host_address(bench.at(60)).unwrap();
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
    // SAFETY: the range is a part of the mapping of guest memory, and nobody uses it.
    let mapped = unsafe { libc::mmap(host.cast(), 8 << 21, access, flags, std::os::fd::AsRawFd::as_raw_fd(&file), 0) };
    assert_ne!(mapped, libc::MAP_FAILED);
    assert!(bench.filled(60) && bench.filled(67));
    bench.unplug(61, 6);
    bench.plug(61, 1);
    bench.plug(66, 1);
    assert!(!bench.filled(61) && !bench.filled(66), "what comes back is empty");
    assert!(bench.filled(60) && bench.filled(67), "the others keep what they hold");
    bench.unplug(66, 2);
    assert!(bench.present() == [0] && !bench.reach(67));
}

#[test]
fn what_the_kernel_refuses_at_any_step_of_plugging_leaves_nothing_behind() {
    let bench = bench(|config| config.placement.prefault = true);
    let refused_at = |step| faults::with(Fault::At(step), || bench.store.plug(bench.at(60), 8 * BLOCK));
    let mut step = 0;
    while let (Err(_), steps) = refused_at(step) {
        assert!(steps > step);
        assert_eq!((bench.present(), bench.resident()), (vec![], 0), "step {step}");
        assert!(!bench.reach(60) && !bench.reach(64), "step {step}");
        step += 1;
    }
    assert_eq!((step, bench.present(), bench.resident()), (5, vec![0, 1], 8 * BLOCK));
}

/// Unplugs what a part of each of two slots is, all that is plugged of them, such that `refused` are refused.
fn refuses(bench: &Bench, refused: Fault) -> bool {
    faults::with(refused, || bench.store.unplug(bench.at(60), 8 * BLOCK)).0.is_err()
}

#[test]
fn what_the_kernel_refuses_at_any_step_of_unplugging_is_the_guests_still_and_goes_the_next_time() {
    for (origin, steps) in [(Origin::Memory, 5), (Origin::Files(MemoryPlacement::default()), 7)] {
        let bench = bench_with(&[(60, 8)], origin, |_| {});
        let mut step = 0;
        while refuses(&bench, Fault::At(step)) {
            assert_eq!(bench.present(), [0, 1], "step {step}");
            (60..68).for_each(|block| bench.fill(block));
            step += 1;
        }
        assert_eq!((step, bench.present(), bench.resident()), (steps, vec![], 0));
        assert!(!bench.reach(60) && !bench.reach(64));
    }
}

#[test]
fn what_can_neither_be_unplugged_nor_given_back_can_be_both_later() {
    for step in 0..5 {
        let broken = || {
            let bench = bench_with(&[(60, 8)], Origin::Memory, |_| {});
            assert!(refuses(&bench, Fault::From(step)));
            bench
        };
        let bench = broken();
        assert!(!refuses(&bench, Fault::Never));
        assert_eq!((bench.present(), bench.resident()), (vec![], 0), "step {step}");
        assert!(!bench.reach(60) && !bench.reach(64), "step {step}");
        // Others of the same slots bring them back.
        let bench = broken();
        bench.plug(59, 1);
        bench.plug(68, 1);
        assert_eq!(bench.present(), [0, 1], "step {step}");
        (59..69).for_each(|block| bench.fill(block));
        assert!(refuses(&bench, Fault::At(0)) && !refuses(&bench, Fault::Never));
        assert_eq!((bench.present(), bench.resident()), (vec![0, 1], 2 * BLOCK), "step {step}");
    }
}
