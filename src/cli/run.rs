//! `husk run`: a VM booted at once, its serial console on the terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use clap::Args;
use thiserror::Error;
use vmm::config::{BootConfig, BootEntry, ConfigError, Entropy, HostFacts, KernelSource, VmConfig};
use vmm::control::{Console, ControlError, ControlLoop, Escape, Outcome, Signals, event_queue};
use vmm::machine::{BuildError, Machine, Wiring};

use super::disk::DiskArg;
use super::memory::MemoryArg;
use crate::exit::ExitStatus;
use crate::terminal::{RawTerminal, TerminalError};

/// What keeps a VM from running.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// The configuration breaks a limit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine cannot be assembled.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The machine cannot be kept running.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The terminal cannot be the console.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// A descriptor that the process itself needs.
    #[error("cannot {what}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// Arguments of `husk run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Kernel image: an ELF file, entered by PVH or by the 64-bit Linux boot protocol.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// File that the kernel finds in memory as its initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line, in place of the default `console=ttyS0 reboot=k panic=-1`.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Number of virtual CPUs, 1 to 64.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u64,
    /// Guest memory, in whole MiB; `shared` makes it a memfd.
    #[arg(long, value_name = "SIZE[,shared]", default_value = "512M")]
    memory: MemoryArg,
    /// File or block device that the guest sees as a disk; repeat for more.
    #[arg(long, value_name = "PATH[,ro][,id=ID]")]
    disk: Vec<DiskArg>,
    /// Entropy device; `auto` gives one unless the disks take all 19 device slots.
    #[arg(long, value_name = "on|off|auto", default_value = "auto", value_parser = parse_entropy)]
    rng: Entropy,
    /// How the kernel is entered: `auto` is PVH if the image has its note, else linux64.
    #[arg(long, value_name = "auto|pvh|linux64", default_value = "auto")]
    boot_entry: BootEntry,
}

impl RunArgs {
    pub(super) fn run(self) -> Result<ExitStatus, RunError> {
        let disks = self.disk.into_iter().enumerate().map(|(index, disk)| disk.into_config(index)).collect();
        let config = VmConfig {
            cpus: self.cpus,
            memory: self.memory.0,
            boot: BootConfig {
                kernel: KernelSource::Path(self.kernel),
                initrd: self.initrd,
                cmdline: self.cmdline,
                entry: self.boot_entry,
            },
            disks,
            entropy: self.rng,
        };
        let finished = drive(config)?;
        Ok(match finished.outcome {
            Outcome::PoweredOff | Outcome::Reset | Outcome::Stopped => ExitStatus::Success,
            Outcome::Crashed(crash) => {
                eprintln!("husk: {crash}");
                ExitStatus::GuestCrashed
            }
        })
    }
}

/// A machine whose life is over, and how it ended.
pub(crate) struct Finished {
    pub(crate) machine: Machine,
    pub(crate) outcome: Outcome,
}

/// Assembles a machine with its console on this process's standard streams and runs it to its end.
pub(crate) fn drive(config: VmConfig) -> Result<Finished, RunError> {
    let host = |what| move |source| RunError::Host { what, source };
    config.validate(HostFacts::read())?;
    // Before any thread is made, so that all of them inherit the mask and only the control loop takes the signals.
    let signals = Signals::block().map_err(host("take over termination signals"))?;
    let (events, received) = event_queue().map_err(host("create the event queue"))?;
    let output = duplicate(&io::stdout()).map_err(host("duplicate standard output"))?;
    let machine = Machine::build(config, Wiring { serial_output: output, events })?;
    let raw = RawTerminal::enter()?;
    let escape = if raw.is_some() { Escape::CtrlA } else { Escape::None };
    // A closed standard input is an input that is at its end.
    let console = duplicate(&io::stdin()).ok().map(|input| Console::new(input.into(), escape));
    let ended = ControlLoop::new(machine, received, signals, console)?.run();
    drop(raw);
    let (machine, outcome) = ended?;
    Ok(Finished { machine, outcome })
}

fn duplicate(stream: &impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

fn parse_entropy(text: &str) -> Result<Entropy, String> {
    match text {
        "on" => Ok(Entropy::On),
        "off" => Ok(Entropy::Off),
        "auto" => Ok(Entropy::IfRoom),
        _ => Err("use on, off or auto".to_owned()),
    }
}
