//! The bytes that checks write: pseudo-random, and the same on the host from the same seed.

/// xorshift64 with the shifts 13, 7, 17; each state after a step is one little-endian word of the pattern.
#[derive(Clone)]
pub(crate) struct Pattern(u64);

/// What parts the patterns of two disks or buffers that have one seed: 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The seed when the command line has none: the letters `husk`.
pub(crate) const SEED_DEFAULT: u64 = 0x6875_736b;

impl Pattern {
    /// The pattern of the `index`th thing that is written with this seed.
    pub(crate) const fn new(seed: u64, index: u64) -> Self {
        let state = seed ^ STEP.wrapping_mul(index.wrapping_add(1));
        // Zero is the one state that xorshift never leaves.
        Self(if state == 0 { STEP } else { state })
    }

    /// Fills whole words; a rest shorter than one stays as it is.
    pub(crate) fn fill(&mut self, place: &mut [u8]) {
        for word in place.as_chunks_mut::<8>().0 {
            *word = self.next_word();
        }
    }

    /// Where in `bytes` the first word is that is not the pattern's, as a byte offset.
    pub(crate) fn first_difference(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut first = None;
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            // To the end in any case: the next call goes on from there.
            if *word != self.next_word() && first.is_none() {
                first = Some(index * 8);
            }
        }
        first
    }

    /// The next word as a number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let [_, _, low @ .., _, _] = self.next_word();
        let number = u32::from_le_bytes(low) as usize;
        number % limit
    }

    fn next_word(&mut self) -> [u8; 8] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_le_bytes()
    }
}
