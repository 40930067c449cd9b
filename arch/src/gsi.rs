//! Interrupt numbers.

use std::fmt;

/// A global system interrupt: the number by which ACPI, KVM's routing table and an irqfd name one interrupt line.
/// With KVM's default routing GSI `n` is input `n` of the IOAPIC, and below 16 also ISA interrupt `n` of the two 8259.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(u32);

impl Gsi {
    /// The GSI with this number. Whether anything listens on it is the routing table's business.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number, as ACPI and KVM write it.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}
