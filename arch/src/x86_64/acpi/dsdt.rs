//! The DSDT: the devices that a kernel cannot find by probing, as AML.

use std::iter;

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, Package, Path,
    ResourceTemplate, Scope,
};

use super::{AcpiConfig, AcpiError};
use crate::gsi::Gsi;
use crate::layout::{
    CMOS_PORT, CMOS_PORT_LEN, GED_GSI, GENERATION_START, I8042_PORT, I8042_PORT_LEN, KEYBOARD_GSI, PM_SLEEP_TYPE_S5,
    SERIAL_GSI, SERIAL_PORT, SERIAL_PORT_LEN, VirtioMmioWindow, generation_gsi,
};

/// 2: integers have 64 bits.
pub(super) const REVISION: u8 = 2;
/// What a control method power button is notified with when it is pressed (ACPI 6.5 §4.8.3.1.2).
const BUTTON_PRESSED: u8 = 0x80;
/// What the generation's device is notified with when there is a new one (Microsoft, "Virtual Machine Generation ID", 2012).
const GENERATION_CHANGED: u8 = 0x80;

/// What the DSDT has behind its header. No processors, which the MADT names, and no device that only reserves its ports:
/// each costs every boot a driver's search.
pub(super) fn body(config: &AcpiConfig<'_>) -> Result<Vec<u8>, AcpiError> {
    let mut devices = Vec::with_capacity(64 * (config.virtio_mmio.len() + 8));
    serial(&mut devices);
    keyboard(&mut devices);
    clock(&mut devices);
    power_button(&mut devices);
    generation(&mut devices);
    event_device(&mut devices, generation_gsi(config.virtio_mmio));
    for (index, window) in config.virtio_mmio.iter().enumerate() {
        let near = config.numa.iter().position(|node| node.devices.contains(&index));
        virtio_mmio(&mut devices, index, window, near)?;
    }
    let mut body = Scope::raw(Path::new("\\_SB_"), devices);
    // The sleep type of power off, in the first element; the others are for registers that are not here.
    Name::new("_S5_".into(), &Package::new(vec![&PM_SLEEP_TYPE_S5, &0_u8, &0_u8, &0_u8])).to_aml_bytes(&mut body);
    Ok(body)
}

fn serial(sink: &mut Vec<u8>) {
    let resources: [&dyn Aml; 2] = [&ports(SERIAL_PORT, SERIAL_PORT_LEN), &edge_interrupt(SERIAL_GSI)];
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &1_u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec())),
        ],
    )
    .to_aml_bytes(sink);
}

/// A driver looks for the controller by its keyboard, and with no mouse beside it for no auxiliary port.
fn keyboard(sink: &mut Vec<u8>) {
    let (data, command) = (ports(I8042_PORT, 1), ports(I8042_PORT + I8042_PORT_LEN - 1, 1));
    let resources: [&dyn Aml; 3] = [&data, &command, &edge_interrupt(KEYBOARD_GSI)];
    Device::new(
        "KBD_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0303")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec())),
        ],
    )
    .to_aml_bytes(sink);
}

/// No interrupt: the clock has no alarm.
fn clock(sink: &mut Vec<u8>) {
    Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports(CMOS_PORT, CMOS_PORT_LEN)])),
        ],
    )
    .to_aml_bytes(sink);
}

fn power_button(sink: &mut Vec<u8>) {
    Device::new("PWRB".into(), vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))]).to_aml_bytes(sink);
}

/// Drivers find it by its `_CID`; Linux's compares without case. `ADDR` is the low and the high half of where the id is
/// (Microsoft, "Virtual Machine Generation ID", 2012).
fn generation(sink: &mut Vec<u8>) {
    let [low, high] = [GENERATION_START.0 & u64::from(u32::MAX), GENERATION_START.0 >> 32];
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"HUSK0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(sink);
}

/// ACPI 6.5 §5.6.9. An interrupt on one of its lines runs `_EVT` with the GSI: one line for each event.
fn event_device(sink: &mut Vec<u8>, generation: Option<Gsi>) {
    let button = Event::new(GED_GSI, "\\_SB_.PWRB", BUTTON_PRESSED);
    let generation = generation.map(|gsi| Event::new(gsi, "\\_SB_.VGEN", GENERATION_CHANGED));
    let events: Vec<Event> = iter::once(button).chain(generation).collect();
    let lines = events.iter().map(|event| &event.line as &dyn Aml).collect();
    let told: Vec<_> = events.iter().map(|event| Notify::new(&event.device, &event.value)).collect();
    let asked: Vec<_> = events.iter().map(|event| Equal::new(&Arg(0), &event.gsi)).collect();
    let cases: Vec<_> = asked.iter().zip(&told).map(|(asked, told)| If::new(asked, vec![told])).collect();
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(lines)),
            &Method::new("_EVT".into(), 1, true, cases.iter().map(|case| case as &dyn Aml).collect()),
        ],
    )
    .to_aml_bytes(sink);
}

/// What the event device tells of: who is notified, and with what.
struct Event {
    gsi: u32,
    line: Interrupt,
    device: Path,
    value: u8,
}

impl Event {
    fn new(gsi: Gsi, device: &str, value: u8) -> Self {
        Self { gsi: gsi.get(), line: edge_interrupt(gsi), device: Path::new(device), value }
    }
}

/// `near` is the node that it is near, if there is one.
fn virtio_mmio(
    sink: &mut Vec<u8>,
    index: usize,
    window: &VirtioMmioWindow,
    near: Option<usize>,
) -> Result<(), AcpiError> {
    let end = window.base.0.checked_add(window.size).filter(|&end| end <= 1 << 32);
    let above = AcpiError::WindowAbove4Gib { index, base: window.base };
    let (Some(_), Ok(base), Ok(size)) = (end, u32::try_from(window.base.0), u32::try_from(window.size)) else {
        return Err(above);
    };
    let resources: [&dyn Aml; 2] = [&Memory32Fixed::new(true, base, size), &edge_interrupt(window.gsi)];
    let names = [
        Name::new("_HID".into(), &"LNRO0005"),
        Name::new("_UID".into(), &index),
        // The device sees what the CPU wrote, with no flush in between.
        Name::new("_CCA".into(), &ONE),
        Name::new("_CRS".into(), &ResourceTemplate::new(resources.to_vec())),
    ];
    // ACPI 6.5 §6.2.15
    let near = near.map(|node| Name::new("_PXM".into(), &node));
    let children = names.iter().chain(&near).map(|name| name as &dyn Aml).collect();
    Device::new(Path::new(&format!("V{index:03X}")), children).to_aml_bytes(sink);
    Ok(())
}

fn ports(first: u16, count: u16) -> IO {
    IO::new(first, first, 1, u8::try_from(count).expect("a block of ports is small"))
}

/// Consumed by the device, edge triggered, active high, not shared.
fn edge_interrupt(gsi: Gsi) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi.get())
}
