//! A [`VmConfig`] in husk's own terms, for who reads it over the control socket.

use std::net::IpAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use super::limits::BucketLimits;
use super::{
    BootEntry, CacheMode, DeviceLimits, DiskConfig, DiskEngine, DiskSource, HardwareTables, IoThreads, KernelSource,
    MemoryBacking, NetConfig, NetTuning, SerialTarget, ThreadsPerCore, VmConfig,
};

/// The whole VM, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ConfigReport {
    cpus: u64,
    /// 1, or 2: neighbours share a core.
    threads_per_core: u8,
    memory_bytes: u64,
    /// `anonymous` or `memfd`.
    memory_backing: &'static str,
    /// Null before there is one.
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    /// What the kernel gets, husk's own words included.
    cmdline: String,
    /// `auto`, `pvh`, `linux64` or `image`.
    boot_entry: &'static str,
    /// `acpi`, `mp` or `acpi+mp`.
    tables: &'static str,
    disks: Vec<DiskReport>,
    nets: Vec<NetReport>,
    entropy: bool,
    /// `stdio`, `pty`, `null` or the path of a file.
    serial: String,
    /// What its output is held to, in bytes.
    serial_limit: Option<BucketLimits>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
struct DiskReport {
    id: String,
    /// Null for a disk without a name in the file system.
    path: Option<PathBuf>,
    read_only: bool,
    /// `auto`, `io_uring` or `sync`.
    engine: &'static str,
    /// `writeback`, `writethrough`, `direct` or `unsafe`.
    cache: &'static str,
    queues: usize,
    queue_size: u16,
    /// The thread that it shares with others.
    iothread: Option<String>,
    /// Threads of its own.
    iothreads: Option<usize>,
    poll_us: u32,
    limits: DeviceLimits,
    limit_group: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
struct NetReport {
    id: String,
    source: String,
    mac: Option<String>,
    /// Pairs of queues.
    queues: usize,
    /// The thread that it shares with others.
    iothread: Option<String>,
    /// Threads of its own.
    iothreads: Option<usize>,
    poll_us: u32,
    /// What the guest is told, in bytes.
    mtu: Option<u16>,
    limits: DeviceLimits,
    limit_group: Option<String>,
    /// `off`, `mac` or `mac+ip`.
    filter: &'static str,
    /// The addresses from which `mac+ip` lets packets go.
    ip: Vec<IpAddr>,
}

impl From<&VmConfig> for ConfigReport {
    fn from(config: &VmConfig) -> Self {
        let boot = config.boot.as_ref();
        Self {
            cpus: config.cpus,
            threads_per_core: match config.threads_per_core {
                ThreadsPerCore::One => 1,
                ThreadsPerCore::Two => 2,
            },
            memory_bytes: config.memory.size_bytes,
            memory_backing: match config.memory.backing {
                MemoryBacking::Anonymous => "anonymous",
                MemoryBacking::Memfd => "memfd",
            },
            kernel: boot.map(|boot| match &boot.kernel {
                KernelSource::Path(path) => path.clone(),
                KernelSource::BuiltIn(_) => "(built in)".into(),
            }),
            initrd: boot.and_then(|boot| boot.initrd.clone()),
            cmdline: config.cmdline(),
            boot_entry: boot.map_or("auto", |boot| match boot.entry {
                BootEntry::Auto => "auto",
                BootEntry::Pvh => "pvh",
                BootEntry::Linux64 => "linux64",
                BootEntry::Image => "image",
            }),
            tables: match config.tables {
                HardwareTables::Acpi => "acpi",
                HardwareTables::Mp => "mp",
                HardwareTables::AcpiAndMp => "acpi+mp",
            },
            disks: config.disks.iter().map(DiskReport::from).collect(),
            nets: config.nets.iter().map(NetReport::from).collect(),
            entropy: config.has_entropy(),
            serial: match &config.serial {
                SerialTarget::Stdio => "stdio".to_owned(),
                SerialTarget::Pty => "pty".to_owned(),
                SerialTarget::Null => "null".to_owned(),
                SerialTarget::File(path) => path.display().to_string(),
            },
            serial_limit: config.serial_limit.map(BucketLimits::from),
        }
    }
}

impl From<&DiskConfig> for DiskReport {
    fn from(disk: &DiskConfig) -> Self {
        let tuning = &disk.tuning;
        let (iothread, iothreads) = threads(&tuning.threads);
        Self {
            id: disk.id.clone(),
            path: match &disk.source {
                DiskSource::Path(path) => Some(path.clone()),
                DiskSource::Open(_) => None,
            },
            read_only: disk.read_only,
            engine: match tuning.engine {
                DiskEngine::Auto => "auto",
                DiskEngine::IoUring => "io_uring",
                DiskEngine::Sync => "sync",
            },
            cache: match tuning.cache.unwrap_or_default() {
                CacheMode::Writeback => "writeback",
                CacheMode::Writethrough => "writethrough",
                CacheMode::Direct => "direct",
                CacheMode::Unsafe => "unsafe",
            },
            queues: tuning.queues,
            queue_size: tuning.queue_size,
            iothread,
            iothreads,
            poll_us: tuning.poll_us,
            limits: tuning.limits.into(),
            limit_group: tuning.limit_group.clone(),
        }
    }
}

impl From<&NetConfig> for NetReport {
    fn from(net: &NetConfig) -> Self {
        let NetTuning { queues, threads: on, poll_us, mtu, limit_group, filter, limits } = &net.tuning;
        let (iothread, iothreads) = threads(on);
        Self {
            id: net.id.clone(),
            source: net.source.to_string(),
            mac: net.mac.map(|mac| mac.to_string()),
            queues: *queues,
            iothread,
            iothreads,
            poll_us: *poll_us,
            mtu: *mtu,
            limits: (*limits).into(),
            limit_group: limit_group.clone(),
            filter: filter.name(),
            ip: filter.addresses().to_vec(),
        }
    }
}

/// The thread that a device shares, or how many it has of its own.
fn threads(threads: &IoThreads) -> (Option<String>, Option<usize>) {
    match threads {
        IoThreads::Own(count) => (None, Some(*count)),
        IoThreads::Shared(name) => (Some(name.clone()), None),
    }
}
