//! husk's own lines: the log facade's records on standard error.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

use crate::terminal;

struct StderrLog;

static LOG: StderrLog = StderrLog;

/// Sends records of level `warn` and worse to standard error, as `husk: level: text`. Once a process.
pub(crate) fn install() {
    log::set_logger(&LOG).expect("the process installs its logger once");
    log::set_max_level(LevelFilter::Warn);
}

impl Log for StderrLog {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let level = record.level().as_str().to_ascii_lowercase();
        let line = format!("husk: {level}: {}{}", record.args(), terminal::line_end());
        // A closed standard error is no reason to end a VM.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
