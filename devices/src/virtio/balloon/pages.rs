//! Page numbers as a driver writes them: little-endian, 32 bits each, in any order.

use arch::GuestMemory;
use vm_memory::Bytes;

use super::BALLOON_PAGE_BYTES;
use crate::virtio::queue::Segment;

/// Pages that one chain may name. Linux names 256; who names more is not served.
pub(super) const PAGES_PER_CHAIN_MAX: u32 = 16384;

/// Pages that are looked at together.
const BATCH: usize = 1024;

/// A chain that is no list of page numbers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoPages;

/// Some pages that follow each other, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Run {
    /// Where it begins, in bytes.
    pub(super) fn start(self) -> u64 {
        u64::from(self.first) * BALLOON_PAGE_BYTES
    }

    /// Its size, in bytes.
    pub(super) fn bytes(self) -> u64 {
        u64::from(self.count) * BALLOON_PAGE_BYTES
    }
}

/// Gives `take` the pages that `segments` name, sorted and joined into runs as far as a batch goes.
pub(super) fn for_each_run(
    memory: &GuestMemory,
    segments: &[Segment],
    mut take: impl FnMut(Run),
) -> Result<(), NoPages> {
    let total: u64 = segments.iter().map(|segment| u64::from(segment.len())).sum();
    if total > u64::from(PAGES_PER_CHAIN_MAX) * 4 || segments.iter().any(|segment| !segment.len().is_multiple_of(4)) {
        return Err(NoPages);
    }
    let mut bytes = [[0; 4]; BATCH];
    let mut numbers = [0; BATCH];
    for segment in segments {
        let mut done = 0;
        while let Some(part) = segment.part(done, 4 * u32::try_from(BATCH).expect("small")) {
            let count = usize::try_from(part.len() / 4).expect("32 bits fit");
            let bytes = &mut bytes[..count];
            memory.read_slice(bytes.as_flattened_mut(), part.address()).expect("the chain was checked to be in memory");
            let numbers = &mut numbers[..count];
            for (number, bytes) in numbers.iter_mut().zip(bytes) {
                *number = u32::from_le_bytes(*bytes);
            }
            runs(numbers, &mut take);
            done += part.len();
        }
    }
    Ok(())
}

fn runs(numbers: &mut [u32], take: &mut impl FnMut(Run)) {
    numbers.sort_unstable();
    let mut run: Option<Run> = None;
    for &number in &*numbers {
        run = match run {
            // Named twice: once is enough.
            Some(run) if number < run.first + run.count => Some(run),
            Some(run) if number == run.first + run.count && number < u32::MAX => {
                Some(Run { count: run.count + 1, ..run })
            }
            other => {
                other.into_iter().for_each(&mut *take);
                // The last number that there is begins no run: its end would not be a number.
                (number < u32::MAX).then_some(Run { first: number, count: 1 })
            }
        };
    }
    run.into_iter().for_each(take);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_joined_whatever_their_order_and_doubles_count_once() {
        let joined = |numbers: &[u32]| {
            let mut found = Vec::new();
            runs(&mut numbers.to_vec(), &mut |run: Run| found.push((run.first, run.count)));
            found
        };
        assert_eq!(joined(&[]), []);
        assert_eq!(joined(&[9, 7, 8, 7, 3]), [(3, 1), (7, 3)]);
        assert_eq!(joined(&[u32::MAX, u32::MAX - 1, 0]), [(0, 1), (u32::MAX - 1, 1)]);
    }
}
