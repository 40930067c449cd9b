//! The test guest: does what the words on its command line say, a line for each result.
//!
//! `check=a,b,c` names checks, done in order (see [`CHECKS`]); `end=` says how to end afterwards (see [`end`]). Without
//! either word the command line was not written for this guest, and the check `cmdline` shows it. The first line is
//! `PROBE READY entry=pvh|linux64 cpus=N mem=BYTES`; then each check prints lines of its own in capitals, if it has any,
//! and last `CHECK name ok key=value...` or `CHECK name FAIL reason`. A fault or a panic is a line that starts with
//! `FAULT` or `PANIC`, and a triple fault.

#![no_std]
#![no_main]

mod disk;
mod disk_faults;
mod io;
mod machine;
mod net;
mod plug;
mod processors;
mod station;

use core::fmt;

use guest::boot::Boot;
use guest::platform::Platform;
use guest::{apic, power, println, time};

#[cfg(not(no_note))]
guest::pvh_note!("pvh_entry");

/// What a check may look at.
struct Machine {
    boot: &'static Boot,
    platform: Platform,
    /// The local APIC timer's frequency.
    timer_hz: u64,
}

/// Why a check failed.
enum Failure {
    Text(&'static str),
    /// With the two numbers that should have been equal, or the like.
    Numbers(&'static str, u64, u64),
}

impl From<&'static str> for Failure {
    fn from(text: &'static str) -> Self {
        Self::Text(text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Numbers(text, a, b) => write!(f, "{text}: {a:#x} {b:#x}"),
        }
    }
}

/// A check prints its own line when it went well.
type Check = fn(&Machine) -> Result<(), Failure>;

/// Prints the line of a check that went well.
macro_rules! passed {
    ($name:literal, $format:literal $(, $arg:expr)* $(,)?) => {{
        guest::println!("CHECK {} ok {}", $name, format_args!($format $(, $arg)*));
        Ok(())
    }};
}
use passed;

const CHECKS: &[(&str, Check)] = &[
    ("map", machine::map),
    ("mem", machine::mem),
    ("scribble", machine::scribble),
    ("cmdline", machine::cmdline),
    ("initrd", machine::initrd),
    ("rtc", machine::rtc),
    ("button", machine::button),
    ("keyboard", machine::keyboard),
    ("cpus", processors::cpus),
    ("timer", processors::timer),
    ("count", processors::count),
    ("pio", io::pio),
    ("string", io::string),
    ("mmio", io::mmio),
    ("serial", io::serial),
    ("flood", io::flood),
    ("rng", io::rng),
    ("plug", plug::plug),
    ("blk", disk::blk),
    ("blkbench", disk::blkbench),
    ("indirect", disk::indirect),
    ("eventidx", disk::eventidx),
    ("net", net::net),
    ("netecho", net::netecho),
    ("netbench", net::netbench),
    ("netreset", net::netreset),
    ("reset", disk_faults::reset),
    ("broken", disk_faults::broken),
];

#[unsafe(no_mangle)]
fn guest_main(boot: &'static Boot) -> ! {
    let clock = time::init();
    apic::mask_pic();
    apic::init_local();
    let machine = Machine { boot, timer_hz: apic::timer_hz(), platform: Platform::find(boot) };
    let (cpus, tables) = (machine.platform.cpus_listed, machine.platform.tables.name());
    let mem: u64 = boot.usable().map(|range| range.len()).sum();
    println!(
        "PROBE READY entry={} cpus={cpus} mem={mem} tables={tables} tsc={} tsc_source={}",
        boot.entry,
        time::tsc_hz(),
        clock.name()
    );
    let not_ours = boot.values("check").chain(boot.values("end")).next().is_none();
    let wanted = boot.values("check").chain(not_ours.then_some("cmdline"));
    for name in wanted.flat_map(|names| names.split(',')) {
        match CHECKS.iter().find(|(known, _)| *known == name) {
            None => println!("CHECK {name} FAIL there is no such check"),
            Some((_, check)) => {
                if let Err(failure) = check(&machine) {
                    println!("CHECK {name} FAIL {failure}");
                }
            }
        }
    }
    end(&machine, boot.values("end").last().unwrap_or("poweroff"))
}

/// Ends the machine, or not, as the word says.
fn end(machine: &Machine, how: &str) -> ! {
    println!("END {how}");
    match how {
        "acpi-reset" => power::acpi_reset(&machine.platform.power),
        "i8042" => power::i8042_reset(),
        "triple" => power::triple_fault(),
        "internal" => power::internal_error(),
        "hang" => power::hang(),
        "halt" => power::halt(),
        "spin" => power::spin(),
        _ => power::off(&machine.platform.power),
    }
}
