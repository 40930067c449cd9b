//! husk as Firecracker: its flags, with no subcommand.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use vmm::config::VmConfig;
use vmm::config::firecracker::{self, BodyError, Described};
use vmm::control::Escape;
use vmm::epoch::StateHeader;
use vmm::epoch::state_file::FORMAT_VERSION;
use vmm::metrics::FirecrackerFile;

use super::api::Api;
use super::log::LogArgs;
use crate::api::{DEFAULT_PATH, REQUEST_BYTES_MAX, SocketMode};
use crate::exit::ExitStatus;
use crate::logging;
use crate::session::{Begin, Manners, OnReboot, RunError};

/// What `firecracker` takes. Those that change nothing here are accepted with one warning.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of Firecracker, without a subcommand")]
pub(super) struct FirecrackerArgs {
    /// Path of the API socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    api_sock: PathBuf,
    /// Permissions of the API socket, in octal: whoever may write to it may use it. 0600 if not given.
    #[arg(long, value_name = "MODE", conflicts_with = "no_api")]
    api_sock_mode: Option<SocketMode>,
    /// Name of the VM: 1 to 64 letters, digits or `-`.
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", value_parser = parse_id)]
    id: String,
    /// Configuration of the VM, which is then booted at once.
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Opens no API socket.
    #[arg(long, requires = "config_file")]
    no_api: bool,
    /// Bytes that a request may have, headers and body together.
    #[arg(long, value_name = "BYTES", default_value_t = REQUEST_BYTES_MAX)]
    http_api_max_payload_size: usize,
    /// Seconds that a guest which has enabled its power button has to end by itself when husk is asked to.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = super::parse_seconds)]
    stop_timeout: Duration,
    /// File or named pipe that the machine's figures are written to, each minute.
    #[arg(long, value_name = "PATH")]
    metrics_path: Option<PathBuf>,
    /// Prints the version of the snapshot format that is written, and ends.
    #[arg(long)]
    snapshot_version: bool,
    /// Prints the version of this state file's format, and ends.
    #[arg(long, value_name = "PATH")]
    describe_snapshot: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    ignored: Ignored,
}

/// Flags that this version accepts and does not act on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of Firecracker that are accepted and change nothing yet")]
struct Ignored {
    #[arg(long, value_name = "PATH", hide = true)]
    seccomp_filter: Option<PathBuf>,
    #[arg(long, hide = true)]
    no_seccomp: bool,
    #[arg(long, value_name = "US", hide = true)]
    start_time_us: Option<u64>,
    #[arg(long, value_name = "US", hide = true)]
    start_time_cpu_us: Option<u64>,
    #[arg(long, value_name = "US", hide = true)]
    parent_cpu_time_us: Option<u64>,
    #[arg(long, value_name = "FILE", hide = true)]
    metadata: Option<PathBuf>,
    #[arg(long, hide = true)]
    boot_timer: bool,
    #[arg(long, value_name = "BYTES", hide = true)]
    mmds_size_limit: Option<u64>,
    #[arg(long, hide = true)]
    enable_pci: bool,
}

impl FirecrackerArgs {
    pub(super) fn run(self, started: Instant) -> Result<ExitStatus, RunError> {
        if let Some(path) = &self.describe_snapshot {
            // What can be read is of the version that is written: there is no other yet.
            StateHeader::read(path)?;
        }
        if self.snapshot_version || self.describe_snapshot.is_some() {
            super::print("print a version", format!("v{FORMAT_VERSION}.0.0\n").as_bytes())?;
            return Ok(ExitStatus::Success);
        }
        self.log.apply(&self.id)?;
        let given = self.ignored.given();
        if !given.is_empty() {
            log::warn!("accepted without effect in this version: {}", given.join(" "));
        }
        let metrics = self.metrics_path.as_deref().map(FirecrackerFile::open).transpose()?;
        let mut manners =
            Manners { escape: Escape::None, on_reboot: OnReboot::Exit, stop_grace: self.stop_timeout, metrics };
        let (config, begin) = match &self.config_file {
            Some(path) => (read_config_file(path, &self.id, &mut manners)?, Begin::Now),
            None => (firecracker::blank(), Begin::WhenTold),
        };
        let api = (!self.no_api).then_some(Api {
            path: self.api_sock,
            mode: self.api_sock_mode.unwrap_or_default(),
            id: self.id,
            request_bytes_max: self.http_api_max_payload_size,
            started,
        });
        super::api::run(config, begin, manners, api).map(|finished| finished.report())
    }
}

/// Reads a VM's name.
pub(super) fn parse_id(text: &str) -> Result<String, &'static str> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if plain && (1..=64).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("use 1 to 64 letters, digits or `-`")
    }
}

impl Ignored {
    fn given(&self) -> Vec<&'static str> {
        let Self {
            seccomp_filter,
            no_seccomp,
            start_time_us,
            start_time_cpu_us,
            parent_cpu_time_us,
            metadata,
            boot_timer,
            mmds_size_limit,
            enable_pci,
        } = self;
        let flags = [
            ("--seccomp-filter", seccomp_filter.is_some()),
            ("--no-seccomp", *no_seccomp),
            ("--start-time-us", start_time_us.is_some()),
            ("--start-time-cpu-us", start_time_cpu_us.is_some()),
            ("--parent-cpu-time-us", parent_cpu_time_us.is_some()),
            ("--metadata", metadata.is_some()),
            ("--boot-timer", *boot_timer),
            ("--mmds-size-limit", mmds_size_limit.is_some()),
            ("--enable-pci", *enable_pci),
        ];
        flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
    }
}

/// The VM that Firecracker's configuration file describes, called `id`; its log and its figures go where the file says.
pub(super) fn read_config_file(path: &Path, id: &str, manners: &mut Manners) -> Result<VmConfig, RunError> {
    let text = firecracker::read_text(path).map_err(|source| RunError::ReadFile { path: path.to_owned(), source })?;
    let described = firecracker::parse(&text).map_err(|source| RunError::File { path: path.to_owned(), source })?;
    let Described { machine, logger, metrics } = described;
    if let Some(logger) = &logger {
        logging::configure(logger)?;
    }
    if let Some(metrics) = &metrics {
        if manners.metrics.is_some() {
            let problem = "--metrics-path is given as well: remove one";
            let source = BodyError::Value { path: "metrics".to_owned(), problem };
            return Err(RunError::File { path: path.to_owned(), source });
        }
        manners.metrics = Some(FirecrackerFile::of_body(metrics, id)?);
    }
    Ok(machine)
}
