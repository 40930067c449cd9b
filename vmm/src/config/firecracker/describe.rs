//! A [`VmConfig`] in Firecracker's terms, as far as they reach. What only husk knows is left out.

use serde_json::Value;

use super::DEFAULT_BOOT_ARGS;
use super::balloon::Balloon;
use super::bodies::{
    BootSource, CacheType, Drive, EntropyDevice, FullVmConfiguration, HugePages, IoEngine, MachineConfiguration,
    NetworkInterface, RateLimiter, SerialDevice, TokenBucket,
};
use super::hotplug::MemoryHotplugConfig;
use crate::config::{
    BootConfig, CacheMode, CpuTemplate, DiskConfig, DiskEngine, DiskSource, KernelSource, Limits, MIB, NetConfig,
    NetSource, Pages, Rate, RootDevice, SerialTarget, ThreadsPerCore, VmConfig,
};

/// The whole machine, without what is the process's own: where logs and metrics go.
#[must_use]
pub fn full(config: &VmConfig) -> FullVmConfiguration {
    FullVmConfiguration {
        boot_source: config.boot.as_ref().map(boot_source).unwrap_or_default(),
        machine_config: machine(config),
        cpu_config: config.cpu_template.as_ref().map(cpu_config),
        drives: config.disks.iter().map(drive).collect(),
        network_interfaces: config.nets.iter().map(network_interface).collect(),
        entropy: config
            .has_entropy()
            .then(|| EntropyDevice { rate_limiter: rate_limiter(config.entropy_limits.total) }),
        serial: serial(config),
        logger: None,
        metrics: None,
        balloon: config.balloon.as_ref().map(Balloon::describe),
        vsock: None,
        mmds_config: None,
        memory_hotplug: config.hotplug.as_ref().map(MemoryHotplugConfig::describe),
        pmem: Vec::new(),
    }
}

fn cpu_config(template: &CpuTemplate) -> Value {
    serde_json::to_value(template).expect("lists of numbers and text have a form in JSON")
}

fn serial(config: &VmConfig) -> Option<SerialDevice> {
    let serial_out_path = match &config.serial {
        SerialTarget::File(path) => Some(path.clone()),
        SerialTarget::Stdio | SerialTarget::Pty | SerialTarget::Null => None,
    };
    let serial = SerialDevice { serial_out_path, rate_limiter: config.serial_limit.map(token_bucket) };
    (serial != SerialDevice::default()).then_some(serial)
}

/// Its `MachineConfiguration`.
#[must_use]
pub fn machine(config: &VmConfig) -> MachineConfiguration {
    MachineConfiguration {
        vcpu_count: config.cpus,
        smt: config.threads_per_core == ThreadsPerCore::Two,
        mem_size_mib: config.memory.size_bytes / MIB,
        track_dirty_pages: config.memory.track_dirty_pages,
        huge_pages: match config.memory.placement.pages {
            Pages::HostsChoice => HugePages::None,
            Pages::Transparent => HugePages::Transparent,
            // The document has no larger ones.
            Pages::Huge2M | Pages::Huge1G => HugePages::TwoMib,
        },
        ..MachineConfiguration::default()
    }
}

fn boot_source(boot: &BootConfig) -> BootSource {
    BootSource {
        kernel_image_path: match &boot.kernel {
            KernelSource::Path(path) => path.clone(),
            KernelSource::BuiltIn(_) => "(built in)".into(),
        },
        initrd_path: boot.initrd.clone(),
        // As the document has its default: it is not told.
        boot_args: boot.cmdline.clone().filter(|words| words != DEFAULT_BOOT_ARGS),
    }
}

fn drive(disk: &DiskConfig) -> Drive {
    Drive {
        drive_id: disk.id.clone(),
        partuuid: match &disk.root {
            RootDevice::Partition(partuuid) => Some(partuuid.clone()),
            RootDevice::No | RootDevice::Whole => None,
        },
        is_root_device: disk.root != RootDevice::No,
        cache_type: Some(match disk.tuning.cache {
            // The document's default, which promises nothing.
            None | Some(CacheMode::Unsafe) => CacheType::Unsafe,
            Some(CacheMode::Writeback | CacheMode::Writethrough | CacheMode::Direct) => CacheType::Writeback,
        }),
        is_read_only: Some(disk.read_only),
        path_on_host: match &disk.source {
            DiskSource::Path(path) => Some(path.clone()),
            DiskSource::Open(_) => None,
        },
        rate_limiter: rate_limiter(disk.tuning.limits.total),
        io_engine: Some(match disk.tuning.engine {
            // As above.
            DiskEngine::Auto | DiskEngine::Sync => IoEngine::Sync,
            DiskEngine::IoUring => IoEngine::Async,
        }),
        socket: None,
    }
}

fn network_interface(net: &NetConfig) -> NetworkInterface {
    NetworkInterface {
        iface_id: net.id.clone(),
        host_dev_name: match &net.source {
            NetSource::Tap(name) => name.clone(),
            NetSource::Fds(numbers) => {
                format!("fd={}", numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",,"))
            }
        },
        guest_mac: net.mac.map(|mac| mac.to_string()),
        mtu: net.tuning.mtu,
        rx_rate_limiter: rate_limiter(net.tuning.limits.inward),
        tx_rate_limiter: rate_limiter(net.tuning.limits.outward),
    }
}

fn rate_limiter(limits: Limits) -> Option<RateLimiter> {
    let Limits { bytes, operations } = limits;
    let limiter = RateLimiter { bandwidth: bytes.map(token_bucket), ops: operations.map(token_bucket) };
    (limiter != RateLimiter::default()).then_some(limiter)
}

fn token_bucket(rate: Rate) -> TokenBucket {
    let burst = rate.burst();
    TokenBucket { size: rate.size(), one_time_burst: (burst > 0).then_some(burst), refill_time: rate.refill_ms() }
}
