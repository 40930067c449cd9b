//! What a virtio device saves, whichever it is, and why a state cannot be taken over.

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::DeviceType;
use super::balloon::BalloonState;
use super::blk::BlkState;
use super::features::FeatureSet;
use super::mem::MemoryState;
use super::net::{MAC_BYTES, NetState};
use super::queue::QueueConfigError;
use super::rng::RngState;
use crate::backend::block::DiskAccess;
use crate::limit::{LevelError, Limiter, LimiterState};

/// The state of a device itself, without that of its transport. A new kind goes to the end: kinds are saved by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A disk's.
    Block(BlkState),
    /// A network card's.
    Network(NetState),
    /// An entropy source's.
    Entropy(RngState),
    /// A balloon's.
    Balloon(BalloonState),
    /// A memory device's.
    Memory(MemoryState),
}

impl DeviceState {
    /// What kind of device it is of.
    pub fn device_type(&self) -> DeviceType {
        match self {
            Self::Block(_) => DeviceType::Block,
            Self::Network(_) => DeviceType::Network,
            Self::Entropy(_) => DeviceType::Entropy,
            Self::Balloon(_) => DeviceType::Balloon,
            Self::Memory(_) => DeviceType::Memory,
        }
    }
}

/// Why a virtio device cannot go on from a saved state.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// It is another kind of device's.
    #[error("the state is that of another kind of device: {saved:?}, and not {here:?}")]
    DeviceType {
        /// That of the state.
        saved: DeviceType,
        /// That of the device.
        here: DeviceType,
    },
    /// The driver relies on what is not there any more.
    #[error("the driver uses {missing}, which the device does not offer any more")]
    Features {
        /// What is missing.
        missing: FeatureSet,
    },
    /// The driver was told another number.
    #[error("the guest was told {what} {saved}, and here it is {here}")]
    Differs {
        /// Of what.
        what: &'static str,
        /// What it was told.
        saved: u64,
        /// What the device has.
        here: u64,
    },
    /// The file or device has been given another size.
    #[error("the disk had {saved} bytes when it was saved, and has {here} now")]
    DiskSize {
        /// Then, in bytes.
        saved: u64,
        /// Now, in bytes.
        here: u64,
    },
    /// The driver was told another access.
    #[error("the disk was {saved:?} when it was saved, and is {here:?} now")]
    DiskAccess {
        /// Then.
        saved: DiskAccess,
        /// Now.
        here: DiskAccess,
    },
    /// The driver was told another address.
    #[error("the guest was told {}, and here there is {}", address(.saved), address(.here))]
    Mac {
        /// What it was told.
        saved: Option<[u8; MAC_BYTES]>,
        /// What the device has.
        here: Option<[u8; MAC_BYTES]>,
    },
    /// The driver was told another serial number.
    #[error("the guest was told serial number `{}`, and here it is `{}`", .saved.escape_ascii(), .here.escape_ascii())]
    Serial {
        /// What it was told.
        saved: Vec<u8>,
        /// What the device has.
        here: Vec<u8>,
    },
    /// No device and driver come to it.
    #[error("no device comes to such a state: {0}")]
    Impossible(&'static str),
    /// A queue that the driver uses is none.
    #[error("the state has no queue that can be served")]
    Queue(#[source] QueueConfigError),
    /// The device's limits are where no limits come to.
    #[error("the state of the device's limits is none")]
    Limits(#[from] LevelError),
    /// The backend does not do what the driver had asked for.
    #[error("cannot set the backend up as it was")]
    Backend(#[source] io::Error),
}

impl RestoreError {
    /// `state` is not of a device of the type `here`.
    pub(super) fn of_another_kind(state: &DeviceState, here: DeviceType) -> Self {
        Self::DeviceType { saved: state.device_type(), here }
    }
}

/// A device's limits are as full as they were. Limits that it did not have, or has no more, are nobody's loss.
pub(super) fn restore_limits(limiter: Option<&Limiter>, state: Option<LimiterState>) -> Result<(), RestoreError> {
    if let (Some(limiter), Some(state)) = (limiter, state) {
        limiter.restore(state)?;
    }
    Ok(())
}

/// An error unless the driver was told what the device has.
pub(super) fn same(what: &'static str, saved: u64, here: u64) -> Result<(), RestoreError> {
    if saved == here { Ok(()) } else { Err(RestoreError::Differs { what, saved, here }) }
}

fn address(mac: &Option<[u8; MAC_BYTES]>) -> String {
    let hex = |mac: &[u8; MAC_BYTES]| mac.map(|byte| format!("{byte:02x}")).join(":");
    mac.as_ref().map_or_else(|| "no MAC address".to_owned(), |mac| format!("MAC address {}", hex(mac)))
}
