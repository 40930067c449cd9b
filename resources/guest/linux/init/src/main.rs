//! The init and test agent of husk's Linux guest.
//!
//! It is the only process there. It mounts what it reads, says that userspace runs (`GUEST READY ...`), runs the checks
//! that the kernel command line names, and ends the machine as the command line says. Everything it learns goes to the
//! console, one line each, so that a test on the host needs nothing but the serial port.
//!
//! Architecture invariant: no C library, no thread, no allocation and no AVX. The kernel that it runs on keeps only the
//! FXSAVE state, and a library that picks AVX by CPUID would lose it at a context switch.
#![no_std]
#![no_main]

mod checks;
mod end;
mod fnv;
mod pattern;
mod rt;
mod sys;
mod text;
mod words;

use core::ffi::CStr;

use end::End;
use text::say;
use words::Words;

/// Where the kernel's own file systems go: type and folder.
const MOUNTS: [(&CStr, &CStr); 3] = [(c"proc", c"/proc"), (c"sysfs", c"/sys"), (c"devtmpfs", c"/dev")];

/// What the agent does, from the first instruction to the last.
fn run() -> ! {
    // Before anything else: a signal that is not blocked when it comes is lost on init.
    let button = end::hold_buttons();
    for (kind, folder) in MOUNTS {
        if let Err(errno) = sys::mount(kind, folder) {
            say!("GUEST FAIL cannot mount {kind:?}: {errno}");
        }
    }
    say_ready();
    if let Err(errno) = button {
        say!("GUEST FAIL cannot hold the buttons' signals: {errno}");
    }

    let words = match Words::read() {
        Ok(words) => words,
        Err(errno) => {
            say!("GUEST FAIL cannot read /proc/cmdline: {errno}");
            end::finish(End::PowerOff)
        }
    };
    let score = checks::run(&words);
    let end = End::of(&words);
    say!("GUEST DONE checks={} failed={} end={}", score.run, score.failed, end.name());
    end::finish(end)
}

/// The line that tests wait for.
fn say_ready() {
    let names = sys::uname();
    let release = names.as_ref().map_or("?", |names| names.release());
    let cpus = sys::allowed_cpus().map_or(0, |set| set.count());
    let mem_kib = sys::memory_bytes().map_or(0, |[total, _]| total / 1024);
    let uptime_ms = sys::clock(sys::Clock::Boot).map_or(0, |time| time.as_millis());
    say!("GUEST READY kernel={release} cpus={cpus} mem_kib={mem_kib} uptime_ms={uptime_ms}");
}
