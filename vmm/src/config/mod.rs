//! What a VM is: the description a user gives, and [`validate`](VmConfig::validate), the only place where its limits
//! live. Nothing here opens, maps or creates anything but a look at the host's facts.

mod balloon;
mod cmdline;
mod disk;
pub mod extension;
pub mod firecracker;
mod host;
mod hotplug;
mod limits;
mod memory;
mod net;
mod numa;
mod report;
mod saved;
mod size;
mod threads;
mod tuning;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arch::VcpuCount;
use arch::layout::{self, CMDLINE_MAX, VIRTIO_MMIO_DEVICES_MAX, VirtioMmioWindow};
use arch::topology::VcpuCountError;
use devices::backend::net::InterfaceName;
use thiserror::Error;

use self::cmdline::{Additions, Root};
use crate::host::IdList;

pub use arch::ThreadsPerCore;
pub use arch::boot::BootEntry;
pub use arch::clock::ClockPolicy;
pub use arch::cpu_template::CpuTemplate;
pub use balloon::{BALLOON_ID, BalloonConfig};
pub use disk::{BlockSize, CacheMode, DiskEngine, DiskTuning, OnEnospc};
pub use host::HostFacts;
pub use hotplug::{BLOCK_BYTES_DEFAULT, HOTPLUG_ID, HotplugConfig, HotplugError, SLOT_BYTES_DEFAULT};
pub use limits::{BucketError, DeviceLimits};
pub use memory::{Honour, HostNodes, MemoryBacking, MemoryConfig, MemoryPart, MemoryPlacement, NodePolicy, Pages};
pub use net::{FILTER_ADDRESSES_MAX, MacAddress, MacAddressError, NetConfig, NetFilter, NetSource, NetTuning};
pub use numa::{GUEST_NODES_MAX, GuestNode, NumaError};
pub use report::ConfigReport;
pub use saved::{ConfigState, DiskBlocksState, HotplugState, NearnessState, SaveConfigError};
pub use size::{SizeError, parse_size};
pub use threads::{
    CoreScheduling, Cpus, Priority, PriorityError, Siblings, ThreadName, ThreadNameError, ThreadPlacement, ThreadTerms,
};
pub use tuning::{IoThreads, LimiterConfig, Limits, POLL_US_MAX, Rate, TuningError};

/// Bytes in one MiB.
pub const MIB: u64 = 1 << 20;

/// The kernel command line when the user gives none: console on the serial port, and a panic or a reboot ends the
/// machine through the keyboard controller.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1";

/// A whole VM. While it is described piece by piece, over the API, it is this as well.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Number of virtual CPUs.
    pub cpus: u64,
    /// How many of them share a core.
    pub threads_per_core: ThreadsPerCore,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// The guest's NUMA nodes; without any it has no say in where its memory is.
    pub numa: Vec<GuestNode>,
    /// What the machine starts with. Without it there is no machine.
    pub boot: Option<BootConfig>,
    /// The tables that tell the kernel what hardware there is.
    pub tables: HardwareTables,
    /// virtio-blk devices, in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// virtio-net devices, likewise.
    pub nets: Vec<NetConfig>,
    /// Whether the machine has a virtio-rng device.
    pub entropy: Entropy,
    /// What that device is held to.
    pub entropy_limits: LimiterConfig,
    /// The memory balloon, if it has one.
    pub balloon: Option<BalloonConfig>,
    /// The memory that can be plugged while it runs, if there is some.
    pub hotplug: Option<HotplugConfig>,
    /// What the user changes in CPUID and MSRs.
    pub cpu_template: Option<CpuTemplate>,
    /// What is at the other end of the serial port.
    pub serial: SerialTarget,
    /// What the serial port's output is held to, in bytes; what is beyond is dropped.
    pub serial_limit: Option<Rate>,
    /// Where husk's threads run on the host.
    pub threads: ThreadPlacement,
}

/// The tables that tell the kernel what hardware there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HardwareTables {
    /// ACPI alone: the DSDT names the devices.
    Acpi,
    /// An Intel MP table for the CPUs, and `virtio_mmio.device=` words for the devices.
    Mp,
    /// All of it, as Firecracker does; a kernel takes what it knows.
    AcpiAndMp,
}

/// What is at the other end of the serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialTarget {
    /// This process's standard output and input.
    Stdio,
    /// A file, which is made or appended to, or a named pipe; there is no input.
    File(PathBuf),
    /// A new pseudo-terminal, whose path is printed.
    Pty,
    /// Nothing.
    Null,
}

/// What the machine starts with.
#[derive(Debug, Clone)]
pub struct BootConfig {
    /// The kernel image.
    pub kernel: KernelSource,
    /// A file that is placed in memory for the kernel.
    pub initrd: Option<PathBuf>,
    /// The kernel command line, in place of [`DEFAULT_CMDLINE`].
    pub cmdline: Option<String>,
    /// How the kernel is entered.
    pub entry: BootEntry,
}

/// Where the kernel image comes from.
#[derive(Debug, Clone)]
pub enum KernelSource {
    /// A file.
    Path(PathBuf),
    /// An image that is part of the program.
    BuiltIn(&'static [u8]),
}

/// One virtio-blk device.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// The name in messages and thread names: letters, digits, `_` and `-`.
    pub id: String,
    /// What holds its bytes.
    pub source: DiskSource,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether the kernel finds its root file system here.
    pub root: RootDevice,
    /// How it is served.
    pub tuning: DiskTuning,
}

/// Whether a disk holds the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootDevice {
    /// It does not, or the user's command line says where it is.
    No,
    /// The disk is the file system. It must be the first disk.
    Whole,
    /// The partition with this unique id is.
    Partition(String),
}

/// What holds a disk's bytes.
#[derive(Debug, Clone)]
pub enum DiskSource {
    /// A file or block device.
    Path(PathBuf),
    /// An open file of which husk is the only user (the demo's scratch disk).
    Open(Arc<File>),
}

/// Whether the machine has a virtio-rng device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entropy {
    /// It has none.
    Off,
    /// It has one.
    On,
    /// It has one if the disks and networks leave a device slot.
    IfRoom,
}

/// A configuration that breaks a limit.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Nothing to boot.
    #[error("boot source: there is no kernel: name one (--kernel, PUT /boot-source)")]
    NoKernel,
    /// The number of vCPUs is out of range.
    #[error("cpus: {0}")]
    Cpus(VcpuCountError),
    /// A core would have one of its two threads.
    #[error("cpus: {0} vCPUs are no whole number of cores of two threads: use 1 or an even number, or leave out smt")]
    HalfCore(u64),
    /// Memory of no size.
    #[error("memory: 0 bytes: a machine needs at least 1M")]
    NoMemory,
    /// Memory that is not a whole number of MiB.
    #[error("memory: {bytes} bytes is not a whole number of MiB: use {}", memory::whole_near(*bytes, MIB))]
    MemoryNotWholeMib {
        /// What was asked.
        bytes: u64,
    },
    /// Memory that is not a whole number of the pages it shall be made of.
    #[error("memory: {} MiB is not a whole number of {pages} pages: use {}", bytes / MIB, memory::whole_near(*bytes, pages.pool_page_bytes().unwrap_or(MIB)))]
    MemoryNotWholePages {
        /// What was asked.
        bytes: u64,
        /// The pages.
        pages: Pages,
    },
    /// Memory that the host cannot merge.
    #[error("memory: merge: the host merges private 4 KiB pages only: leave out `merge`, or `shared` and `pages`")]
    MemoryCannotMerge,
    /// A list of nodes with none in it.
    #[error("memory: nodes: the list is empty: name a node, such as 0")]
    NoHostNodes,
    /// More than one node to prefer.
    #[error(
        "memory: nodes: {nodes} are more than the one that can be preferred: use one, or the policy bind or interleave"
    )]
    OnePreferredNode {
        /// What was asked.
        nodes: IdList,
    },
    /// NUMA nodes that do not fit together.
    #[error("numa: {0}")]
    Numa(NumaError),
    /// Memory that cannot be plugged so.
    #[error("hotplug: {0}")]
    Hotplug(HotplugError),
    /// A balloon that shall have more than there is.
    #[error("balloon: {target_mib} MiB are more than the guest's {memory_mib}: give it at most that")]
    BalloonTooLarge {
        /// What was asked.
        target_mib: u64,
        /// The guest's memory.
        memory_mib: u64,
    },
    /// More memory than the host has.
    #[error("memory: {0} MiB is more than this host's {1} MiB (MemTotal): use at most {1}M", asked / MIB, host / MIB)]
    MemoryBeyondHost {
        /// What was asked, in bytes.
        asked: u64,
        /// What the host has, in bytes.
        host: u64,
    },
    /// The command line does not fit into its place.
    #[error("cmdline: {length} bytes is longer than the {0} that a kernel takes: shorten it", CMDLINE_MAX - 1)]
    CmdlineTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The command line has a byte that ends it early.
    #[error("cmdline: has a NUL byte at offset {offset}: remove it")]
    CmdlineNul {
        /// Where.
        offset: usize,
    },
    /// A device id that cannot be one.
    #[error("device id `{id}`: use 1 to {ID_LENGTH_MAX} letters, digits, `_` or `-`")]
    BadId {
        /// The id.
        id: String,
    },
    /// Two devices share an id.
    #[error("device id `{id}` is used twice: give each its own with id=")]
    DoubleId {
        /// The id.
        id: String,
    },
    /// Two disks hold the root file system.
    #[error("disks `{first}` and `{second}` are both the root: leave `root` and partuuid= out of one")]
    TwoRoots {
        /// A disk.
        first: String,
        /// Another.
        second: String,
    },
    /// A thread is placed twice.
    #[error("thread `{0}` is given twice: say all of it in one")]
    ThreadTwice(ThreadName),
    /// A device cannot be served in this way.
    #[error("device `{id}`: {problem}")]
    Tuning {
        /// The device.
        id: String,
        /// What is wrong.
        problem: TuningError,
    },
    /// The devices of a group have different limits, or those of a thread poll differently.
    #[error(transparent)]
    Group(TuningError),
    /// A MAC address that cannot be one.
    #[error("network `{id}`: mac")]
    Mac {
        /// The device.
        id: String,
        /// Why.
        source: MacAddressError,
    },
    /// No interface can be called so.
    #[error("network `{id}`: `{name}` is no name of a tap: give 1 to 15 letters, digits, `_`, `-` or `.`")]
    TapName {
        /// The device.
        id: String,
        /// The name.
        name: String,
    },
    /// Two devices share a tap.
    #[error("networks `{first}` and `{second}` both use {source_name}: give each its own")]
    DoubleTap {
        /// A device.
        first: String,
        /// Another.
        second: String,
        /// What they share.
        source_name: String,
    },
    /// More devices than interrupts.
    #[error("device `{id}` is number {number}: a machine has {SLOTS} virtio-mmio slots (GSI 5 to 23): remove a device")]
    TooManyDevices {
        /// The first device that finds no slot.
        id: String,
        /// Its number, counted from 1.
        number: usize,
    },
}

const SLOTS: usize = VIRTIO_MMIO_DEVICES_MAX as usize;

/// The length of a device id is bounded by what fits into messages and metric labels.
pub const ID_LENGTH_MAX: usize = 64;

/// The bytes of a device id, as a regular expression.
pub const ID_PATTERN: &str = "^[A-Za-z0-9_-]+$";

/// The id of the entropy device.
pub const ENTROPY_ID: &str = "rng";

impl VmConfig {
    /// Holds the description against every limit, before anything is created.
    ///
    /// # Errors
    /// The first limit that is broken, with the value and what would do.
    pub fn validate(&self, host: HostFacts) -> Result<(), ConfigError> {
        self.validate_parts(host)?;
        self.boot.as_ref().map(|_| ()).ok_or(ConfigError::NoKernel)
    }

    /// Holds what is described so far against every limit; there may be no kernel yet.
    ///
    /// # Errors
    /// As for [`Self::validate`].
    pub fn validate_parts(&self, host: HostFacts) -> Result<(), ConfigError> {
        self.validate_restored(host)?;
        let mut roots = self.disks.iter().filter(|disk| disk.root != RootDevice::No);
        if let (Some(first), Some(second)) = (roots.next(), roots.next()) {
            return Err(ConfigError::TwoRoots { first: first.id.clone(), second: second.id.clone() });
        }
        numa::validate_shape(&self.numa, self.cpus, self.threads_per_core, self.memory.placement.pages)
            .map_err(ConfigError::Numa)?;
        let disks = self.disks.iter().map(|disk| (disk.tuning.poll_us, &disk.tuning.threads));
        let nets = self.nets.iter().map(|net| (net.tuning.poll_us, &net.tuning.threads));
        tuning::validate_shared_threads(disks.chain(nets)).map_err(ConfigError::Group)
    }

    /// Holds what a snapshot keeps against the limits without which it could not run. What the machine started with may be
    /// gone by now, and what it is no longer wise to ask for it may have: it ran so.
    ///
    /// # Errors
    /// As for [`Self::validate`].
    pub fn validate_restored(&self, host: HostFacts) -> Result<(), ConfigError> {
        let cpus = VcpuCount::new(self.cpus).map_err(ConfigError::Cpus)?;
        if !self.threads_per_core.fits(cpus) {
            return Err(ConfigError::HalfCore(self.cpus));
        }
        self.memory.validate(host)?;
        self.numa.iter().filter_map(|node| node.host.as_ref()).try_for_each(HostNodes::validate)?;
        numa::validate(&self.numa, self.cpus, &self.memory).map_err(ConfigError::Numa)?;
        if !self.numa.is_empty() && self.tables == HardwareTables::Mp {
            return Err(ConfigError::Numa(NumaError::NoAcpi));
        }
        self.balloon.as_ref().map_or(Ok(()), |balloon| balloon.validate(&self.memory))?;
        let hotplug = self.hotplug.as_ref().map(|hotplug| hotplug.validate(&self.memory, self.numa.len()));
        hotplug.unwrap_or(Ok(())).map_err(ConfigError::Hotplug)?;
        self.validate_devices()?;
        self.validate_nets()?;
        validate_cmdline(&self.cmdline())
    }

    /// The parts of guest memory with the host's nodes of each: one for each guest node, or one.
    #[must_use]
    pub fn memory_parts(&self) -> Vec<MemoryPart> {
        let whole = &self.memory.placement.nodes;
        match self.numa.as_slice() {
            [] => vec![MemoryPart { bytes: self.memory.size_bytes, nodes: whole.clone() }],
            nodes => nodes
                .iter()
                .map(|node| MemoryPart { bytes: node.bytes, nodes: node.host.clone().or_else(|| whole.clone()) })
                .collect(),
        }
    }

    /// Whether the machine gets an entropy device, [`Entropy::IfRoom`] decided.
    #[must_use]
    pub fn has_entropy(&self) -> bool {
        match self.entropy {
            Entropy::Off => false,
            Entropy::On => true,
            Entropy::IfRoom => self.disks.len() + self.nets.len() + self.memory_devices() < SLOTS,
        }
    }

    /// The guest's node that memory belongs to which can be plugged; none without nodes or without such memory.
    #[must_use]
    pub fn hotplug_node(&self) -> Option<u16> {
        let node = self.memory.placement.hotplug_node.unwrap_or(0);
        self.hotplug.filter(|_| !self.numa.is_empty()).map(|_| node)
    }

    /// How many devices it has that give and take memory.
    fn memory_devices(&self) -> usize {
        usize::from(self.balloon.is_some()) + usize::from(self.hotplug.is_some())
    }

    /// The registers and interrupts of the machine's devices, in order: the disks, the networks, the entropy device, the
    /// balloon, then the device that plugs memory.
    #[must_use]
    pub fn windows(&self) -> Vec<VirtioMmioWindow> {
        let others = usize::from(self.has_entropy()) + self.memory_devices();
        let count = self.disks.len() + self.nets.len() + others;
        (0..=u8::MAX).map_while(layout::virtio_mmio_window).take(count).collect()
    }

    /// The command line that the kernel gets.
    #[must_use]
    pub fn cmdline(&self) -> String {
        let boot = self.boot.as_ref();
        let words = boot.and_then(|boot| boot.cmdline.as_deref()).unwrap_or(DEFAULT_CMDLINE);
        let root = self.disks.iter().find_map(|disk| match &disk.root {
            RootDevice::No => None,
            RootDevice::Whole => Some(Root { partuuid: None, read_only: disk.read_only }),
            RootDevice::Partition(id) => Some(Root { partuuid: Some(id), read_only: disk.read_only }),
        });
        let windows = self.windows();
        let devices: &[_] = if self.tables == HardwareTables::Acpi { &[] } else { &windows };
        cmdline::compose(
            words,
            &Additions { root: root.filter(|_| boot.is_none_or(|boot| boot.initrd.is_none())), devices },
        )
    }

    /// The ids of the machine's virtio devices, in the order of their windows.
    pub(crate) fn device_ids(&self) -> Vec<&str> {
        let entropy = self.has_entropy().then_some(ENTROPY_ID);
        let memory = [self.balloon.as_ref().map(|_| BALLOON_ID), self.hotplug.as_ref().map(|_| HOTPLUG_ID)];
        let others = entropy.into_iter().chain(memory.into_iter().flatten());
        let disks = self.disks.iter().map(|disk| disk.id.as_str());
        disks.chain(self.nets.iter().map(|net| net.id.as_str())).chain(others).collect()
    }

    fn validate_devices(&self) -> Result<(), ConfigError> {
        let ids = self.device_ids();
        numa::validate_devices(&self.numa, &ids).map_err(ConfigError::Numa)?;
        for (index, id) in ids.iter().enumerate() {
            if !is_plain_name(id) {
                return Err(ConfigError::BadId { id: (*id).to_owned() });
            }
            if ids[..index].contains(id) {
                return Err(ConfigError::DoubleId { id: (*id).to_owned() });
            }
        }
        let tuning = |id: &str| {
            let id = id.to_owned();
            move |problem| ConfigError::Tuning { id, problem }
        };
        for disk in &self.disks {
            disk.tuning.validate().map_err(tuning(&disk.id))?;
        }
        for net in &self.nets {
            net.validate_tuning().map_err(tuning(&net.id))?;
        }
        let disks = self.disks.iter().map(|disk| (disk.tuning.limits, disk.tuning.limit_group.as_deref()));
        let nets = self.nets.iter().map(|net| (net.tuning.limits, net.tuning.limit_group.as_deref()));
        tuning::validate_groups(disks.chain(nets)).map_err(ConfigError::Group)?;
        match ids.get(SLOTS) {
            Some(id) => Err(ConfigError::TooManyDevices { id: (*id).to_owned(), number: SLOTS + 1 }),
            None => Ok(()),
        }
    }

    /// Gives all devices of a group these limits, which are the group's own buckets.
    pub(crate) fn share_limits(&mut self, group: &str, limits: LimiterConfig) {
        let disks = self.disks.iter_mut().map(|disk| (&disk.tuning.limit_group, &mut disk.tuning.limits));
        let nets = self.nets.iter_mut().map(|net| (&net.tuning.limit_group, &mut net.tuning.limits));
        for (_, own) in disks.chain(nets).filter(|(its, _)| its.as_deref() == Some(group)) {
            *own = limits;
        }
    }

    fn validate_nets(&self) -> Result<(), ConfigError> {
        for (index, NetConfig { id, source, .. }) in self.nets.iter().enumerate() {
            if let NetSource::Tap(name) = source
                && InterfaceName::new(name).is_none()
            {
                return Err(ConfigError::TapName { id: id.clone(), name: name.clone() });
            }
            if source.repeats() {
                let (first, second) = (id.clone(), id.clone());
                return Err(ConfigError::DoubleTap { first, second, source_name: source.to_string() });
            }
            if let Some(other) = self.nets[..index].iter().find(|other| other.source.meets(source)) {
                let (first, second) = (other.id.clone(), id.clone());
                return Err(ConfigError::DoubleTap { first, second, source_name: source.to_string() });
            }
        }
        Ok(())
    }
}

/// A name of a device, a thread or a group is plain: it stands in messages, thread names and metric labels.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !name.is_empty() && name.len() <= ID_LENGTH_MAX && name.bytes().all(plain)
}

fn validate_cmdline(cmdline: &str) -> Result<(), ConfigError> {
    if cmdline.len() >= CMDLINE_MAX {
        return Err(ConfigError::CmdlineTooLong { length: cmdline.len() });
    }
    match cmdline.bytes().position(|byte| byte == 0) {
        Some(offset) => Err(ConfigError::CmdlineNul { offset }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
