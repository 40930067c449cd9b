//! Takes an ELF byte by byte, in the order of the file, and puts what belongs into guest memory there.

use std::ops::Range;

use super::super::elf::{Notes, Segment};
use super::super::{LoadError, data};
use super::bytes;
use crate::layout::PAGE_SIZE;
use crate::memory::{GuestAddress, GuestMemory};

const ZERO_PAGE: [u8; 4096] = [0; 4096];
const _: () = assert!(ZERO_PAGE.len() as u64 == PAGE_SIZE);

/// An ELF on its way into guest memory.
pub(super) struct Loading<'a> {
    memory: &'a GuestMemory,
    /// Every one has its place in guest memory.
    segments: &'a [Segment],
    notes: Vec<(Range<u64>, Vec<u8>)>,
    /// How much of the ELF has passed.
    position: u64,
}

impl<'a> Loading<'a> {
    /// Of the ELF with these segments. `notes` are kept aside as they pass; their size is bounded.
    pub(super) fn new(memory: &'a GuestMemory, segments: &'a [Segment], notes: &[Notes]) -> Self {
        let notes = notes.iter().map(|notes| (notes.offset..notes.offset + notes.size, Vec::new())).collect();
        Self { memory, segments, notes, position: 0 }
    }

    /// How much of the ELF is needed, in bytes from its start.
    pub(super) fn size(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| segment.offset + segment.file_size);
        let notes = self.notes.iter().map(|(range, _)| range.end);
        segments.chain(notes).max().unwrap_or(0)
    }

    /// Takes the next bytes of the ELF.
    pub(super) fn pass(&mut self, next: &[u8]) -> Result<(), LoadError> {
        for segment in self.segments {
            let range = segment.offset..segment.offset + segment.file_size;
            if let Some((skipped, part)) = overlap(&range, self.position, next) {
                write(self.memory, segment.address + skipped, part)?;
            }
        }
        for (range, kept) in &mut self.notes {
            if let Some((_, part)) = overlap(range, self.position, next) {
                kept.extend_from_slice(part);
            }
        }
        self.position += bytes(next.len());
        Ok(())
    }

    /// Checks that all of it has passed.
    pub(super) fn check_complete(&self) -> Result<(), LoadError> {
        match self.size() {
            end if end > self.position => {
                Err(LoadError::Truncated { what: "packed segment", end, size: self.position })
            }
            _ => Ok(()),
        }
    }

    /// Fills `buffer` with notes that have passed, from their first byte.
    pub(super) fn read_notes(&self, offset: u64, buffer: &mut [u8]) -> Result<(), LoadError> {
        let len = bytes(buffer.len());
        let (_, kept) = self
            .notes
            .iter()
            .find(|(range, _)| *range == (offset..offset + len))
            .expect("only the notes that were to be kept are asked for");
        buffer.copy_from_slice(kept);
        Ok(())
    }
}

/// What `next`, which begins at `position`, has of `range`, and how far from the range's start that is.
fn overlap<'b>(range: &Range<u64>, position: u64, next: &'b [u8]) -> Option<(u64, &'b [u8])> {
    let start = range.start.max(position);
    let end = range.end.min(position + bytes(next.len()));
    let index = |at: u64| usize::try_from(at - position).expect("inside a slice");
    (start < end).then(|| (start - range.start, &next[index(start)..index(end)]))
}

/// Writes to guest memory, but for pages of zeroes: these are zero already, and cost the host nothing until they are
/// touched. A kernel has megabytes of them.
fn write(memory: &GuestMemory, address: u64, mut part: &[u8]) -> Result<(), LoadError> {
    let mut address = address;
    while !part.is_empty() {
        let zeroes = run(part, address, |page| page == &ZERO_PAGE[..page.len()]);
        let content = run(&part[zeroes..], address + bytes(zeroes), |page| page != &ZERO_PAGE[..page.len()]);
        let start = GuestAddress(address + bytes(zeroes));
        data::write(memory, "kernel", start, &part[zeroes..zeroes + content])?;
        address += bytes(zeroes + content);
        part = &part[zeroes + content..];
    }
    Ok(())
}

/// How many of the bytes, which go to `address`, are in pages that all are as `like` says.
fn run(part: &[u8], address: u64, like: impl Fn(&[u8]) -> bool) -> usize {
    let to_next_page = usize::try_from(PAGE_SIZE - address % PAGE_SIZE).expect("at most a page");
    let (first, rest) = part.split_at(to_next_page.min(part.len()));
    if first.is_empty() || !like(first) {
        return 0;
    }
    let page = ZERO_PAGE.len();
    first.len() + rest.chunks(page).take_while(|chunk| like(chunk)).map(<[u8]>::len).sum::<usize>()
}
