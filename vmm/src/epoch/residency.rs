//! Which pages of guest memory anybody ever touched, found without reading them and without bringing one in.
//!
//! | memory | who is asked | what counts |
//! | --- | --- | --- |
//! | private | the page tables (PAGEMAP_SCAN, before Linux 6.7 /proc/self/pagemap) | pages of its own, in memory or swapped out |
//! | shared, of a HugePage pool | the page tables | pages that are there |
//! | shared, other | its file (SEEK_DATA) | pages that the file has |
//!
//! What was given back, by a balloon or by unplugging, is untouched again. A page of zeros that was only ever read is
//! untouched, as far as the kernel tells (from 6.7 on).
#![expect(unsafe_code, reason = "ioctl, lseek and fstatfs have no safe interface in libc for what is asked here")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use arch::GuestMemory;
use arch::memory::{GuestRegionMmap, host_address};
use thiserror::Error;
use vm_memory::{FileOffset, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::{PAGE_BYTES, PageRun, PageSet, file_order};

/// What keeps the pages from being found. Whoever needs them anyway may take all of memory as touched.
#[derive(Debug, Error)]
pub enum ResidencyError {
    /// The page tables cannot be seen.
    #[error("cannot open {PAGEMAP}")]
    Open(#[source] io::Error),
    /// They are not told.
    #[error("cannot look up which pages of guest memory at {address:#x} are there")]
    Look {
        /// The guest's address of the region.
        address: u64,
        /// What the host said.
        source: io::Error,
    },
}

const PAGEMAP: &str = "/proc/self/pagemap";

/// The pages of `memory` that hold anything of their own. All others read as zeros, except in a private mapping of files, where
/// they read as their file: there the pages found are those that were copied since, by a write.
///
/// Of a machine that runs, what is touched meanwhile may be missing: a log of writes that was on before has it.
///
/// # Errors
/// The host does not tell.
pub fn touched(memory: &GuestMemory) -> Result<PageSet, ResidencyError> {
    let mut set = PageSet::new(file_order::bytes(memory) / PAGE_BYTES);
    let tables = File::open(PAGEMAP).map_err(ResidencyError::Open)?;
    for (offset, region) in file_order::regions(memory) {
        let first = offset / PAGE_BYTES;
        // A part of the region, in bytes from its start.
        let insert = |part: Range<u64>| {
            let run = first + part.start / PAGE_BYTES..first + part.end.div_ceil(PAGE_BYTES);
            set.insert_run(PageRun { first: run.start, pages: run.end - run.start });
        };
        touched_in(region, &tables, insert)
            .map_err(|source| ResidencyError::Look { address: region.start_addr().0, source })?;
    }
    Ok(set)
}

fn touched_in(region: &GuestRegionMmap, tables: &File, mut insert: impl FnMut(Range<u64>)) -> io::Result<()> {
    let is_shared = region.flags() & libc::MAP_SHARED != 0;
    match region.file_offset() {
        Some(place) if is_shared && !is_of_pool(place.file())? => seek(place, region.len(), insert),
        // A mapping's entry is a page of its own where no file has it; a pool's pages are a file's always.
        _ => {
            let host = host_address(region) as u64;
            let own = if is_shared { Kind::Any } else { Kind::NotOfFiles };
            match scan(tables, host..host + region.len(), Sought::touched(own), &mut insert) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                    read(tables, host..host + region.len(), own, insert)
                }
                done => done,
            }
        }
    }
}

/// Which pages that are there count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Any,
    NotOfFiles,
}

/// From <linux/fs.h>.
#[repr(C)]
#[derive(Debug, Default)]
struct pm_scan_arg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
const _: () = assert!(size_of::<pm_scan_arg>() == 96);

/// From <linux/fs.h>.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct page_region {
    start: u64,
    end: u64,
    categories: u64,
}
const _: () = assert!(size_of::<page_region>() == 24);

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;

/// Categories of pages that are asked for: all of `with`, none of `without`, and one of `any`.
#[derive(Clone, Copy, Debug)]
struct Sought {
    with: u64,
    without: u64,
    any: u64,
}

impl Sought {
    /// Of those that are huge ones.
    const HUGE: Self = Self { with: PAGE_IS_HUGE, without: 0, any: PAGE_IS_PRESENT };

    const fn touched(own: Kind) -> Self {
        let without = match own {
            Kind::Any => PAGE_IS_PFNZERO,
            Kind::NotOfFiles => PAGE_IS_PFNZERO | PAGE_IS_FILE,
        };
        Self { with: 0, without, any: PAGE_IS_PRESENT | PAGE_IS_SWAPPED }
    }
}

/// The host addresses in `span` at which one entry of the page tables maps a huge page, in their order.
///
/// # Errors
/// The host does not tell; before Linux 6.7 it cannot.
pub(crate) fn huge(span: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut parts = Vec::new();
    let start = span.start;
    scan(&File::open(PAGEMAP)?, span, Sought::HUGE, &mut |part| parts.push(start + part.start..start + part.end))?;
    Ok(parts)
}

ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, pm_scan_arg);

/// Regions of one answer.
const REGIONS: usize = 512;

/// Asks the kernel for the ranges. Before Linux 6.7 the answer is ENOTTY, and nothing was passed on.
fn scan(tables: &File, span: Range<u64>, sought: Sought, insert: &mut impl FnMut(Range<u64>)) -> io::Result<()> {
    let mut regions = [page_region::default(); REGIONS];
    let mut next = span.start;
    while next < span.end {
        let mut request = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            start: next,
            end: span.end,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: REGIONS as u64,
            category_inverted: sought.without,
            category_mask: sought.with | sought.without,
            category_anyof_mask: sought.any,
            ..pm_scan_arg::default()
        };
        // SAFETY: PAGEMAP_SCAN with no flags changes nothing of the span; it writes at most `vec_len` regions at `vec` = an array
        // of so many, and the end of its walk into the request.
        let found = unsafe { ioctl_with_mut_ref(tables, PAGEMAP_SCAN(), &mut request) };
        let Ok(found) = usize::try_from(found) else { return Err(io::Error::last_os_error()) };
        regions[..found].iter().for_each(|found| insert(found.start - span.start..found.end - span.start));
        if request.walk_end <= next {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        next = request.walk_end;
    }
    Ok(())
}

/// Reads the page tables an entry a page (Documentation/admin-guide/mm/pagemap.rst), some at a time.
fn read(tables: &File, span: Range<u64>, own: Kind, mut insert: impl FnMut(Range<u64>)) -> io::Result<()> {
    const ENTRIES: usize = 8192;
    const ENTRY_BYTES: u64 = 8;
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    let mut entries = vec![[0; 8]; ENTRIES];
    let (start, end) = (span.start / PAGE_BYTES, span.end / PAGE_BYTES);
    for first in (start..end).step_by(ENTRIES) {
        let count = usize::try_from(end - first).unwrap_or(usize::MAX).min(ENTRIES);
        let entries = &mut entries[..count];
        tables.read_exact_at(entries.as_flattened_mut(), ENTRY_BYTES * first)?;
        for (page, entry) in (first - start..).zip(entries.iter().map(|entry| u64::from_ne_bytes(*entry))) {
            let counts = own == Kind::Any || entry & OF_FILE == 0;
            if entry & (PRESENT | SWAPPED) != 0 && counts {
                insert(page * PAGE_BYTES..(page + 1) * PAGE_BYTES);
            }
        }
    }
    Ok(())
}

/// Looks for what the file of a mapping of `bytes` has.
fn seek(place: &FileOffset, bytes: u64, mut insert: impl FnMut(Range<u64>)) -> io::Result<()> {
    let (start, end) = (place.start(), place.start() + bytes);
    let mut next = start;
    while next < end {
        let data = match seek_to(place.file(), next, libc::SEEK_DATA) {
            // There is none any more.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
            data => data?,
        };
        if data >= end {
            break;
        }
        next = seek_to(place.file(), data, libc::SEEK_HOLE)?.min(end);
        insert(data - start..next - start);
    }
    Ok(())
}

fn seek_to(file: &File, offset: u64, to: libc::c_int) -> io::Result<u64> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: lseek takes a descriptor = an open one, and numbers. Nobody reads guest memory's file at its position.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset, to) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// Whether a file is made of a HugePage pool's pages. Of such a one SEEK_DATA says that it has everything.
fn is_of_pool(file: &File) -> io::Result<bool> {
    let mut answer = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs writes a statfs at the pointer = one of that type.
    let failed = unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the answer must be written = the call succeeded.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_type == libc::HUGETLBFS_MAGIC)
}

#[cfg(test)]
mod tests;
