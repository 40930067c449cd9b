//! The VM generation (Microsoft, "Virtual Machine Generation ID", 2012): a number of which no two lives of a machine have the
//! same. A guest that finds another one than before, as after a restore, knows that it may not be the only one with its
//! memory, and makes its random numbers anew. The device in the DSDT says where it is.

use crate::layout::GENERATION_START;
use crate::memory::{Bytes, GuestMemory, GuestMemoryError};

/// One life of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation([u8; Self::BYTES]);

impl Generation {
    /// How long the number is, in bytes.
    pub const BYTES: usize = 16;

    /// The generation with this number, which has to be random.
    #[must_use]
    pub const fn new(random: [u8; Self::BYTES]) -> Self {
        Self(random)
    }

    /// Puts it where the guest looks.
    ///
    /// # Errors
    /// Guest memory ends below 1 MiB.
    pub fn write(self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        memory.write_slice(&self.0, GENERATION_START)
    }
}
