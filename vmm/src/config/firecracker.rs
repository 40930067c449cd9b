//! Firecracker's configuration: the bodies of its API and its configuration file, field for field (its OpenAPI document,
//! version 1.17.0, is the authority), and what of them husk cannot honour yet.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::{
    BootConfig, BootEntry, CacheMode, CpuTemplate, DiskConfig, DiskEngine, DiskSource, DiskTuning, Entropy,
    HardwareTables, KernelSource, LimiterConfig, Limits, MIB, MacAddressError, MemoryBacking, MemoryConfig, NetConfig,
    NetSource, Rate, RootDevice, SerialTarget, VmConfig,
};

/// The kernel command line where `boot_args` is absent.
pub const DEFAULT_BOOT_ARGS: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// A configuration file that husk does not take.
#[derive(Debug, Error)]
pub enum FileError {
    /// Not JSON, or not of the shape that the document gives.
    #[error("{}{message}", place(path))]
    Shape {
        /// The field, from the top: `drives[0].path_on_host`; `.` is the whole file.
        path: String,
        /// What is wrong with it, and where.
        message: String,
    },
    /// A section or a field that husk cannot honour yet.
    #[error("{path}: {value} is not supported yet: remove it")]
    NotYet {
        /// The field.
        path: String,
        /// What it asks for.
        value: String,
    },
    /// The file of the CPU template cannot be read.
    #[error("cpu-config: cannot read {}", path.display())]
    ReadCpuTemplate {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file of the CPU template holds none.
    #[error("cpu-config: {}", path.display())]
    CpuTemplate {
        /// Its path.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<FileError>,
    },
    /// A MAC address that cannot be one.
    #[error("{path}")]
    Mac {
        /// The field.
        path: String,
        /// Why.
        source: MacAddressError,
    },
    /// A field whose value cannot be.
    #[error("{path}: {problem}")]
    Value {
        /// The field.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
}

/// The file. A key whose value is null counts as absent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    boot_source: BootSource,
    machine_config: Option<MachineConfiguration>,
    /// The path of a file that holds a custom CPU template.
    cpu_config: Option<PathBuf>,
    drives: Option<Vec<Drive>>,
    network_interfaces: Option<Vec<NetworkInterface>>,
    entropy: Option<EntropyDevice>,
    serial: Option<SerialDevice>,
    balloon: Option<Value>,
    vsock: Option<Value>,
    logger: Option<Value>,
    metrics: Option<Value>,
    mmds_config: Option<Value>,
    pmem: Option<Value>,
    memory_hotplug: Option<Value>,
}

/// `BootSource`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootSource {
    kernel_image_path: PathBuf,
    initrd_path: Option<PathBuf>,
    boot_args: Option<String>,
}

/// `MachineConfiguration`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineConfiguration {
    vcpu_count: u64,
    mem_size_mib: u64,
    #[serde(default)]
    smt: bool,
    #[serde(default)]
    track_dirty_pages: bool,
    #[serde(default)]
    huge_pages: HugePages,
    cpu_template: Option<String>,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
enum HugePages {
    #[default]
    None,
    Transparent,
    #[serde(rename = "2M")]
    TwoMib,
}

/// `Drive`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drive {
    drive_id: String,
    is_root_device: bool,
    path_on_host: Option<PathBuf>,
    is_read_only: Option<bool>,
    partuuid: Option<String>,
    /// The document's default is `Unsafe`, which lets a flush be lost: husk does that only when asked in words.
    cache_type: Option<CacheType>,
    io_engine: Option<IoEngine>,
    rate_limiter: Option<RateLimiter>,
    socket: Option<Value>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum CacheType {
    Unsafe,
    Writeback,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum IoEngine {
    Sync,
    Async,
}

/// `RateLimiter`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

/// `TokenBucket`: bytes or operations, and the milliseconds in which an empty one fills.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenBucket {
    size: u64,
    one_time_burst: Option<u64>,
    refill_time: u64,
}

impl RateLimiter {
    fn into_config(self) -> LimiterConfig {
        let rate = |bucket: TokenBucket| Rate::new(bucket.size, bucket.one_time_burst.unwrap_or(0), bucket.refill_time);
        let total = Limits { bytes: self.bandwidth.and_then(rate), operations: self.ops.and_then(rate) };
        LimiterConfig { total, ..LimiterConfig::default() }
    }
}

/// `NetworkInterface`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkInterface {
    iface_id: String,
    host_dev_name: String,
    guest_mac: Option<String>,
    mtu: Option<Value>,
    rx_rate_limiter: Option<Value>,
    tx_rate_limiter: Option<Value>,
}

/// `EntropyDevice`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntropyDevice {
    rate_limiter: Option<Value>,
}

/// `SerialDevice`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SerialDevice {
    serial_out_path: Option<PathBuf>,
    rate_limiter: Option<Value>,
}

/// Reads a configuration file's text, and the file of the CPU template that it names.
///
/// # Errors
/// The field that is wrong, and what is wrong with it.
pub fn parse(text: &str) -> Result<VmConfig, FileError> {
    from_json::<ConfigFile>(text)?.into_config()
}

/// Reads the one JSON value that `text` must be.
fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, FileError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| FileError::Shape { path: error.path().to_string(), message: error.inner().to_string() })?;
    json.end().map_err(|error| FileError::Shape { path: ".".to_owned(), message: error.to_string() })?;
    Ok(value)
}

/// Reads a file of JSON: a regular one, since a pipe would keep us waiting, and of a bounded size.
///
/// # Errors
/// Those of the system, with what is wrong with a file that is none of this kind.
pub fn read_text(path: &Path) -> io::Result<String> {
    const BYTES_MAX: u64 = 1 << 20;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file: give one"));
    }
    if metadata.len() > BYTES_MAX {
        return Err(io::Error::other("it is larger than 1 MiB: check that it is the right file"));
    }
    io::read_to_string(file.take(BYTES_MAX))
}

fn read_cpu_template(path: PathBuf) -> Result<CpuTemplate, FileError> {
    let text = match read_text(&path) {
        Ok(text) => text,
        Err(source) => return Err(FileError::ReadCpuTemplate { path, source }),
    };
    from_json(&text).map_err(|source| FileError::CpuTemplate { path, source: Box::new(source) })
}

impl ConfigFile {
    fn into_config(self) -> Result<VmConfig, FileError> {
        let sections = [
            ("balloon", self.balloon),
            ("vsock", self.vsock),
            ("logger", self.logger),
            ("metrics", self.metrics),
            ("mmds-config", self.mmds_config),
            ("pmem", self.pmem),
            ("memory-hotplug", self.memory_hotplug),
        ];
        for (name, section) in sections {
            not_yet(name, section.filter(|section| section.as_array().is_none_or(|items| !items.is_empty())))?;
        }
        let machine = self.machine_config.unwrap_or_default();
        machine.check()?;
        if let Some(entropy) = &self.entropy {
            not_yet("entropy.rate_limiter", entropy.rate_limiter.clone())?;
        }
        Ok(VmConfig {
            cpus: machine.vcpu_count,
            memory: MemoryConfig { size_bytes: machine.memory_bytes()?, backing: MemoryBacking::Anonymous },
            boot: BootConfig {
                kernel: KernelSource::Path(self.boot_source.kernel_image_path),
                initrd: self.boot_source.initrd_path,
                cmdline: Some(self.boot_source.boot_args.unwrap_or_else(|| DEFAULT_BOOT_ARGS.to_owned())),
                entry: BootEntry::Auto,
            },
            tables: HardwareTables::AcpiAndMp,
            disks: disks(self.drives.unwrap_or_default())?,
            nets: nets(self.network_interfaces.unwrap_or_default())?,
            entropy: if self.entropy.is_some() { Entropy::On } else { Entropy::Off },
            cpu_template: self.cpu_config.map(read_cpu_template).transpose()?,
            serial: self.serial.map_or(Ok(SerialTarget::Stdio), SerialDevice::into_target)?,
        })
    }
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

impl MachineConfiguration {
    fn memory_bytes(&self) -> Result<u64, FileError> {
        let problem = "is more MiB than 64 bits of bytes: use less";
        let path = "machine-config.mem_size_mib".to_owned();
        self.mem_size_mib.checked_mul(MIB).ok_or(FileError::Value { path, problem })
    }

    fn check(&self) -> Result<(), FileError> {
        let asked = |wanted: bool, value: &str| wanted.then(|| Value::String(value.to_owned()));
        not_yet("machine-config.smt", asked(self.smt, "true"))?;
        not_yet("machine-config.track_dirty_pages", asked(self.track_dirty_pages, "true"))?;
        not_yet("machine-config.huge_pages", asked(self.huge_pages == HugePages::TwoMib, "2M"))?;
        not_yet("machine-config.huge_pages", asked(self.huge_pages == HugePages::Transparent, "Transparent"))?;
        let template = self.cpu_template.as_deref().unwrap_or("None");
        not_yet("machine-config.cpu_template", asked(template != "None", template))
    }
}

impl SerialDevice {
    fn into_target(self) -> Result<SerialTarget, FileError> {
        not_yet("serial.rate_limiter", self.rate_limiter)?;
        Ok(self.serial_out_path.map_or(SerialTarget::Stdio, SerialTarget::File))
    }
}

/// The drives, the root drive first: it is `/dev/vda` wherever it stands in the file.
fn disks(drives: Vec<Drive>) -> Result<Vec<DiskConfig>, FileError> {
    let mut disks = Vec::with_capacity(drives.len());
    let mut has_root = false;
    for (index, drive) in drives.into_iter().enumerate() {
        let field = |name: &str| format!("drives[{index}].{name}");
        let is_root = drive.is_root_device;
        if is_root && has_root {
            return Err(FileError::Value {
                path: field("is_root_device"),
                problem: "another drive is the root device",
            });
        }
        has_root |= is_root;
        let disk = drive.into_config(field)?;
        disks.insert(if is_root { 0 } else { disks.len() }, disk);
    }
    Ok(disks)
}

impl Drive {
    fn into_config(self, field: impl Fn(&str) -> String) -> Result<DiskConfig, FileError> {
        not_yet(&field("socket"), self.socket)?;
        let tuning = DiskTuning {
            engine: match self.io_engine {
                None => DiskEngine::Auto,
                Some(IoEngine::Sync) => DiskEngine::Sync,
                Some(IoEngine::Async) => DiskEngine::IoUring,
            },
            cache: match self.cache_type {
                None | Some(CacheType::Writeback) => CacheMode::Writeback,
                Some(CacheType::Unsafe) => CacheMode::Unsafe,
            },
            limits: self.rate_limiter.map(RateLimiter::into_config).unwrap_or_default(),
            ..DiskTuning::default()
        };
        let missing = |name: &str| FileError::Value { path: field(name), problem: "is missing: a drive needs it" };
        let root = match (self.is_root_device, self.partuuid) {
            (false, _) => RootDevice::No,
            (true, None) => RootDevice::Whole,
            (true, Some(partuuid)) => RootDevice::Partition(partuuid),
        };
        Ok(DiskConfig {
            id: self.drive_id,
            source: DiskSource::Path(self.path_on_host.ok_or_else(|| missing("path_on_host"))?),
            read_only: self.is_read_only.ok_or_else(|| missing("is_read_only"))?,
            root,
            tuning,
        })
    }
}

/// A field's path as the start of a message; the whole file has none.
fn place(path: &str) -> String {
    if path == "." { String::new() } else { format!("{path}: ") }
}

fn nets(interfaces: Vec<NetworkInterface>) -> Result<Vec<NetConfig>, FileError> {
    let config = |(index, interface): (usize, NetworkInterface)| {
        interface.into_config(|name| format!("network-interfaces[{index}].{name}"))
    };
    interfaces.into_iter().enumerate().map(config).collect()
}

impl NetworkInterface {
    fn into_config(self, field: impl Fn(&str) -> String) -> Result<NetConfig, FileError> {
        not_yet(&field("mtu"), self.mtu)?;
        not_yet(&field("rx_rate_limiter"), self.rx_rate_limiter)?;
        not_yet(&field("tx_rate_limiter"), self.tx_rate_limiter)?;
        let mac = self.guest_mac.map(|mac| mac.parse()).transpose();
        let mac = mac.map_err(|source| FileError::Mac { path: field("guest_mac"), source })?;
        Ok(NetConfig { id: self.iface_id, source: NetSource::Tap(self.host_dev_name), mac })
    }
}

/// Refuses what is there and cannot be honoured.
fn not_yet(path: &str, value: Option<Value>) -> Result<(), FileError> {
    match value {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(value)) => Err(FileError::NotYet { path: path.to_owned(), value }),
        Some(Value::Array(_) | Value::Object(_)) => {
            Err(FileError::NotYet { path: path.to_owned(), value: "this section".to_owned() })
        }
        Some(value) => Err(FileError::NotYet { path: path.to_owned(), value: value.to_string() }),
    }
}

#[cfg(test)]
mod tests;
