//! A driver's request (virtio 1.3 §5.2.6): copied once, parsed, and only what was parsed goes on.

use arch::GuestMemory;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Address, GuestAddress};

use crate::backend::block::{DiskAccess, SECTOR_BYTES, Space};
use crate::limit::Flow;
use crate::virtio::abi::{BLK_ID_BYTES, BLK_RANGE_BYTES, blk_status};
use crate::virtio::buffers::read_at;
use crate::virtio::queue::{Chain, Segment};

/// Bytes of a disk's serial number.
pub const SERIAL_BYTES: usize = BLK_ID_BYTES;

/// Type, a reserved word, and the sector.
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const HEADER_LEN: u32 = 16;
/// The status is the last writable byte.
pub(super) const STATUS_LEN: u32 = 1;
pub(super) const SERIAL_LEN: u32 = VIRTIO_BLK_ID_BYTES;

/// Sectors of one discard: 1 GiB.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// Sectors of one write of zeroes: 64 MiB, since a host that knows no better way writes them all.
pub(super) const WRITE_ZEROES_SECTORS_MAX: u32 = 1 << 17;
/// Ranges of one request.
pub(super) const RANGES_MAX: u32 = 1;
const RANGE_LEN: u32 = 16;

/// The disk that a driver has before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    /// Its size now.
    pub(super) sectors: u64,
    /// Where transfers begin and end, in bytes; a power of two of at least [`SECTOR_BYTES`].
    pub(super) align: u64,
    pub(super) access: DiskAccess,
    /// What was negotiated.
    pub(super) features: u64,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Ok => blk_status::OK,
            Self::IoError => blk_status::IOERR,
            Self::Unsupported => blk_status::UNSUPP,
        }
    }
}

/// A request that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the first `len` writable bytes from byte `offset` of the disk, both inside it.
    Read { offset: u64, len: u32 },
    /// Write the `len` readable bytes behind the header to byte `offset` of the disk, both inside it.
    Write { offset: u64, len: u32 },
    /// Make all earlier writes durable.
    Flush,
    /// Give the space of `len` bytes from byte `offset` of the disk back, all inside it.
    Discard { offset: u64, len: u64 },
    /// Make `len` bytes from byte `offset` of the disk zero, all inside it.
    WriteZeroes { offset: u64, len: u64, space: Space },
    /// Write the serial number into the first writable bytes, where there is room for it.
    GetId,
}

impl Request {
    /// What of its disk's limits it takes.
    pub(super) fn share(&self) -> (Flow, u64) {
        match *self {
            Self::Read { len, .. } => (Flow::In, len.into()),
            Self::Write { len, .. } => (Flow::Out, len.into()),
            Self::GetId => (Flow::In, 0),
            // Where the host has no better way, all of it is written.
            Self::WriteZeroes { len, .. } => (Flow::Out, len),
            Self::Flush | Self::Discard { .. } => (Flow::Out, 0),
        }
    }
}

/// A request that cannot, with what the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: Status,
    pub(super) reason: &'static str,
}

const fn io_error(reason: &'static str) -> Refused {
    Refused { status: Status::IoError, reason }
}

const fn unsupported(reason: &'static str) -> Refused {
    Refused { status: Status::Unsupported, reason }
}

/// The most data of a read or write. One request is one operation, which pause, reset and the siblings on its I/O thread
/// wait for, and its descriptors may all name the same memory. Drivers ask for some MiB at most.
pub(super) const TRANSFER_BYTES_MAX: u32 = 64 << 20;

fn bounded(len: u32) -> Result<u64, Refused> {
    match len {
        0..=TRANSFER_BYTES_MAX => Ok(len.into()),
        _ => Err(io_error("transfer of more than 64 MiB")),
    }
}

/// Copies the header and checks it. `data_len` is what is writable before the status byte.
pub(super) fn parse(memory: &GuestMemory, chain: &Chain, data_len: u32, disk: &Disk) -> Result<Request, Refused> {
    let header = copy::<HEADER_BYTES>(memory, chain.readable(), 0).ok_or(io_error("request without a whole header"))?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            let offset = disk.locate(sector, bounded(data_len)?)?;
            Ok(Request::Read { offset, len: data_len })
        }
        VIRTIO_BLK_T_OUT => {
            disk.may_write()?;
            let len = chain.readable_len() - HEADER_LEN;
            let offset = disk.locate(sector, bounded(len)?)?;
            Ok(Request::Write { offset, len })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_DISCARD if disk.features & (1 << VIRTIO_BLK_F_DISCARD) != 0 => {
            let (offset, len, flags) = disk.range(memory, chain, DISCARD_SECTORS_MAX)?;
            match flags {
                0 => Ok(Request::Discard { offset, len }),
                // virtio 1.3 §5.2.6.2, also of the one flag that there is.
                _ => Err(unsupported("discard with a flag")),
            }
        }
        VIRTIO_BLK_T_WRITE_ZEROES if disk.features & (1 << VIRTIO_BLK_F_WRITE_ZEROES) != 0 => {
            let (offset, len, flags) = disk.range(memory, chain, WRITE_ZEROES_SECTORS_MAX)?;
            match flags {
                0 => Ok(Request::WriteZeroes { offset, len, space: Space::Keep }),
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Ok(Request::WriteZeroes { offset, len, space: Space::MayFree }),
                _ => Err(unsupported("write of zeroes with an unknown flag")),
            }
        }
        VIRTIO_BLK_T_GET_ID if data_len >= SERIAL_LEN => Ok(Request::GetId),
        VIRTIO_BLK_T_GET_ID => Err(io_error("no room for the serial number")),
        _ => Err(unsupported("unknown request type")),
    }
}

impl Disk {
    /// virtio 1.3 §5.2.6.2.
    fn may_write(&self) -> Result<(), Refused> {
        match self.access {
            DiskAccess::ReadOnly => Err(io_error("write to a read-only disk")),
            DiskAccess::ReadWrite => Ok(()),
        }
    }

    /// Where on the disk a transfer of `len` bytes begins, in bytes, if all of it is on the disk.
    fn locate(&self, sector: u64, len: u64) -> Result<u64, Refused> {
        if len == 0 || !len.is_multiple_of(SECTOR_BYTES) {
            return Err(io_error("transfer of no whole sectors"));
        }
        match sector.checked_add(len / SECTOR_BYTES) {
            Some(end) if end <= self.sectors => {}
            _ => return Err(io_error("transfer beyond the end of the disk")),
        }
        // A sector that is on the disk has an offset that fits.
        let offset = sector * SECTOR_BYTES;
        if (offset | len) & (self.align - 1) != 0 {
            return Err(io_error("transfer of no whole blocks"));
        }
        Ok(offset)
    }

    /// Copies the one range of a discard or a write of zeroes: offset and length in bytes, and the flags.
    fn range(&self, memory: &GuestMemory, chain: &Chain, sectors_max: u32) -> Result<(u64, u64, u32), Refused> {
        self.may_write()?;
        if chain.readable_len() != HEADER_LEN + RANGES_MAX * RANGE_LEN {
            return Err(io_error("discard or write of zeroes with other than one range"));
        }
        let range = copy::<BLK_RANGE_BYTES>(memory, chain.readable(), HEADER_LEN);
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range.ok_or(io_error("no whole range"))?;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        if sectors > sectors_max {
            return Err(io_error("range larger than the device's limit"));
        }
        let len = u64::from(sectors) * SECTOR_BYTES;
        Ok((self.locate(sector, len)?, len, u32::from_le_bytes(flags)))
    }
}

/// Copies `N` bytes from byte `skip` on. They may be in any number of pieces (virtio 1.3 §2.7.4.1).
fn copy<const N: usize>(memory: &GuestMemory, readable: &[Segment], skip: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut rest = &mut bytes[..];
    let mut skip = skip;
    for segment in readable {
        let Some(part) = segment.part(skip, u32::try_from(rest.len()).ok()?) else {
            skip -= segment.len();
            continue;
        };
        skip = 0;
        let (here, later) = rest.split_at_mut(usize::try_from(part.len()).ok()?);
        read_at(memory, part.address(), here);
        rest = later;
        if rest.is_empty() {
            return Some(bytes);
        }
    }
    None
}

/// Where the status byte of a chain goes. None if nothing is writable, and the request cannot be answered.
pub(super) fn status_address(chain: &Chain) -> Option<GuestAddress> {
    let last = chain.writable().last()?;
    Some(last.address().unchecked_add(u64::from(last.len() - STATUS_LEN)))
}
