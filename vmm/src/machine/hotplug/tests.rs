use arch::GuestMemory;
use kvm_ioctls::Kvm;
use vm_memory::{Bytes, GuestMemoryBackend};

use super::*;
use crate::config::{MIB, MemoryBacking, MemoryPart, Pages};
use crate::epoch::pool::Pool;
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
    let mut config = MemoryConfig::new(16 * MIB);
    change(&mut config);
    let hotplug = HotplugConfig::new(3 * SLOT);
    let parts = vec![MemoryPart { bytes: config.size_bytes, nodes: None }];
    let settled = Settled::as_asked(&config.placement, parts);
    let memory = MachineMemory::map(&config, Some(&hotplug), &settled).unwrap();
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
