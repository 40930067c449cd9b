//! Sets of guest pages, as bitmaps: which were written, which were ever touched, which a file holds.

use std::iter;

/// The words of a chunk's bits.
pub const CHUNK_WORDS: usize = 8;

const WORD_BITS: u64 = 64;

/// Pages that follow one another. Numbers count 4 KiB pages in memory file order: the regions of guest memory back to back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRun {
    /// The first one.
    pub first: u64,
    /// How many.
    pub pages: u64,
}

impl PageRun {
    /// The page after the last.
    pub fn end(self) -> u64 {
        self.first + self.pages
    }
}

/// Some of the pages of a memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    pages: u64,
    /// A bit for each page, the first one in the lowest bit. Those beyond the last page are 0.
    words: Vec<u64>,
}

/// The pages of a set in one chunk that has any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPages {
    /// Which chunk.
    pub chunk: u64,
    /// A bit for each of its pages, the first one in the lowest bit.
    pub present: [u64; CHUNK_WORDS],
}

const FITS: &str = "a bitmap of memory that is mapped here is addressed by 64 bits";

impl PageSet {
    /// No page of a memory of `pages`.
    pub fn new(pages: u64) -> Self {
        Self { pages, words: vec![0; usize::try_from(pages.div_ceil(WORD_BITS)).expect(FITS)] }
    }

    /// How many pages the memory has.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Adds one page.
    ///
    /// # Panics
    /// If the memory does not have it.
    pub fn insert(&mut self, page: u64) {
        self.insert_run(PageRun { first: page, pages: 1 });
    }

    /// Adds pages.
    ///
    /// # Panics
    /// If the memory does not have them all.
    pub fn insert_run(&mut self, run: PageRun) {
        for (index, mask) in self.masks(run) {
            self.words[index] |= mask;
        }
    }

    /// Takes pages out.
    ///
    /// # Panics
    /// If the memory does not have them all.
    pub fn remove_run(&mut self, run: PageRun) {
        for (index, mask) in self.masks(run) {
            self.words[index] &= !mask;
        }
    }

    /// Adds the pages of another set of the same memory.
    ///
    /// # Panics
    /// If it is of a memory of another size.
    pub fn union_with(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "sets of pages of different memories");
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    /// Keeps the pages that another set of the same memory has as well.
    ///
    /// # Panics
    /// If it is of a memory of another size.
    pub fn intersect_with(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "sets of pages of different memories");
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    /// Takes the pages of another set of the same memory out.
    ///
    /// # Panics
    /// If it is of a memory of another size.
    pub fn subtract(&mut self, other: &Self) {
        assert_eq!(self.pages, other.pages, "sets of pages of different memories");
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
    }

    /// Adds the pages of a bitmap, whose lowest bit is page `first`.
    ///
    /// # Panics
    /// If the memory does not have them all.
    pub fn insert_bits(&mut self, first: u64, bits: impl IntoIterator<Item = u64>) {
        let (mut index, shift) = position(first);
        for word in bits {
            if word != 0 {
                let last = WORD_BITS - 1 - u64::from(word.leading_zeros());
                let start = u64::try_from(index).expect(FITS) * WORD_BITS + u64::from(shift);
                assert!(start + last < self.pages, "page {} of {}", start + last, self.pages);
                self.words[index] |= word << shift;
                if let Some(over) = word.checked_shr(64 - shift).filter(|over| *over != 0) {
                    self.words[index + 1] |= over;
                }
            }
            index += 1;
        }
    }

    /// Whether a page is in it.
    pub fn contains(&self, page: u64) -> bool {
        let (index, bit) = position(page);
        self.words.get(index).is_some_and(|word| word >> bit & 1 == 1)
    }

    /// How many pages are in it.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// No page is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Takes every page out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Its pages in order, as runs that are as long as can be.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> {
        let mut next = 0;
        iter::from_fn(move || {
            let first = self.seek(next, |word| word)?;
            next = self.seek(first, |word| !word).map_or(self.pages, |end| end.min(self.pages));
            Some(PageRun { first, pages: next - first })
        })
    }

    /// The chunks that have a page in it, in order.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkPages> {
        let chunks = self.words.chunks(CHUNK_WORDS).zip(0u64..);
        chunks.filter(|(words, _)| words.iter().any(|word| *word != 0)).map(|(words, chunk)| {
            let mut present = [0; CHUNK_WORDS];
            present[..words.len()].copy_from_slice(words);
            ChunkPages { chunk, present }
        })
    }

    /// The first page from `page` on whose bit is 1 in what `view` makes of its word.
    fn seek(&self, page: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        let (index, bit) = position(page);
        let mut mask = u64::MAX << bit;
        for (word, start) in self.words.get(index..)?.iter().zip((page - u64::from(bit)..).step_by(64)) {
            let word = view(*word) & mask;
            if word != 0 {
                return Some(start + u64::from(word.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }

    /// The words that a run has bits in, and those bits.
    fn masks(&self, run: PageRun) -> impl Iterator<Item = (usize, u64)> + use<> {
        let PageRun { first, pages } = run;
        let fits = first.checked_add(pages).is_some_and(|end| end <= self.pages);
        assert!(fits, "{pages} pages from {first} on of {}", self.pages);
        let mut next = first;
        iter::from_fn(move || {
            let left = run.end() - next;
            if left == 0 {
                return None;
            }
            let (index, bit) = position(next);
            let here = (WORD_BITS - u64::from(bit)).min(left);
            next += here;
            Some((index, u64::MAX >> (WORD_BITS - here) << bit))
        })
    }
}

/// The word of a page's bit, and the bit's place in it.
fn position(page: u64) -> (usize, u32) {
    let bit = u32::try_from(page % WORD_BITS).expect("it is below 64");
    (usize::try_from(page / WORD_BITS).expect(FITS), bit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::CHUNK_PAGES;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn runs_of(model: &BTreeSet<u64>) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for page in model {
            match runs.last_mut() {
                Some(run) if run.end() == *page => run.pages += 1,
                _ => runs.push(PageRun { first: *page, pages: 1 }),
            }
        }
        runs
    }

    fn assert_alike(set: &PageSet, model: &BTreeSet<u64>) {
        assert_eq!(set.count(), u64::try_from(model.len()).unwrap());
        assert_eq!(set.is_empty(), model.is_empty());
        assert_eq!(set.runs().collect::<Vec<_>>(), runs_of(model));
        for page in 0..set.pages() + 130 {
            assert_eq!(set.contains(page), model.contains(&page), "page {page}");
        }
        let mut of_chunks = BTreeSet::new();
        for ChunkPages { chunk, present } in set.chunks() {
            assert_ne!(present, [0; CHUNK_WORDS], "chunk {chunk} has no page");
            let bits = (0..CHUNK_PAGES).filter(|page| {
                let (index, bit) = position(*page);
                present[index] >> bit & 1 == 1
            });
            of_chunks.extend(bits.map(|page| chunk * CHUNK_PAGES + page));
        }
        assert_eq!(&of_chunks, model);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64),
        Union(Vec<u64>),
        Intersect(Vec<u64>),
        Subtract(Vec<u64>),
        Bits(u64, Vec<u64>),
        Clear,
    }

    fn numbers(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(any::<u64>(), count)
    }

    /// The same pages twice.
    fn both(pages: u64, numbers: &[u64]) -> (PageSet, BTreeSet<u64>) {
        let model: BTreeSet<u64> = numbers.iter().map(|number| number % pages).collect();
        let mut set = PageSet::new(pages);
        model.iter().for_each(|page| set.insert(*page));
        (set, model)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (any::<u64>(), any::<u64>()).prop_map(|(first, pages)| Step::Insert(first, pages)),
            3 => (any::<u64>(), any::<u64>()).prop_map(|(first, pages)| Step::Remove(first, pages)),
            2 => numbers(0..20).prop_map(Step::Union),
            1 => numbers(0..900).prop_map(Step::Intersect),
            2 => numbers(0..90).prop_map(Step::Subtract),
            3 => (any::<u64>(), prop::collection::vec(any::<u64>(), 0..9)).prop_map(|(at, bits)| Step::Bits(at, bits)),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #[test]
        fn a_set_of_pages_is_what_a_tree_of_numbers_is(
            pages in 1_u64..3000,
            steps in prop::collection::vec(step(), 0..20),
        ) {
            let (mut set, mut model) = (PageSet::new(pages), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(first, count) => {
                        let first = first % pages;
                        let run = PageRun { first, pages: count % (pages - first + 1) };
                        set.insert_run(run);
                        model.extend(run.first..run.end());
                    }
                    Step::Remove(first, count) => {
                        let first = first % pages;
                        let run = PageRun { first, pages: count % (pages - first + 1) };
                        set.remove_run(run);
                        model.retain(|page| !(run.first..run.end()).contains(page));
                    }
                    Step::Union(numbers) => {
                        let (other, of_model) = both(pages, &numbers);
                        set.union_with(&other);
                        model.extend(of_model);
                    }
                    Step::Intersect(numbers) => {
                        let (other, of_model) = both(pages, &numbers);
                        set.intersect_with(&other);
                        model.retain(|page| of_model.contains(page));
                    }
                    Step::Subtract(numbers) => {
                        let (other, of_model) = both(pages, &numbers);
                        set.subtract(&other);
                        model.retain(|page| !of_model.contains(page));
                    }
                    Step::Bits(at, mut bits) => {
                        let first = at % pages;
                        let mut added = Vec::new();
                        for (index, word) in (0u64..).zip(&mut bits) {
                            for bit in 0..64 {
                                let page = first + index * 64 + bit;
                                match page < pages {
                                    true if *word >> bit & 1 == 1 => added.push(page),
                                    _ => *word &= !(1 << bit),
                                }
                            }
                        }
                        set.insert_bits(first, bits);
                        model.extend(added);
                    }
                    Step::Clear => {
                        set.clear();
                        model.clear();
                    }
                }
            }
            assert_alike(&set, &model);
        }
    }

    #[test]
    fn a_memory_that_is_written_whole_is_one_run() {
        for pages in [1, 63, 64, 65, 511, 512, 513] {
            let mut set = PageSet::new(pages);
            assert_eq!(set.runs().next(), None);
            set.insert_run(PageRun { first: 0, pages });
            assert_eq!(set.runs().collect::<Vec<_>>(), [PageRun { first: 0, pages }]);
            assert_eq!(set.chunks().count(), usize::try_from(pages.div_ceil(CHUNK_PAGES)).unwrap());
        }
    }
}
