//! `husk run`: a VM booted at once, its serial console on the terminal.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use vmm::config::{
    BootConfig, BootEntry, ConfigError, CoreScheduling, DiskConfig, Entropy, HardwareTables, KernelSource,
    LimiterConfig, RootDevice, SerialTarget, ThreadPlacement, ThreadsPerCore, VmConfig,
};

use super::api::SessionArgs;
use super::disk::DiskArg;
use super::firecracker::read_config_file;
use super::hotplug::HotplugArg;
use super::memory::MemoryArg;
use super::net::NetArg;
use super::numa::NumaArg;
use super::thread::ThreadArg;
use crate::exit::ExitStatus;
use crate::session::{Begin, RunError};

/// Arguments of `husk run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Kernel image: an ELF file (vmlinux) or a bzImage (vmlinuz).
    #[arg(long, value_name = "FILE", required_unless_present = "config_file")]
    kernel: Option<PathBuf>,
    /// File that the kernel finds in memory as its initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line, in place of the default `console=ttyS0 reboot=k panic=-1`.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Number of virtual CPUs, 1 to 64.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u64,
    /// Guest memory, in whole MiB. WORD is shared (a memfd), pages=none|transparent|2M|1G, nodes=LIST of the host's (0-1:3),
    /// policy=bind|preferred|interleave, prefault, lock, merge, dump, track (what is written, for incremental snapshots),
    /// best_effort (what the host cannot honour is left out and told, not refused).
    #[arg(long, value_name = "SIZE[,WORD]", default_value = "512M")]
    memory: MemoryArg,
    /// File or block device that the guest sees as a disk; repeat for more. `root` has the kernel find its root file system
    /// there. WORD is partuuid (of the partition that it finds it on), id, engine (io_uring, sync, auto), cache (writeback,
    /// writethrough, direct, unsafe), queues, queue_size, block (512, 4096), physical_block, serial, iothread (a name to share
    /// a thread by) or iothreads, poll_us, bps, iops, limit_group, on_enospc (report, stop). A comma in the path is doubled.
    #[arg(long, value_name = "PATH[,ro][,root][,WORD=VALUE]")]
    disk: Vec<DiskArg>,
    /// Network card on a tap that exists, or on queues of one passed as descriptors; repeat for more. WORD is mac, id,
    /// queues, iothread (a name to share a thread by) or iothreads, poll_us, mtu, rx_bps, tx_bps, rx_pps, tx_pps,
    /// limit_group, filter (off, mac, mac+ip), ip (addresses for mac+ip). A comma in a value is doubled.
    #[arg(long, value_name = "tap=NAME|fd=N[,WORD=VALUE]")]
    net: Vec<NetArg>,
    /// Entropy device; `auto` gives one unless the disks and networks take all 19 device slots.
    #[arg(long, value_name = "on|off|auto", default_value = "auto", value_parser = parse_entropy)]
    rng: Entropy,
    /// How the kernel is entered: `auto` is PVH if it has the note, else linux64; `image` runs a bzImage's own decompressor.
    #[arg(long, value_name = "auto|pvh|linux64|image", default_value = "auto")]
    boot_entry: BootEntry,
    /// `off` gives an MP table and `virtio_mmio.device=` words instead of ACPI tables.
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = parse_acpi)]
    acpi: HardwareTables,
    /// The other end of the serial port; a file gets output only, a pty's path is printed.
    #[arg(long, value_name = "stdio|FILE|pty|null", default_value = "stdio", value_parser = parse_serial)]
    serial: SerialTarget,
    /// A NUMA node of the guest; repeat for each, in the order of their memory. The host's nodes and the policy are as for
    /// --memory; devices are the ids of those near it; distances are those to each node, 10 to itself.
    #[arg(long, value_name = "cpus=LIST,memory=SIZE[,nodes=LIST][,policy=P][,devices=ID:ID][,distances=N:N]")]
    numa: Vec<NumaArg>,
    /// Memory beside --memory that the guest is asked to plug and unplug while it runs (PATCH /hotplug/memory). WORD is block
    /// (2M), slot (128M), requested (at the start: 0), node (of the guest's).
    #[arg(long, value_name = "SIZE[,WORD=VALUE]")]
    hotplug: Option<HotplugArg>,
    /// Where threads of husk's run on the host; NAME is vcpu0 (or vcpu: all), io:DEVICE (or io: all), api or main, PRIORITY is
    /// nice:N, fifo:N or rr:N; cpus=auto finds CPUs on the memory's node, a core for each vCPU, auto:shared a thread; repeat
    /// for more.
    #[arg(long, value_name = "NAME[,cpus=LIST][,priority=PRIORITY]")]
    thread: Vec<ThreadArg>,
    /// Which threads may share a core's SMT siblings at one time: any, this VM's, or no vCPU with another.
    #[arg(long, value_name = "off|vm|vcpu", default_value = "off", value_parser = parse_core_scheduling)]
    core_scheduling: CoreScheduling,
    #[command(flatten)]
    session: SessionArgs,
    /// Firecracker's configuration file, in place of the options that describe the machine.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "initrd", "cmdline", "cpus", "memory", "disk", "net", "rng",
        "boot_entry", "acpi", "serial", "numa", "hotplug", "thread", "core_scheduling"])]
    config_file: Option<PathBuf>,
}

impl RunArgs {
    pub(super) fn run(mut self, started: Instant) -> Result<ExitStatus, RunError> {
        let id = self.session.id().to_owned();
        let (mut manners, api) = self.session.settle(started)?;
        let config = match self.config_file {
            Some(path) => read_config_file(&path, &id, &mut manners)?,
            None => self.into_config()?,
        };
        super::api::run(config, Begin::Now, manners, api).map(|finished| finished.report())
    }

    fn into_config(mut self) -> Result<VmConfig, ConfigError> {
        self.memory.0.placement.hotplug_node = self.hotplug.and_then(|hotplug| hotplug.node);
        let honour = self.memory.0.placement.honour;
        let mut terms = BTreeMap::new();
        for ThreadArg { name, terms: of_thread } in self.thread {
            if terms.insert(name.clone(), of_thread).is_some() {
                return Err(ConfigError::ThreadTwice(name));
            }
        }
        let threads = ThreadPlacement { terms, core_scheduling: self.core_scheduling, honour };
        let nets = self.net.into_iter().enumerate().map(|(index, net)| net.into_config(index));
        Ok(VmConfig {
            cpus: self.cpus,
            memory: self.memory.0,
            numa: self.numa.into_iter().map(|NumaArg(node)| node).collect(),
            boot: Some(BootConfig {
                kernel: KernelSource::Path(self.kernel.expect("clap requires it where there is no --config-file")),
                initrd: self.initrd,
                cmdline: self.cmdline,
                entry: self.boot_entry,
            }),
            tables: self.acpi,
            disks: disks(self.disk),
            nets: nets.collect::<Result<_, _>>()?,
            entropy: self.rng,
            entropy_limits: LimiterConfig::default(),
            balloon: None,
            hotplug: self.hotplug.map(|hotplug| hotplug.config),
            cpu_template: None,
            threads_per_core: ThreadsPerCore::One,
            serial_limit: None,
            serial: self.serial,
            threads,
        })
    }
}

/// The disks, and first the one that holds the root file system: as a whole it is `/dev/vda`.
fn disks(given: Vec<DiskArg>) -> Vec<DiskConfig> {
    let mut disks: Vec<_> = given.into_iter().enumerate().map(|(index, disk)| disk.into_config(index)).collect();
    if let Some(root) = disks.iter().position(|disk| disk.root != RootDevice::No) {
        disks[..=root].rotate_right(1);
    }
    disks
}

fn parse_entropy(text: &str) -> Result<Entropy, &'static str> {
    match text {
        "on" => Ok(Entropy::On),
        "off" => Ok(Entropy::Off),
        "auto" => Ok(Entropy::IfRoom),
        _ => Err("use on, off or auto"),
    }
}

fn parse_acpi(text: &str) -> Result<HardwareTables, &'static str> {
    match text {
        "on" => Ok(HardwareTables::Acpi),
        "off" => Ok(HardwareTables::Mp),
        _ => Err("use on or off"),
    }
}

fn parse_core_scheduling(text: &str) -> Result<CoreScheduling, &'static str> {
    match text {
        "off" => Ok(CoreScheduling::Off),
        "vm" => Ok(CoreScheduling::Vm),
        "vcpu" => Ok(CoreScheduling::Vcpu),
        _ => Err("use off, vm or vcpu"),
    }
}

fn parse_serial(text: &str) -> Result<SerialTarget, &'static str> {
    match text {
        "stdio" => Ok(SerialTarget::Stdio),
        "pty" => Ok(SerialTarget::Pty),
        "null" => Ok(SerialTarget::Null),
        "" => Err("use stdio, pty, null or the path of a file"),
        path => Ok(SerialTarget::File(path.into())),
    }
}
