//! Where husk's log goes, on the command line: Firecracker's flags, and the format.

use std::path::PathBuf;

use clap::Args;
use vmm::config::firecracker::bodies::{LogLevel, Logger};

use crate::logging::{self, LogFormat, LoggerError};

/// Options of husk's log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of husk's log")]
pub(super) struct LogArgs {
    /// File or named pipe, in place of standard error.
    #[arg(long, value_name = "PATH")]
    log_path: Option<PathBuf>,
    /// The least important records that are written: Off, Error, Warning, Info, Debug or Trace.
    #[arg(long, value_name = "LEVEL")]
    level: Option<LogLevel>,
    /// The module whose records alone are written.
    #[arg(long, value_name = "NAME")]
    module: Option<String>,
    /// In a file, tells each line's level.
    #[arg(long)]
    show_level: bool,
    /// In a file, tells the place in husk's source.
    #[arg(long)]
    show_log_origin: bool,
    /// How a line reads.
    #[arg(long, value_name = "text|json", default_value = "text")]
    log_format: LogFormat,
}

impl LogArgs {
    /// Sets the log up for the VM `id`.
    pub(super) fn apply(&self, id: &str) -> Result<(), LoggerError> {
        logging::identify(id, self.log_format);
        logging::configure(&Logger {
            log_path: self.log_path.clone(),
            level: self.level,
            show_level: self.show_level.then_some(true),
            show_log_origin: self.show_log_origin.then_some(true),
            module: self.module.clone(),
        })
    }
}
