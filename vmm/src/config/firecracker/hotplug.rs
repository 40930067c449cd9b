//! The bodies of Firecracker's API of memory that is plugged, field for field.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{BLOCK_BYTES_DEFAULT, HotplugConfig, MIB, SLOT_BYTES_DEFAULT};

/// `MemoryHotplugConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugConfig {
    /// How much can be plugged, in MiB.
    pub total_size_mib: u32,
    /// What the guest cannot reach at all while none of it is plugged, in MiB.
    #[serde(default = "slot_size_mib")]
    #[schemars(range(min = 128))]
    pub slot_size_mib: u32,
    /// What is plugged and unplugged together, in MiB.
    #[serde(default = "block_size_mib")]
    #[schemars(range(min = 2))]
    pub block_size_mib: u32,
}

/// `MemoryHotplugSizeUpdate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugSizeUpdate {
    /// What the guest shall have plugged from now on, in MiB.
    pub requested_size_mib: u32,
}

/// `MemoryHotplugStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemoryHotplugStatus {
    /// How much can be plugged, in MiB.
    pub total_size_mib: u64,
    /// What the guest cannot reach at all while none of it is plugged, in MiB.
    pub slot_size_mib: u64,
    /// What is plugged and unplugged together, in MiB.
    pub block_size_mib: u64,
    /// What the guest has plugged, in MiB.
    pub plugged_size_mib: u64,
    /// What it shall have plugged, in MiB.
    pub requested_size_mib: u64,
}

fn slot_size_mib() -> u32 {
    mib(SLOT_BYTES_DEFAULT)
}

fn block_size_mib() -> u32 {
    mib(BLOCK_BYTES_DEFAULT)
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

impl MemoryHotplugConfig {
    pub(super) fn into_config(self) -> HotplugConfig {
        let Self { total_size_mib, slot_size_mib, block_size_mib } = self;
        let [total_bytes, slot_bytes, block_bytes] =
            [total_size_mib, slot_size_mib, block_size_mib].map(|mib| u64::from(mib) * MIB);
        HotplugConfig { total_bytes, slot_bytes, block_bytes, requested_bytes: 0 }
    }

    /// Memory that can be plugged, in Firecracker's terms.
    #[must_use]
    pub fn describe(config: &HotplugConfig) -> Self {
        Self {
            total_size_mib: mib(config.total_bytes),
            slot_size_mib: mib(config.slot_bytes),
            block_size_mib: mib(config.block_bytes),
        }
    }
}

impl MemoryHotplugStatus {
    /// Of memory of which so many bytes are plugged.
    #[must_use]
    pub fn new(config: &HotplugConfig, plugged_bytes: u64) -> Self {
        Self {
            total_size_mib: config.total_bytes / MIB,
            slot_size_mib: config.slot_bytes / MIB,
            block_size_mib: config.block_bytes / MIB,
            plugged_size_mib: plugged_bytes / MIB,
            requested_size_mib: config.requested_bytes / MIB,
        }
    }
}
