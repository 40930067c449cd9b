//! The memory of a saved machine that can be plugged: a section of its own, of those machines that have some.

use serde::{Deserialize, Serialize};

use crate::config::HotplugConfig;

/// The memory that can be plugged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugState {
    total_bytes: u64,
    block_bytes: u64,
    slot_bytes: u64,
    requested_bytes: u64,
}

impl HotplugState {
    /// What a snapshot keeps of `config`.
    #[must_use]
    pub fn save(config: &HotplugConfig) -> Self {
        let HotplugConfig { total_bytes, block_bytes, slot_bytes, requested_bytes } = *config;
        Self { total_bytes, block_bytes, slot_bytes, requested_bytes }
    }

    /// The configuration, unchecked.
    #[must_use]
    pub fn restore(self) -> HotplugConfig {
        let Self { total_bytes, block_bytes, slot_bytes, requested_bytes } = self;
        HotplugConfig { total_bytes, block_bytes, slot_bytes, requested_bytes }
    }
}
