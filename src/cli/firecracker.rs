//! husk as Firecracker: its flags, with no subcommand.

use std::path::{Path, PathBuf};

use clap::Args;
use vmm::config::VmConfig;
use vmm::config::firecracker;
use vmm::control::Escape;

use crate::exit::ExitStatus;
use crate::session::{OnReboot, RunError, Session};

/// What `firecracker` takes. Those that change nothing here are accepted with one warning.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of Firecracker, without a subcommand")]
pub(super) struct FirecrackerArgs {
    /// Path of the API socket.
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// Name of the VM.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Configuration of the VM, which is then booted at once.
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Opens no API socket.
    #[arg(long, requires = "config_file")]
    no_api: bool,
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
    #[arg(long, value_name = "PATH", hide = true)]
    log_path: Option<PathBuf>,
    #[arg(long, value_name = "LEVEL", hide = true)]
    level: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    module: Option<String>,
    #[arg(long, hide = true)]
    show_level: bool,
    #[arg(long, hide = true)]
    show_log_origin: bool,
    #[arg(long, value_name = "PATH", hide = true)]
    metrics_path: Option<PathBuf>,
    #[arg(long, hide = true)]
    boot_timer: bool,
    #[arg(long, hide = true)]
    snapshot_version: bool,
    #[arg(long, value_name = "PATH", hide = true)]
    describe_snapshot: Option<PathBuf>,
    #[arg(long, value_name = "BYTES", hide = true)]
    http_api_max_payload_size: Option<u64>,
    #[arg(long, value_name = "BYTES", hide = true)]
    mmds_size_limit: Option<u64>,
    #[arg(long, hide = true)]
    enable_pci: bool,
}

impl FirecrackerArgs {
    pub(super) fn run(self) -> Result<ExitStatus, RunError> {
        let given = self.ignored.given();
        if !given.is_empty() {
            log::warn!("accepted without effect in this version: {}", given.join(" "));
        }
        let (Some(path), true) = (self.config_file, self.no_api) else {
            return Err(RunError::NotYet {
                what: "the API socket",
                hint: "boot a configuration file with --no-api --config-file FILE, or use `husk run`",
            });
        };
        let config = read_config_file(&path)?;
        Session::new(config, Escape::None, OnReboot::Exit).run().map(|finished| finished.report())
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
            log_path,
            level,
            module,
            show_level,
            show_log_origin,
            metrics_path,
            boot_timer,
            snapshot_version,
            describe_snapshot,
            http_api_max_payload_size,
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
            ("--log-path", log_path.is_some()),
            ("--level", level.is_some()),
            ("--module", module.is_some()),
            ("--show-level", *show_level),
            ("--show-log-origin", *show_log_origin),
            ("--metrics-path", metrics_path.is_some()),
            ("--boot-timer", *boot_timer),
            ("--snapshot-version", *snapshot_version),
            ("--describe-snapshot", describe_snapshot.is_some()),
            ("--http-api-max-payload-size", http_api_max_payload_size.is_some()),
            ("--mmds-size-limit", mmds_size_limit.is_some()),
            ("--enable-pci", *enable_pci),
        ];
        flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
    }
}

/// The VM that Firecracker's configuration file describes.
pub(super) fn read_config_file(path: &Path) -> Result<VmConfig, RunError> {
    let path = path.to_owned();
    let text = match firecracker::read_text(&path) {
        Ok(text) => text,
        Err(source) => return Err(RunError::ReadFile { path, source }),
    };
    firecracker::parse(&text).map_err(|source| RunError::File { path, source })
}
