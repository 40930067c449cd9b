//! How many vCPUs a machine has, which one is meant, and which ones share a core.

use std::fmt;

use crate::memory::GuestAddress;

/// The most vCPUs that a machine can have. One LAPIC entry each in the MADT, and KVM's default APIC ID space is not the
/// limit: this is what husk is tested with.
pub const VCPU_COUNT_MAX: u8 = 64;

/// The number of vCPUs of a machine: 1 to [`VCPU_COUNT_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VcpuCount(u8);

/// A number of vCPUs that no machine can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{requested} vCPUs are not possible: ask for 1 to {VCPU_COUNT_MAX}")]
pub struct VcpuCountError {
    /// What was asked for.
    pub requested: u64,
}

impl VcpuCount {
    /// A single vCPU.
    pub const ONE: Self = Self(1);

    /// Checks a requested number of vCPUs.
    ///
    /// # Errors
    /// [`VcpuCountError`] if it is 0 or above [`VCPU_COUNT_MAX`].
    pub fn new(requested: u64) -> Result<Self, VcpuCountError> {
        match u8::try_from(requested) {
            Ok(count @ 1..=VCPU_COUNT_MAX) => Ok(Self(count)),
            _ => Err(VcpuCountError { requested }),
        }
    }

    /// The number of vCPUs.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Every vCPU, the boot CPU first.
    pub fn indices(self) -> impl Iterator<Item = VcpuIndex> {
        (0..self.0).map(VcpuIndex)
    }
}

impl fmt::Display for VcpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many vCPUs are the threads of one core. A single vCPU is a core of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadsPerCore {
    /// Each vCPU is a core.
    #[default]
    One,
    /// Two vCPUs with neighbouring numbers are one.
    Two,
}

impl ThreadsPerCore {
    /// How many bits of the APIC ID tell the threads of a core apart, on a machine of so many vCPUs.
    pub(crate) fn id_bits(self, count: VcpuCount) -> u32 {
        u32::from(self == Self::Two && count > VcpuCount::ONE)
    }

    /// Whether so many vCPUs make whole cores.
    pub fn fits(self, count: VcpuCount) -> bool {
        count.get().is_multiple_of(1 << self.id_bits(count))
    }
}

/// One vCPU of a machine, counted from 0. It is also the KVM vCPU id, the APIC ID and the ACPI processor UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuIndex(u8);

impl VcpuIndex {
    /// The vCPU that starts the kernel; the others wait until it wakes them.
    pub const BOOT: Self = Self(0);

    /// The index, below the machine's [`VcpuCount`].
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Whether this is the vCPU that starts the kernel.
    pub const fn is_boot(self) -> bool {
        self.0 == Self::BOOT.0
    }
}

/// A NUMA node of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaNode {
    /// The APIC IDs of its vCPUs.
    pub cpus: Vec<u8>,
    /// Its memory: first address and length in bytes.
    pub memory: Vec<(GuestAddress, u64)>,
    /// Memory that can be plugged into it: first address and length in bytes.
    pub pluggable: Option<(GuestAddress, u64)>,
    /// Virtio devices that are near it, by their places among the machine's.
    pub devices: Vec<usize>,
    /// How far it is to each node, as ACPI counts; empty for the custom: 10 to itself, 20 to others.
    pub distances: Vec<u8>,
}

/// How many of their lowest bits the APIC IDs of vCPUs may differ in that share the last cache: as many as can be with none
/// of them in another node (a kernel takes a cache across nodes for a fault). `None` without nodes: all share it.
pub fn last_cache_bits(nodes: &[NumaNode], count: VcpuCount) -> Option<u32> {
    let node_of = |cpu: u8| nodes.iter().position(|node| node.cpus.contains(&cpu));
    let in_one_node = |bits: &u32| (0..count.get()).all(|cpu| node_of(cpu) == node_of(cpu >> bits << bits));
    let package = count.get().next_power_of_two().trailing_zeros();
    (!nodes.is_empty()).then(|| (0..=package).rev().find(in_one_node).unwrap_or(0))
}

impl fmt::Display for VcpuIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_outside_the_limits_is_refused_with_its_value() {
        for requested in [0, 65, 256, 257, u64::MAX] {
            assert_eq!(VcpuCount::new(requested), Err(VcpuCountError { requested }));
        }
        for requested in [1, 3, 64] {
            assert_eq!(u64::from(VcpuCount::new(requested).unwrap().get()), requested);
        }
    }

    #[test]
    fn two_threads_a_core_need_an_even_number_or_a_single_one() {
        for (count, fits) in [(1, true), (2, true), (3, false), (8, true), (63, false), (64, true)] {
            assert_eq!(ThreadsPerCore::Two.fits(VcpuCount::new(count).unwrap()), fits, "{count}");
            assert!(ThreadsPerCore::One.fits(VcpuCount::new(count).unwrap()));
        }
    }

    #[test]
    fn indices_start_with_the_boot_cpu_and_cover_the_count() {
        let indices: Vec<_> = VcpuCount::new(3).unwrap().indices().collect();
        assert_eq!(indices.iter().map(|i| i.get()).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(indices[0].is_boot() && !indices[1].is_boot());
    }
}
