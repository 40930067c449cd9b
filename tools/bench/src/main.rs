//! `tools/dev bench`: husk beside the floor and beside other monitors, in one run, and a ratio of medians.

mod api;
mod boot;
mod bzimage;
mod child;
mod io;
mod memory;
mod peer;
mod plan;
mod report;
mod snapshot;
mod stats;

use std::process::ExitCode;

use report::{Report, Row};

/// A benchmark: its name, what it measures, and how.
type Bench = (&'static str, &'static str, fn(&Wanted) -> Result<Vec<Row>, BenchError>);

const BENCHES: [Bench; 6] = [
    ("api", "the control socket: exec to accepting, a request's latency, what requests cost the guest", api::run),
    ("boot", "exec to first guest instruction and to Linux's userspace; what a running VM costs", boot::run),
    ("io", "disk and network: requests a second, and for each CPU-second of the monitor's", io::run),
    (
        "memory",
        "guest memory on pages of 4 KiB, transparent huge pages and a pool of 2 MiB beside each other",
        memory::run,
    ),
    ("snapshot", "snapshots of paused and running machines, restores, clones", snapshot::run),
    ("plan", "500 VMs planned on a host of four nodes, from exec to exit", plan::run),
];

/// Which rows are asked for: all, or those that the words after the benchmark's name begin.
pub(crate) struct Wanted<'a>(&'a [&'a String]);

impl Wanted<'_> {
    pub(crate) fn has(&self, row: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|start| row.starts_with(start.as_str()))
    }
}

/// What keeps a benchmark from giving a figure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A file that `tools/dev` should have built is missing.
    #[error("{what} is not at {path}: run this through tools/dev bench")]
    Missing {
        /// What it is.
        what: &'static str,
        /// Where it should be.
        path: String,
    },
    /// A program cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// Its path.
        program: String,
        /// What the host said.
        source: std::io::Error,
    },
    /// A program did not print what marks the end of the measurement.
    #[error("{program} did not print `{wanted}` within {seconds} s; it printed: {printed}")]
    Silent {
        /// Its path.
        program: String,
        /// What was waited for.
        wanted: String,
        /// For how long.
        seconds: u64,
        /// What came instead.
        printed: String,
    },
    /// A monitor's control socket does not do as it should.
    #[error("{path}: cannot {what}")]
    Socket {
        /// The socket.
        path: String,
        /// What was attempted.
        what: &'static str,
        /// What the host said.
        source: std::io::Error,
    },
    /// A figure cannot be read from /proc.
    #[error("cannot read {path}")]
    Proc {
        /// The file.
        path: String,
        /// What the host said.
        source: std::io::Error,
    },
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, path] = &arguments[..]
        && word == bzimage::UNPACK
    {
        return bzimage::unpack(path);
    }
    if let [word, rest @ ..] = &arguments[..]
        && word == io::FLOOR
    {
        return match io::floor_main(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: floor: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let (flags, names): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|word| word.starts_with("--"));
    let json = flags.iter().any(|flag| *flag == "--json");
    let bench = names.first().and_then(|name| BENCHES.iter().find(|(known, ..)| known == name));
    let Some((_, _, run)) = bench else {
        println!("usage: tools/dev bench NAME [ROW...] [--json]\n");
        BENCHES.iter().for_each(|(name, what, _)| println!("  {name:8} {what}"));
        return ExitCode::from(if names.is_empty() { 0 } else { 2 });
    };
    match run(&Wanted(&names[1..])) {
        Ok(rows) => {
            let report = Report { rows };
            println!("{}", if json { report.json() } else { report.table() });
            ExitCode::SUCCESS
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("bench: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}
