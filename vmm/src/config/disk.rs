//! How a disk is served: everything about it that a guest's data does not depend on.

use std::fmt;

pub use devices::backend::block::{BlockSize, CacheMode};
use devices::virtio::blk::{QUEUE_SIZE_DEFAULT, QUEUE_SIZE_MAX, QUEUE_SIZE_MIN, QUEUES_MAX, SERIAL_BYTES};

use super::tuning::{IoThreads, LimiterConfig, TuningError, validate_name, validate_poll};

/// The smallest physical block, in bytes: a sector.
pub(super) const PHYSICAL_BLOCK_MIN: u32 = 512;
/// The largest, in bytes: more than the erase blocks and stripes that there are.
pub(super) const PHYSICAL_BLOCK_MAX: u32 = 2 << 20;

/// How a disk is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskTuning {
    /// Who does its requests.
    pub engine: DiskEngine,
    /// How writes reach it, in place of [`CacheMode::Writeback`].
    pub cache: Option<CacheMode>,
    /// The logical block, in place of the backing's own.
    pub block: Option<BlockSize>,
    /// The physical block, in bytes, likewise: what the guest is told that writes had better be whole ones of.
    pub physical_block: Option<u32>,
    /// The serial number that the guest sees, in place of the id.
    pub serial: Option<String>,
    /// Number of queues.
    pub queues: usize,
    /// Entries of each.
    pub queue_size: u16,
    /// Where its queues are served.
    pub threads: IoThreads,
    /// How long these threads look for more work before they sleep, in microseconds.
    pub poll_us: u32,
    /// What it is held to.
    pub limits: LimiterConfig,
    /// The disks of the same name are held to their limits together.
    pub limit_group: Option<String>,
    /// What a file system or device without space for its writes means.
    pub on_enospc: OnEnospc,
}

/// What a file system or device without space for a disk's writes means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnEnospc {
    /// An I/O error for the guest.
    #[default]
    Report,
    /// The machine is paused, and tries again when it is resumed: the guest never hears of it.
    Stop,
}

/// Who does a disk's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskEngine {
    /// io_uring where the host has it, else system calls.
    Auto,
    /// io_uring; where the host does not have it, system calls and a line in the log.
    IoUring,
    /// System calls, each of which is waited for.
    Sync,
}

impl Default for DiskTuning {
    fn default() -> Self {
        Self {
            engine: DiskEngine::Auto,
            cache: None,
            block: None,
            physical_block: None,
            serial: None,
            queues: 1,
            queue_size: QUEUE_SIZE_DEFAULT,
            threads: IoThreads::Own(1),
            poll_us: 0,
            limits: LimiterConfig::default(),
            limit_group: None,
            on_enospc: OnEnospc::Report,
        }
    }
}

impl DiskTuning {
    pub(super) fn validate(&self) -> Result<(), TuningError> {
        let Self { queues, queue_size, poll_us, physical_block, .. } = *self;
        let is_block =
            |bytes: &u32| bytes.is_power_of_two() && (PHYSICAL_BLOCK_MIN..=PHYSICAL_BLOCK_MAX).contains(bytes);
        if let Some(bytes) = physical_block.filter(|bytes| !is_block(bytes)) {
            return Err(TuningError::PhysicalBlock(bytes));
        }
        if !(1..=QUEUES_MAX).contains(&queues) {
            return Err(TuningError::Queues(queues));
        }
        if !queue_size.is_power_of_two() || !(QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX).contains(&queue_size) {
            return Err(TuningError::QueueSize(queue_size));
        }
        self.threads.validate(queues)?;
        if let Some(name) = &self.limit_group {
            validate_name("limit_group", name)?;
        }
        let printable = |serial: &String| serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        match &self.serial {
            Some(serial) if serial.is_empty() || serial.len() > SERIAL_BYTES || !printable(serial) => {
                return Err(TuningError::Serial(serial.clone()));
            }
            _ => {}
        }
        validate_poll(poll_us)
    }
}

impl fmt::Display for DiskEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Sync => "sync",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::POLL_US_MAX;

    fn verdict(change: impl FnOnce(&mut DiskTuning)) -> Result<(), TuningError> {
        let mut tuning = DiskTuning::default();
        change(&mut tuning);
        tuning.validate()
    }

    #[test]
    fn numbers_are_within_their_limits() {
        assert_eq!(verdict(|_| {}), Ok(()));
        for (queues, fits) in [(0, false), (1, true), (64, true), (65, false), (usize::MAX, false)] {
            assert_eq!(verdict(|tuning| tuning.queues = queues).is_ok(), fits, "{queues}");
        }
        for (size, fits) in [(0, false), (2, false), (4, true), (6, false), (256, true), (1024, true), (2048, false)] {
            assert_eq!(verdict(|tuning| tuning.queue_size = size).is_ok(), fits, "{size}");
        }
        for (threads, fits) in [(0, false), (1, true), (2, false)] {
            assert_eq!(verdict(|tuning| tuning.threads = IoThreads::Own(threads)).is_ok(), fits, "{threads}");
        }
        for (bytes, fits) in [(0, false), (256, false), (512, true), (4097, false), (2 << 20, true), (4 << 20, false)] {
            assert_eq!(verdict(|tuning| tuning.physical_block = Some(bytes)).is_ok(), fits, "{bytes}");
        }
        assert_eq!(verdict(|tuning| tuning.poll_us = POLL_US_MAX), Ok(()));
        assert_eq!(verdict(|tuning| tuning.poll_us = 1001).unwrap_err().to_string(), "poll_us=1001: use at most 1000");
    }

    #[test]
    fn names_are_plain_and_serials_printable() {
        for (name, fits) in [("", false), ("a", true), ("a b", false), ("../x", false), ("io_1-b", true)] {
            assert_eq!(verdict(|tuning| tuning.threads = IoThreads::Shared(name.to_owned())).is_ok(), fits);
            assert_eq!(verdict(|tuning| tuning.limit_group = Some(name.to_owned())).is_ok(), fits);
        }
        for (serial, fits) in [("", false), ("QM 00001", true), ("é", false), ("123456789012345678901", false)] {
            assert_eq!(verdict(|tuning| tuning.serial = Some(serial.to_owned())).is_ok(), fits, "{serial}");
        }
    }
}
