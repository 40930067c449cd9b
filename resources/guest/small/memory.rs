//! Physical memory: the map's ranges, loads and stores by address, pages to hand out, and what lies above 4 GiB.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::boot::Boot;
use crate::cpu;

/// What a range of the memory map is for; the numbers are e820's, which PVH shares.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// RAM.
    Usable,
    /// ACPI tables that may be overwritten once read.
    AcpiTables,
    /// Anything else, by its number.
    Reserved(u32),
}

impl Kind {
    /// From e820's number.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Usable,
            3 => Self::AcpiTables,
            other => Self::Reserved(other),
        }
    }

    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::AcpiTables => "acpi",
            Self::Reserved(_) => "reserved",
        }
    }
}

/// One range of the memory map.
#[derive(Clone, Copy)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Its use.
    pub kind: Kind,
}

impl Range {
    /// Bytes.
    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    /// True of a range of no byte.
    pub const fn is_empty(&self) -> bool {
        self.end == self.start
    }
}

/// A page of the tables.
pub const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// boot.s: the page directory pointers.
const PDPT: u64 = 0x10_1000;
/// The last entry of the one PDPT is taken by the map at the top.
const MAPPABLE_END: u64 = 511 * GIB;

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
}

/// Where the guest's own image and its statics lie.
pub fn image() -> (u64, u64) {
    ((&raw const image_start) as u64, (&raw const image_end) as u64)
}

/// Reads a `T`, aligned or not, once.
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the first 4 GiB are always mapped and `map` is called for the rest; T is plain data here.
    unsafe { (address as *const T).read_unaligned() }
}

/// Reads a device register or what a device writes.
pub fn load<T: Copy>(address: u64) -> T {
    // SAFETY: as `read`; the caller's addresses are aligned.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes a device register or what a device reads.
pub fn store<T: Copy>(address: u64, value: T) {
    // SAFETY: as `load`, and the address belongs to the caller: a register or pages that it was handed.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// The bytes at an address, which nobody else may write meanwhile.
pub fn bytes(address: u64, len: u64) -> &'static [u8] {
    crate::rt::memory_may_have_changed();
    // SAFETY: as `read`.
    unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) }
}

/// Copies `len` bytes between places that do not overlap; the target belongs to the caller.
pub fn copy(from: u64, to: u64, len: u64) {
    crate::rt::memory_may_have_changed();
    // SAFETY: both are mapped as `read` says, they do not overlap, and nobody else uses the target.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len as usize) }
    crate::rt::memory_may_have_changed();
}

static NEXT: AtomicU64 = AtomicU64::new(0);
static LIMIT: AtomicU64 = AtomicU64::new(0);
static INITRD_START: AtomicU64 = AtomicU64::new(0);
static INITRD_END: AtomicU64 = AtomicU64::new(0);

/// Pages come from behind the image, to the end of the range that it is in.
pub(crate) fn init(boot: &Boot) {
    let (_, end) = image();
    let range = boot.usable().find(|range| range.start < end && end <= range.end);
    let Some(range) = range else { panic!("the image's end {end:#x} is not in usable memory") };
    NEXT.store(end, Ordering::Relaxed);
    LIMIT.store(range.end.min(4 * GIB), Ordering::Relaxed);
    if let Some((start, len)) = boot.initrd {
        INITRD_START.store(start, Ordering::Relaxed);
        INITRD_END.store((start + len).next_multiple_of(PAGE), Ordering::Relaxed);
    }
}

/// Hands out `len` bytes of memory in whole pages, zeroed or as the monitor left them, for ever.
pub fn alloc(len: u64) -> u64 {
    let len = len.next_multiple_of(PAGE);
    let mut start = NEXT.load(Ordering::Relaxed);
    if start < INITRD_END.load(Ordering::Relaxed) && start + len > INITRD_START.load(Ordering::Relaxed) {
        start = INITRD_END.load(Ordering::Relaxed);
    }
    assert!(start + len <= LIMIT.load(Ordering::Relaxed), "no {len} bytes of memory left");
    NEXT.store(start + len, Ordering::Relaxed);
    start
}

/// The end of what `alloc` has handed out.
pub fn allocated_end() -> u64 {
    NEXT.load(Ordering::Relaxed)
}

/// Maps physical memory up to `end` where it is. The first 4 GiB always are.
pub fn map_to(end: u64) {
    assert!(end <= MAPPABLE_END, "memory up to {end:#x} is more than the guest can map");
    for gib in 4..end.div_ceil(GIB) {
        let entry = PDPT + 8 * gib;
        if load::<u64>(entry) != 0 {
            continue;
        }
        let directory = alloc(PAGE);
        for i in 0..512 {
            store(directory + 8 * i, gib * GIB + i * (2 << 20) + 0xe7);
        }
        store(entry, directory + 0x27);
    }
    cpu::flush_tlb();
}

/// FNV-1a, 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
