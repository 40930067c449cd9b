//! `M.idx`, the index of the memory file M: which pages the file holds, and the hash of each chunk's.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `HUSKINDX` |
//! | 4 | format version, little-endian as all numbers here |
//! | 4 | flags: 1 where the point has a parent |
//! | 16 | the point's id |
//! | 16, 32 | the parent's id and the digest of its index; zero where there is none |
//! | 8 | bytes of memory |
//! | 8 | records |
//! | 104 each | chunk number, 512 bits of presence (bit 0 of byte 0 is the chunk's first page), BLAKE3 of the present pages, one after the other; ascending by number |
//! | 32 | BLAKE3 of all bytes before: the index's digest |

use std::fs::File;

use thiserror::Error;

use super::{CHUNK_PAGES, Digest, MEMORY_BYTES_MAX, PAGE_BYTES, PointId, folder};

/// The version of the file format that is written.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const MAGIC: &[u8; 8] = b"HUSKINDX";
const HAS_PARENT: u32 = 1;
const HEAD_BYTES: usize = 96;
const RECORD_BYTES: usize = 104;
const DIGEST_BYTES: usize = 32;
const NO_PARENT: Parent = Parent { id: PointId::from_bytes([0; 16]), index: Digest::from_bytes([0; 32]) };

/// The pages of one chunk that are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Presence([u64; 8]);

/// The pages of a chunk that a memory file holds, and their hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRecord {
    /// The chunk's number.
    pub chunk: u64,
    /// The pages.
    pub present: Presence,
    /// The digest of the present pages, one after the other.
    pub digest: Digest,
}

/// The point that another is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Its id.
    pub id: PointId,
    /// The digest of its index.
    pub index: Digest,
}

/// What a memory file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    id: PointId,
    parent: Option<Parent>,
    memory_bytes: u64,
    records: Vec<ChunkRecord>,
}

/// What is wrong with an index.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IndexError {
    /// Nobody's that is known.
    #[error("it is no index of husk's")]
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
        /// The bytes that its head says.
        want: u64,
    },
    /// Bytes that changed since they were written.
    #[error("its checksum does not match: the file is damaged")]
    Checksum,
    /// A memory that cannot be.
    #[error("it is of {bytes} bytes of memory, which cannot be")]
    Memory {
        /// Its length.
        bytes: u64,
    },
    /// A parent that cannot be.
    #[error("what it says of the point's parent cannot be")]
    Parent,
    /// Records that cannot be.
    #[error("its record {number} is out of order, empty, or behind the memory's end")]
    Record {
        /// Which.
        number: u64,
    },
}

impl Presence {
    /// No page.
    pub const NONE: Self = Self([0; 8]);

    /// Whether page `page` of the chunk is there.
    pub const fn contains(&self, page: u64) -> bool {
        let (word, bit) = place(page);
        self.0[word] & bit != 0
    }

    /// Adds page `page` of the chunk.
    pub const fn insert(&mut self, page: u64) {
        let (word, bit) = place(page);
        self.0[word] |= bit;
    }

    /// Removes page `page` of the chunk.
    pub const fn remove(&mut self, page: u64) {
        let (word, bit) = place(page);
        self.0[word] &= !bit;
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The pages of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// The pages that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// Runs of pages that are there, ascending: the first page in the chunk, and how many.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.next(from, true)?;
            let end = self.next(first, false).unwrap_or(CHUNK_PAGES);
            from = end;
            Some((first, end - first))
        })
    }

    /// The first page from `from` on that is there, or is not.
    fn next(&self, from: u64, there: bool) -> Option<u64> {
        let mut page = from;
        while page < CHUNK_PAGES {
            let (word, bit) = place(page);
            let word = if there { self.0[word] } else { !self.0[word] };
            let left = word & !(bit - 1);
            if left != 0 {
                return Some((page & !63) + u64::from(left.trailing_zeros()));
            }
            page = (page & !63) + 64;
        }
        None
    }
}

/// The word and the bit of a page.
const fn place(page: u64) -> (usize, u64) {
    assert!(page < CHUNK_PAGES, "a page of a chunk");
    ((page / 64) as usize, 1 << (page % 64))
}

impl Index {
    /// The index of a memory file.
    ///
    /// # Errors
    /// A memory, parent or records that cannot be.
    pub fn new(
        id: PointId,
        parent: Option<Parent>,
        memory_bytes: u64,
        records: Vec<ChunkRecord>,
    ) -> Result<Self, IndexError> {
        if memory_bytes == 0 || !memory_bytes.is_multiple_of(PAGE_BYTES) || memory_bytes > MEMORY_BYTES_MAX {
            return Err(IndexError::Memory { bytes: memory_bytes });
        }
        if parent.is_some_and(|parent| parent.id == id) {
            return Err(IndexError::Parent);
        }
        let pages = memory_bytes / PAGE_BYTES;
        let mut before = None;
        for (number, record) in (0..).zip(&records) {
            let ordered = before.is_none_or(|before| before < record.chunk);
            let end = record.present.runs().last().map(|(first, pages)| first + pages);
            let inside = end.is_some_and(|end| record.chunk <= pages && record.chunk * CHUNK_PAGES + end <= pages);
            if !ordered || !inside {
                return Err(IndexError::Record { number });
            }
            before = Some(record.chunk);
        }
        Ok(Self { id, parent, memory_bytes, records })
    }

    /// The point.
    pub const fn id(&self) -> PointId {
        self.id
    }

    /// The point that it is based on.
    pub const fn parent(&self) -> Option<Parent> {
        self.parent
    }

    /// Bytes of memory.
    pub const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The chunks of which the file holds pages, ascending.
    pub fn records(&self) -> &[ChunkRecord] {
        &self.records
    }

    /// What the file holds of a chunk.
    pub fn record(&self, chunk: u64) -> Option<&ChunkRecord> {
        self.records.binary_search_by_key(&chunk, |record| record.chunk).ok().map(|at| &self.records[at])
    }

    /// How many pages the file holds.
    pub fn pages(&self) -> u64 {
        self.records.iter().map(|record| record.present.count()).sum()
    }

    /// The index file, and its digest.
    pub fn encode(&self) -> (Vec<u8>, Digest) {
        let Self { id, parent, memory_bytes, records } = self;
        let mut file = Vec::with_capacity(HEAD_BYTES + records.len() * RECORD_BYTES + DIGEST_BYTES);
        let named = parent.unwrap_or(NO_PARENT);
        file.extend(MAGIC);
        file.extend(FORMAT_VERSION.to_le_bytes());
        file.extend(if parent.is_some() { HAS_PARENT } else { 0 }.to_le_bytes());
        file.extend(id.bytes());
        file.extend(named.id.bytes());
        file.extend(named.index.bytes());
        file.extend(memory_bytes.to_le_bytes());
        file.extend((records.len() as u64).to_le_bytes());
        for ChunkRecord { chunk, present, digest } in records {
            file.extend(chunk.to_le_bytes());
            present.0.iter().for_each(|word| file.extend(word.to_le_bytes()));
            file.extend(digest.bytes());
        }
        let digest = Digest::of(&file);
        file.extend(digest.bytes());
        (file, digest)
    }

    /// Reads an index file of a memory of `memory_bytes` bytes. The second is its digest.
    pub(super) fn read(file: &File, memory_bytes: u64) -> Result<Result<(Self, Digest), IndexError>, std::io::Error> {
        // No index of this memory has more: a longer file is not read.
        let chunks = memory_bytes.div_ceil(super::CHUNK_BYTES);
        let bytes_max = (HEAD_BYTES + DIGEST_BYTES) as u64 + chunks.saturating_mul(RECORD_BYTES as u64);
        folder::read_all(file, bytes_max).map(|bytes| Self::decode(&bytes))
    }

    /// Reads the bytes of an index file. The second is its digest.
    ///
    /// # Errors
    /// Bytes that are not an index as it was written.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Digest), IndexError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(IndexError::Foreign)?;
        let version = rest.first_chunk().map(|&bytes| u32::from_le_bytes(bytes));
        if let Some(found) = version.filter(|&version| version != FORMAT_VERSION) {
            return Err(IndexError::Version { found });
        }
        let found = bytes.len() as u64;
        if bytes.len() < HEAD_BYTES + DIGEST_BYTES {
            return Err(IndexError::Length { found, want: (HEAD_BYTES + DIGEST_BYTES) as u64 });
        }
        let flags = u32::from_le_bytes(array(bytes, 12));
        let id = PointId::from_bytes(array(bytes, 16));
        let parent = Parent { id: PointId::from_bytes(array(bytes, 32)), index: Digest::from_bytes(array(bytes, 48)) };
        let memory_bytes = u64::from_le_bytes(array(bytes, 80));
        let count = u64::from_le_bytes(array(bytes, 88));
        // The file's own length bounds what is allocated.
        let want =
            count.checked_mul(RECORD_BYTES as u64).and_then(|n| n.checked_add((HEAD_BYTES + DIGEST_BYTES) as u64));
        if want != Some(found) {
            return Err(IndexError::Length { found, want: want.unwrap_or(u64::MAX) });
        }
        let (body, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
        if Digest::of(body).bytes() != digest {
            return Err(IndexError::Checksum);
        }
        let records = body[HEAD_BYTES..].chunks_exact(RECORD_BYTES).map(record).collect();
        let parent = match flags {
            0 if parent == NO_PARENT => None,
            HAS_PARENT => Some(parent),
            _ => return Err(IndexError::Parent),
        };
        Ok((Self::new(id, parent, memory_bytes, records)?, Digest::from_bytes(array(digest, 0))))
    }
}

fn record(bytes: &[u8]) -> ChunkRecord {
    let word = |word| u64::from_le_bytes(array(bytes, 8 + 8 * word));
    let present = Presence(std::array::from_fn(word));
    ChunkRecord { chunk: u64::from_le_bytes(array(bytes, 0)), present, digest: Digest::from_bytes(array(bytes, 72)) }
}

/// The `N` bytes at `at`, which the caller knows to be there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}
