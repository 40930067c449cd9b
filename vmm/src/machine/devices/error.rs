//! Why devices cannot be made, or changed while they are in use.

use std::io;
use std::path::PathBuf;

use arch::Gsi;
use devices::backend::block::DiskImageError;
use devices::backend::net::TapError;
use devices::legacy::{I8042RestoreError, RtcRestoreError, SerialError, SerialRestoreError};
use devices::virtio::RestoreError;
use devices::virtio::blk::{ReplaceError, ResizeError};
use devices::virtio::transport::TransportError;
use thiserror::Error;

use crate::config::NetSource;

/// What keeps a device from being made or connected.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A disk cannot be opened.
    #[error("disk `{id}`")]
    Disk {
        /// The device.
        id: String,
        /// Why.
        source: DiskImageError,
    },
    /// A disk's host does not say whether it can be opened.
    #[error("disk `{id}`: cannot open {}: no answer within {seconds} s: check the server or device behind it", path.display())]
    Unanswered {
        /// The device.
        id: String,
        /// Its path.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// Its host is not asked.
    #[error("disk `{id}`: cannot open {}: {cause}", path.display())]
    Unasked {
        /// The device.
        id: String,
        /// Its path.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// Two disks are one file, and not only read.
    #[error("disks `{first}` and `{second}` are both {}: give each its own, or both ,ro", path.display())]
    SameDisk {
        /// A disk.
        first: String,
        /// Another.
        second: String,
        /// The other's path.
        path: PathBuf,
    },
    /// A network's tap cannot be used.
    #[error("network `{id}`")]
    Net {
        /// The device.
        id: String,
        /// Why.
        source: TapError,
    },
    /// A network's tap takes smaller packets than its guest would send.
    #[error("network `{id}`: mtu={mtu} is more than the {tap_mtu} of {tap}: give at most that, or set the tap's")]
    Mtu {
        /// The device.
        id: String,
        /// What was asked for, in bytes.
        mtu: u16,
        /// The tap.
        tap: NetSource,
        /// What it takes, in bytes.
        tap_mtu: u32,
    },
    /// The host gives no thread or descriptor.
    #[error("cannot create {what}")]
    Host {
        /// What was to be made.
        what: String,
        /// What the host said.
        source: io::Error,
    },
    /// The serial port cannot be made.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A virtio transport cannot be made.
    #[error("device `{id}`")]
    Transport {
        /// The device.
        id: String,
        /// Why.
        source: TransportError,
    },
    /// A device is not the one whose state there is.
    #[error("device `{id}` cannot go on from the snapshot")]
    Restore {
        /// The device.
        id: String,
        /// Why.
        source: RestoreError,
    },
    /// Nor is the serial port.
    #[error("the serial port cannot go on from the snapshot")]
    RestoreSerial(#[from] SerialRestoreError),
    /// Nor the keyboard controller.
    #[error("the keyboard controller cannot go on from the snapshot")]
    RestoreKeyboard(#[from] I8042RestoreError),
    /// Nor the clock.
    #[error("the CMOS clock cannot go on from the snapshot")]
    RestoreRtc(#[from] RtcRestoreError),
    /// A device without a state, or a state without a device.
    #[error("device `{id}` is {}", if *.here { "not in the snapshot" } else { "in the snapshot, and this machine has none of that name" })]
    Unmatched {
        /// The device.
        id: String,
        /// Whether it is this machine that has it.
        here: bool,
    },
    /// KVM does not bind an interrupt or a doorbell.
    #[error("cannot bind {what} ({gsi})")]
    Bind {
        /// What was to be bound.
        what: String,
        /// The interrupt of the device.
        gsi: Gsi,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// What cannot be done to a disk that is in use.
#[derive(Debug, Error)]
pub enum DiskChangeError {
    /// The machine has no such disk.
    #[error("there is no disk `{0}`")]
    Unknown(String),
    /// It cannot have that size.
    #[error("cannot resize disk `{id}`")]
    Resize {
        /// The disk.
        id: String,
        /// Why.
        source: ResizeError,
    },
    /// What was found of it is of the file that it had then.
    #[error("disk `{0}` was given another file meanwhile: try again")]
    Replaced(String),
    /// The other file is no disk.
    #[error("disk `{id}` keeps what it has")]
    Open {
        /// The disk.
        id: String,
        /// Why.
        source: DiskImageError,
    },
    /// The host gives no engine for the other file.
    #[error("disk `{id}` keeps what it has")]
    Engine {
        /// The disk.
        id: String,
        /// Why.
        source: Box<DeviceError>,
    },
    /// It cannot have the other file.
    #[error("disk `{id}` keeps what it has")]
    Replace {
        /// The disk.
        id: String,
        /// Why.
        source: ReplaceError,
    },
}
