//! The bench guest: drives the machine's first disk and first network card as hard as it can and says what came of it.
//!
//! It needs nothing of husk's own: PVH or the 64-bit Linux protocol, and windows named on the command line or by ACPI. So
//! one image runs under husk, QEMU's microvm and Firecracker, and what is different between two runs is the monitor.
//!
//! Each word `run=NAME[:key=value...]` is a run, done in order; [`work`] lists names and keys. A run first warms up,
//! then prints `BENCH-BEGIN name ...`, is quiet for [`QUIET_US`], works, prints `BENCH name key=value ...`, and is quiet
//! again: who reads the monitor's CPU time when a line comes has the time of the work and of nothing else. A run that
//! cannot be done prints `BENCH-FAIL name reason`. Last comes `BENCH-END` and the machine ends: by ACPI where there is
//! a way, else by the i8042, else by a triple fault.

#![no_std]
#![no_main]

mod access;
mod disk;
mod doorbell;
mod fill;
mod latency;
mod net;
mod spin;
mod touch;
mod work;

use guest::boot::Boot;
use guest::platform::Platform;
use guest::{apic, power, println, time};

use work::{Kind, Work};

guest::pvh_note!("pvh_entry");

/// Time for a reader on a busy host to take its figures.
const QUIET_US: u64 = 20_000;

/// What a run may use.
struct Machine {
    boot: &'static Boot,
    platform: Platform,
    /// The local APIC timer's frequency.
    timer_hz: u64,
}

#[unsafe(no_mangle)]
fn guest_main(boot: &'static Boot) -> ! {
    let clock = time::init();
    apic::mask_pic();
    apic::init_local();
    let machine = Machine { boot, timer_hz: apic::timer_hz(), platform: Platform::find(boot) };
    let tables = machine.platform.tables.name();
    println!("BENCH-READY entry={} tables={tables} tsc={} tsc_source={}", boot.entry, time::tsc_hz(), clock.name());
    for word in boot.values("run") {
        let result = Work::parse(word).and_then(|work| match work.kind {
            Kind::Read | Kind::Write | Kind::Flush => disk::run(&machine, &work),
            Kind::Transmit => net::transmit(&machine, &work),
            Kind::Receive => net::receive(&machine, &work),
            Kind::Doorbell => doorbell::run(&machine, &work),
            Kind::Spin => spin::run(&work),
            Kind::Touch => touch::run(&work),
            Kind::Fill => fill::run(&work),
            Kind::Access => access::run(&work),
        });
        if let Err(reason) = result {
            println!("BENCH-FAIL {word} {reason}");
        }
    }
    println!("BENCH-END");
    let power = &machine.platform.power;
    if power.s5.is_some() {
        power::off(power);
    }
    power::i8042_reset()
}

/// Tells readers that the work begins.
fn begin(work: &Work) {
    println!("BENCH-BEGIN {work}");
    time::delay_us(QUIET_US);
}

/// Prints a run's figures.
macro_rules! figures {
    ($work:expr, $format:literal $(, $arg:expr)* $(,)?) => {{
        guest::println!("BENCH {} {}", $work, format_args!($format $(, $arg)*));
        guest::time::delay_us($crate::QUIET_US);
        Ok(())
    }};
}
use figures;
