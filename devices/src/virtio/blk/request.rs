//! A driver's request (virtio 1.3 §5.2.6): copied once, parsed, and only what was parsed goes on.

use arch::GuestMemory;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::backend::block::{DiskAccess, DiskGeometry, SECTOR_BYTES};
use crate::virtio::abi::{BLK_ID_BYTES, blk_status};
use crate::virtio::queue::{Chain, Segment};

/// Bytes of a disk's serial number.
pub const SERIAL_BYTES: usize = BLK_ID_BYTES;

/// Type, a reserved word, and the sector.
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const HEADER_LEN: u32 = 16;
/// The status is the last writable byte.
pub(super) const STATUS_LEN: u32 = 1;
pub(super) const SERIAL_LEN: u32 = VIRTIO_BLK_ID_BYTES;

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
    /// Write the serial number into the first writable bytes, where there is room for it.
    GetId,
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

/// Copies the header and checks it. `data_len` is what is writable before the status byte.
pub(super) fn parse(
    memory: &GuestMemory,
    chain: &Chain,
    data_len: u32,
    geometry: DiskGeometry,
) -> Result<Request, Refused> {
    let header = copy_header(memory, chain.readable()).ok_or(io_error("request without a whole header"))?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            let offset = locate(sector, data_len, geometry)?;
            Ok(Request::Read { offset, len: data_len })
        }
        VIRTIO_BLK_T_OUT if geometry.access == DiskAccess::ReadOnly => {
            // virtio 1.3 §5.2.6.2.
            Err(io_error("write to a read-only disk"))
        }
        VIRTIO_BLK_T_OUT => {
            let len = chain.readable_len() - HEADER_LEN;
            let offset = locate(sector, len, geometry)?;
            Ok(Request::Write { offset, len })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if data_len >= SERIAL_LEN => Ok(Request::GetId),
        VIRTIO_BLK_T_GET_ID => Err(io_error("no room for the serial number")),
        _ => Err(Refused { status: Status::Unsupported, reason: "unknown request type" }),
    }
}

/// Where on the disk a transfer begins, in bytes, if all of it is on the disk.
fn locate(sector: u64, len: u32, geometry: DiskGeometry) -> Result<u64, Refused> {
    let len = u64::from(len);
    if len == 0 || !len.is_multiple_of(SECTOR_BYTES) {
        return Err(io_error("transfer of no whole sectors"));
    }
    match sector.checked_add(len / SECTOR_BYTES) {
        // A sector that is on the disk has an offset that fits.
        Some(end) if end <= geometry.sectors => Ok(sector * SECTOR_BYTES),
        _ => Err(io_error("transfer beyond the end of the disk")),
    }
}

/// The header may be in any number of pieces (virtio 1.3 §2.7.4.1).
fn copy_header(memory: &GuestMemory, readable: &[Segment]) -> Option<[u8; HEADER_BYTES]> {
    let mut header = [0; HEADER_BYTES];
    let mut rest = &mut header[..];
    for segment in readable {
        let len = rest.len().min(usize::try_from(segment.len()).ok()?);
        let (here, later) = rest.split_at_mut(len);
        memory.read_slice(here, segment.address()).ok()?;
        rest = later;
        if rest.is_empty() {
            return Some(header);
        }
    }
    None
}

/// Where the status byte of a chain goes. None if nothing is writable, and the request cannot be answered.
pub(super) fn status_address(chain: &Chain) -> Option<GuestAddress> {
    let last = chain.writable().last()?;
    Some(last.address().unchecked_add(u64::from(last.len() - STATUS_LEN)))
}
