//! Guest memory, and which of it a device may have written.

use std::ops::Range;
use std::sync::Arc;

use arch::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::input::Input;
use crate::testing::memory_with_hole;

/// Bytes of each of the two regions.
pub(super) const REGION_BYTES: u64 = 1 << 16;
/// Where the second region begins; between the two is a hole.
pub(super) const UPPER: u64 = 1 << 32;
/// Rings and indirect tables lie below, data above.
pub(super) const DATA: u64 = 0x8000;

/// Guest memory as the driver left it, and what it offered to the device for writing.
pub(super) struct Territory {
    memory: Arc<GuestMemory>,
    /// Both regions: where they begin and what they hold.
    expected: [(u64, Vec<u8>); 2],
    offered: Vec<Range<u64>>,
    /// The device may write over the rings that it works on: nothing can be foretold before a reset.
    wild: bool,
}

impl Territory {
    pub(super) fn new() -> Self {
        let len = usize::try_from(REGION_BYTES).expect("64 bits fit");
        let memory = memory_with_hole(len);
        let expected = [0, UPPER].map(|start| (start, vec![0; len]));
        Self { memory, expected, offered: Vec::new(), wild: false }
    }

    pub(super) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub(super) fn is_wild(&self) -> bool {
        self.wild
    }

    pub(super) fn grow_wild(&mut self) {
        self.wild = true;
    }

    /// The driver writes.
    pub(super) fn poke(&mut self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("a driver writes to its own memory");
        let (start, region) = &mut self.expected[usize::from(address >= UPPER)];
        let at = usize::try_from(address - *start).expect("64 bits fit");
        region[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The driver reads.
    pub(super) fn peek<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("a driver reads its own memory");
        bytes
    }

    /// From now on the device may write there.
    pub(super) fn offer(&mut self, address: u64, len: u32) {
        self.offered.push(address..address.saturating_add(u64::from(len)));
    }

    /// A descriptor that the device may write to, with whatever is in it.
    pub(super) fn offer_buffer(&mut self, address: u64, len: u32) {
        self.offer(address, len);
        self.wild |= address < DATA && len > 0;
    }

    /// The device is reset: what was offered is the driver's again.
    pub(super) fn take_back(&mut self) {
        self.check();
        self.offered.clear();
        self.wild = false;
    }

    /// Nothing but what was offered is written.
    pub(super) fn check(&mut self) {
        for (start, expected) in &mut self.expected {
            let mut actual = vec![0; expected.len()];
            self.memory.read_slice(&mut actual, GuestAddress(*start)).expect("the region is there");
            if self.wild {
                *expected = actual;
                continue;
            }
            let end = *start + REGION_BYTES;
            for range in &self.offered {
                let inside = range.start.clamp(*start, end)..range.end.clamp(*start, end);
                let at = |address| usize::try_from(address - *start).expect("64 bits fit");
                let inside = at(inside.start)..at(inside.end);
                expected[inside.clone()].copy_from_slice(&actual[inside]);
            }
            let differs = (*start..).zip(actual.iter().zip(&*expected)).find(|(_, (is, was))| is != was);
            assert_eq!(differs, None, "the device wrote to memory that was not offered, at address (is, was)");
        }
    }

    /// An address, more often than not one where something is.
    pub(super) fn address(input: &mut Input<'_>) -> u64 {
        let offset = u64::from(input.half());
        match input.byte() % 8 {
            0..3 => DATA + offset % (REGION_BYTES - DATA),
            3 => UPPER + offset,
            // Across a region's end.
            4 => REGION_BYTES.wrapping_add(offset % 64).wrapping_sub(32),
            5 => (UPPER + REGION_BYTES).wrapping_add(offset % 64).wrapping_sub(32),
            6 => offset % DATA,
            _ => input.long(),
        }
    }

    /// A length, more often than not a small one.
    pub(super) fn len(input: &mut Input<'_>) -> u32 {
        match input.byte() % 8 {
            0 => 0,
            1 => 1,
            2 => 16,
            3 => 512,
            4 | 5 => u32::from(input.half()) % 2048,
            6 => u32::from(input.half()),
            _ => input.word(),
        }
    }
}
