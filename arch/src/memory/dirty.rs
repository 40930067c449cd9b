//! Which pages of guest memory this process wrote. What the guest writes itself is KVM's to know.
//!
//! Any thread marks: vm-memory's accessors do it by themselves, and whoever has the kernel write through a host address does
//! it on completion. One thread takes. While nobody tracks, a mark is one relaxed load.
//!
//! # Why no write is lost
//! A mark comes after its write, with Release; a take swaps words for 0, with Acquire; and what takes reads a page only after
//! it took. In the order of changes to a word, a mark is before a take or after it. Before: this take or an earlier one finds
//! it, and the page is read with the write in it. After: the page may be read without the write, and the next take finds the
//! mark. A mark must not leave out its store where the bit seems to be set already: that load may come before a take whose
//! reader does not see the write yet.
//!
//! [`DirtyBitmap::start`] is the one exception. A thread that wrote may have found tracking off, while the one that switched it
//! on does not see the write yet. So who starts tracking makes every thread of the process pass a full barrier before it reads
//! a first page: then the write is seen by that reading, or the mark finds tracking on.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// The bytes that one bit stands for, whatever the pages that memory is made of.
pub const DIRTY_PAGE_BYTES: usize = 4096;

const WORD_BITS: usize = 64;

/// A bit for each 4 KiB of one region of guest memory.
#[derive(Debug, Default)]
pub struct DirtyBitmap {
    tracking: AtomicBool,
    pages: usize,
    /// There since tracking was first asked for.
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DirtyBitmap {
    /// How many pages there are a bit for.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Whether writes are marked.
    #[inline]
    pub fn is_tracking(&self) -> bool {
        self.tracking.load(Ordering::Relaxed)
    }

    /// Marks every write from now on. What other threads are writing right now is marked only if they pass a full barrier
    /// between this and the first look at the page, as the module says.
    pub fn start(&self) {
        let words = self.words.get_or_init(|| (0..self.pages.div_ceil(WORD_BITS)).map(|_| AtomicU64::new(0)).collect());
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        // Release: the words are there. Partner: the fence in `set`.
        self.tracking.store(true, Ordering::Release);
    }

    /// Marks nothing any more. A mark under way may still come; the next start forgets it.
    pub fn stop(&self) {
        self.tracking.store(false, Ordering::Relaxed);
    }

    /// Takes all marks: an item for each 64 pages, the first one in the lowest bit. What the iterator has not come to stays.
    pub fn take(&self) -> impl Iterator<Item = u64> {
        let words = self.words.get().map_or(&[][..], |words| words);
        words.iter().map(|word| match word.load(Ordering::Relaxed) {
            // The line stays shared. A mark that this load does not see is after it, and found by the next take.
            0 => 0,
            // Acquire: the writes come before what is read of the pages hereafter. Partner: the Release in `set`.
            _ => word.swap(0, Ordering::Acquire),
        })
    }

    /// Kept out of line: where nobody tracks, it costs the caller no registers.
    #[cold]
    #[inline(never)]
    fn set(&self, offset: usize, len: usize) {
        // Partner: the Release in `start`, whose flag the caller saw.
        fence(Ordering::Acquire);
        let words = self.words.get().expect("tracking is on after its words are there");
        let Some(last) = len.checked_sub(1).and_then(|beyond| offset.checked_add(beyond)) else { return };
        let (first, last) = (offset / DIRTY_PAGE_BYTES, (last / DIRTY_PAGE_BYTES).min(self.pages.saturating_sub(1)));
        for (index, word) in words.iter().enumerate().take(last / WORD_BITS + 1).skip(first / WORD_BITS) {
            let start = index * WORD_BITS;
            let low = u64::MAX << first.saturating_sub(start);
            let high = u64::MAX >> (WORD_BITS - 1).saturating_sub(last - start);
            // Release: the write comes before its mark. Partner: the Acquire in `take`.
            word.fetch_or(low & high, Ordering::Release);
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = DirtySlice<'a>;
}

impl Bitmap for DirtyBitmap {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.tracking.load(Ordering::Relaxed) {
            self.set(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / DIRTY_PAGE_BYTES;
        let word = self.words.get().and_then(|words| words.get(page / WORD_BITS));
        self.is_tracking() && word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % WORD_BITS) & 1 == 1)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { bitmap: self, offset }
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(len: usize) -> Self {
        Self { pages: len.div_ceil(DIRTY_PAGE_BYTES), ..Self::default() }
    }
}

/// A [`DirtyBitmap`] as a part of the region sees it.
#[derive(Clone, Copy, Debug)]
pub struct DirtySlice<'a> {
    bitmap: &'a DirtyBitmap,
    offset: usize,
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.bitmap.mark_dirty(self.offset.wrapping_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bitmap.dirty_at(self.offset.wrapping_add(offset))
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> Self {
        Self { bitmap: self.bitmap, offset: self.offset.wrapping_add(offset) }
    }
}

#[cfg(test)]
mod tests;
