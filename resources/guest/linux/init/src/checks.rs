//! The checks, by name. Each is a function in a file of its own; a new one needs its file and its line in [`CHECKS`].

mod ask;
mod clock;
mod cpus;
mod disk;
mod dmesg;
mod echo;
mod load;
mod mem;
mod net;
mod rng;
mod rtc;
mod soak;

use crate::sys::{self, Clock};
use crate::text::{Text, say};
use crate::words::Words;

/// What a check found out, as ` key=value` pairs for its line.
type Facts = Text<512>;
/// Why a check failed, for its line.
type Fault = Text<112>;

/// The one constructor of a [`Fault`] that checks use, formatted.
macro_rules! fault {
    ($($args:tt)*) => { $crate::text::Text::of(format_args!($($args)*)) };
}
use fault;

/// A check that the word `husk.check=` can name.
struct Check {
    name: &'static str,
    run: fn(&Words, &mut Facts) -> Result<(), Fault>,
}

const CHECKS: [Check; 12] = [
    // Every CPU that is online runs this program.
    Check { name: "cpus", run: cpus::run },
    // Memory keeps what is written to it.
    Check { name: "mem", run: mem::run },
    // Disks say what they are, and writable ones keep what is written to them.
    Check { name: "disk", run: disk::run },
    // Writable disks keep what they acknowledge, whatever else fails.
    Check { name: "soak", run: soak::run },
    // The entropy device gives bytes.
    Check { name: "rng", run: rng::run },
    // The clocks go, and know the year.
    Check { name: "clock", run: clock::run },
    // The CMOS clock agrees with the kernel's.
    Check { name: "rtc", run: rtc::run },
    // The neighbour answers, and takes and gives a stream of bytes.
    Check { name: "net", run: net::run },
    // All of it keeps what it is given, also when the machine is taken back to an earlier instant.
    Check { name: "load", run: load::run },
    // The console reads.
    Check { name: "echo", run: echo::run },
    // What the host asks over the console is answered.
    Check { name: "ask", run: ask::run },
    // The kernel warned of nothing, or of what.
    Check { name: "dmesg", run: dmesg::run },
];

/// How the checks went.
#[derive(Default)]
pub(crate) struct Score {
    pub(crate) run: usize,
    pub(crate) failed: usize,
}

/// Runs the checks that the command line names, in its order. A word that nobody knows counts as a failure.
pub(crate) fn run(words: &Words) -> Score {
    let mut score = Score { run: 0, failed: words.refuse_unknown() };
    for name in words.get("husk.check").unwrap_or_default().split(',').filter(|name| !name.is_empty()) {
        score.run += 1;
        if run_one(name, words).is_err() {
            score.failed += 1;
        }
    }
    score
}

fn run_one(name: &str, words: &Words) -> Result<(), ()> {
    let Some(check) = CHECKS.iter().find(|check| check.name == name) else {
        say!("CHECK {name} FAIL there is no such check");
        return Err(());
    };
    let mut facts = Facts::new();
    let started = sys::clock(Clock::Monotonic).unwrap_or_default();
    let outcome = (check.run)(words, &mut facts);
    let ms = sys::clock(Clock::Monotonic).unwrap_or_default().saturating_sub(started).as_millis();
    match outcome {
        Ok(()) => say!("CHECK {name} ok{facts} ms={ms}"),
        Err(ref fault) => say!("CHECK {name} FAIL {fault}"),
    }
    outcome.map_err(drop)
}
