//! Guest memory from a point: its files mapped over what was there, or read, now or when they are wanted.
#![expect(unsafe_code, reason = "files are mapped in the place of guest memory")]

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use arch::GuestMemory;

use super::assembly::Assembly;
use super::build::BuildError;
use super::hotplug::Origin;
use super::memory::{self, MachineMemory, MemoryError};
use super::tracking::Tracking;
use crate::control::EventSender;
use crate::epoch::{CHUNK_BYTES, PAGE_BYTES, Point, PointError, file_order};
use crate::pager::MemoryThread;
use crate::placement::Settled;
use crate::snapshot::{Absent, MemoryMode, RestoredMemory};

/// Memory that comes from a point.
#[derive(Debug, Default)]
pub(super) struct Brought {
    pub(super) thread: Option<MemoryThread>,
    pub(super) tracking: Tracking,
    /// Where what was plugged comes from.
    pub(super) origin: Origin,
}

/// Brings memory from where `from` says, or sees to its coming. It may be other memory then, which `map` gives
/// ([`memory::make_present`]).
///
/// # Errors
/// The host cannot give it, or a file is not what was written.
pub(super) fn bring(
    memory: &mut MachineMemory,
    map: impl Fn(&mut Settled) -> Result<MachineMemory, MemoryError>,
    settled: &mut Settled,
    from: RestoredMemory,
    events: &EventSender,
    assembly: &Assembly,
) -> Result<Brought, BuildError> {
    if let RestoredMemory::Files { mode: MemoryMode::Copy, .. } = &from {
        memory::make_present(memory, map, settled, assembly)?;
        memory::make_plugged_present(memory, assembly)?;
    }
    let memory = &*memory;
    let (held, page_bytes) = (memory.held(), memory.pages.pool_page_bytes().unwrap_or(PAGE_BYTES));
    let all = (&*memory.all, &*held);
    let (point, mode, record, last) = match from {
        RestoredMemory::Files { point, mode, record, last } => (point, mode, record, last),
        RestoredMemory::Handler(path) => {
            let thread = MemoryThread::watch(all, page_bytes, &path, events.clone())?;
            let origin = Origin::Faults(Arc::clone(thread.faults()));
            return Ok(Brought { thread: Some(thread), tracking: Tracking::beside_handler(), origin });
        }
    };
    let (mut thread, mut origin) = (None, Origin::Memory);
    match mode {
        MemoryMode::Map => {
            map_files(all, &point)?;
            memory::advise_anew(memory, settled)?;
            origin = Origin::Files(settled.placement.clone());
        }
        MemoryMode::Lazy => {
            let pager = MemoryThread::bring(all, page_bytes, Arc::clone(&point), record, events.clone())?;
            origin = Origin::Faults(Arc::clone(pager.faults()));
            thread = Some(pager);
        }
        MemoryMode::Copy => copy_files(all, &point, assembly)?,
    }
    let absent = if mode == MemoryMode::Copy { Absent::Zero } else { Absent::In(point) };
    Ok(Brought { thread, tracking: Tracking::from_point(*last, absent), origin })
}

/// Guest memory, and the parts of it that a point's memory goes to, in memory file order.
type Held<'a> = (&'a GuestMemory, &'a [Range<u64>]);

/// Maps a point's files privately in the place of guest memory: what the guest writes is its own. Nothing is read.
///
/// # Errors
/// The kernel does not map a file.
fn map_files((memory, held): Held<'_>, point: &Point) -> Result<(), MemoryError> {
    // The files of a full point have its holes: it is one mapping. Above it lie the runs of its increments.
    let layers = point.layer_ids().count();
    let base = layers - 1;
    held.iter().try_for_each(|part| map_run(memory, point, base, part.clone()))?;
    for run in point.runs().filter(|run| run.layer != base) {
        let bytes = run.first * PAGE_BYTES..(run.first + run.pages) * PAGE_BYTES;
        file_order::overlaps(held, bytes).try_for_each(|part| map_run(memory, point, run.layer, part))?;
    }
    Ok(())
}

/// Maps bytes of a layer's file where guest memory has them.
fn map_run(memory: &GuestMemory, point: &Point, layer: usize, bytes: Range<u64>) -> Result<(), MemoryError> {
    for (offset, slice) in file_order::slices(memory, bytes) {
        let file_offset = libc::off_t::try_from(offset).expect("a file's offsets have 63 bits");
        // SAFETY: the range is a part of one mapping of guest memory, which no reference points into and nobody uses
        // yet; it stays mapped, readable and writable, and is unmapped with the rest.
        let mapped = unsafe {
            libc::mmap(
                slice.ptr_guard_mut().as_ptr().cast(),
                slice.len(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                point.layer_file(layer).as_raw_fd(),
                file_offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(MemoryError::MapFile { bytes: slice.len() as u64, source: io::Error::last_os_error() });
        }
    }
    Ok(())
}

/// Reads a point's memory, every chunk held against its hash, on as many threads as there are CPUs for it.
///
/// # Errors
/// A file that cannot be read, or is not what was written.
fn copy_files(memory: Held<'_>, point: &Point, assembly: &Assembly) -> Result<(), PointError> {
    const THREADS_MAX: usize = 8;
    let chunks: Vec<u64> = point.chunks().collect();
    assembly.progress().expect(chunks.iter().map(|&chunk| point.chunk_bytes(chunk)).sum());
    let next = AtomicU64::new(0);
    let copy = || {
        let (mut bytes, mut scratch) = (Vec::new(), Vec::new());
        loop {
            let place = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("chunks are counted in memory");
            let Some(&chunk) = chunks.get(place).filter(|_| !assembly.is_given_up()) else { return Ok(()) };
            bytes.resize(usize::try_from(point.chunk_bytes(chunk)).expect("a chunk fits into memory"), 0);
            if point.read_chunk(chunk, &mut bytes, &mut scratch)? {
                write(memory, chunk * CHUNK_BYTES, &bytes);
            }
            assembly.progress().add(point.chunk_bytes(chunk));
        }
    };
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get()).clamp(1, THREADS_MAX);
    thread::scope(|scope| {
        let copiers: Vec<_> = (0..threads.min(chunks.len())).map(|_| scope.spawn(copy)).collect();
        copiers.into_iter().try_for_each(|copier| copier.join().expect("a panic aborts the process"))
    })
}

/// Writes bytes of the memory file where guest memory has them, zero pages apart: there they are zero already.
fn write((memory, held): Held<'_>, offset: u64, bytes: &[u8]) {
    const PAGE: usize = 4096;
    const _: () = assert!(PAGE as u64 == PAGE_BYTES);
    for (page, offset) in bytes.chunks(PAGE).zip((offset..).step_by(PAGE)) {
        if page.iter().any(|&byte| byte != 0) {
            for part in file_order::overlaps(held, offset..offset + page.len() as u64) {
                for (part, slice) in file_order::slices(memory, part) {
                    slice.copy_from(&page[usize::try_from(part - offset).expect("the part is within the page")..]);
                }
            }
        }
    }
}
