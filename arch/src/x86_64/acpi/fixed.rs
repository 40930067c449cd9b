//! The tables of fixed form: FADT and MADT.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{
    IOAPIC_START, LAPIC_START, PM_RESET_PORT, PM_RESET_VALUE, PM_SLEEP_CONTROL_PORT, PM_SLEEP_STATUS_PORT,
};
use crate::topology::VcpuCount;

/// "There are devices on the ISA bus": the serial port (ACPI 6.5 table 5.11).
const BOOT_LEGACY_DEVICES: u16 = 1;
/// "There is a keyboard controller at ports 0x60 and 0x64".
const BOOT_I8042: u16 = 1 << 1;
/// "Do not touch the VGA": there is none.
const BOOT_NO_VGA: u16 = 1 << 2;

/// The FADT (ACPI 6.5 §5.2.9).
pub(super) fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Set means that there is no fixed button; the power button is a device of the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        // Set means that the clock has no fixed wake bit.
        .flag(Flags::FixRtc);
    // Kernels that know only the old field find the same table.
    fadt.dsdt = u32::try_from(dsdt).expect("the tables are below 1 MiB").into();
    fadt.x_dsdt = dsdt.into();
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_I8042 | BOOT_NO_VGA).into();
    fadt.reset_reg = byte_port(PM_RESET_PORT);
    fadt.reset_value = PM_RESET_VALUE;
    fadt.sleep_control_reg = byte_port(PM_SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = byte_port(PM_SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"husk\0\0\0\0").into();
    fadt.finalize()
}

fn byte_port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

/// ACPI 6.5's.
pub(super) const MADT_REVISION: u8 = 6;
/// There are two 8259, which a kernel must mask before it uses the IOAPIC.
const MADT_PCAT_COMPAT: u32 = 1;
/// KVM's IOAPIC answers with this ID until a kernel writes another.
const IOAPIC_ID: u8 = 0;
/// A LAPIC NMI structure (ACPI 6.5 §5.2.12.7): type, length, all processors, polarity and trigger as the bus has them,
/// LINT1.
const LAPIC_NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

/// What the MADT has behind its header (ACPI 6.5 §5.2.12). There are no interrupt source overrides: with KVM's default
/// routing every ISA interrupt is the GSI of its number, edge triggered and active high, as ISA is by default.
pub(super) fn madt_body(cpus: VcpuCount) -> Vec<u8> {
    let lapic = u32::try_from(LAPIC_START.0).expect("in the 32-bit hole");
    let ioapic = u32::try_from(IOAPIC_START.0).expect("in the 32-bit hole");
    let mut body = Vec::with_capacity(32 + 8 * usize::from(cpus.get()));
    body.extend_from_slice(&lapic.to_le_bytes());
    body.extend_from_slice(&MADT_PCAT_COMPAT.to_le_bytes());
    // Every APIC ID is below 255, so the 8-bit form holds them all, in xAPIC and x2APIC mode.
    for index in cpus.indices() {
        ProcessorLocalApic::new(index.get(), index.get(), EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(IOAPIC_ID, ioapic, 0).to_aml_bytes(&mut body);
    body.extend_from_slice(&LAPIC_NMI);
    body
}
