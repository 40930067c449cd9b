//! One part of a machine's saved state, and all of them.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Digest;

/// Bytes of a section's payload: a vCPU's, the largest that is known, has some 20 KiB.
pub const PAYLOAD_BYTES_MAX: u32 = 16 << 20;
/// Sections of a state file: twice what 254 vCPUs and the devices of a full PCI segment come to.
pub const SECTIONS_MAX: usize = 4096;
/// Bytes of a section's device id.
pub const ID_BYTES_MAX: usize = 64;

/// What a section tells of. The numbers are the file format's: they are never given to another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u16)]
pub enum SectionKind {
    /// What was configured.
    Config = 1,
    /// The VM: interrupt controllers, timers, clock.
    Vm = 3,
    /// One vCPU; its id is its index.
    Vcpu = 4,
    /// The memory that can be plugged, as it was configured.
    Hotplug = 5,
    /// The physical blocks that disks were given.
    DiskBlocks = 6,
    /// Which devices are near which of the guest's nodes.
    Nearness = 7,
    /// The 16550 serial port.
    Serial = 16,
    /// The CMOS clock.
    Rtc = 17,
    /// The keyboard controller.
    I8042 = 18,
    /// The transport of a virtio device.
    Transport = 32,
    /// virtio-blk.
    Blk = 33,
    /// virtio-net.
    Net = 34,
}

/// A serde value with its version, in postcard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoded {
    /// The version of the value's type.
    pub version: u16,
    bytes: Vec<u8>,
}

/// One part of a machine's saved state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it tells of.
    pub kind: SectionKind,
    /// Of which one of these; empty where there is one.
    pub id: String,
    /// What it tells.
    pub payload: Encoded,
}

/// A section without its payload, as the state file's table has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionHead {
    /// What it tells of.
    pub kind: SectionKind,
    /// Of which one of these.
    pub id: String,
    /// The payload's version.
    pub version: u16,
    /// The payload's bytes.
    pub bytes: u32,
    /// Their digest.
    pub digest: Digest,
}

/// The sections of a state that have not been taken yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sections(BTreeMap<(SectionKind, String), Encoded>);

/// Why a section is not what was asked for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SectionError {
    /// A value that postcard cannot hold, or one that is too large.
    #[error("section {section}: the state cannot be written: {why}")]
    Encode {
        /// Which.
        section: String,
        /// What postcard said.
        why: String,
    },
    /// Not in the file, or taken before.
    #[error("section {section} is missing")]
    Missing {
        /// Which.
        section: String,
    },
    /// There already.
    #[error("section {section} is there twice")]
    Doubled {
        /// Which.
        section: String,
    },
    /// Of another husk than this.
    #[error("section {section} has version {found}, this husk reads version {known}")]
    Version {
        /// Which.
        section: String,
        /// The version in the file.
        found: u16,
        /// The version asked for.
        known: u16,
    },
    /// Bytes that are not the type's.
    #[error("section {section} cannot be read: {why}")]
    Decode {
        /// Which.
        section: String,
        /// What postcard said.
        why: String,
    },
    /// Bytes behind the value.
    #[error("section {section} has {bytes} bytes too many")]
    LeftOver {
        /// Which.
        section: String,
        /// How many.
        bytes: usize,
    },
    /// Nobody asked for it.
    #[error("section {section} is of something this machine does not have")]
    Untaken {
        /// Which: the first of them.
        section: String,
    },
}

impl SectionKind {
    const ALL: [Self; 12] = [
        Self::Config,
        Self::Vm,
        Self::Vcpu,
        Self::Hotplug,
        Self::DiskBlocks,
        Self::Nearness,
        Self::Serial,
        Self::Rtc,
        Self::I8042,
        Self::Transport,
        Self::Blk,
        Self::Net,
    ];

    /// The kind of a number in a file.
    pub(super) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Its number in files.
    pub(super) const fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for SectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}").to_lowercase();
        f.write_str(&name)
    }
}

impl Encoded {
    /// `value` as bytes.
    ///
    /// # Errors
    /// The value holds what postcard does not, as a sequence without a length.
    pub fn of<T: Serialize>(version: u16, value: &T) -> Result<Self, postcard::Error> {
        postcard::to_allocvec(value).map(|bytes| Self { version, bytes })
    }

    /// The value whose bytes these are, for all that is known.
    pub const fn from_bytes(version: u16, bytes: Vec<u8>) -> Self {
        Self { version, bytes }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The value, which must be all of the bytes and of `version`. `name` is for the error.
    ///
    /// # Errors
    /// Another version, bytes that are not the type's, bytes left over.
    pub fn decode<T: DeserializeOwned>(&self, version: u16, name: &dyn fmt::Display) -> Result<T, SectionError> {
        let section = || name.to_string();
        if self.version != version {
            return Err(SectionError::Version { section: section(), found: self.version, known: version });
        }
        let (value, rest) = postcard::take_from_bytes(&self.bytes)
            .map_err(|error| SectionError::Decode { section: section(), why: error.to_string() })?;
        if rest.is_empty() { Ok(value) } else { Err(SectionError::LeftOver { section: section(), bytes: rest.len() }) }
    }
}

/// A section's name, for people.
struct Name<'a>(SectionKind, &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.1.is_empty() { write!(f, "{}", self.0) } else { write!(f, "{} `{}`", self.0, self.1) }
    }
}

impl fmt::Display for SectionHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Name(self.kind, &self.id).fmt(f)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Name(self.kind, &self.id).fmt(f)
    }
}

impl Section {
    /// The section of `value`, whose type has `version`.
    ///
    /// # Errors
    /// A value that postcard cannot hold; more than [`PAYLOAD_BYTES_MAX`]; an id over [`ID_BYTES_MAX`].
    pub fn of<T: Serialize>(kind: SectionKind, id: &str, version: u16, value: &T) -> Result<Self, SectionError> {
        let failed = |why: String| SectionError::Encode { section: Name(kind, id).to_string(), why };
        let payload = Encoded::of(version, value).map_err(|error| failed(error.to_string()))?;
        if payload.bytes.len() > PAYLOAD_BYTES_MAX as usize {
            return Err(failed(format!("it has {} bytes, more than {PAYLOAD_BYTES_MAX}", payload.bytes.len())));
        }
        if id.len() > ID_BYTES_MAX {
            return Err(failed(format!("an id of {} bytes, more than {ID_BYTES_MAX}", id.len())));
        }
        Ok(Self { kind, id: id.to_owned(), payload })
    }
}

impl Sections {
    /// Adds a section.
    ///
    /// # Errors
    /// There is one of this kind and id.
    pub fn insert(&mut self, section: Section) -> Result<(), SectionError> {
        let name = section.to_string();
        match self.0.insert((section.kind, section.id), section.payload) {
            None => Ok(()),
            Some(_) => Err(SectionError::Doubled { section: name }),
        }
    }

    /// As [`Self::take`], of a section that a machine need not have.
    ///
    /// # Errors
    /// As for [`Self::take`], but that it is missing.
    pub fn take_if_any<T: DeserializeOwned>(
        &mut self,
        kind: SectionKind,
        id: &str,
        version: u16,
    ) -> Result<Option<T>, SectionError> {
        self.version(kind, id).map(|_| self.take(kind, id, version)).transpose()
    }

    /// The version of a section that has not been taken.
    pub fn version(&self, kind: SectionKind, id: &str) -> Option<u16> {
        self.0.get(&(kind, id.to_owned())).map(|payload| payload.version)
    }

    /// The ids of the sections of a kind that have not been taken, sorted.
    pub fn ids(&self, kind: SectionKind) -> impl Iterator<Item = &str> {
        self.0.range((kind, String::new())..).take_while(move |(key, _)| key.0 == kind).map(|(key, _)| key.1.as_str())
    }

    /// Takes the value of a section, whose type has `version`. An older one is asked for by its own version and type.
    ///
    /// # Errors
    /// It is missing, of another version, not of the type, or has bytes left over.
    pub fn take<T: DeserializeOwned>(&mut self, kind: SectionKind, id: &str, version: u16) -> Result<T, SectionError> {
        let payload = self.0.remove(&(kind, id.to_owned()));
        let payload = payload.ok_or_else(|| SectionError::Missing { section: Name(kind, id).to_string() })?;
        payload.decode(version, &Name(kind, id))
    }

    /// The end of taking.
    ///
    /// # Errors
    /// A section that nobody took.
    pub fn finish(self) -> Result<(), SectionError> {
        match self.0.first_key_value() {
            None => Ok(()),
            Some(((kind, id), _)) => Err(SectionError::Untaken { section: Name(*kind, id).to_string() }),
        }
    }
}
