//! The command line: one file a subcommand.

mod api;
mod ctl;
mod deferred;
mod disk;
mod firecracker;
mod host;
mod hotplug;
mod limit;
mod log;
mod memory;
mod net;
mod numa;
mod plan;
mod progress;
mod restore;
mod run;
mod samples;
mod snapshot;
mod thread;
mod words;

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

pub(crate) use plan::PlanError;
pub(crate) use snapshot::SnapshotError;

use self::deferred::Deferred;
use crate::api::FIRECRACKER_VERSION_TAG;
use crate::demo;
use crate::exit::ExitStatus;
use crate::session::RunError;

/// A minimal virtual machine monitor on /dev/kvm.
#[derive(Debug, Parser)]
#[command(
    name = "husk",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Example: husk run --kernel vmlinux --disk root.img --memory 1G --cpus 2"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    firecracker: firecracker::FirecrackerArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot the guest that is built into this program and show the machine working.
    #[command(after_help = "Example: husk demo")]
    Demo,
    /// Boot a VM with its serial console on this terminal (Ctrl-A x quits).
    #[command(
        after_help = "Example: husk run --kernel vmlinux --initrd initramfs.cpio --disk data.img,ro --memory 256M"
    )]
    Run(Deferred<run::RunArgs>),
    /// Run the VM that a snapshot holds, its serial console on this terminal.
    #[command(
        after_help = "Example: husk restore /srv/points/vm1-monday --disk root=/srv/clone.img --api-sock /run/vm2.socket"
    )]
    Restore(Deferred<restore::RestoreArgs>),
    /// Talk to a VM over its control socket.
    #[command(after_help = "Example: husk ctl --api-sock /run/vm1.socket status")]
    Ctl(Deferred<ctl::CtlArgs>),
    /// Print the completion script of a shell.
    #[command(after_help = "Example: husk completion bash > /etc/bash_completion.d/husk")]
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, or that of a command.
    #[command(after_help = "Example: husk man ctl snapshot | man -l -")]
    Man {
        /// The command, as `ctl` or `ctl snapshot`.
        command: Vec<String>,
    },
    /// Show what this host can do for husk, and the command that would mend what it cannot.
    #[command(after_help = "Example: husk host --json")]
    Host(Deferred<host::HostArgs>),
    /// Show where VMs would fit on this host or another: nodes, CPUs and pool pages, and what is lacking.
    #[command(after_help = "Example: husk plan --vm a.json --vm b.json --overcommit 2.0 --write")]
    Plan(Deferred<plan::PlanArgs>),
    /// Look at snapshots on disk: list, inspect, verify, drop.
    #[command(after_help = "Example: husk snapshot list /var/lib/husk/vm1")]
    Snapshot(Deferred<snapshot::SnapshotArgs>),
}

/// husk with a subcommand's name first: what Firecracker takes cannot follow, and is not declared. It reads and says the same.
#[derive(Debug, Parser)]
#[command(name = "husk", subcommand_required = true)]
struct Subcommanded {
    #[command(subcommand)]
    command: Command,
}

/// Does what the command line says; a usage error ends the process with exit code 2.
pub(crate) fn run(started: Instant) -> Result<ExitStatus, RunError> {
    let first = std::env::args_os().nth(1);
    if first.is_some_and(|word| word.to_str().is_some_and(Command::has_subcommand)) {
        return Subcommanded::parse().command.run(started);
    }
    let mut words = Cli::command();
    if std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some("firecracker".as_ref())) {
        // Its clients read the version of what they take this for.
        words = words.name("Firecracker").version(FIRECRACKER_VERSION_TAG);
    }
    let Cli { command, firecracker } = Cli::from_arg_matches(&words.get_matches()).unwrap_or_else(|error| error.exit());
    match command {
        Some(command) => command.run(started),
        None => firecracker.run(started),
    }
}

/// The page of husk, or of the command that these words lead to: `husk-ctl-snapshot`.
fn man_page(words: &[String]) -> Man {
    let mut husk = Cli::command();
    // Only then commands know what they take, and whose they are.
    husk.build();
    let mut command = &husk;
    for word in words {
        command = match command.find_subcommand(word) {
            Some(found) => found,
            None => {
                let message = format!("there is no command `{word}`");
                Cli::command().error(ErrorKind::InvalidSubcommand, message).exit()
            }
        };
    }
    Man::new(command.clone()).source(concat!("husk ", env!("CARGO_PKG_VERSION")))
}

/// Reads a number of seconds, which may have a fraction.
fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|seconds| seconds.as_secs() <= 86_400).ok_or("use seconds, at most a day (86400)")
}

/// A path that means the same to the VM's process, which may be in another folder.
fn absolute(path: std::path::PathBuf) -> Result<std::path::PathBuf, RunError> {
    std::path::absolute(path).map_err(|source| RunError::Host { what: "find the current folder", source })
}

/// Writes to standard output, which `what` says.
fn print(what: &'static str, text: &[u8]) -> Result<(), RunError> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        // Who reads only the first lines, as with `| head`, has what they want.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|source| RunError::Host { what, source }),
    }
}

impl Command {
    fn run(self, started: Instant) -> Result<ExitStatus, RunError> {
        match self {
            Self::Demo => demo::run(started),
            Self::Run(Deferred(args)) => args.run(started),
            Self::Restore(Deferred(args)) => args.run(started),
            Self::Host(Deferred(args)) => args.run(),
            Self::Plan(Deferred(args)) => args.run(),
            Self::Snapshot(Deferred(args)) => args.run(),
            Self::Ctl(Deferred(args)) => args.run(),
            Self::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "husk", &mut script);
                print("print the completion script", &script)?;
                Ok(ExitStatus::Success)
            }
            Self::Man { command } => {
                let mut page = Vec::new();
                man_page(&command).render(&mut page).expect("a Vec takes every write");
                print("print the manual page", &page)?;
                Ok(ExitStatus::Success)
            }
        }
    }
}
