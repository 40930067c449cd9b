//! The ACPI tables: what the machine has, for kernels that ask. ACPI 6.5, hardware-reduced: no fixed registers but sleep
//! and reset, no system control interrupt; events come through a generic event device.
//!
//! All tables are built in one run of bytes and written once.

mod dsdt;
mod fixed;
mod generation;
mod numa;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

pub use self::generation::Generation;
use crate::layout::{ACPI_SIZE, ACPI_START, VirtioMmioWindow};
use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};
use crate::topology::{NumaNode, VcpuCount};

const OEM_ID: [u8; 6] = *b"HUSK  ";
const OEM_TABLE_ID: [u8; 8] = *b"HUSKVM  ";
const OEM_REVISION: u32 = 1;
/// Where a table may start. Only the FACS, which is not here, must be so aligned; the others are for neatness.
const TABLE_ALIGN: usize = 64;

/// The hardware that the tables name beside what every machine has.
#[derive(Clone, Copy, Debug)]
pub struct AcpiConfig<'a> {
    /// The vCPUs, all present from the start.
    pub cpus: VcpuCount,
    /// The virtio-mmio devices, in the order in which the guest shall find them.
    pub virtio_mmio: &'a [VirtioMmioWindow],
    /// The NUMA nodes; without any nothing is said of them.
    pub numa: &'a [NumaNode],
}

/// The tables cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// A device's registers are out of the reach of its 32-bit resource.
    #[error("virtio-mmio device {index} at {:#x} is not below 4 GiB, where ACPI can name it", base.0)]
    WindowAbove4Gib {
        /// The device's number.
        index: usize,
        /// Its first register.
        base: GuestAddress,
    },
    /// More hardware than the tables have room for.
    #[error("the ACPI tables take {size} bytes, there is room for {ACPI_SIZE}: configure fewer devices")]
    TooLarge {
        /// Their size, in bytes.
        size: usize,
    },
    /// Guest memory is missing where the map says that it is.
    #[error("cannot write the ACPI tables at {:#x} of guest memory: give the guest at least 1 MiB", ACPI_START.0)]
    Memory(#[source] GuestMemoryError),
}

/// Writes the tables and returns where the RSDP is.
///
/// # Errors
/// [`AcpiError`], with nothing written.
pub fn write_tables(memory: &GuestMemory, config: &AcpiConfig<'_>) -> Result<GuestAddress, AcpiError> {
    let bytes = tables(config)?;
    memory.write_slice(&bytes, ACPI_START).map_err(AcpiError::Memory)?;
    Ok(ACPI_START)
}

fn tables(config: &AcpiConfig<'_>) -> Result<Vec<u8>, AcpiError> {
    // The RSDP comes first and names the XSDT, which comes last.
    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let dsdt = area.append(&table(*b"DSDT", dsdt::REVISION, &dsdt::body(config)?));
    let fadt = area.append(&fixed::fadt(dsdt));
    let madt = area.append(&table(*b"APIC", fixed::MADT_REVISION, &fixed::madt_body(config.cpus)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if !config.numa.is_empty() {
        xsdt.add_entry(area.append(&table(*b"SRAT", numa::SRAT_REVISION, &numa::srat_body(config.numa))));
        xsdt.add_entry(area.append(&table(*b"SLIT", numa::SLIT_REVISION, &numa::slit_body(config.numa))));
    }
    let xsdt = area.append(&xsdt);
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    area.bytes[..Rsdp::len()].copy_from_slice(&rsdp);
    match u64::try_from(area.bytes.len()) {
        Ok(size) if size <= ACPI_SIZE => Ok(area.bytes),
        _ => Err(AcpiError::TooLarge { size: area.bytes.len() }),
    }
}

/// The tables' bytes, from [`ACPI_START`] on.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Adds a table and returns its guest physical address.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(TABLE_ALIGN), 0);
        let address = ACPI_START.0 + u64::try_from(self.bytes.len()).expect("a few pages");
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// A table with the standard header before `body`; one pass for its checksum.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    const HEADER_SIZE: u32 = 36;
    let mut table = Sdt::new(signature, HEADER_SIZE, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

#[cfg(test)]
mod tests;
