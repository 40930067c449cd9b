//! The log of writes to guest memory, held against guests that write known pages on the real `/dev/kvm`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arch::{GuestAddress, GuestMemory};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, FileOffset};

use super::*;
use crate::config::Pages;
use crate::epoch::pool::Pool;
use crate::machine::MachineMemory;

/// Of each of the two regions: one at 0, one at 4 GiB.
const REGION_BYTES: usize = 8 << 20;
const REGION_PAGES: u64 = REGION_BYTES as u64 / PAGE_BYTES;
const UPPER: u64 = 1 << 32;

const CODE: u64 = 0x1000;
const TABLES: u64 = 0x2000;
/// Each vCPU's list of addresses to write to, a few pages behind each other.
const LISTS: [u64; 2] = [0x10_000, 0x20_000];
const LIST_MAX: usize = 8000;

/// An address that is mapped and no memory: a write to it is an exit.
const DONE: u64 = 0xd000_0000;

/// Writes to each address of the list at RBX, up to a 0, and tells by a write to that at RDI; and again.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0x48, 0x8b, 0x06,       // next: mov rax, [rsi]
    0x48, 0x83, 0xc6, 0x08, // add rsi, 8
    0x48, 0x85, 0xc0,       // test rax, rax
    0x74, 0x04,             // jz done
    0xfe, 0x00,             // inc byte [rax]
    0xeb, 0xf0,             // jmp next
    0x88, 0x07,             // done: mov [rdi], al
    0x48, 0x89, 0xde,       // mov rsi, rbx
    0xeb, 0xe9,             // jmp next
];

/// A VM of two vCPUs in 64-bit mode.
struct Guest {
    vcpus: [VcpuFd; 2],
    slots: Arc<MemorySlots>,
    memory: Arc<GuestMemory>,
}

impl Guest {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), REGION_BYTES), (GuestAddress(UPPER), REGION_BYTES)];
        Self::of(GuestMemory::from_ranges(&ranges).unwrap())
    }

    fn of(memory: GuestMemory) -> Self {
        let kvm = Kvm::new().expect("the tests need /dev/kvm");
        let vm = Arc::new(kvm.create_vm().unwrap());
        let memory = Arc::new(memory);
        let ram = MachineMemory {
            ram: Arc::clone(&memory),
            all: Arc::clone(&memory),
            pluggable: None,
            pages: Pages::HostsChoice,
        };
        let slots = Arc::new(MemorySlots::new(&vm, &ram).unwrap());
        memory.write_slice(PROGRAM, GuestAddress(CODE)).unwrap();
        write_page_tables(&memory);
        let vcpus = [0, 1].map(|index: u8| {
            let vcpu = vm.create_vcpu(index.into()).unwrap();
            vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
            enter_64_bit_mode(&vcpu, LISTS[usize::from(index)]);
            vcpu
        });
        Self { vcpus, slots, memory }
    }

    fn start_log(&self) -> DirtyLog {
        DirtyLog::start(&self.slots).unwrap()
    }

    /// Has each vCPU write one byte of each of its pages, at the same time.
    fn write(&mut self, pages: [&[u64]; 2]) {
        for (list, pages) in LISTS.into_iter().zip(pages) {
            self.give(list, pages);
        }
        thread::scope(|scope| {
            for vcpu in &mut self.vcpus {
                scope.spawn(|| run(vcpu));
            }
        });
    }

    /// Writes a vCPU's list.
    fn give(&self, list: u64, pages: &[u64]) {
        assert!(pages.len() < LIST_MAX);
        let addresses = pages.iter().map(|page| address(*page).0 + page % PAGE_BYTES).chain([0]);
        let bytes: Vec<u8> = addresses.flat_map(u64::to_le_bytes).collect();
        self.memory.write_slice(&bytes, GuestAddress(list)).unwrap();
    }

    fn read(&self, page: u64) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        self.memory.read_slice(&mut bytes, address(page)).unwrap();
        bytes
    }
}

/// Runs a vCPU to the end of its list.
fn run(vcpu: &mut VcpuFd) {
    match vcpu.run().unwrap() {
        VcpuExit::MmioWrite(DONE, _) => {}
        exit => panic!("unexpected exit: {exit:?}"),
    }
}

/// Where a page, by its number in memory file order, is for the guest.
fn address(page: u64) -> GuestAddress {
    GuestAddress(if page < REGION_PAGES { page * PAGE_BYTES } else { UPPER + (page - REGION_PAGES) * PAGE_BYTES })
}

/// Maps the first GiB, that below 4 GiB and that at 4 GiB as they are. All is the user's, and accessed and dirty already: a CPU has nothing
/// to write there.
fn write_page_tables(memory: &GuestMemory) {
    const PRESENT: u64 = 0x67;
    const LARGE: u64 = PRESENT | 0x80;
    let [pointers, low, hole, high] = [1, 2, 3, 4].map(|table| TABLES + table * PAGE_BYTES);
    let write = |table: u64, index: u64, entry: u64| memory.write_obj(entry, GuestAddress(table + 8 * index)).unwrap();
    write(TABLES, 0, pointers | PRESENT);
    for (gib, table) in [(0, low), (3, hole), (4, high)] {
        write(pointers, gib, table | PRESENT);
        (0..512).for_each(|index| write(table, index, ((gib << 30) + (index << 21)) | LARGE));
    }
}

/// In ring 3: where the development machines' KVM emulates ring 0, the guest's writes would not go through its mappings.
fn enter_64_bit_mode(vcpu: &VcpuFd, list: u64) {
    let mut sregs = vcpu.get_sregs().unwrap();
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 0x33,
        type_: 0xb,
        present: 1,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        *segment = kvm_segment { selector: 0x2b, type_: 3, l: 0, db: 1, ..code };
    }
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, TABLES, 0x20, 0x500);
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rip, regs.rflags, regs.rsi, regs.rbx, regs.rdi) = (CODE, 2, list, list, DONE);
    vcpu.set_regs(&regs).unwrap();
}

fn set(pages: &PageSet) -> BTreeSet<u64> {
    pages.runs().flat_map(|run| run.first..run.end()).collect()
}

/// The pages that hold two lists.
fn lists(pages: [&[u64]; 2]) -> BTreeSet<u64> {
    let of = |(list, pages): (u64, &[u64])| {
        list / PAGE_BYTES..=(list + 8 * u64::try_from(pages.len()).unwrap() + 7) / PAGE_BYTES
    };
    LISTS.into_iter().zip(pages).flat_map(of).collect()
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    /// Pages that hold neither code nor tables nor lists.
    fn pages(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| 256 + self.roll(2 * REGION_PAGES - 256)).collect()
    }
}

#[test]
fn a_harvest_is_exactly_what_guest_and_vmm_wrote_in_its_epoch() {
    let mut guest = Guest::new();
    let mut dice = Dice(7);
    // What came before the log, on pages that are mapped writable by then.
    guest.write([&dice.pages(500), &dice.pages(500)]);
    let mut log = guest.start_log();
    assert_eq!(log.pages(), 2 * REGION_PAGES);
    assert_eq!(set(&log.harvest().unwrap()), BTreeSet::new(), "the first clear");
    for round in 0..30 {
        let (first, second) = (dice.pages(round * 10), dice.pages(round * 7));
        guest.write([&first, &second]);
        let own: Vec<u64> = dice.pages(round);
        for page in &own {
            guest.memory.write_slice(&[1], address(*page)).unwrap();
        }
        let mut expected = lists([&first, &second]);
        expected.extend(first.iter().chain(&second).chain(&own));
        assert_eq!(set(&log.harvest().unwrap()), expected, "round {round}");
        if round % 3 == 0 {
            assert_eq!(set(&log.harvest().unwrap()), BTreeSet::new());
            log.acknowledge();
        }
    }
    log.stop().unwrap();
}

#[test]
fn the_first_and_last_pages_of_both_regions_are_in_their_places() {
    let mut guest = Guest::new();
    // What a guest reads first while the log is on, its code here, KVM maps for writing at once, and logs.
    guest.write([&[], &[]]);
    let mut log = guest.start_log();
    let edges = [REGION_PAGES - 1, REGION_PAGES, 2 * REGION_PAGES - 1];
    guest.write([&edges, &[]]);
    let expected: BTreeSet<u64> = lists([&edges, &[]]).into_iter().chain(edges).collect();
    assert_eq!(set(&log.harvest().unwrap()), expected);
}

#[test]
fn what_did_not_arrive_is_harvested_again_with_what_came_since() {
    let mut guest = Guest::new();
    let mut log = guest.start_log();
    guest.write([&[1000], &[1001]]);
    let first = log.harvest().unwrap();
    assert!(first.contains(1000) && first.contains(1001));
    guest.write([&[1002], &[]]);
    let second = log.harvest().unwrap();
    assert!(!second.contains(1000) && second.contains(1002), "a round has only what is new");
    log.put_back();
    guest.write([&[1003], &[]]);
    let again = set(&log.harvest().unwrap());
    assert!(again.is_superset(&BTreeSet::from([1000, 1001, 1002, 1003])), "{again:?}");
    log.put_back();
    assert_eq!(set(&log.harvest().unwrap()), again);
    log.acknowledge();
    log.put_back();
    assert!(log.harvest().unwrap().is_empty(), "what arrived stays so");
}

#[test]
fn a_log_that_was_off_knows_nothing_of_that_time() {
    let mut guest = Guest::new();
    let mut log = guest.start_log();
    guest.write([&[1000], &[]]);
    assert!(log.harvest().unwrap().contains(1000));
    log.stop().unwrap();
    guest.write([&[1001], &[]]);
    // Dropped instead of stopped, with what it had.
    drop(guest.start_log());
    let mut log = guest.start_log();
    guest.write([&[1002], &[]]);
    let harvested = set(&log.harvest().unwrap());
    assert!(harvested.contains(&1002) && harvested.is_disjoint(&BTreeSet::from([1000, 1001])), "{harvested:?}");
}

#[test]
fn a_memory_of_hugepages_is_logged_by_the_small_page() {
    let _pool = Pool::of_2m(8);
    let file = Arc::new(crate::memfd::create_huge("husk-test", 2 * REGION_BYTES as u64, 2 << 20).unwrap());
    let range =
        |start: u64, offset| (GuestAddress(start), REGION_BYTES, Some(FileOffset::from_arc(Arc::clone(&file), offset)));
    let ranges = [range(0, 0), range(UPPER, REGION_BYTES as u64)];
    let mut guest = Guest::of(GuestMemory::from_ranges_with_files(ranges).unwrap());
    let mut dice = Dice(11);
    // All of it is mapped by large entries, which logging has to take apart.
    guest.write([&dice.pages(300), &dice.pages(300)]);
    let mut log = guest.start_log();
    for round in 0..5 {
        let (first, second) = (dice.pages(50), dice.pages(50));
        guest.write([&first, &second]);
        let expected: BTreeSet<u64> = lists([&first, &second]).into_iter().chain(first).chain(second).collect();
        assert_eq!(set(&log.harvest().unwrap()), expected, "round {round}");
        log.acknowledge();
    }
    log.stop().unwrap();
}

/// Ends a scope's threads, also if a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The way in which everything that copies a running machine does it. vCPUs and a thread of the VMM write all the while; in
/// the end the copy is the memory, byte for byte, or a write was lost.
#[test]
fn who_harvests_first_and_reads_after_loses_no_write_of_a_running_guest() {
    const SPELL: Duration = Duration::from_millis(700);
    let mut guest = Guest::new();
    let mut dice = Dice(3);
    for list in LISTS {
        guest.give(list, &dice.pages(300));
    }
    let running = AtomicBool::new(true);
    let memory = Arc::clone(&guest.memory);
    let (mut copy, mut rounds) = (vec![[0; 4096]; usize::try_from(2 * REGION_PAGES).unwrap()], 0);
    let mut log = thread::scope(|scope| {
        let _end = Ends(&running);
        let Guest { vcpus, slots, .. } = &mut guest;
        for vcpu in vcpus {
            scope.spawn(|| {
                while running.load(Ordering::Relaxed) {
                    run(vcpu);
                }
            });
        }
        scope.spawn(|| {
            let mut dice = Dice(5);
            while running.load(Ordering::Relaxed) {
                let [page] = dice.pages(1)[..] else { panic!("one page") };
                memory.write_obj(dice.roll(1 << 30), address(page)).unwrap();
            }
        });
        let mut log = DirtyLog::start(slots).unwrap();
        let read = |page: u64, to: &mut [u8; 4096]| memory.read_slice(to, address(page)).unwrap();
        (0..).zip(&mut copy).for_each(|(page, to)| read(page, to));
        let end = Instant::now() + SPELL;
        while Instant::now() < end {
            for page in set(&log.harvest().unwrap()) {
                read(page, &mut copy[usize::try_from(page).unwrap()]);
            }
            rounds += 1;
        }
        log
    });
    for page in set(&log.harvest().unwrap()) {
        copy[usize::try_from(page).unwrap()] = guest.read(page);
    }
    let stale: Vec<u64> =
        (0..).zip(&copy).filter(|(page, copy)| guest.read(*page) != **copy).map(|(page, _)| page).collect();
    assert_eq!(stale, [0; 0], "after {rounds} rounds");
}
