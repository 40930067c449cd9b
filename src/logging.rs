//! husk's own lines: the log facade's records on standard error.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

use crate::{process, terminal};

/// What a pipe that is ready to be written takes at once is 4096 bytes (PIPE_BUF).
const LINE_BYTES_MAX: usize = 4000;

struct StderrLog;

static LOG: StderrLog = StderrLog;

/// Sends records of level `info` and worse to standard error, as `husk: level: text`. Once a process.
pub(crate) fn install() {
    log::set_logger(&LOG).expect("the process installs its logger once");
    log::set_max_level(LevelFilter::Info);
}

impl Log for StderrLog {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let level = record.level().as_str().to_ascii_lowercase();
        let mut line = format!("husk: {level}: {}", record.args());
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        line.push_str(terminal::line_end());
        // Threads that serve the guest come here: a standard error that nobody reads must not hold them, and one that is
        // closed is no reason to end a VM.
        if process::standard_error_takes_a_line() {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
