//! A memory balloon as it is asked for.

use std::time::Duration;

use super::{ConfigError, MIB, MemoryConfig};

/// The id of the balloon.
pub const BALLOON_ID: &str = "balloon";

/// A memory balloon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonConfig {
    /// What it shall have, in bytes; a whole number of MiB.
    pub target_bytes: u64,
    /// Whether a guest that is short of memory may take pages out by itself.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics; `None` for a balloon without.
    pub statistics: Option<Duration>,
    /// Whether the guest can be asked which pages are free. Not offered on pages of a HugePage pool.
    pub hinting: bool,
    /// Whether the guest tells which pages have become free. Not offered on pages of a HugePage pool.
    pub reporting: bool,
}

impl BalloonConfig {
    pub(super) fn validate(&self, memory: &MemoryConfig) -> Result<(), ConfigError> {
        match self.target_bytes > memory.size_bytes {
            true => Err(ConfigError::BalloonTooLarge {
                target_mib: self.target_bytes / MIB,
                memory_mib: memory.size_bytes / MIB,
            }),
            false => Ok(()),
        }
    }
}
