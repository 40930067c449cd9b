//! What the machine's tables say: CPUs, I/O APICs, ways to switch off, virtio-mmio devices.
//!
//! ACPI's when there are any, else Intel's MP table, else what every PC has.

use crate::boot::Boot;
use crate::{acpi, mptable};

/// As many CPUs as boot.s has stacks for.
pub const CPUS_MAX: usize = 64;
const IOAPICS_MAX: usize = 2;
const IOAPIC_ADDRESS: u64 = 0xfec0_0000;

/// Where the facts came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tables {
    /// ACPI.
    Acpi,
    /// MultiProcessor Specification 1.4.
    Mp,
    /// There are none.
    None,
}

impl Tables {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acpi => "acpi",
            Self::Mp => "mp",
            Self::None => "none",
        }
    }
}

/// An interrupt line.
#[derive(Clone, Copy)]
pub struct Line {
    /// Global system interrupt.
    pub gsi: u32,
    /// Level-triggered; edge-triggered when not.
    pub level: bool,
    /// Active low.
    pub low: bool,
}

/// A device's window and line.
#[derive(Clone, Copy)]
pub struct Resources {
    /// First byte of its registers.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Its interrupt.
    pub line: Line,
}

/// The machine.
pub struct Platform {
    /// Where the rest is from.
    pub tables: Tables,
    /// APIC ids of the enabled CPUs, in the table's order.
    apic_ids: [u32; CPUS_MAX],
    cpu_count: usize,
    /// Enabled CPUs in the table, also beyond those that the guest has room for.
    pub cpus_listed: usize,
    /// Address and first GSI of each I/O APIC.
    ioapics: [Option<(u64, u32)>; IOAPICS_MAX],
    /// ACPI's registers, which an MP table knows nothing of.
    pub power: acpi::Power,
    /// Bytes of the DSDT: address and length.
    pub(crate) aml: (u64, u64),
}

impl Platform {
    /// Reads the tables.
    pub fn find(boot: &Boot) -> Self {
        let mut platform = Self {
            tables: Tables::None,
            apic_ids: [0; CPUS_MAX],
            cpu_count: 0,
            cpus_listed: 0,
            ioapics: [None; IOAPICS_MAX],
            power: acpi::Power::default(),
            aml: (0, 0),
        };
        if acpi::read(boot, &mut platform) {
            platform.tables = Tables::Acpi;
        } else if mptable::read(&mut platform) {
            platform.tables = Tables::Mp;
        }
        if platform.cpus_listed == 0 {
            platform.add_cpu(crate::apic::id());
        }
        if platform.ioapics[0].is_none() {
            platform.add_ioapic(IOAPIC_ADDRESS, 0);
        }
        platform
    }

    /// The I/O APIC that a GSI belongs to, and its pin there.
    pub fn ioapic_of(&self, gsi: u32) -> Option<(u64, u32)> {
        let below = self.ioapics.iter().flatten().filter(|(_, first)| *first <= gsi);
        below.max_by_key(|(_, first)| *first).map(|(address, first)| (*address, gsi - first))
    }

    /// APIC ids of the enabled CPUs.
    pub fn apic_ids(&self) -> &[u32] {
        &self.apic_ids[..self.cpu_count]
    }

    /// Windows and lines of the DSDT's devices with this hardware id, in its order.
    pub fn devices(&self, hid: &'static [u8; 8]) -> impl Iterator<Item = Resources> {
        acpi::devices(self.aml, hid)
    }

    pub(crate) fn add_cpu(&mut self, apic_id: u32) {
        self.cpus_listed += 1;
        if self.cpu_count < CPUS_MAX {
            self.apic_ids[self.cpu_count] = apic_id;
            self.cpu_count += 1;
        }
    }

    pub(crate) fn add_ioapic(&mut self, address: u64, first_gsi: u32) {
        if let Some(free) = self.ioapics.iter_mut().find(|ioapic| ioapic.is_none()) {
            *free = Some((address, first_gsi));
        }
    }
}
