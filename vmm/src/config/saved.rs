//! A [`VmConfig`] as a snapshot keeps it: types of its own, so that a change of the configuration's types never changes
//! what lies in files. What comes back is only read; [`VmConfig::validate_restored`] holds it against every limit.

mod disk_blocks;
mod hotplug;
mod nearness;
mod placement;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use arch::ThreadsPerCore;
use arch::boot::BootEntry;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::disk_blocks::DiskBlocksState;
pub use self::hotplug::HotplugState;
pub use self::nearness::NearnessState;
use self::placement::PlacementState;
use super::extension::Placement;
use super::{
    BalloonConfig, BlockSize, BootConfig, CacheMode, DiskConfig, DiskEngine, DiskSource, DiskTuning, Entropy,
    HardwareTables, IoThreads, KernelSource, LimiterConfig, Limits, MacAddress, MacAddressError, MemoryBacking,
    MemoryConfig, NetConfig, NetFilter, NetSource, NetTuning, OnEnospc, Rate, RootDevice, SerialTarget, VmConfig,
};

/// A machine's configuration that no other process could read again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SaveConfigError {
    /// A disk that is no path.
    #[error("disk `{0}` is a descriptor of this process: only disks with a path can be in a snapshot")]
    OpenDisk(String),
    /// A kernel that is no path.
    #[error("the kernel is built into this program: only a kernel with a path can be in a snapshot")]
    BuiltInKernel,
}

/// A whole VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    cpus: u64,
    two_threads_per_core: bool,
    memory_bytes: u64,
    memory_is_shared: bool,
    track_dirty_pages: bool,
    placement: PlacementState,
    boot: Option<BootState>,
    tables: SavedTables,
    disks: Vec<DiskState>,
    nets: Vec<NetState>,
    has_entropy: bool,
    entropy_limits: LimiterState,
    balloon: Option<BalloonState>,
    serial: SerialState,
    serial_limit: Option<RateState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BootState {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
    entry: SavedEntry,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct DiskState {
    id: String,
    path: PathBuf,
    read_only: bool,
    root: RootState,
    engine: SavedEngine,
    cache: Option<SavedCache>,
    block: Option<SavedBlock>,
    serial: Option<String>,
    queues: usize,
    queue_size: u16,
    threads: ThreadsState,
    poll_us: u32,
    limits: LimiterState,
    limit_group: Option<String>,
    waits_for_space: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum RootState {
    No,
    Whole,
    Partition(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum ThreadsState {
    Own(usize),
    Shared(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NetState {
    id: String,
    source: SourceState,
    mac: Option<[u8; 6]>,
    queues: usize,
    threads: ThreadsState,
    poll_us: u32,
    mtu: Option<u16>,
    limits: LimiterState,
    limit_group: Option<String>,
    filter: FilterState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum SourceState {
    Tap(String),
    Fds(Vec<i32>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum FilterState {
    Off,
    Mac,
    MacAndIp(Vec<IpAddr>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum SerialState {
    Stdio,
    File(PathBuf),
    Pty,
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LimiterState {
    total: LimitsState,
    inward: LimitsState,
    outward: LimitsState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LimitsState {
    bytes: Option<RateState>,
    operations: Option<RateState>,
}

/// Size, burst and milliseconds of a rate that is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(u64, u64, u64)", try_from = "(u64, u64, u64)")]
struct RateState(Rate);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BalloonState {
    target_bytes: u64,
    deflate_on_oom: bool,
    statistics: Option<Duration>,
    hinting: bool,
    reporting: bool,
}

/// A choice without values, under the names that files keep.
macro_rules! saved_choice {
    ($saved:ident, $config:ident, $($variant:ident),+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        enum $saved {
            $($variant),+
        }

        impl From<$config> for $saved {
            fn from(config: $config) -> Self {
                match config {
                    $($config::$variant => Self::$variant),+
                }
            }
        }

        impl From<$saved> for $config {
            fn from(saved: $saved) -> Self {
                match saved {
                    $($saved::$variant => Self::$variant),+
                }
            }
        }
    };
}

saved_choice!(SavedTables, HardwareTables, Acpi, Mp, AcpiAndMp);
saved_choice!(SavedEntry, BootEntry, Auto, Pvh, Linux64, Image);
saved_choice!(SavedEngine, DiskEngine, Auto, IoUring, Sync);
saved_choice!(SavedCache, CacheMode, Writeback, Writethrough, Direct, Unsafe);
saved_choice!(SavedBlock, BlockSize, B512, B4096);

impl ConfigState {
    /// What a snapshot keeps of `config`.
    ///
    /// # Errors
    /// What another process could not open.
    pub fn save(config: &VmConfig) -> Result<Self, SaveConfigError> {
        let VmConfig {
            cpus,
            threads_per_core,
            memory: MemoryConfig { size_bytes, backing, placement: _, track_dirty_pages },
            // These three are the placement's.
            numa: _,
            threads: _,
            boot,
            tables,
            disks,
            nets,
            entropy: _,
            entropy_limits,
            balloon,
            // A state of its own, which version 1 of this one has not.
            hotplug: _,
            // It has become the vCPUs' CPUID and MSRs.
            cpu_template: _,
            serial,
            serial_limit,
        } = config;
        Ok(Self {
            cpus: *cpus,
            two_threads_per_core: *threads_per_core == ThreadsPerCore::Two,
            memory_bytes: *size_bytes,
            memory_is_shared: *backing == MemoryBacking::Memfd,
            track_dirty_pages: *track_dirty_pages,
            placement: PlacementState::save(Placement::of(config)),
            boot: boot.as_ref().map(BootState::save).transpose()?,
            tables: (*tables).into(),
            disks: disks.iter().map(DiskState::save).collect::<Result<_, _>>()?,
            nets: nets.iter().map(NetState::save).collect(),
            has_entropy: config.has_entropy(),
            entropy_limits: (*entropy_limits).into(),
            balloon: balloon.as_ref().map(BalloonState::save),
            serial: SerialState::save(serial),
            serial_limit: serial_limit.map(Into::into),
        })
    }

    /// The configuration, unchecked but for its types.
    ///
    /// # Errors
    /// A MAC address that is none.
    pub fn restore(self) -> Result<VmConfig, MacAddressError> {
        let Self {
            cpus,
            two_threads_per_core,
            memory_bytes,
            memory_is_shared,
            track_dirty_pages,
            placement,
            boot,
            tables,
            disks,
            nets,
            has_entropy,
            entropy_limits,
            balloon,
            serial,
            serial_limit,
        } = self;
        let mut config = VmConfig {
            cpus,
            threads_per_core: if two_threads_per_core { ThreadsPerCore::Two } else { ThreadsPerCore::One },
            memory: MemoryConfig {
                backing: if memory_is_shared { MemoryBacking::Memfd } else { MemoryBacking::Anonymous },
                track_dirty_pages,
                ..MemoryConfig::new(memory_bytes)
            },
            numa: Vec::new(),
            threads: super::ThreadPlacement::default(),
            boot: boot.map(BootState::restore),
            tables: tables.into(),
            disks: disks.into_iter().map(DiskState::restore).collect(),
            nets: nets.into_iter().map(NetState::restore).collect::<Result<_, _>>()?,
            entropy: if has_entropy { Entropy::On } else { Entropy::Off },
            entropy_limits: entropy_limits.into(),
            balloon: balloon.map(BalloonState::restore),
            hotplug: None,
            cpu_template: None,
            serial: serial.restore(),
            serial_limit: serial_limit.map(Into::into),
        };
        placement.restore().apply(&mut config);
        Ok(config)
    }
}

impl BootState {
    fn save(boot: &BootConfig) -> Result<Self, SaveConfigError> {
        let BootConfig { kernel, initrd, cmdline, entry } = boot;
        let KernelSource::Path(kernel) = kernel else { return Err(SaveConfigError::BuiltInKernel) };
        Ok(Self { kernel: kernel.clone(), initrd: initrd.clone(), cmdline: cmdline.clone(), entry: (*entry).into() })
    }

    fn restore(self) -> BootConfig {
        let Self { kernel, initrd, cmdline, entry } = self;
        BootConfig { kernel: KernelSource::Path(kernel), initrd, cmdline, entry: entry.into() }
    }
}

impl DiskState {
    fn save(disk: &DiskConfig) -> Result<Self, SaveConfigError> {
        let DiskConfig { id, source, read_only, root, tuning } = disk;
        let DiskTuning {
            engine,
            cache,
            block,
            // A state of its own, as with memory that can be plugged.
            physical_block: _,
            serial,
            queues,
            queue_size,
            threads,
            poll_us,
            limits,
            limit_group,
            on_enospc,
        } = tuning;
        let DiskSource::Path(path) = source else { return Err(SaveConfigError::OpenDisk(id.clone())) };
        Ok(Self {
            id: id.clone(),
            path: path.clone(),
            read_only: *read_only,
            root: match root {
                RootDevice::No => RootState::No,
                RootDevice::Whole => RootState::Whole,
                RootDevice::Partition(partuuid) => RootState::Partition(partuuid.clone()),
            },
            engine: (*engine).into(),
            cache: cache.map(Into::into),
            block: block.map(Into::into),
            serial: serial.clone(),
            queues: *queues,
            queue_size: *queue_size,
            threads: ThreadsState::save(threads),
            poll_us: *poll_us,
            limits: (*limits).into(),
            limit_group: limit_group.clone(),
            waits_for_space: *on_enospc == OnEnospc::Stop,
        })
    }

    fn restore(self) -> DiskConfig {
        let Self {
            id,
            path,
            read_only,
            root,
            engine,
            cache,
            block,
            serial,
            queues,
            queue_size,
            threads,
            poll_us,
            limits,
            limit_group,
            waits_for_space,
        } = self;
        let tuning = DiskTuning {
            engine: engine.into(),
            cache: cache.map(Into::into),
            block: block.map(Into::into),
            physical_block: None,
            serial,
            queues,
            queue_size,
            threads: threads.restore(),
            poll_us,
            limits: limits.into(),
            limit_group,
            on_enospc: if waits_for_space { OnEnospc::Stop } else { OnEnospc::Report },
        };
        let root = match root {
            RootState::No => RootDevice::No,
            RootState::Whole => RootDevice::Whole,
            RootState::Partition(partuuid) => RootDevice::Partition(partuuid),
        };
        DiskConfig { id, source: DiskSource::Path(path), read_only, root, tuning }
    }
}

impl ThreadsState {
    fn save(threads: &IoThreads) -> Self {
        match threads {
            IoThreads::Own(count) => Self::Own(*count),
            IoThreads::Shared(name) => Self::Shared(name.clone()),
        }
    }

    fn restore(self) -> IoThreads {
        match self {
            Self::Own(count) => IoThreads::Own(count),
            Self::Shared(name) => IoThreads::Shared(name),
        }
    }
}

impl NetState {
    fn save(net: &NetConfig) -> Self {
        let NetConfig { id, source, mac, tuning } = net;
        let NetTuning { queues, threads, poll_us, mtu, limits, limit_group, filter } = tuning;
        Self {
            id: id.clone(),
            source: match source {
                NetSource::Tap(name) => SourceState::Tap(name.clone()),
                NetSource::Fds(numbers) => SourceState::Fds(numbers.clone()),
            },
            mac: mac.map(MacAddress::bytes),
            queues: *queues,
            threads: ThreadsState::save(threads),
            poll_us: *poll_us,
            mtu: *mtu,
            limits: (*limits).into(),
            limit_group: limit_group.clone(),
            filter: match filter {
                NetFilter::Off => FilterState::Off,
                NetFilter::Mac => FilterState::Mac,
                NetFilter::MacAndIp(addresses) => FilterState::MacAndIp(addresses.clone()),
            },
        }
    }

    fn restore(self) -> Result<NetConfig, MacAddressError> {
        let Self { id, source, mac, queues, threads, poll_us, mtu, limits, limit_group, filter } = self;
        let filter = match filter {
            FilterState::Off => NetFilter::Off,
            FilterState::Mac => NetFilter::Mac,
            FilterState::MacAndIp(addresses) => NetFilter::MacAndIp(addresses),
        };
        let limits = limits.into();
        let tuning = NetTuning { queues, threads: threads.restore(), poll_us, mtu, limits, limit_group, filter };
        let source = match source {
            SourceState::Tap(name) => NetSource::Tap(name),
            SourceState::Fds(numbers) => NetSource::Fds(numbers),
        };
        Ok(NetConfig { id, source, mac: mac.map(MacAddress::try_from).transpose()?, tuning })
    }
}

impl SerialState {
    fn save(serial: &SerialTarget) -> Self {
        match serial {
            SerialTarget::Stdio => Self::Stdio,
            SerialTarget::File(path) => Self::File(path.clone()),
            SerialTarget::Pty => Self::Pty,
            SerialTarget::Null => Self::Null,
        }
    }

    fn restore(self) -> SerialTarget {
        match self {
            Self::Stdio => SerialTarget::Stdio,
            Self::File(path) => SerialTarget::File(path),
            Self::Pty => SerialTarget::Pty,
            Self::Null => SerialTarget::Null,
        }
    }
}

impl BalloonState {
    fn save(balloon: &BalloonConfig) -> Self {
        let BalloonConfig { target_bytes, deflate_on_oom, statistics, hinting, reporting } = balloon;
        Self {
            target_bytes: *target_bytes,
            deflate_on_oom: *deflate_on_oom,
            statistics: *statistics,
            hinting: *hinting,
            reporting: *reporting,
        }
    }

    fn restore(self) -> BalloonConfig {
        let Self { target_bytes, deflate_on_oom, statistics, hinting, reporting } = self;
        BalloonConfig { target_bytes, deflate_on_oom, statistics, hinting, reporting }
    }
}

impl From<LimiterConfig> for LimiterState {
    fn from(config: LimiterConfig) -> Self {
        let LimiterConfig { total, inward, outward } = config;
        Self { total: total.into(), inward: inward.into(), outward: outward.into() }
    }
}

impl From<LimiterState> for LimiterConfig {
    fn from(state: LimiterState) -> Self {
        let LimiterState { total, inward, outward } = state;
        Self { total: total.into(), inward: inward.into(), outward: outward.into() }
    }
}

impl From<Limits> for LimitsState {
    fn from(limits: Limits) -> Self {
        let Limits { bytes, operations } = limits;
        Self { bytes: bytes.map(Into::into), operations: operations.map(Into::into) }
    }
}

impl From<LimitsState> for Limits {
    fn from(state: LimitsState) -> Self {
        let LimitsState { bytes, operations } = state;
        Self { bytes: bytes.map(Into::into), operations: operations.map(Into::into) }
    }
}

impl From<Rate> for RateState {
    fn from(rate: Rate) -> Self {
        Self(rate)
    }
}

impl From<RateState> for Rate {
    fn from(RateState(rate): RateState) -> Self {
        rate
    }
}

impl From<RateState> for (u64, u64, u64) {
    fn from(RateState(rate): RateState) -> Self {
        (rate.size(), rate.burst(), rate.refill_ms())
    }
}

impl TryFrom<(u64, u64, u64)> for RateState {
    type Error = &'static str;

    fn try_from((size, burst, refill_ms): (u64, u64, u64)) -> Result<Self, Self::Error> {
        Rate::new(size, burst, refill_ms).map(Self).ok_or("a rate of nothing limits nothing")
    }
}

#[cfg(test)]
mod tests;
