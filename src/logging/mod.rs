//! husk's own lines: the log facade's records, on standard error or in a file or pipe that can be set while husk runs.
//!
//! Threads that serve the guest come here: a line is written at once or not at all. One that could not be is counted.

mod time;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, RwLock};
use std::time::{Instant, SystemTime};

use clap::ValueEnum;
use log::{LevelFilter, Log, Metadata, Record};
use serde_json::json;
use thiserror::Error;
use vmm::config::firecracker::bodies::{LogLevel, Logger};
use vmm::line_file;

pub(crate) use self::time::rfc3339;
use crate::{process, terminal};

/// What a pipe that is ready to be written takes at once is 4096 bytes (PIPE_BUF).
const LINE_BYTES_MAX: usize = 4000;

/// How a line reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A log that cannot be had.
#[derive(Debug, Error)]
#[error("log_path: cannot open {}: {cause}: check that its folder exists and can be written", path.display())]
pub(crate) struct LoggerError {
    path: PathBuf,
    cause: io::Error,
}

struct HuskLog {
    settings: RwLock<Settings>,
    started: OnceLock<Instant>,
    lost: AtomicU64,
}

static LOG: HuskLog = HuskLog {
    settings: RwLock::new(Settings {
        file: None,
        id: String::new(),
        format: LogFormat::Text,
        level: Shown::No,
        origin: Shown::No,
        module: None,
        journal: Shown::No,
    }),
    started: OnceLock::new(),
    lost: AtomicU64::new(0),
};

#[derive(Debug)]
struct Settings {
    /// Where lines go; standard error without one.
    file: Option<File>,
    id: String,
    format: LogFormat,
    level: Shown,
    origin: Shown,
    /// The module whose records alone are written.
    module: Option<String>,
    /// Standard error is the journal: a line begins with its priority (sd-daemon(3)).
    journal: Shown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    No,
    Yes,
}

/// Sends records of level `info` and worse to standard error, as `husk: level: text`. Once a process.
pub(crate) fn install(started: Instant) {
    let _ = LOG.started.set(started);
    settings(|settings| settings.journal = if is_journal() { Shown::Yes } else { Shown::No });
    log::set_logger(&LOG).expect("the process installs its logger once");
    log::set_max_level(LevelFilter::Info);
}

/// Names the VM in the lines of a file, and says how lines read.
pub(crate) fn identify(id: &str, format: LogFormat) {
    settings(|settings| (settings.id, settings.format) = (id.to_owned(), format));
}

/// Changes what `logger` has of it. What it has not stays, but for the level: that is then [`LogLevel::Info`], as with
/// Firecracker.
///
/// # Errors
/// Its file cannot be opened; then nothing has changed.
pub(crate) fn configure(logger: &Logger) -> Result<(), LoggerError> {
    let Logger { log_path, level, show_level, show_log_origin, module } = logger;
    let file = log_path.as_deref().map(open).transpose()?;
    settings(|settings| {
        settings.file = file.or(settings.file.take());
        let shown =
            |asked: Option<bool>, present| asked.map_or(present, |yes| if yes { Shown::Yes } else { Shown::No });
        settings.level = shown(*show_level, settings.level);
        settings.origin = shown(*show_log_origin, settings.origin);
        if module.is_some() {
            settings.module.clone_from(module);
        }
    });
    log::set_max_level(filter(level.unwrap_or(LogLevel::Info)));
    Ok(())
}

/// Lines that could not be written so far.
pub(crate) fn lost_lines() -> u64 {
    LOG.lost.load(Ordering::Relaxed)
}

fn open(path: &Path) -> Result<File, LoggerError> {
    line_file::open(path).map_err(|cause| LoggerError { path: path.to_owned(), cause })
}

fn settings(change: impl FnOnce(&mut Settings)) {
    change(&mut LOG.settings.write().expect("a thread that panics aborts the process"));
}

/// Whether standard error is a stream of the journal's (`JOURNAL_STREAM`, systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|metadata| stream == format!("{}:{}", metadata.dev(), metadata.ino()))
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warning => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

impl Settings {
    fn wants(&self, record: &Record) -> bool {
        self.module.as_deref().is_none_or(|module| record.target().starts_with(module))
    }

    /// A record as a line, without its end.
    fn line(&self, record: &Record, thread: &str, started: Option<Instant>) -> String {
        let wall = SystemTime::now();
        let monotonic = started.map(|started| started.elapsed()).unwrap_or_default();
        match (self.format, &self.file) {
            (LogFormat::Json, _) => json!({
                "time": rfc3339(wall),
                "monotonic_s": monotonic.as_secs_f64(),
                "level": record.level().as_str().to_ascii_lowercase(),
                "id": self.id,
                "thread": thread,
                "target": record.target(),
                "message": record.args().to_string(),
            })
            .to_string(),
            // As Firecracker's lines read.
            (LogFormat::Text, Some(_)) => {
                let mut line = format!("{} [{}:{thread}", rfc3339(wall), self.id);
                if self.level == Shown::Yes {
                    write!(line, ":{}", record.level()).expect("a String takes every write");
                }
                if self.origin == Shown::Yes {
                    let place = (record.file().unwrap_or("?"), record.line().unwrap_or(0));
                    write!(line, ":{}:{}", place.0, place.1).expect("a String takes every write");
                }
                write!(line, "] {}", record.args()).expect("a String takes every write");
                line
            }
            (LogFormat::Text, None) => {
                let level = record.level().as_str().to_ascii_lowercase();
                let priority = match (self.journal, record.level()) {
                    (Shown::No, _) => "",
                    (Shown::Yes, log::Level::Error) => "<3>",
                    (Shown::Yes, log::Level::Warn) => "<4>",
                    (Shown::Yes, log::Level::Info) => "<6>",
                    (Shown::Yes, log::Level::Debug | log::Level::Trace) => "<7>",
                };
                format!("{priority}husk: {level}: {}", record.args())
            }
        }
    }
}

impl Log for HuskLog {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let settings = self.settings.read().expect("a thread that panics aborts the process");
        if !settings.wants(record) {
            return;
        }
        let thread = std::thread::current();
        // The first thread alone has been given no name.
        let mut line = settings.line(record, thread.name().unwrap_or("main"), self.started.get().copied());
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        let written = match &settings.file {
            Some(file) => {
                line.push('\n');
                write_once(file, line.as_bytes())
            }
            None => {
                line.push_str(terminal::line_end());
                // One that is closed is no reason to end a VM, and one that nobody reads must not hold it.
                process::standard_error_takes_a_line() && write_once(io::stderr(), line.as_bytes())
            }
        };
        if !written {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

fn write_once(mut to: impl Write, line: &[u8]) -> bool {
    to.write(line).is_ok_and(|written| written == line.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;

    fn settings(format: LogFormat, file: Option<File>, all: Shown) -> Settings {
        Settings { file, id: "vm".to_owned(), format, level: all, origin: all, module: None, journal: all }
    }

    fn line(settings: &Settings) -> String {
        let args = format_args!("two \"words\"");
        let record =
            Record::builder().args(args).level(Level::Warn).target("vmm::x").file(Some("x.rs")).line(Some(7)).build();
        settings.line(&record, "husk-api", None)
    }

    #[test]
    fn a_line_for_people_a_journal_a_file_and_a_machine() {
        assert_eq!(line(&settings(LogFormat::Text, None, Shown::No)), "husk: warn: two \"words\"");
        assert_eq!(line(&settings(LogFormat::Text, None, Shown::Yes)), "<4>husk: warn: two \"words\"");
        let file = || Some(tempfile::tempfile().unwrap());
        let plain = line(&settings(LogFormat::Text, file(), Shown::No));
        assert!(plain.ends_with(" [vm:husk-api] two \"words\""), "{plain}");
        let full = line(&settings(LogFormat::Text, file(), Shown::Yes));
        assert!(full.ends_with(" [vm:husk-api:WARN:x.rs:7] two \"words\""), "{full}");
        let json: serde_json::Value = serde_json::from_str(&line(&settings(LogFormat::Json, None, Shown::No))).unwrap();
        assert_eq!((json["message"].as_str(), json["target"].as_str()), (Some("two \"words\""), Some("vmm::x")));
        assert_eq!((json["level"].as_str(), json["thread"].as_str()), (Some("warn"), Some("husk-api")));
    }

    #[test]
    fn a_module_lets_its_own_records_through_alone() {
        let mut settings = settings(LogFormat::Text, None, Shown::No);
        let record = Record::builder().target("vmm::control::x").build();
        assert!(settings.wants(&record));
        settings.module = Some("vmm::control".to_owned());
        assert!(settings.wants(&record));
        settings.module = Some("devices".to_owned());
        assert!(!settings.wants(&record));
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let pipe = open(&path).unwrap();
        let line = [b'x'; LINE_BYTES_MAX];
        let written = (0..1000).take_while(|_| write_once(&pipe, &line)).count();
        assert!((1..1000).contains(&written), "a pipe is bounded: {written}");
    }
}
