//! The ways a machine ends.

use crate::acpi::Acpi;
use crate::apic;
use crate::cpu::{self, Last};
use crate::time;

/// ACPI's soft-off: the sleep control register of a hardware-reduced machine, else PM1a control.
pub fn off(acpi: Option<&Acpi>) -> ! {
    const SLEEP_ENABLE: u8 = 1 << 5;
    if let Some(acpi) = acpi
        && let Some(s5) = acpi.s5
    {
        if let Some(register) = acpi.sleep_control {
            register.write8(s5 << 2 | SLEEP_ENABLE);
        } else if let Some(port) = acpi.pm1a_control {
            cpu::out16(port, u16::from(s5) << 10 | 1 << 13);
        }
    }
    failed("no power off by ACPI")
}

/// The reset register that the FADT names.
pub fn acpi_reset(acpi: Option<&Acpi>) -> ! {
    if let Some((register, value)) = acpi.and_then(|acpi| acpi.reset) {
        register.write8(value);
    }
    failed("no reset by ACPI")
}

/// The keyboard controller's reset line.
pub fn i8042_reset() -> ! {
    cpu::out8(0x64, 0xfe);
    failed("no reset by the i8042")
}

/// The monitor may need a moment to stop a CPU that has already asked for the end.
fn failed(what: &str) -> ! {
    time::delay_us(1_000_000);
    println!("STILL HERE: {what}");
    triple_fault()
}

/// A fault that no handler takes.
pub fn triple_fault() -> ! {
    cpu::last(Last::TripleFault)
}

/// An instruction that KVM cannot emulate; on hardware, where it need not, a breakpoint that is reported as a fault.
pub fn internal_error() -> ! {
    cpu::last(Last::Int3)
}

/// Sleeps for ever; interrupts are taken, those of lines once each.
pub fn halt() -> ! {
    apic::timer_stop();
    cpu::last(Last::Halt)
}

/// Sleeps for ever with interrupts off.
pub fn hang() -> ! {
    cpu::last(Last::Hang)
}

/// Turns for ever in ring 3.
pub fn spin() -> ! {
    loop {
        cpu::spin_turns(1 << 30);
    }
}
