//! Which blocks of a memory device are plugged.

use super::MemoryArea;

/// A bit for each block. Its size is that of the area, not of what a driver says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    area: MemoryArea,
    words: Box<[u64]>,
    plugged: u64,
}

/// Blocks that follow each other, by number. Not empty, and inside the area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRun {
    pub(super) first: u64,
    pub(super) count: u64,
}

/// What the blocks of a run are (virtio 1.3 §5.15.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockState {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

impl Blocks {
    /// Those of `area`, unplugged.
    pub(super) fn new(area: MemoryArea) -> Self {
        let words = usize::try_from((area.bytes / area.block_bytes).div_ceil(64)).expect("64 bits fit");
        Self { area, words: vec![0; words].into(), plugged: 0 }
    }

    /// How many blocks there are.
    pub(super) fn count(&self) -> u64 {
        self.area.bytes / self.area.block_bytes
    }

    /// How many bytes are plugged.
    pub(super) fn plugged_bytes(&self) -> u64 {
        self.plugged * self.area.block_bytes
    }

    /// The `count` blocks that begin at the guest address `start`; `None` if there are none such.
    pub(super) fn run(&self, start: u64, count: u16) -> Option<BlockRun> {
        let MemoryArea { start: first, bytes, block_bytes, .. } = self.area;
        let offset = start.checked_sub(first.0).filter(|offset| offset.is_multiple_of(block_bytes))?;
        let end = offset.checked_add(u64::from(count).checked_mul(block_bytes)?)?;
        (count > 0 && end <= bytes).then(|| BlockRun { first: offset / block_bytes, count: count.into() })
    }

    /// All blocks that are plugged, in runs as long as can be.
    pub(super) fn plugged_runs(&self) -> Vec<BlockRun> {
        let mut runs: Vec<BlockRun> = Vec::new();
        for (index, &word) in (0_u64..).zip(&self.words) {
            let mut rest = word;
            while rest != 0 {
                let (skipped, first) = (u64::from(rest.trailing_zeros()), index * 64);
                let count = u64::from((rest >> skipped).trailing_ones());
                let first = first + skipped;
                match runs.last_mut() {
                    Some(last) if last.first + last.count == first => last.count += count,
                    _ => runs.push(BlockRun { first, count }),
                }
                rest = if skipped + count == 64 { 0 } else { rest >> (skipped + count) << (skipped + count) };
            }
        }
        runs
    }

    /// What the blocks of a run are.
    pub(super) fn state(&self, run: BlockRun) -> BlockState {
        let mut plugged = 0;
        for_each_word(run, |index, mask| plugged += u64::from((self.words[index] & mask).count_ones()));
        match plugged {
            0 => BlockState::Unplugged,
            _ if plugged == run.count => BlockState::Plugged,
            _ => BlockState::Mixed,
        }
    }

    /// The blocks of a run are plugged from now on.
    pub(super) fn plug(&mut self, run: BlockRun) {
        for_each_word(run, |index, mask| {
            self.plugged += u64::from((mask & !self.words[index]).count_ones());
            self.words[index] |= mask;
        });
    }

    /// The blocks of a run are plugged no more.
    pub(super) fn unplug(&mut self, run: BlockRun) {
        for_each_word(run, |index, mask| {
            self.plugged -= u64::from((mask & self.words[index]).count_ones());
            self.words[index] &= !mask;
        });
    }
}

/// The words that a run has bits in, each with the mask of these.
fn for_each_word(run: BlockRun, mut take: impl FnMut(usize, u64)) {
    let (mut next, end) = (run.first, run.first + run.count);
    while next < end {
        let here = (64 - next % 64).min(end - next);
        let mask = u64::MAX >> (64 - here) << (next % 64);
        take(usize::try_from(next / 64).expect("64 bits fit"), mask);
        next += here;
    }
}

#[cfg(test)]
mod tests {
    use arch::GuestAddress;
    use proptest::prelude::*;

    use super::*;

    const AREA: MemoryArea =
        MemoryArea { start: GuestAddress(1 << 32), bytes: 200 << 21, block_bytes: 1 << 21, node: None };

    #[test]
    fn blocks_are_those_of_the_area_and_no_others() {
        let blocks = Blocks::new(AREA);
        let start = AREA.start.0;
        assert_eq!(blocks.run(start, 1), Some(BlockRun { first: 0, count: 1 }));
        assert_eq!(blocks.run(start + (199 << 21), 1), Some(BlockRun { first: 199, count: 1 }));
        assert_eq!(blocks.run(start, 200), Some(BlockRun { first: 0, count: 200 }));
        for (start, count) in [
            (start, 0),
            (start, 201),
            (start + 1, 1),
            (start + (1 << 20), 1),
            (start - (1 << 21), 1),
            (start + (200 << 21), 1),
            (u64::MAX, u16::MAX),
            (u64::MAX << 21, u16::MAX),
            (0, 1),
        ] {
            assert_eq!(blocks.run(start, count), None, "{start:#x} {count}");
        }
    }

    proptest! {
        #[test]
        fn blocks_are_what_a_plain_list_says(steps in prop::collection::vec((any::<bool>(), 0_u64..200, 1_u64..130), 0..40)) {
            let (mut blocks, mut model) = (Blocks::new(AREA), [false; 200]);
            for (plug, first, count) in steps {
                let run = BlockRun { first, count: count.min(200 - first) };
                let range = usize::try_from(first).unwrap()..usize::try_from(first + run.count).unwrap();
                let plugged = model[range.clone()].iter().filter(|block| **block).count();
                let expected = match plugged {
                    0 => BlockState::Unplugged,
                    _ if plugged == range.len() => BlockState::Plugged,
                    _ => BlockState::Mixed,
                };
                prop_assert_eq!(blocks.state(run), expected);
                model[range].fill(plug);
                if plug { blocks.plug(run) } else { blocks.unplug(run) }
                let all: usize = model.iter().filter(|block| **block).count();
                prop_assert_eq!(blocks.plugged_bytes(), u64::try_from(all).unwrap() << 21);
            }
            let mut listed = [false; 200];
            let runs = blocks.plugged_runs();
            for BlockRun { first, count } in &runs {
                listed[usize::try_from(*first).unwrap()..usize::try_from(first + count).unwrap()].fill(true);
            }
            prop_assert_eq!(listed, model);
            prop_assert!(runs.windows(2).all(|pair| pair[0].first + pair[0].count < pair[1].first));
        }
    }
}
