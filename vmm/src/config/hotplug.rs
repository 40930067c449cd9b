//! Memory that is plugged while the machine runs, as it is asked for.

use arch::layout;
use thiserror::Error;

use super::{MIB, MemoryConfig};

/// The id of the device that plugs memory.
pub const HOTPLUG_ID: &str = "mem";

/// The size of a block where nothing is said, in bytes: what a transparent HugePage maps.
pub const BLOCK_BYTES_DEFAULT: u64 = 2 * MIB;
/// The size of a slot where nothing is said, in bytes; also the least.
pub const SLOT_BYTES_DEFAULT: u64 = 128 * MIB;
/// The most slots: each costs KVM a look-up table of its own.
pub(super) const SLOTS_MAX: u64 = 1024;

/// Memory that is plugged while the machine runs (a virtio memory device). It lies above all other memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugConfig {
    /// How much can be plugged, in bytes; a whole number of slots.
    pub total_bytes: u64,
    /// What is plugged and unplugged together, in bytes; a power of two.
    pub block_bytes: u64,
    /// What the guest cannot reach at all while no block in it is plugged, in bytes; a whole number of blocks.
    pub slot_bytes: u64,
    /// How much shall be plugged when the guest starts, in bytes; a whole number of blocks.
    pub requested_bytes: u64,
}

/// Memory that cannot be plugged so.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HotplugError {
    /// A block that is none.
    #[error("block: {} MiB is no power of two of at least {}", bytes / MIB, BLOCK_BYTES_DEFAULT / MIB)]
    Block {
        /// What was asked.
        bytes: u64,
    },
    /// A block that cannot go back whole.
    #[error("block: {} MiB is no whole number of {page} pages, of which memory is made: use at least {page}", bytes / MIB)]
    BlockOfPages {
        /// What was asked.
        bytes: u64,
        /// The pages.
        page: &'static str,
    },
    /// A size that is not a whole number of the next smaller one.
    #[error("{what}: {} MiB is no whole number of {unit_name}s of {} MiB, and at least one", bytes / MIB, unit / MIB)]
    NotWhole {
        /// Of what.
        what: &'static str,
        /// What was asked.
        bytes: u64,
        /// What it is made of.
        unit_name: &'static str,
        /// The size of that.
        unit: u64,
    },
    /// A slot that is too small.
    #[error("slot: {} MiB is less than {}", bytes / MIB, SLOT_BYTES_DEFAULT / MIB)]
    SmallSlot {
        /// What was asked.
        bytes: u64,
    },
    /// Too many slots.
    #[error("total: {} MiB are {slots} slots of {} MiB, more than {SLOTS_MAX}: make the slots larger", total / MIB, slot / MIB)]
    TooManySlots {
        /// What was asked.
        total: u64,
        /// The size of a slot.
        slot: u64,
        /// How many they are.
        slots: u64,
    },
    /// More than addresses reach.
    #[error("total: {} MiB end beyond the {} GiB that a guest can address: give it less", total / MIB, layout::PHYSICAL_END.0 >> 30)]
    TooLarge {
        /// What was asked.
        total: u64,
    },
    /// More requested than there is.
    #[error("requested: {} MiB are more than the {} that can be plugged", requested / MIB, total / MIB)]
    RequestedTooLarge {
        /// What was asked.
        requested: u64,
        /// What there is.
        total: u64,
    },
    /// A node that the guest has not.
    #[error("node: the guest has no node {node}: it has {nodes}")]
    NoSuchNode {
        /// What was asked.
        node: u16,
        /// How many there are.
        nodes: usize,
    },
    /// Memory that is locked as a whole.
    #[error("what is plugged later is not locked: leave out `lock` of the memory")]
    Locked,
}

impl HotplugConfig {
    /// So many bytes, none of them plugged at first.
    #[must_use]
    pub fn new(total_bytes: u64) -> Self {
        Self { total_bytes, block_bytes: BLOCK_BYTES_DEFAULT, slot_bytes: SLOT_BYTES_DEFAULT, requested_bytes: 0 }
    }

    /// Where it begins for the guest, in a machine of so much memory beside it.
    #[must_use]
    pub fn start(&self, memory: &MemoryConfig) -> arch::GuestAddress {
        layout::pluggable_start(memory.size_bytes, self.block_bytes)
    }

    /// How many slots it has.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.total_bytes / self.slot_bytes
    }

    pub(super) fn validate(&self, memory: &MemoryConfig, nodes: usize) -> Result<(), HotplugError> {
        let Self { total_bytes: total, block_bytes: block, slot_bytes: slot, requested_bytes: requested } = *self;
        if !block.is_power_of_two() || block < BLOCK_BYTES_DEFAULT {
            return Err(HotplugError::Block { bytes: block });
        }
        let pages = memory.placement.pages;
        if pages.pool_page_bytes().is_some_and(|page| !block.is_multiple_of(page)) {
            return Err(HotplugError::BlockOfPages { bytes: block, page: pages.name() });
        }
        if slot < SLOT_BYTES_DEFAULT {
            return Err(HotplugError::SmallSlot { bytes: slot });
        }
        let whole = |what, bytes: u64, unit_name, unit| match bytes > 0 && bytes.is_multiple_of(unit) {
            true => Ok(()),
            false => Err(HotplugError::NotWhole { what, bytes, unit_name, unit }),
        };
        whole("slot", slot, "block", block)?;
        whole("total", total, "slot", slot)?;
        if self.slots() > SLOTS_MAX {
            return Err(HotplugError::TooManySlots { total, slot, slots: self.slots() });
        }
        if self.start(memory).0.checked_add(total).is_none_or(|end| end > layout::PHYSICAL_END.0) {
            return Err(HotplugError::TooLarge { total });
        }
        if requested > total {
            return Err(HotplugError::RequestedTooLarge { requested, total });
        }
        if requested > 0 {
            whole("requested", requested, "block", block)?;
        }
        if let Some(node) = memory.placement.hotplug_node.filter(|node| usize::from(*node) >= nodes) {
            return Err(HotplugError::NoSuchNode { node, nodes });
        }
        if memory.placement.lock { Err(HotplugError::Locked) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Pages;

    #[test]
    fn what_can_be_plugged_is_taken_and_what_cannot_is_named() {
        let memory = MemoryConfig::new(512 * MIB);
        let good = HotplugConfig { requested_bytes: 128 * MIB, ..HotplugConfig::new(1024 * MIB) };
        assert_eq!(good.validate(&memory, 0), Ok(()));
        assert_eq!((good.slots(), good.start(&memory).0), (8, 4 << 30));
        assert_eq!(good.start(&MemoryConfig::new(6 << 30)).0, 7 << 30);
        let refused = |change: fn(&mut HotplugConfig)| {
            let mut config = good;
            change(&mut config);
            config.validate(&memory, 2).unwrap_err().to_string()
        };
        assert_eq!(refused(|it| it.block_bytes = 3 * MIB), "block: 3 MiB is no power of two of at least 2");
        assert_eq!(refused(|it| it.block_bytes = MIB), "block: 1 MiB is no power of two of at least 2");
        assert_eq!(refused(|it| it.slot_bytes = 64 * MIB), "slot: 64 MiB is less than 128");
        assert_eq!(
            refused(|it| it.slot_bytes = 129 * MIB),
            "slot: 129 MiB is no whole number of blocks of 2 MiB, and at least one"
        );
        assert_eq!(
            refused(|it| it.total_bytes = 200 * MIB),
            "total: 200 MiB is no whole number of slots of 128 MiB, and at least one"
        );
        assert!(refused(|it| it.total_bytes = 0).starts_with("total: 0 MiB is no whole number"));
        assert_eq!(
            refused(|it| it.total_bytes = 1025 * 128 * MIB),
            "total: 131200 MiB are 1025 slots of 128 MiB, more than 1024: make the slots larger"
        );
        let far = refused(|it| (it.total_bytes, it.slot_bytes) = (64 << 40, 1 << 40));
        assert_eq!(far, "total: 67108864 MiB end beyond the 65536 GiB that a guest can address: give it less");
        assert_eq!(
            refused(|it| it.requested_bytes = 1026 * MIB),
            "requested: 1026 MiB are more than the 1024 that can be plugged"
        );
        assert!(
            refused(|it| it.requested_bytes = 3 * MIB).starts_with("requested: 3 MiB is no whole number of blocks")
        );
        let mut elsewhere = memory.clone();
        elsewhere.placement.hotplug_node = Some(2);
        let refused = good.validate(&elsewhere, 2).unwrap_err().to_string();
        assert_eq!(refused, "node: the guest has no node 2: it has 2");
    }

    #[test]
    fn memory_that_is_locked_or_made_of_larger_pages_than_blocks_plugs_nothing() {
        let mut memory = MemoryConfig::new(1 << 30);
        memory.placement.pages = Pages::Huge1G;
        let mut hotplug = HotplugConfig { slot_bytes: 1 << 30, ..HotplugConfig::new(2 << 30) };
        let refused = hotplug.validate(&memory, 0).unwrap_err().to_string();
        assert_eq!(refused, "block: 2 MiB is no whole number of 1G pages, of which memory is made: use at least 1G");
        hotplug.block_bytes = 1 << 30;
        assert_eq!(hotplug.validate(&memory, 0), Ok(()));
        memory.placement.lock = true;
        assert_eq!(hotplug.validate(&memory, 0), Err(HotplugError::Locked));
    }
}
