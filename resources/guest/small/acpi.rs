//! ACPI without an interpreter: the fixed tables by their layout (ACPI 6.5 §5.2), the DSDT by a scan of its bytes.
//!
//! A device in AML is its name, then `_HID`, then `_CRS`; so from a hardware id on, the first memory and interrupt
//! descriptors (ACPI 6.5 §6.4.3) before the next hardware id are the device's own. Enough for tables that a monitor
//! generates, and for nothing else.

use crate::boot::Boot;
use crate::platform::{Line, Platform, Resources};
use crate::{cpu, memory};

/// An address in one of ACPI's address spaces (ACPI 6.5 §5.2.3.2).
#[derive(Clone, Copy)]
pub struct Register {
    space: u8,
    width: u8,
    address: u64,
}

impl Register {
    fn read(table: u64) -> Option<Self> {
        let register =
            Self { space: memory::read(table), width: memory::read(table + 1), address: memory::read(table + 4) };
        (register.address != 0).then_some(register)
    }

    /// Writes a byte to a register of 8 bits, and so on.
    pub fn write(self, value: u32) {
        match (self.space, self.width) {
            (1, 16) => cpu::out16(self.address as u16, value as u16),
            (1, 32) => cpu::out32(self.address as u16, value),
            (1, _) => cpu::out8(self.address as u16, value as u8),
            (_, 16) => memory::store(self.address, value as u16),
            (_, 32) => memory::store(self.address, value),
            (_, _) => memory::store(self.address, value as u8),
        }
    }

    /// Writes a byte, whatever the register's width.
    pub fn write8(self, value: u8) {
        Self { width: 8, ..self }.write(u32::from(value));
    }
}

/// How to switch the machine off.
#[derive(Clone, Copy, Default)]
pub struct Power {
    /// Sleep control, of a hardware-reduced machine.
    pub sleep_control: Option<Register>,
    /// The reset register, and what to write there.
    pub reset: Option<(Register, u8)>,
    /// PM1a control block's port, of a machine that is not hardware-reduced.
    pub pm1a_control: Option<u16>,
    /// SLP_TYP of `\_S5`.
    pub s5: Option<u8>,
    /// The line of the event device, on which the power button is.
    pub event_line: Option<Line>,
}

/// Finds the tables, by the monitor's word or by the scan that a PC's firmware allows, and reads them.
pub(crate) fn read(boot: &Boot, platform: &mut Platform) -> bool {
    let Some(rsdp) = (if boot.rsdp != 0 { Some(boot.rsdp) } else { scan_for_rsdp() }) else {
        return false;
    };
    if memory::read::<[u8; 8]>(rsdp) != *b"RSD PTR " {
        return false;
    }
    let revision = memory::read::<u8>(rsdp + 15);
    let (root, step) = match memory::read::<u64>(rsdp + 24) {
        xsdt if revision >= 2 && xsdt != 0 => (xsdt, 8),
        _ => (u64::from(memory::read::<u32>(rsdp + 16)), 4),
    };
    for entry in (36..length(root)).step_by(step) {
        let at = root + entry;
        let table = if step == 8 { memory::read(at) } else { u64::from(memory::read::<u32>(at)) };
        match &memory::read::<[u8; 4]>(table) {
            b"FACP" => read_fadt(table, platform),
            b"APIC" => read_madt(table, platform),
            _ => {}
        }
    }
    true
}

/// ACPI 6.5 §5.2.9.
fn read_fadt(fadt: u64, platform: &mut Platform) {
    const RESET_REGISTER: u32 = 1 << 10;
    const HARDWARE_REDUCED: u32 = 1 << 20;
    let len = length(fadt);
    let mut dsdt = u64::from(memory::read::<u32>(fadt + 40));
    if len >= 148 && memory::read::<u64>(fadt + 140) != 0 {
        dsdt = memory::read(fadt + 140);
    }
    let flags = memory::read::<u32>(fadt + 112);
    let power = &mut platform.power;
    if flags & RESET_REGISTER != 0 && len >= 129 {
        power.reset = Register::read(fadt + 116).map(|register| (register, memory::read(fadt + 128)));
    }
    if flags & HARDWARE_REDUCED != 0 {
        if len >= 256 {
            power.sleep_control = Register::read(fadt + 244);
        }
    } else {
        let port = memory::read::<u32>(fadt + 64) as u16;
        power.pm1a_control = (port != 0).then_some(port);
    }
    if dsdt != 0 {
        platform.aml = (dsdt, length(dsdt));
        let aml = memory::bytes(dsdt, length(dsdt));
        power.s5 = find_s5(aml);
        power.event_line = resources_of(aml, b"ACPI0013").find_map(|(_, line)| line);
    }
}

/// ACPI 6.5 §5.2.12.
fn read_madt(madt: u64, platform: &mut Platform) {
    const ENABLED: u32 = 1;
    let mut at = madt + 44;
    while at < madt + length(madt) {
        let (kind, len) = (memory::read::<u8>(at), u64::from(memory::read::<u8>(at + 1)));
        assert!(len >= 2, "MADT entry of {len} bytes");
        match kind {
            0 if memory::read::<u32>(at + 4) & ENABLED != 0 => {
                platform.add_cpu(u32::from(memory::read::<u8>(at + 3)));
            }
            9 if memory::read::<u32>(at + 8) & ENABLED != 0 => platform.add_cpu(memory::read(at + 4)),
            1 => platform.add_ioapic(u64::from(memory::read::<u32>(at + 4)), memory::read(at + 8)),
            _ => {}
        }
        at += len;
    }
}

/// Windows and lines of the DSDT's devices with this hardware id.
pub(crate) fn devices(aml: (u64, u64), hid: &'static [u8; 8]) -> impl Iterator<Item = Resources> {
    let aml = if aml.1 == 0 { &[] } else { memory::bytes(aml.0, aml.1) };
    resources_of(aml, hid).filter_map(|(window, line)| {
        let ((base, size), line) = (window?, line?);
        Some(Resources { base, size, line })
    })
}

fn length(table: u64) -> u64 {
    u64::from(memory::read::<u32>(table + 4))
}

/// ACPI 6.5 §5.2.5.1: on a 16-byte boundary of the BIOS area.
fn scan_for_rsdp() -> Option<u64> {
    (0xe_0000u64..0x10_0000).step_by(16).find(|at| memory::read::<[u8; 8]>(*at) == *b"RSD PTR ")
}

/// SLP_TYPa: the first element of the package behind the name `_S5_`.
fn find_s5(aml: &[u8]) -> Option<u8> {
    const PACKAGE_OP: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    let name = aml.windows(4).position(|bytes| bytes == b"_S5_")?;
    let [PACKAGE_OP, lead, rest @ ..] = aml.get(name + 4..)? else {
        return None;
    };
    // The package's length has as many bytes behind the first as its top two bits say; then comes the element count.
    match rest.get(usize::from(lead >> 6) + 1..)? {
        [BYTE_PREFIX, value, ..] | [value, ..] => Some(*value),
        [] => None,
    }
}

type Window = (u64, u64);

fn resources_of(aml: &'static [u8], hid: &'static [u8; 8]) -> impl Iterator<Item = (Option<Window>, Option<Line>)> {
    let mut rest = aml;
    core::iter::from_fn(move || {
        let start = rest.windows(8).position(|bytes| bytes == hid)? + 8;
        rest = &rest[start..];
        let end = rest.windows(4).position(|bytes| bytes == b"_HID").unwrap_or(rest.len());
        Some((find_window(&rest[..end]), find_line(&rest[..end])))
    })
}

/// ACPI 6.5 §6.4.3.4: 32-bit fixed memory range descriptor.
fn find_window(aml: &[u8]) -> Option<Window> {
    let at = aml.windows(3).position(|bytes| bytes == [0x86, 0x09, 0x00])?;
    Some((u64::from(u32_at(aml, at + 4)?), u64::from(u32_at(aml, at + 8)?)))
}

/// ACPI 6.5 §6.4.3.6: extended interrupt descriptor with one interrupt.
fn find_line(aml: &[u8]) -> Option<Line> {
    let at = aml.windows(5).position(|bytes| matches!(bytes, [0x89, 0x06, 0x00, _, 1]))?;
    let flags = aml[at + 3];
    Some(Line { gsi: u32_at(aml, at + 5)?, level: flags & 2 == 0, low: flags & 4 != 0 })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
