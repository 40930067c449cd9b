//! What a balloon has of memory that is made of a HugePage pool's pages: a huge page can go to the host only when all of it
//! is in the balloon, and has to come back before any of it is used.

use super::BALLOON_PAGE_BYTES;
use super::pages::Run;
use crate::backend::memory::Reclaim;

/// Which pages are in the balloon. Its size is that of guest memory, not of what a driver says.
#[derive(Debug)]
pub(super) struct Ledger {
    pages_per_huge: u32,
    /// A bit for each page.
    inside: Box<[u64]>,
    huge: Box<[Huge]>,
    /// How many are owed: a driver's every chain asks, and memory may have half a million.
    owed: usize,
    /// None before it is owed.
    first_owed: usize,
}

/// What [`Ledger::bring_back`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BroughtBack {
    /// Nothing was owed.
    All,
    /// The last that was owed.
    Last,
    /// One, and more are owed.
    One,
    /// The host has none to give.
    None,
}

/// A huge page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Huge {
    /// Its pages that are in the balloon.
    inside: u32,
    /// Whether the host has it.
    gone: bool,
}

impl Ledger {
    /// Of the memory that goes back by `reclaim`, if it is made of a pool's pages.
    pub(super) fn of(reclaim: &Reclaim) -> Option<Self> {
        reclaim.is_of_pool().then(|| Self::new(reclaim.end(), reclaim.page_bytes()))
    }

    /// The pages that are in the balloon, in order and joined as far as they go.
    pub(super) fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (word, base) in self.inside.iter().zip((0_u32..).step_by(64)).filter(|(word, _)| **word != 0) {
            for page in (0..64).filter(|bit| word & (1 << bit) != 0).map(|bit| base + bit) {
                match runs.last_mut() {
                    Some(last) if last.first + last.count == page => last.count += 1,
                    _ => runs.push(Run { first: page, count: 1 }),
                }
            }
        }
        runs
    }

    /// The pages of `run` were put in before this ledger was begun, in memory that is new: what is whole is with the host, if
    /// it is memory at all, which `is_memory` says of a huge page's number. A driver may have put in what lies between RAM.
    pub(super) fn inherit(&mut self, run: Run, is_memory: impl FnMut(u64) -> bool) {
        self.put_in(run, is_memory);
    }

    /// A driver's end: it has nothing inside any more. What the host has is owed until [`Self::bring_back`], or until the next
    /// driver takes a page of it out.
    pub(super) fn empty(&mut self) {
        self.inside.fill(0);
        (self.owed, self.first_owed) = (0, 0);
        for huge in &mut self.huge {
            huge.inside = 0;
            self.owed += usize::from(huge.gone);
        }
    }

    /// Brings back the first huge page that is owed. `populate` gets its number, and says whether it came.
    pub(super) fn bring_back(&mut self, populate: impl FnOnce(u64) -> bool) -> BroughtBack {
        while self.owed > 0 {
            let huge = &mut self.huge[self.first_owed];
            if huge.gone && huge.inside < self.pages_per_huge {
                if !populate(u64::try_from(self.first_owed).expect("64 bits fit")) {
                    return BroughtBack::None;
                }
                huge.gone = false;
                self.owed -= 1;
                return if self.owed == 0 { BroughtBack::Last } else { BroughtBack::One };
            }
            // Only a driver's end makes one owed, so that none is looked at twice before the next.
            self.first_owed += 1;
        }
        BroughtBack::All
    }

    /// Whether a huge page is with the host that is not all inside: a driver that has ended had put it in.
    pub(super) fn is_owed(&self) -> bool {
        self.owed > 0
    }

    /// How many pages a ledger of this memory knows.
    pub(super) fn pages(&self) -> u32 {
        let huge = u32::try_from(self.huge.len()).expect("32 bits of pages");
        huge.saturating_mul(self.pages_per_huge)
    }

    /// Of memory that ends at `end` for the guest, of pages of `huge_bytes` bytes.
    pub(super) fn new(end: u64, huge_bytes: u64) -> Self {
        let length = |bytes: u64| usize::try_from(end.div_ceil(bytes)).expect("a 64-bit host addresses 64 bits");
        Self {
            pages_per_huge: u32::try_from(huge_bytes / BALLOON_PAGE_BYTES).expect("at most 1 GiB"),
            inside: vec![0; length(64 * BALLOON_PAGE_BYTES)].into(),
            huge: vec![Huge::default(); length(huge_bytes)].into(),
            owed: 0,
            first_owed: 0,
        }
    }

    /// Pages were put in. `discard` gets the number of each huge page that is whole now, and says whether the host took it.
    pub(super) fn put_in(&mut self, run: Run, mut discard: impl FnMut(u64) -> bool) {
        for page in run.first..run.first + run.count {
            let Some(huge) = self.set(page, true) else { continue };
            let state = &mut self.huge[huge];
            state.inside += 1;
            // Also one that is owed: its guest may have touched it since.
            if state.inside == self.pages_per_huge {
                self.owed -= usize::from(state.gone);
                state.gone = discard(u64::try_from(huge).expect("64 bits fit"));
            }
        }
    }

    /// Pages are to be taken out. `populate` gets the number of each huge page that the host has and that must come back,
    /// and says whether it did. False if one did not: then the rest is as it was.
    pub(super) fn take_out(&mut self, run: Run, mut populate: impl FnMut(u64) -> bool) -> bool {
        for page in run.first..run.first + run.count {
            let huge = usize::try_from(page / self.pages_per_huge).expect("32 bits fit");
            let Some(state) = self.huge.get_mut(huge) else { return true };
            if state.gone {
                if !populate(u64::try_from(huge).expect("64 bits fit")) {
                    return false;
                }
                state.gone = false;
                self.owed -= usize::from(state.inside < self.pages_per_huge);
            }
            if let Some(huge) = self.set(page, false) {
                self.huge[huge].inside -= 1;
            }
        }
        true
    }

    /// Marks a page, and returns its huge page if that is a change and the page is memory.
    fn set(&mut self, page: u32, inside: bool) -> Option<usize> {
        let (word, bit) = (usize::try_from(page / 64).expect("32 bits fit"), 1 << (page % 64));
        let huge = usize::try_from(page / self.pages_per_huge).expect("32 bits fit");
        let word = self.inside.get_mut(word).filter(|word| (**word & bit != 0) != inside && huge < self.huge.len())?;
        *word ^= bit;
        Some(huge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: u64 = 2 << 20;

    fn run(first: u32, count: u32) -> Run {
        Run { first, count }
    }

    #[test]
    fn a_huge_page_goes_when_all_of_it_is_inside_and_comes_back_with_the_first_that_is_taken_out() {
        let mut ledger = Ledger::new(2 * HUGE, HUGE);
        let mut gone = Vec::new();
        ledger.put_in(run(0, 511), |huge| {
            gone.push(huge);
            true
        });
        ledger.put_in(run(5, 3), |huge| {
            gone.push(huge);
            true
        });
        assert!(gone.is_empty(), "a page counts once");
        ledger.put_in(run(511, 2), |huge| {
            gone.push(huge);
            true
        });
        assert_eq!(gone, [0]);
        let mut back = Vec::new();
        assert!(ledger.take_out(run(3, 2), |huge| {
            back.push(huge);
            true
        }));
        assert!(ledger.take_out(run(512, 1), |_| unreachable!("it never went")));
        assert_eq!(back, [0]);
        ledger.put_in(run(3, 2), |huge| {
            gone.push(huge);
            true
        });
        assert_eq!(gone, [0, 0]);
    }

    #[test]
    fn what_cannot_come_back_stays_gone_and_is_tried_again() {
        let mut ledger = Ledger::new(HUGE, HUGE);
        ledger.put_in(run(0, 512), |_| true);
        assert!(!ledger.take_out(run(0, 4), |_| false));
        assert!(ledger.take_out(run(0, 4), |_| true));
        assert!(ledger.take_out(run(4, 508), |_| unreachable!("it is back")));
        // The host did not take it: it never went.
        ledger.put_in(run(0, 512), |_| false);
        assert!(ledger.take_out(run(0, 512), |_| unreachable!("it never went")));
    }

    #[test]
    fn what_an_emptied_ledger_had_is_owed_until_it_comes() {
        let mut ledger = Ledger::new(5 * HUGE, HUGE);
        ledger.put_in(run(0, 4 * 512 + 6), |_| true);
        ledger.empty();
        assert_eq!((ledger.runs(), ledger.is_owed()), (vec![], true));
        assert_eq!(ledger.bring_back(|huge| huge != 0), BroughtBack::None);
        assert_eq!(ledger.bring_back(|huge| huge == 0), BroughtBack::One);
        // One is put in again, and one is taken out.
        ledger.put_in(run(512, 512), |huge| huge == 1);
        assert!(ledger.take_out(run(3 * 512 + 7, 1), |huge| huge == 3));
        assert_eq!(ledger.bring_back(|huge| huge == 2), BroughtBack::Last);
        assert_eq!(ledger.bring_back(|_| unreachable!("nothing is owed")), BroughtBack::All);
        assert!(!ledger.is_owed() && !ledger.take_out(run(512, 1), |_| false), "the host has it again");
        ledger.empty();
        assert_eq!(ledger.bring_back(|huge| huge == 1), BroughtBack::Last);
    }

    #[test]
    fn what_is_owed_is_counted_as_a_look_at_every_huge_page_would_find_it() {
        const PAGES_PER_HUGE: u32 = 4;
        let pages = 5 * PAGES_PER_HUGE;
        let step = (0..9_u8, 0..pages, 1..=pages, proptest::prelude::any::<[bool; 5]>());
        let steps = proptest::collection::vec(step, 0..64);
        proptest::proptest!(|(steps in steps)| {
            let mut ledger = Ledger::new(u64::from(pages) * BALLOON_PAGE_BYTES, 4 * BALLOON_PAGE_BYTES);
            for (kind, first, count, host_answers) in steps {
                let answer = |huge: u64| host_answers[usize::try_from(huge).unwrap()];
                match kind {
                    0 => ledger.empty(),
                    8 => {
                        ledger.bring_back(answer);
                    }
                    1..4 => {
                        ledger.take_out(run(first, count), answer);
                    }
                    _ => ledger.put_in(run(first, count), answer),
                }
                let owed = ledger.huge.iter().filter(|huge| huge.gone && huge.inside < PAGES_PER_HUGE).count();
                assert_eq!((ledger.owed, ledger.is_owed()), (owed, owed > 0));
            }
        });
    }

    #[test]
    fn a_ledger_that_inherits_the_runs_of_another_knows_what_that_knew() {
        let mut ledger = Ledger::new(3 * HUGE, HUGE);
        for (first, count) in [(0, 1), (63, 2), (512, 512), (1100, 1), (1102, 40)] {
            ledger.put_in(run(first, count), |_| true);
        }
        let mut heir = Ledger::new(3 * HUGE, HUGE);
        ledger.runs().into_iter().for_each(|run| heir.inherit(run, |_| true));
        assert_eq!(heir.runs(), [run(0, 1), run(63, 2), run(512, 512), run(1100, 1), run(1102, 40)]);
        assert_eq!((heir.inside, heir.huge), (ledger.inside, ledger.huge));
    }

    #[test]
    fn inherited_pages_that_are_no_memory_hold_up_none_that_are() {
        let mut heir = Ledger::new(3 * HUGE, HUGE);
        heir.inherit(run(0, 3 * 512), |huge| huge != 1);
        heir.empty();
        let mut back = Vec::new();
        let mut populate = |huge| {
            back.push(huge);
            huge != 1
        };
        assert_eq!(heir.bring_back(&mut populate), BroughtBack::One);
        assert_eq!(heir.bring_back(&mut populate), BroughtBack::Last);
        assert_eq!(back, [0, 2]);
    }

    #[test]
    fn pages_beyond_memory_are_nobodys() {
        let mut ledger = Ledger::new(HUGE, HUGE);
        ledger.put_in(run(512, 1024), |_| unreachable!("there is no such page"));
        ledger.put_in(run(u32::MAX - 1, 1), |_| unreachable!("there is no such page"));
        assert!(ledger.take_out(run(512, 1), |_| unreachable!("there is no such page")));
    }
}
