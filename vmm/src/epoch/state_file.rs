//! The state file.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `HUSKSTAT` |
//! | 4 | format version, little-endian as all numbers here |
//! | 4 | bytes of the head |
//! | 32 | BLAKE3 of the 16 bytes above and of the head |
//! | head | [`StateHeader`], then the table: kind, id, version, bytes and BLAKE3 of each section (postcard) |
//! | rest | the sections' payloads, back to back in the table's order |
//!
//! So every byte is under a checksum, the header is read without the payloads, and a payload of another file is not taken
//! for this one's.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::folder::{self, Folder};
use super::section::{Encoded, ID_BYTES_MAX, PAYLOAD_BYTES_MAX, SECTIONS_MAX};
use super::{
    Digest, FileError, MEMORY_BYTES_MAX, PAGE_BYTES, PointId, Section, SectionError, SectionHead, SectionKind, Sections,
};

/// Bytes of a state file: one of 254 vCPUs has some 3 MiB.
pub const STATE_BYTES_MAX: u64 = 64 << 20;
/// Pages of the sample.
pub const SAMPLE_PAGES_MAX: usize = 64;
/// The version of the file format that is written.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const MAGIC: &[u8; 8] = b"HUSKSTAT";
const PREFIX_BYTES: usize = 48;
const HEAD_BYTES_MAX: usize = 1 << 20;
const HUSK_VERSION_BYTES_MAX: usize = 64;
const CPU_BYTES_MAX: usize = 64 << 10;
/// A Firecracker state file starts with a 64-bit magic number whose low 16 bits were once a version, encoded by a library that
/// may put a few bytes before it: x86-64's 0x0710_1984_8664_0000 and aarch64's 0x0710_1984_AAAA_0000, little-endian.
const FIRECRACKER_MAGICS: [[u8; 6]; 2] = [[0x64, 0x86, 0x84, 0x19, 0x10, 0x07], [0xaa, 0xaa, 0x84, 0x19, 0x10, 0x07]];
const FIRECRACKER_MAGIC_WITHIN_BYTES: usize = 32;

/// What a point is: all that is known of it without its sections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHeader {
    /// The point.
    pub id: PointId,
    /// The point it is based on, if it is not a full one.
    pub parent: Option<PointId>,
    /// The husk that wrote it.
    pub husk_version: String,
    /// When the machine was held for it, in ms of Unix time.
    pub created_ms: u64,
    /// The CPU that it ran on, as `arch` describes one.
    pub cpu: Encoded,
    /// The digest of its configuration.
    pub config: Digest,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// The digest of the index of its memory file.
    pub index: Digest,
    /// Some pages that are not zero, ascending: what a copy of the memory file is known by that brought no index.
    pub sample: Vec<SamplePage>,
}

/// A page of the sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplePage {
    /// Its number.
    pub page: u64,
    /// The digest of what it holds.
    pub digest: Digest,
}

/// A state file that was read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFile {
    /// Its header.
    pub header: StateHeader,
    /// Its sections.
    pub sections: Sections,
}

/// What is wrong with a state.
#[derive(Debug, Error)]
pub enum StateError {
    /// The file, not what is in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is in a file.
    #[error("state file {}", path.display())]
    In {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<StateError>,
    },
    /// Firecracker's.
    #[error("it is a snapshot of Firecracker's, whose format is its own: take the snapshot with husk")]
    Firecracker,
    /// Nobody's that is known.
    #[error("it is no state file of husk's")]
    Foreign,
    /// Of a husk that is newer than this.
    #[error("it has format version {found}, this husk reads version {FORMAT_VERSION}")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// A file that ends too soon, or too late.
    #[error("it has {found} bytes and should have {want}")]
    Length {
        /// The bytes that are there.
        found: u64,
        /// The bytes that its header says.
        want: u64,
    },
    /// Bytes that changed since they were written.
    #[error("the checksum of its {what} does not match: the file is damaged")]
    Checksum {
        /// Of what.
        what: String,
    },
    /// More of something than there can be.
    #[error("its {what}: {found}, more than {max}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much or many.
        found: u64,
        /// The most there can be.
        max: u64,
    },
    /// A header that says what cannot be.
    #[error("its header cannot be: {why}")]
    Header {
        /// Why.
        why: String,
    },
    /// A section of a kind that this husk does not know.
    #[error("its section `{id}` is of kind {kind}, which this husk does not know")]
    UnknownKind {
        /// The kind's number.
        kind: u16,
        /// The section's id.
        id: String,
    },
    /// Sections that are not a state.
    #[error(transparent)]
    Section(#[from] SectionError),
}

#[derive(Serialize, Deserialize)]
struct Head {
    header: StateHeader,
    table: Vec<Row>,
}

/// A section in the table as it is on disk.
#[derive(Serialize, Deserialize)]
struct Row {
    kind: u16,
    id: String,
    version: u16,
    bytes: u32,
    digest: Digest,
}

impl StateHeader {
    /// Reads a state file's header and table; the payloads are not read, and so not checked.
    ///
    /// # Errors
    /// A file that cannot be read, or whose head is not a state file's.
    pub fn read(path: &Path) -> Result<(Self, Vec<SectionHead>), StateError> {
        Source::open(path)?.within(Source::head)
    }

    /// As [`StateHeader::read`], from bytes.
    ///
    /// # Errors
    /// Bytes that are not a state file's.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Vec<SectionHead>), StateError> {
        let prefix = bytes.get(..PREFIX_BYTES).unwrap_or(bytes);
        let head_bytes = check_prefix(prefix, bytes.len() as u64)?;
        decode_head(prefix, &bytes[PREFIX_BYTES..PREFIX_BYTES + head_bytes], bytes.len() as u64)
    }

    fn check(&self) -> Result<(), StateError> {
        let limit = |what, found: usize, max: usize| {
            if found > max { Err(too_large(what, found as u64, max as u64)) } else { Ok(()) }
        };
        let wrong = |why: String| Err(StateError::Header { why });
        limit("bytes of husk's version", self.husk_version.len(), HUSK_VERSION_BYTES_MAX)?;
        limit("bytes of the CPU's description", self.cpu.bytes().len(), CPU_BYTES_MAX)?;
        limit("pages of the sample", self.sample.len(), SAMPLE_PAGES_MAX)?;
        if self.memory_bytes == 0
            || !self.memory_bytes.is_multiple_of(PAGE_BYTES)
            || self.memory_bytes > MEMORY_BYTES_MAX
        {
            return wrong(format!("{} bytes of memory", self.memory_bytes));
        }
        if self.parent == Some(self.id) {
            return wrong(format!("point {} is its own parent", self.id));
        }
        let pages = self.memory_bytes / PAGE_BYTES;
        if !self.sample.is_sorted_by(|a, b| a.page < b.page)
            || self.sample.last().is_some_and(|last| last.page >= pages)
        {
            return wrong("the pages of its sample are out of order, or behind the memory's end".to_owned());
        }
        Ok(())
    }
}

impl StateFile {
    /// The file of `header` and `sections`.
    ///
    /// # Errors
    /// More than a state file can hold, or a section twice.
    pub fn encode(header: &StateHeader, sections: &[Section]) -> Result<Vec<u8>, StateError> {
        let row = |section: &Section| {
            let bytes = section.payload.bytes();
            Ok(Row {
                kind: section.kind.number(),
                id: section.id.clone(),
                version: section.payload.version,
                bytes: u32::try_from(bytes.len())
                    .map_err(|_| too_large("bytes of a section", bytes.len() as u64, PAYLOAD_BYTES_MAX.into()))?,
                digest: Digest::of(bytes),
            })
        };
        let table = sections.iter().map(row).collect::<Result<_, StateError>>()?;
        let head = Head { header: header.clone(), table };
        let head = postcard::to_allocvec(&head).map_err(|error| StateError::Header { why: error.to_string() })?;
        let mut file = MAGIC.to_vec();
        file.extend(FORMAT_VERSION.to_le_bytes());
        file.extend(
            u32::try_from(head.len())
                .map_err(|_| too_large("bytes of the head", head.len() as u64, HEAD_BYTES_MAX as u64))?
                .to_le_bytes(),
        );
        let digest = head_digest(&file, &head);
        file.extend(digest.bytes());
        file.extend(&head);
        sections.iter().for_each(|section| file.extend(section.payload.bytes()));
        // What is written is what will be read: the same limits hold.
        let (_, table) = StateHeader::decode(&file)?;
        no_doubles(&table)?;
        Ok(file)
    }

    /// Reads the state file at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a state file as it was written.
    pub fn read(path: &Path) -> Result<Self, StateError> {
        Source::open(path)?.within(|source| {
            let file = folder::read_all(&source.file, STATE_BYTES_MAX);
            Self::decode(&file.map_err(|error| source.failed(error))?)
        })
    }

    /// As [`StateFile::read`], from bytes.
    ///
    /// # Errors
    /// Bytes that are not a state file as it was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let (header, table) = StateHeader::decode(bytes)?;
        let payload_bytes: u64 = table.iter().map(|row| u64::from(row.bytes)).sum();
        // The head's check holds: the payloads are what the file ends with.
        let mut rest = &bytes[bytes.len() - usize::try_from(payload_bytes).expect("no more than the slice's length")..];
        let mut sections = Sections::default();
        for SectionHead { kind, id, version, bytes, digest } in table {
            let payload;
            (payload, rest) = rest.split_at(bytes as usize);
            if Digest::of(payload) != digest {
                return Err(StateError::Checksum { what: format!("section {kind} `{id}`") });
            }
            sections.insert(Section { kind, id, payload: Encoded::from_bytes(version, payload.to_vec()) })?;
        }
        Ok(Self { header, sections })
    }
}

/// An open state file.
struct Source {
    file: std::fs::File,
    path: PathBuf,
}

impl Source {
    fn open(path: &Path) -> Result<Self, StateError> {
        let (folder, name) = Folder::around(path)?;
        Ok(Self { file: folder.read(&name)?, path: path.to_owned() })
    }

    /// Says in which file `work` found what it found.
    fn within<T>(&self, work: impl FnOnce(&Self) -> Result<T, StateError>) -> Result<T, StateError> {
        work(self).map_err(|error| match error {
            error @ StateError::File(_) => error,
            source => StateError::In { path: self.path.clone(), source: Box::new(source) },
        })
    }

    fn head(&self) -> Result<(StateHeader, Vec<SectionHead>), StateError> {
        let len = self.file.metadata().map_err(|error| self.failed(error))?.len();
        let mut prefix = [0; PREFIX_BYTES];
        let there = PREFIX_BYTES.min(usize::try_from(len).unwrap_or(usize::MAX));
        self.read(&mut prefix[..there], 0)?;
        let mut head = vec![0; check_prefix(&prefix[..there], len)?];
        self.read(&mut head, PREFIX_BYTES as u64)?;
        decode_head(&prefix, &head, len)
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), StateError> {
        self.file.read_exact_at(bytes, offset).map_err(|error| self.failed(error))
    }

    fn failed(&self, source: io::Error) -> StateError {
        FileError { attempt: "read", path: self.path.clone(), source }.into()
    }
}

/// The bytes of the head, which are in the file of `len` bytes whose first are `prefix`.
fn check_prefix(prefix: &[u8], len: u64) -> Result<usize, StateError> {
    let start = &prefix[..prefix.len().min(FIRECRACKER_MAGIC_WITHIN_BYTES)];
    if start.windows(6).any(|window| FIRECRACKER_MAGICS.iter().any(|magic| magic == window)) {
        return Err(StateError::Firecracker);
    }
    let Some(rest) = prefix.strip_prefix(MAGIC) else { return Err(StateError::Foreign) };
    let number = |at: usize| rest.get(at..at + 4).map(|bytes| bytes.iter().rfold(0, |n, &b| n << 8 | u32::from(b)));
    if let Some(found) = number(0).filter(|&version| version != FORMAT_VERSION) {
        return Err(StateError::Version { found });
    }
    let head_bytes = number(4).unwrap_or(0) as usize;
    if head_bytes > HEAD_BYTES_MAX {
        return Err(too_large("bytes of the head", head_bytes as u64, HEAD_BYTES_MAX as u64));
    }
    if len > STATE_BYTES_MAX {
        return Err(too_large("bytes", len, STATE_BYTES_MAX));
    }
    let want = (PREFIX_BYTES + head_bytes) as u64;
    if len < want { Err(StateError::Length { found: len, want }) } else { Ok(head_bytes) }
}

/// The head of a file of `len` bytes.
fn decode_head(prefix: &[u8], head: &[u8], len: u64) -> Result<(StateHeader, Vec<SectionHead>), StateError> {
    let (numbers, digest) = prefix.split_at(16);
    if head_digest(numbers, head).bytes() != digest {
        return Err(StateError::Checksum { what: "header".to_owned() });
    }
    let decoded = postcard::take_from_bytes(head).map_err(|error| StateError::Header { why: error.to_string() })?;
    let (Head { header, table }, []) = decoded else {
        return Err(StateError::Header { why: "bytes are left over".to_owned() });
    };
    header.check()?;
    if table.len() > SECTIONS_MAX {
        return Err(too_large("sections", table.len() as u64, SECTIONS_MAX as u64));
    }
    let table = table.into_iter().map(section_head).collect::<Result<Vec<_>, _>>()?;
    let payloads: u64 = table.iter().map(|row| u64::from(row.bytes)).sum();
    let want = (PREFIX_BYTES + head.len()) as u64 + payloads;
    if len != want { Err(StateError::Length { found: len, want }) } else { Ok((header, table)) }
}

fn section_head(row: Row) -> Result<SectionHead, StateError> {
    let Row { kind, id, version, bytes, digest } = row;
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(too_large("bytes of a section", bytes.into(), PAYLOAD_BYTES_MAX.into()));
    }
    if id.len() > ID_BYTES_MAX {
        return Err(too_large("bytes of a section's id", id.len() as u64, ID_BYTES_MAX as u64));
    }
    match SectionKind::from_number(kind) {
        Some(kind) => Ok(SectionHead { kind, id, version, bytes, digest }),
        None => Err(StateError::UnknownKind { kind, id }),
    }
}

fn no_doubles(table: &[SectionHead]) -> Result<(), SectionError> {
    let mut seen = std::collections::BTreeSet::new();
    match table.iter().find(|row| !seen.insert((row.kind, &row.id))) {
        None => Ok(()),
        Some(row) => Err(SectionError::Doubled { section: row.to_string() }),
    }
}

const fn too_large(what: &'static str, found: u64, max: u64) -> StateError {
    StateError::TooLarge { what, found, max }
}

fn head_digest(numbers: &[u8], head: &[u8]) -> Digest {
    Digest::from(&*blake3::Hasher::new().update(numbers).update(head))
}
