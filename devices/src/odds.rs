//! Whether an attempt that may be in vain is worth making, by how the last ones went.
//!
//! Both sides are small here: what an attempt costs in vain, and what it saves otherwise. So it is made as long as it
//! succeeds at least every other time, and else once in a while, to find out when that changes.

/// Attempts in vain in a row after which they become rare.
const CREDIT_MAX: u8 = 8;

/// While attempts are rare, one chance of so many is taken.
const CHANCES_PER_PROBE: u8 = 32;

/// What is known of an attempt's prospects.
#[derive(Debug)]
pub(crate) struct Odds {
    credit: u8,
    /// Chances that were left out since the last attempt.
    left_out: u8,
}

impl Odds {
    /// Nothing is known, which counts in favour.
    pub(crate) fn new() -> Self {
        Self { credit: CREDIT_MAX, left_out: 0 }
    }

    /// Whether to make an attempt this time; [`Self::won`] or [`Self::lost`] tells what came of it.
    pub(crate) fn favour(&mut self) -> bool {
        self.left_out += 1;
        let favours = self.credit > 0 || self.left_out == CHANCES_PER_PROBE;
        if favours {
            self.left_out = 0;
        }
        favours
    }

    /// The attempt was worth it.
    pub(crate) fn won(&mut self) {
        self.credit = (self.credit + 1).min(CREDIT_MAX);
    }

    /// The attempt was in vain.
    pub(crate) fn lost(&mut self) {
        self.credit = self.credit.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `chances`, the attempts that are made while `outcome` is what comes of each.
    fn attempts(odds: &mut Odds, chances: usize, outcome: fn(&mut Odds)) -> usize {
        let made = (0..chances).filter(|_| {
            let favours = odds.favour();
            if favours {
                outcome(odds);
            }
            favours
        });
        made.count()
    }

    #[test]
    fn attempts_in_vain_become_rare_and_never_end() {
        let mut odds = Odds::new();
        assert_eq!(attempts(&mut odds, usize::from(CREDIT_MAX), Odds::lost), usize::from(CREDIT_MAX));
        let chances = 100 * usize::from(CHANCES_PER_PROBE);
        assert_eq!(attempts(&mut odds, chances, Odds::lost), 100);
    }

    #[test]
    fn one_success_brings_attempts_back_and_many_outlast_a_few_failures() {
        let mut odds = Odds::new();
        attempts(&mut odds, 1000, Odds::lost);
        attempts(&mut odds, 2 * usize::from(CHANCES_PER_PROBE), Odds::won);
        assert_eq!(attempts(&mut odds, 100, Odds::won), 100);
        assert_eq!(attempts(&mut odds, usize::from(CREDIT_MAX) - 1, Odds::lost), usize::from(CREDIT_MAX) - 1);
        assert_eq!(attempts(&mut odds, 100, Odds::won), 100);
    }
}
