//! `husk demo`: the guest that is built into this program, on a machine with two CPUs and a scratch disk in memory.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm::config::{
    BootConfig, BootEntry, DiskConfig, DiskSource, DiskTuning, Entropy, HardwareTables, KernelSource, LimiterConfig,
    MIB, MemoryConfig, RootDevice, SerialTarget, ThreadPlacement, ThreadsPerCore, VmConfig,
};
use vmm::control::{Escape, Outcome};
use vmm::machine::Machine;
use vmm::memfd;
use vmm::vcpu::ExitKind;

use crate::exit::ExitStatus;
use crate::session::{Begin, Manners, OnReboot, RunError, Session};

/// Built by resources/guest/build.rs.
const GUEST: &[u8] = include_bytes!(env!("HUSK_GUEST_DEMO"));

const CPUS: u64 = 2;
const MEMORY_BYTES: u64 = 128 * MIB;
const DISK_BYTES: u64 = 16 * MIB;

/// Boots the guest and prints, after its own lines, what husk saw of it.
pub(crate) fn run(started: Instant) -> Result<ExitStatus, RunError> {
    let disk = memfd::create("husk-demo-disk", DISK_BYTES)
        .map_err(|source| RunError::Host { what: "create the scratch disk (memfd)", source })?;
    let manners =
        Manners { escape: Escape::CtrlA, on_reboot: OnReboot::Exit, stop_grace: Duration::ZERO, metrics: None };
    let finished = Session::open(manners, None)?.run(config(disk), Begin::Now)?;
    if let (Outcome::PoweredOff, Some(machine)) = (&finished.outcome, &finished.machine) {
        match summarize(machine, started) {
            // Nobody reads on, as with `| head`: no error, as it is none for the guest's own output.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.map_err(|source| RunError::Host { what: "print the summary", source })?,
        }
    }
    Ok(finished.report())
}

fn config(disk: File) -> VmConfig {
    VmConfig {
        cpus: CPUS,
        memory: MemoryConfig::new(MEMORY_BYTES),
        numa: Vec::new(),
        boot: Some(BootConfig {
            kernel: KernelSource::BuiltIn(GUEST),
            initrd: None,
            cmdline: None,
            entry: BootEntry::Auto,
        }),
        tables: HardwareTables::Acpi,
        disks: vec![DiskConfig {
            id: "scratch".to_owned(),
            source: DiskSource::Open(Arc::new(disk)),
            read_only: false,
            root: RootDevice::No,
            tuning: DiskTuning::default(),
        }],
        nets: Vec::new(),
        entropy: Entropy::On,
        entropy_limits: LimiterConfig::default(),
        balloon: None,
        hotplug: None,
        cpu_template: None,
        threads_per_core: ThreadsPerCore::One,
        serial_limit: None,
        serial: SerialTarget::Stdio,
        threads: ThreadPlacement::default(),
    }
}

fn summarize(machine: &Machine, started: Instant) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "husk: the guest powered off")?;
    if let Some(first) = machine.first_entry() {
        let to_first = first.saturating_duration_since(started);
        writeln!(out, "  start to first guest instruction  {:8.2} ms", to_first.as_secs_f64() * 1e3)?;
    }
    writeln!(out, "  run time                          {:8.2} ms", machine.run_time().as_secs_f64() * 1e3)?;
    let exits = ExitKind::ALL.map(|(kind, name)| (machine.exits(kind), name));
    writeln!(out, "  exits to husk                     {:8}", exits.iter().map(|(count, _)| count).sum::<u64>())?;
    for (count, name) in exits.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "    {name:12}                    {count:8}")?;
    }
    out.flush()
}
