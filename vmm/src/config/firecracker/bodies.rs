//! The bodies of Firecracker's API, field for field; its OpenAPI document, version 1.17.0, is the authority. A field whose
//! value is null counts as absent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arch::topology::VCPU_COUNT_MAX;
use devices::virtio::net::MTU_MIN;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::balloon::Balloon;
use super::hotplug::MemoryHotplugConfig;
use crate::config::{ID_LENGTH_MAX, ID_PATTERN};

/// `BootSource`: what the machine starts with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel image: an ELF file or a bzImage.
    pub kernel_image_path: PathBuf,
    /// The file that the kernel finds in memory as its initial RAM disk.
    #[serde(default)]
    pub initrd_path: Option<PathBuf>,
    /// The kernel command line.
    #[serde(default)]
    pub boot_args: Option<String>,
}

/// `MachineConfiguration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfiguration {
    /// Number of virtual CPUs.
    #[schemars(range(min = 1, max = VCPU_COUNT_MAX))]
    pub vcpu_count: u64,
    /// Guest memory, in MiB: at most what the host has.
    #[schemars(range(min = 1))]
    pub mem_size_mib: u64,
    /// Whether two vCPUs are the threads of one core.
    #[serde(default)]
    pub smt: bool,
    /// Whether pages that the guest writes are tracked from the start.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// The pages that back guest memory.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// The static CPU template. `None` is none, of either kind; absent, the custom one of `PUT /cpu-config` stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<StaticCpuTemplate>,
}

/// A part of `MachineConfiguration`, as `PATCH /machine-config` takes it. What is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfigurationPart {
    /// Number of virtual CPUs.
    #[schemars(range(min = 1, max = VCPU_COUNT_MAX))]
    pub vcpu_count: Option<u64>,
    /// Guest memory, in MiB: at most what the host has.
    #[schemars(range(min = 1))]
    pub mem_size_mib: Option<u64>,
    /// Whether two vCPUs are the threads of one core.
    pub smt: Option<bool>,
    /// Whether pages that the guest writes are tracked from the start.
    pub track_dirty_pages: Option<bool>,
    /// The pages that back guest memory.
    pub huge_pages: Option<HugePages>,
    /// The static CPU template. `None` is none, of either kind; absent, the custom one of `PUT /cpu-config` stays.
    pub cpu_template: Option<StaticCpuTemplate>,
}

/// `CpuTemplate`: the name of a static CPU template, which husk has as custom ones alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "they are names of the document's")]
pub enum StaticCpuTemplate {
    None,
    C3,
    T2,
    T2A,
    T2CL,
    T2S,
    V1N1,
}

/// The pages that back guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HugePages {
    /// Those of the host's choice.
    #[default]
    None,
    /// Transparent huge pages, as the host has them.
    Transparent,
    /// 2 MiB pages of hugetlbfs.
    #[serde(rename = "2M")]
    TwoMib,
}

/// `Drive`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// The drive's name: 1 to 64 letters, digits, `_` or `-`.
    #[schemars(length(min = 1, max = ID_LENGTH_MAX), regex(pattern = ID_PATTERN))]
    pub drive_id: String,
    /// The unique id of the partition that holds the root file system, if that is not the whole root device.
    #[serde(default)]
    pub partuuid: Option<String>,
    /// Whether the kernel finds its root file system here.
    pub is_root_device: bool,
    /// Whether a flush by the guest is durable. Where it is absent husk keeps flushes durable, which `Unsafe`, the
    /// document's default, allows but does not promise.
    #[serde(default)]
    pub cache_type: Option<CacheType>,
    /// Whether the guest may only read.
    #[serde(default)]
    pub is_read_only: Option<bool>,
    /// The file or block device.
    #[serde(default)]
    pub path_on_host: Option<PathBuf>,
    /// What it is held to.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
    /// Who does its requests: system calls, or io_uring. Where it is absent husk takes io_uring if the host has it.
    #[serde(default)]
    pub io_engine: Option<IoEngine>,
    /// The socket of a vhost-user backend.
    #[serde(default)]
    pub socket: Option<Value>,
}

/// Whether a flush by the guest is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheType {
    /// It is ignored.
    #[default]
    Unsafe,
    /// It is.
    Writeback,
}

/// Who does a drive's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IoEngine {
    /// System calls that are waited for.
    #[default]
    Sync,
    /// io_uring.
    Async,
}

/// `PartialDrive`: what `PATCH /drives/{drive_id}` changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    /// The drive, the same as in the path.
    #[schemars(length(min = 1, max = ID_LENGTH_MAX), regex(pattern = ID_PATTERN))]
    pub drive_id: String,
    /// The file or block device that it has from now on; the same path again tells of a new size.
    #[serde(default)]
    pub path_on_host: Option<PathBuf>,
    /// What it is held to from now on.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
}

/// `NetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// The interface's name: 1 to 64 letters, digits, `_` or `-`.
    #[schemars(length(min = 1, max = ID_LENGTH_MAX), regex(pattern = ID_PATTERN))]
    pub iface_id: String,
    /// The tap, which must exist.
    pub host_dev_name: String,
    /// Its Ethernet address; without one the guest chooses its own.
    #[serde(default)]
    pub guest_mac: Option<String>,
    /// The MTU that the guest is told, 68 to 65535 bytes.
    #[serde(default)]
    #[schemars(range(min = MTU_MIN))]
    pub mtu: Option<u16>,
    /// What frames to the guest are held to.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What frames from the guest are held to.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PartialNetworkInterface`: what `PATCH /network-interfaces/{iface_id}` changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartialNetworkInterface {
    /// The interface, the same as in the path.
    #[schemars(length(min = 1, max = ID_LENGTH_MAX), regex(pattern = ID_PATTERN))]
    pub iface_id: String,
    /// What frames to the guest are held to from now on.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What frames from the guest are held to from now on.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `RateLimiter`: bytes and operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimiter {
    /// Tokens are bytes.
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are operations.
    pub ops: Option<TokenBucket>,
}

/// `TokenBucket`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens that it holds; 0 is no limit.
    pub size: u64,
    /// Tokens that are there once, beside it.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// The milliseconds in which an empty one fills; 0 is no limit.
    pub refill_time: u64,
}

/// `EntropyDevice`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EntropyDevice {
    /// What it is held to.
    pub rate_limiter: Option<RateLimiter>,
}

/// `SerialDevice`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SerialDevice {
    /// A file, which is made or appended to, or a named pipe. Without one it is this process's standard streams.
    pub serial_out_path: Option<PathBuf>,
    /// What its output is held to, in bytes; what is beyond is dropped.
    pub rate_limiter: Option<TokenBucket>,
}

/// `Logger`: what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Logger {
    /// A file, which is made or appended to, or a named pipe.
    pub log_path: Option<PathBuf>,
    /// The least important records that are written.
    pub level: Option<LogLevel>,
    /// Whether a line tells its level.
    pub show_level: Option<bool>,
    /// Whether a line tells the place in husk's source that wrote it.
    pub show_log_origin: Option<bool>,
    /// The module whose records alone are written, as in `vmm::control`.
    pub module: Option<String>,
}

/// `Metrics`: where the machine's figures go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// A file, which is made or appended to, or a named pipe.
    pub metrics_path: PathBuf,
    /// Whether each line has the VM's name as `id`.
    #[serde(default)]
    pub emit_id: bool,
    /// What each line has as `properties`.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// How important a record is; of either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum LogLevel {
    /// None is written.
    Off,
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warning,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl std::str::FromStr for LogLevel {
    type Err = LogLevelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warning),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(LogLevelError(text.to_owned())),
        }
    }
}

/// A text that is no level.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no level: use Off, Error, Warning, Info, Debug or Trace")]
pub struct LogLevelError(String);

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// `FullVmConfiguration`: what `GET /vm/config` answers, and of the shape of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct FullVmConfiguration {
    /// What the machine starts with; before `PUT /boot-source` the kernel's path is empty.
    pub boot_source: BootSource,
    /// The machine.
    pub machine_config: MachineConfiguration,
    /// The CPU template.
    pub cpu_config: Option<Value>,
    /// The drives, the root drive first.
    pub drives: Vec<Drive>,
    /// The network interfaces.
    pub network_interfaces: Vec<NetworkInterface>,
    /// The entropy device.
    pub entropy: Option<EntropyDevice>,
    /// The serial port's other end.
    pub serial: Option<SerialDevice>,
    /// Where the log goes.
    pub logger: Option<Value>,
    /// Where the metrics go.
    pub metrics: Option<Value>,
    /// The balloon.
    pub balloon: Option<Balloon>,
    /// Not there yet.
    pub vsock: Option<Value>,
    /// Not there yet.
    pub mmds_config: Option<Value>,
    /// Memory that can be plugged.
    pub memory_hotplug: Option<MemoryHotplugConfig>,
    /// Not there yet.
    pub pmem: Vec<Value>,
}

impl Default for MachineConfiguration {
    /// What a machine is before anybody configures it.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            cpu_template: None,
        }
    }
}
