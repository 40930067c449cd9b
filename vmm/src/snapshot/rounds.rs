//! When a running machine has been copied closely enough: a pure decision.

/// Pages whose copying a pause can bear: 2 MiB, about 1 ms.
const CLOSE_PAGES_MAX: u64 = 512;
/// Rounds beside the guest at most: one that dirties its memory as fast as it is copied is paused for what there is.
const ROUNDS_MAX: u32 = 8;

/// What follows a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another.
    Round,
    /// The machine is paused, and what is left is copied.
    Close,
}

/// What follows `rounds` rounds, of which the last copied `copied` pages while the guest dirtied `dirty`.
pub(super) fn next(rounds: u32, copied: u64, dirty: u64) -> Next {
    // A round that leaves as much as it took gains nothing.
    let shrinks = dirty < copied - copied / 4;
    if dirty <= CLOSE_PAGES_MAX || rounds >= ROUNDS_MAX || !shrinks { Next::Close } else { Next::Round }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_closed_when_little_is_left_or_nothing_is_gained() {
        for (rounds, copied, dirty, expected) in [
            (1, 100_000, 0, Next::Close),
            (1, 100_000, CLOSE_PAGES_MAX, Next::Close),
            (1, 100_000, CLOSE_PAGES_MAX + 1, Next::Round),
            (1, 100_000, 74_999, Next::Round),
            (1, 100_000, 75_000, Next::Close),
            (2, 1_000, 1_000, Next::Close),
            (ROUNDS_MAX, 100_000, 1_000, Next::Close),
            (1, 0, u64::MAX, Next::Close),
        ] {
            assert_eq!(next(rounds, copied, dirty), expected, "{rounds} {copied} {dirty}");
        }
    }
}
