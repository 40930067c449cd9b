//! FNV-1a with 64 bits: the checksum that this agent and the tests on the host both compute.

/// The offset basis that the algorithm starts from.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
/// The prime that it multiplies by.
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// A checksum under way.
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) const fn new() -> Self {
        Self(BASIS)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }

    pub(crate) const fn value(&self) -> u64 {
        self.0
    }
}
