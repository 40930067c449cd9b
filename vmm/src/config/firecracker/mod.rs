//! Firecracker's API and configuration file, in its own terms: the bodies, what each changes in a [`VmConfig`], and a
//! `VmConfig` told in them.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`bodies`] | the bodies, field for field |
//! | [`Change`] | a body applied to a `VmConfig`, checked |
//! | [`describe`] | a `VmConfig` as bodies |

pub mod balloon;
pub mod bodies;
mod change;
pub mod describe;
pub mod hotplug;
pub mod snapshot;

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use self::bodies::{
    BootSource, Drive, EntropyDevice, Logger, MachineConfiguration, Metrics, NetworkInterface, SerialDevice,
};
use self::change::not_yet;
use super::extension::Extension;
use super::{
    ConfigError, CpuTemplate, Entropy, HardwareTables, LimiterConfig, MIB, MacAddressError, MemoryConfig, SerialTarget,
    ThreadPlacement, ThreadsPerCore, VmConfig,
};

pub use change::Change;
pub(crate) use change::{Access, OfHost};

/// The kernel command line where `boot_args` is absent.
pub const DEFAULT_BOOT_ARGS: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// A body or a configuration file that husk does not take.
#[derive(Debug, Error)]
pub enum BodyError {
    /// Not JSON, or not of the shape that the document gives.
    #[error("{}{message}", place(path))]
    Shape {
        /// The field, from the top: `drives[0].path_on_host`; `.` is the whole.
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
    /// A static CPU template.
    #[error(
        "{path}: husk has no static template {template:?}: use None, and give what it says as a custom one, PUT /cpu-config"
    )]
    StaticCpuTemplate {
        /// The field.
        path: String,
        /// The template.
        template: bodies::StaticCpuTemplate,
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
        source: Box<BodyError>,
    },
    /// A MAC address that cannot be one.
    #[error("{path}")]
    Mac {
        /// The field.
        path: String,
        /// Why.
        source: MacAddressError,
    },
    /// A limit of the machine that a field breaks.
    #[error("{path}")]
    LimitAt {
        /// The field.
        path: &'static str,
        /// The limit.
        source: ConfigError,
    },
    /// A limit of the machine.
    #[error(transparent)]
    Limit(ConfigError),
    /// A field whose value cannot be.
    #[error("{path}: {problem}")]
    Value {
        /// The field.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl BodyError {
    /// The field that is wrong, if it is one and not the whole.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Shape { path, .. } if path == "." => None,
            Self::Shape { path, .. }
            | Self::NotYet { path, .. }
            | Self::StaticCpuTemplate { path, .. }
            | Self::Mac { path, .. }
            | Self::Value { path, .. } => Some(path),
            Self::LimitAt { path, .. } => Some(path),
            Self::ReadCpuTemplate { .. } | Self::CpuTemplate { .. } | Self::Limit(_) => None,
        }
    }
}

/// The file. A key whose value is null counts as absent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    boot_source: BootSource,
    machine_config: Option<MachineConfiguration>,
    /// A custom CPU template, or the path of a file that holds one.
    cpu_config: Option<Value>,
    drives: Option<Vec<Drive>>,
    network_interfaces: Option<Vec<NetworkInterface>>,
    entropy: Option<EntropyDevice>,
    serial: Option<SerialDevice>,
    balloon: Option<balloon::Balloon>,
    vsock: Option<Value>,
    logger: Option<Logger>,
    metrics: Option<Metrics>,
    mmds_config: Option<Value>,
    pmem: Option<Value>,
    memory_hotplug: Option<hotplug::MemoryHotplugConfig>,
    /// What the document cannot say.
    husk: Option<Extension>,
}

/// What a configuration file describes.
#[derive(Debug)]
pub struct Described {
    /// The machine.
    pub machine: VmConfig,
    /// Where this process's log goes, and what is in it.
    pub logger: Option<Logger>,
    /// Where the machine's figures go.
    pub metrics: Option<Metrics>,
}

/// A machine that nobody has described yet.
#[must_use]
pub fn blank() -> VmConfig {
    let MachineConfiguration { vcpu_count, mem_size_mib, .. } = MachineConfiguration::default();
    VmConfig {
        cpus: vcpu_count,
        memory: MemoryConfig::new(mem_size_mib * MIB),
        numa: Vec::new(),
        boot: None,
        tables: HardwareTables::AcpiAndMp,
        disks: Vec::new(),
        nets: Vec::new(),
        entropy: Entropy::Off,
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

/// Reads a configuration file's text, and the file of the CPU template that it names.
///
/// # Errors
/// The field that is wrong, and what is wrong with it.
pub fn parse(text: &str) -> Result<Described, BodyError> {
    from_json::<ConfigFile>(text)?.into_described()
}

/// Reads the one JSON value that `text` must be.
///
/// # Errors
/// The field that is wrong, and what is wrong with it.
pub fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, BodyError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| BodyError::Shape { path: error.path().to_string(), message: error.inner().to_string() })?;
    json.end().map_err(|error| BodyError::Shape { path: ".".to_owned(), message: error.to_string() })?;
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

/// The template that a section holds or names the file of.
fn cpu_template(section: Value) -> Result<CpuTemplate, BodyError> {
    let Value::String(path) = section else { return from_json(&section.to_string()) };
    let path = PathBuf::from(path);
    let text = match read_text(&path) {
        Ok(text) => text,
        Err(source) => return Err(BodyError::ReadCpuTemplate { path, source }),
    };
    from_json(&text).map_err(|source| BodyError::CpuTemplate { path, source: Box::new(source) })
}

impl ConfigFile {
    fn into_described(self) -> Result<Described, BodyError> {
        let sections = [("vsock", self.vsock), ("mmds-config", self.mmds_config), ("pmem", self.pmem)];
        for (name, section) in sections {
            not_yet(name, section.filter(|section| section.as_array().is_none_or(|items| !items.is_empty())))?;
        }
        let mut config = blank();
        let mut apply = |place: &str, change: Change| change.apply_at(place, &mut config);
        apply("boot-source.", Change::BootSource(self.boot_source))?;
        apply("machine-config.", Change::Machine(self.machine_config.unwrap_or_default()))?;
        if let Some(section) = self.cpu_config {
            apply("cpu-config.", Change::CpuConfig(Box::new(cpu_template(section)?)))?;
        }
        for (index, drive) in self.drives.into_iter().flatten().enumerate() {
            apply(&format!("drives[{index}]."), Change::Drive(Box::new(drive)))?;
        }
        for (index, interface) in self.network_interfaces.into_iter().flatten().enumerate() {
            apply(&format!("network-interfaces[{index}]."), Change::NetworkInterface(Box::new(interface)))?;
        }
        if let Some(entropy) = self.entropy {
            apply("entropy.", Change::Entropy(entropy))?;
        }
        if let Some(serial) = self.serial {
            apply("serial.", Change::Serial(serial))?;
        }
        if let Some(balloon) = self.balloon {
            apply("balloon.", Change::Balloon(balloon))?;
        }
        if let Some(hotplug) = self.memory_hotplug {
            apply("memory-hotplug.", Change::Hotplug(hotplug))?;
        }
        if let Some(extension) = self.husk {
            extension.apply(&mut config);
        }
        Ok(Described { machine: config, logger: self.logger, metrics: self.metrics })
    }
}

/// A field's path as the start of a message; the whole file has none.
fn place(path: &str) -> String {
    if path == "." { String::new() } else { format!("{path}: ") }
}

#[cfg(test)]
mod tests;
