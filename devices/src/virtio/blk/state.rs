//! What a disk saves. Requests are not in it: a stopped disk has none in flight, and what it keeps for want of space is in
//! its queue.

use serde::{Deserialize, Serialize};

use super::{Blk, SERIAL_BYTES};
use crate::backend::block::{DiskAccess, SECTOR_BYTES};
use crate::limit::LimiterState;
use crate::state::SaveState;
use crate::virtio::RestoreError;
use crate::virtio::state::{restore_limits, same};
use crate::virtio::voice::News;

/// What a disk saves: what its driver knows of it, and how full its limits are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    pub(crate) sectors: u64,
    /// Those of the file or device, of which the disk may have fewer.
    pub(crate) backing_sectors: u64,
    pub(crate) logical_block_bytes: u32,
    pub(crate) transfer_align_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) serial: [u8; SERIAL_BYTES],
    pub(crate) news: News,
    pub(crate) limiter: Option<LimiterState>,
}

impl SaveState for Blk {
    type State = BlkState;
    type Error = RestoreError;

    fn save(&self) -> BlkState {
        let Self { name, log: _, identity: _, config: _, limiter, shared, queues: _ } = self;
        let geometry = shared.geometry();
        BlkState {
            sectors: shared.sectors(),
            backing_sectors: shared.backing_sectors(),
            logical_block_bytes: geometry.logical_block_bytes,
            transfer_align_bytes: geometry.transfer_align(),
            read_only: geometry.access == DiskAccess::ReadOnly,
            serial: name.serial,
            news: shared.news(),
            limiter: limiter.as_ref().map(|limiter| limiter.save()),
        }
    }

    fn restore(&mut self, state: BlkState) -> Result<(), RestoreError> {
        let BlkState {
            sectors,
            backing_sectors,
            logical_block_bytes,
            transfer_align_bytes,
            read_only,
            serial,
            news,
            limiter,
        } = state;
        let geometry = self.shared.geometry();
        let here = self.shared.backing_sectors();
        if backing_sectors != here {
            let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
            return Err(RestoreError::DiskSize { saved: bytes(backing_sectors), here: bytes(here) });
        }
        let access = if read_only { DiskAccess::ReadOnly } else { DiskAccess::ReadWrite };
        if access != geometry.access {
            return Err(RestoreError::DiskAccess { saved: access, here: geometry.access });
        }
        same("a logical block, in bytes, of", logical_block_bytes.into(), geometry.logical_block_bytes.into())?;
        same("an alignment of requests, in bytes, of", transfer_align_bytes, geometry.transfer_align())?;
        if serial != self.name.serial {
            return Err(RestoreError::Serial { saved: serial.to_vec(), here: self.name.serial.to_vec() });
        }
        let block_sectors = u64::from(logical_block_bytes) / SECTOR_BYTES;
        if !(1..=backing_sectors).contains(&sectors) || !sectors.is_multiple_of(block_sectors) {
            return Err(RestoreError::Impossible("a disk of no block, or of a part of one, or beyond its backing"));
        }
        restore_limits(self.limiter.as_deref(), limiter)?;
        self.shared.inherit(sectors, news);
        Ok(())
    }
}
