//! One change to the description of a machine that is not assembled yet: a body applied to a [`VmConfig`].

use std::path::Path;

use serde_json::Value;

use super::balloon::Balloon;
use super::bodies::{
    BootSource, CacheType, Drive, EntropyDevice, HugePages, IoEngine, MachineConfiguration, MachineConfigurationPart,
    NetworkInterface, RateLimiter, SerialDevice, StaticCpuTemplate, TokenBucket,
};
use super::hotplug::MemoryHotplugConfig;
use super::{BodyError, DEFAULT_BOOT_ARGS, describe};
use crate::config::extension::Placement;
use crate::config::{
    BootConfig, BootEntry, CacheMode, ConfigError, CpuTemplate, DiskConfig, DiskEngine, DiskSource, DiskTuning,
    Entropy, HostFacts, KernelSource, LimiterConfig, Limits, MIB, NetConfig, NetSource, NetTuning, Pages, Rate,
    RootDevice, SerialTarget, ThreadsPerCore, TuningError, VmConfig,
};

/// A body that describes a part of a machine.
#[derive(Debug, Clone)]
pub enum Change {
    /// `PUT /boot-source`.
    BootSource(BootSource),
    /// `PUT /machine-config`.
    Machine(MachineConfiguration),
    /// `PATCH /machine-config`.
    MachinePart(MachineConfigurationPart),
    /// `PUT /cpu-config`.
    CpuConfig(Box<CpuTemplate>),
    /// `PUT /drives/{drive_id}`: a new one, or another in the place of the one with its id.
    Drive(Box<Drive>),
    /// `PUT /network-interfaces/{iface_id}`, likewise.
    NetworkInterface(Box<NetworkInterface>),
    /// `PUT /entropy`.
    Entropy(EntropyDevice),
    /// `PUT /serial`.
    Serial(SerialDevice),
    /// `PUT /balloon`.
    Balloon(Balloon),
    /// `PUT /hotplug/memory`.
    Hotplug(MemoryHotplugConfig),
    /// `PUT /husk/v1/placement`.
    Placement(Placement),
}

/// A thing of the host that a change names.
#[derive(Debug)]
pub(crate) enum OfHost<'a> {
    /// A file or device.
    File {
        /// The field that names it.
        field: &'static str,
        /// Its path.
        path: &'a Path,
        /// What the machine does with it.
        access: Access,
    },
    /// A tap.
    Tap(&'a str),
}

/// What a machine does with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is read.
    Read,
    /// It is written as well.
    ReadWrite,
}

impl Change {
    /// Applies the change to `config` and holds the result against every limit; on an error `config` is as it was.
    ///
    /// # Errors
    /// The field that is wrong, and what is wrong with it.
    pub fn apply(self, config: &mut VmConfig, host: HostFacts) -> Result<(), BodyError> {
        let mut changed = config.clone();
        self.apply_at("", &mut changed)?;
        changed.validate_parts(host).map_err(BodyError::limit)?;
        *config = changed;
        Ok(())
    }

    /// What the change names of the host. As Firecracker does, husk refuses what cannot be opened when it is named, and not
    /// first at the start.
    pub(crate) fn of_host(&self) -> Vec<OfHost<'_>> {
        let file = |field, path| OfHost::File { field, path, access: Access::Read };
        match self {
            Self::BootSource(boot) => {
                let kernel = file("kernel_image_path", &boot.kernel_image_path);
                [Some(kernel), boot.initrd_path.as_deref().map(|path| file("initrd_path", path))]
                    .into_iter()
                    .flatten()
                    .collect()
            }
            Self::Drive(drive) => {
                let access = if drive.is_read_only == Some(true) { Access::Read } else { Access::ReadWrite };
                let file = |path| OfHost::File { field: "path_on_host", path, access };
                drive.path_on_host.as_deref().map(file).into_iter().collect()
            }
            Self::NetworkInterface(interface) => vec![OfHost::Tap(&interface.host_dev_name)],
            _ => Vec::new(),
        }
    }

    /// Applies the change, unchecked. `place` stands before the names of its fields in messages.
    pub(super) fn apply_at(self, place: &str, config: &mut VmConfig) -> Result<(), BodyError> {
        let field = |name: &str| format!("{place}{name}");
        match self {
            Self::BootSource(boot) => config.boot = Some(boot.into_config()),
            Self::Machine(machine) => machine.apply_at(place, config)?,
            Self::MachinePart(part) => part.onto(describe::machine(config)).apply_at(place, config)?,
            Self::CpuConfig(template) => config.cpu_template = Some(*template),
            Self::Drive(drive) => put_disk(&mut config.disks, drive.into_config(field)?, &field)?,
            Self::NetworkInterface(interface) => put_net(&mut config.nets, interface.into_config(&field)?, &field)?,
            Self::Entropy(entropy) => {
                config.entropy = Entropy::On;
                config.entropy_limits = entropy.rate_limiter.map(RateLimiter::into_config).unwrap_or_default();
            }
            Self::Serial(SerialDevice { serial_out_path, rate_limiter }) => {
                config.serial = serial_out_path.map_or(SerialTarget::Stdio, SerialTarget::File);
                config.serial_limit = rate_limiter.and_then(TokenBucket::rate);
            }
            Self::Balloon(balloon) => config.balloon = Some(balloon.into_config()),
            Self::Hotplug(hotplug) => config.hotplug = Some(hotplug.into_config()),
            Self::Placement(placement) => placement.apply(config),
        }
        Ok(())
    }
}

impl BootSource {
    fn into_config(self) -> BootConfig {
        BootConfig {
            kernel: KernelSource::Path(self.kernel_image_path),
            initrd: self.initrd_path,
            cmdline: Some(self.boot_args.unwrap_or_else(|| DEFAULT_BOOT_ARGS.to_owned())),
            entry: BootEntry::Auto,
        }
    }
}

impl MachineConfiguration {
    fn apply_at(self, place: &str, config: &mut VmConfig) -> Result<(), BodyError> {
        let field = |name: &str| format!("{place}{name}");
        match self.cpu_template {
            None => {}
            Some(StaticCpuTemplate::None) => config.cpu_template = None,
            Some(template) => {
                return Err(BodyError::StaticCpuTemplate { path: field("cpu_template"), template });
            }
        }
        let problem = "is more MiB than 64 bits of bytes: use less";
        let too_much = || BodyError::Value { path: field("mem_size_mib"), problem };
        config.memory.size_bytes = self.mem_size_mib.checked_mul(MIB).ok_or_else(too_much)?;
        config.memory.placement.pages = match self.huge_pages {
            HugePages::None => Pages::HostsChoice,
            HugePages::Transparent => Pages::Transparent,
            HugePages::TwoMib => Pages::Huge2M,
        };
        config.memory.track_dirty_pages = self.track_dirty_pages;
        config.cpus = self.vcpu_count;
        config.threads_per_core = if self.smt { ThreadsPerCore::Two } else { ThreadsPerCore::One };
        Ok(())
    }
}

impl MachineConfigurationPart {
    /// `machine` with what is there of this.
    fn onto(self, machine: MachineConfiguration) -> MachineConfiguration {
        MachineConfiguration {
            vcpu_count: self.vcpu_count.unwrap_or(machine.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(machine.mem_size_mib),
            smt: self.smt.unwrap_or(machine.smt),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(machine.track_dirty_pages),
            huge_pages: self.huge_pages.unwrap_or(machine.huge_pages),
            cpu_template: self.cpu_template.or(machine.cpu_template),
        }
    }
}

impl Drive {
    fn into_config(self, field: impl Fn(&str) -> String) -> Result<DiskConfig, BodyError> {
        not_yet(&field("socket"), self.socket)?;
        let tuning = DiskTuning {
            engine: match self.io_engine {
                None => DiskEngine::Auto,
                Some(IoEngine::Sync) => DiskEngine::Sync,
                Some(IoEngine::Async) => DiskEngine::IoUring,
            },
            cache: match self.cache_type {
                None => None,
                Some(CacheType::Writeback) => Some(CacheMode::Writeback),
                Some(CacheType::Unsafe) => Some(CacheMode::Unsafe),
            },
            limits: self.rate_limiter.map(RateLimiter::into_config).unwrap_or_default(),
            ..DiskTuning::default()
        };
        let missing = || BodyError::Value { path: field("path_on_host"), problem: "is missing: a drive needs it" };
        let root = match (self.is_root_device, self.partuuid) {
            (false, _) => RootDevice::No,
            (true, None) => RootDevice::Whole,
            (true, Some(partuuid)) => RootDevice::Partition(partuuid),
        };
        Ok(DiskConfig {
            id: self.drive_id,
            source: DiskSource::Path(self.path_on_host.ok_or_else(missing)?),
            read_only: self.is_read_only.unwrap_or(false),
            root,
            tuning,
        })
    }
}

/// Puts a disk in the place of the one with its id, or behind the others; the root drive goes to the front, since it is
/// `/dev/vda` wherever it stands.
fn put_disk(disks: &mut Vec<DiskConfig>, disk: DiskConfig, field: &dyn Fn(&str) -> String) -> Result<(), BodyError> {
    let is_root = disk.root != RootDevice::No;
    if is_root && disks.iter().any(|other| other.root != RootDevice::No && other.id != disk.id) {
        let problem = "another drive is the root device";
        return Err(BodyError::Value { path: field("is_root_device"), problem });
    }
    let old = disks.iter().position(|other| other.id == disk.id);
    let place = if is_root { 0 } else { old.unwrap_or(disks.len()) };
    if let Some(old) = old {
        disks.remove(old);
    }
    disks.insert(place, disk);
    Ok(())
}

impl NetworkInterface {
    fn into_config(self, field: &dyn Fn(&str) -> String) -> Result<NetConfig, BodyError> {
        let mac = self.guest_mac.map(|mac| mac.parse()).transpose();
        let mac = mac.map_err(|source| BodyError::Mac { path: field("guest_mac"), source })?;
        let limits = |limiter: Option<RateLimiter>| limiter.unwrap_or_default().limits();
        let limits = LimiterConfig {
            inward: limits(self.rx_rate_limiter),
            outward: limits(self.tx_rate_limiter),
            ..LimiterConfig::default()
        };
        let tuning = NetTuning { mtu: self.mtu, limits, ..NetTuning::default() };
        Ok(NetConfig { id: self.iface_id, source: NetSource::Tap(self.host_dev_name), mac, tuning })
    }
}

/// Puts a network in the place of the one with its id, or behind the others.
fn put_net(nets: &mut Vec<NetConfig>, net: NetConfig, field: &dyn Fn(&str) -> String) -> Result<(), BodyError> {
    if net.mac.is_some() && nets.iter().any(|other| other.mac == net.mac && other.id != net.id) {
        return Err(BodyError::Value { path: field("guest_mac"), problem: "is the address of another interface" });
    }
    match nets.iter_mut().find(|other| other.id == net.id) {
        Some(old) => *old = net,
        None => nets.push(net),
    }
    Ok(())
}

impl RateLimiter {
    /// What it means for both flows together.
    #[must_use]
    pub fn into_config(self) -> LimiterConfig {
        LimiterConfig { total: self.limits(), ..LimiterConfig::default() }
    }

    /// `limits` with what is there of this: an absent bucket stays as it is, one of size or time 0 is no limit.
    #[must_use]
    pub fn onto(self, limits: Limits) -> Limits {
        let bucket = |given: Option<TokenBucket>, present| given.map_or(present, TokenBucket::rate);
        Limits { bytes: bucket(self.bandwidth, limits.bytes), operations: bucket(self.ops, limits.operations) }
    }

    fn limits(self) -> Limits {
        self.onto(Limits::default())
    }
}

impl TokenBucket {
    fn rate(self) -> Option<Rate> {
        Rate::new(self.size, self.one_time_burst.unwrap_or(0), self.refill_time)
    }
}

impl BodyError {
    /// A limit of husk's that a body breaks, under the name that the body has for it.
    fn limit(source: ConfigError) -> Self {
        let path = match &source {
            ConfigError::Cpus(_) | ConfigError::HalfCore(_) => "vcpu_count",
            ConfigError::NoMemory | ConfigError::MemoryNotWholeMib { .. } | ConfigError::MemoryBeyondHost { .. } => {
                "mem_size_mib"
            }
            ConfigError::CmdlineTooLong { .. } | ConfigError::CmdlineNul { .. } => "boot_args",
            ConfigError::TapName { .. } | ConfigError::DoubleTap { .. } => "host_dev_name",
            ConfigError::Tuning { problem: TuningError::Mtu(_), .. } => "mtu",
            _ => return Self::Limit(source),
        };
        Self::LimitAt { path, source }
    }
}

/// Refuses what is there and cannot be honoured.
pub(super) fn not_yet(path: &str, value: Option<Value>) -> Result<(), BodyError> {
    let value = match value {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(value)) => value,
        Some(Value::Array(_) | Value::Object(_)) => "this section".to_owned(),
        Some(value) => value.to_string(),
    };
    Err(BodyError::NotYet { path: path.to_owned(), value })
}
