//! A hostile driver's ring, and the account of each head in it.

use std::collections::HashMap;

use super::territory::Territory;
use crate::testing::Descriptor;

/// The most entries of an attacker's ring.
pub(super) const ENTRIES_MAX: u16 = 16;

const AVAIL_OFFSET: u64 = 0x400;
const USED_OFFSET: u64 = 0x800;
/// Each ring has a page of its own, from the second one on.
const PAGE: u64 = 0x1000;

/// Indirect tables: eight, of 16 descriptors each, and behind them nothing.
const INDIRECT_TABLES: u64 = 0x6000;
const INDIRECT_TABLE_BYTES: u64 = 256;
const INDIRECT_TABLES_COUNT: u64 = 8;

/// One of the indirect tables.
pub(super) fn indirect_table(number: u8) -> u64 {
    INDIRECT_TABLES + INDIRECT_TABLE_BYTES * (u64::from(number) % INDIRECT_TABLES_COUNT)
}

fn is_indirect_table(address: u64) -> bool {
    let offset = address.checked_sub(INDIRECT_TABLES);
    offset.is_some_and(|offset| {
        offset < INDIRECT_TABLE_BYTES * INDIRECT_TABLES_COUNT && offset.is_multiple_of(INDIRECT_TABLE_BYTES)
    })
}

/// A ring in guest memory. It knows which chains must come back, unless the driver moved its index in a way that a device
/// may take as it likes.
pub(super) struct Ledger {
    page: u64,
    size: u16,
    avail_index: u16,
    used_index: u16,
    /// How often a head was made available, less how often it came back.
    out: HashMap<u16, u32>,
    ambiguous: bool,
}

impl Ledger {
    pub(super) fn new(queue: u16, size: u16) -> Self {
        let page = PAGE * (1 + u64::from(queue));
        Self { page, size, avail_index: 0, used_index: 0, out: HashMap::new(), ambiguous: false }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn avail_index(&self) -> u16 {
        self.avail_index
    }

    /// Table, available ring, used ring.
    pub(super) fn addresses(&self) -> [u64; 3] {
        [self.page, self.page + AVAIL_OFFSET, self.page + USED_OFFSET]
    }

    pub(super) fn used_bytes(&self) -> u32 {
        4 + 8 * u32::from(self.size) + 2
    }

    /// Writes a descriptor over whatever is there, which a device may still see, or the half of.
    pub(super) fn write_descriptor(territory: &mut Territory, table: u64, index: u16, descriptor: Descriptor) {
        let address = table + 16 * u64::from(index);
        let old = Descriptor::from_bytes(territory.peek(address));
        let (flags, len) = (old.flags | descriptor.flags, old.len.max(descriptor.len));
        let addresses = [Some(descriptor.address), (old != Descriptor::default()).then_some(old.address)];
        for address in addresses.into_iter().flatten() {
            if flags & Descriptor::INDIRECT != 0 {
                // What lies elsewhere, as a table of descriptors, is not accounted for.
                if !is_indirect_table(address) {
                    territory.grow_wild();
                }
            } else if flags & Descriptor::WRITE != 0 {
                territory.offer_buffer(address, len);
            }
        }
        let mixed = (old.flags ^ descriptor.flags) & Descriptor::INDIRECT != 0 && old != Descriptor::default();
        if mixed && flags & Descriptor::WRITE != 0 {
            territory.grow_wild();
        }
        territory.poke(address, &descriptor.to_bytes());
    }

    pub(super) fn make_available(&mut self, territory: &mut Territory, head: u16) {
        let entry = u64::from(self.avail_index % self.size);
        territory.poke(self.page + AVAIL_OFFSET + 4 + 2 * entry, &head.to_le_bytes());
        self.publish(territory, self.avail_index.wrapping_add(1));
    }

    pub(super) fn publish(&mut self, territory: &mut Territory, index: u16) {
        self.collect(territory);
        let step = u32::from(index.wrapping_sub(self.avail_index));
        if step + self.outstanding() > u32::from(self.size) {
            self.ambiguous = true;
        } else {
            while self.avail_index != index {
                let entry = u64::from(self.avail_index % self.size);
                let head = u16::from_le_bytes(territory.peek(self.page + AVAIL_OFFSET + 4 + 2 * entry));
                *self.out.entry(head).or_default() += 1;
                self.avail_index = self.avail_index.wrapping_add(1);
            }
        }
        self.avail_index = index;
        territory.poke(self.page + AVAIL_OFFSET + 2, &index.to_le_bytes());
    }

    /// What the driver wants to hear of, by flags and by event index.
    pub(super) fn wish(&self, territory: &mut Territory, flags: u16, event: u16) {
        territory.poke(self.page + AVAIL_OFFSET, &flags.to_le_bytes());
        let event_address = self.page + AVAIL_OFFSET + 4 + 2 * u64::from(self.size);
        territory.poke(event_address, &event.to_le_bytes());
    }

    /// Takes what came back.
    pub(super) fn collect(&mut self, territory: &Territory) {
        let index = u16::from_le_bytes(territory.peek(self.page + USED_OFFSET + 2));
        if self.ambiguous || territory.is_wild() {
            self.used_index = index;
            return;
        }
        while self.used_index != index {
            let entry = u64::from(self.used_index % self.size);
            let head = u32::from_le_bytes(territory.peek(self.page + USED_OFFSET + 4 + 8 * entry));
            let out = u16::try_from(head).ok().and_then(|head| self.out.get_mut(&head)).filter(|out| **out > 0);
            *out.unwrap_or_else(|| panic!("chain {head} came back and was not out")) -= 1;
            self.used_index = self.used_index.wrapping_add(1);
        }
    }

    /// Chains that must come back, as far as one can tell.
    pub(super) fn outstanding(&self) -> u32 {
        self.out.values().sum()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.ambiguous || self.outstanding() == 0
    }
}
