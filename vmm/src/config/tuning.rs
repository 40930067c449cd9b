//! How devices are served: what disks and networks have in common.

use std::net::IpAddr;

pub use devices::limit::{LimiterConfig, Limits, Rate};
use devices::virtio::blk::{QUEUE_SIZE_MAX, QUEUE_SIZE_MIN, QUEUES_MAX, SERIAL_BYTES};
use devices::virtio::net::{MTU_MIN, PAIRS_MAX};
use thiserror::Error;

use super::disk::{PHYSICAL_BLOCK_MAX, PHYSICAL_BLOCK_MIN};
use super::net::FILTER_ADDRESSES_MAX;
use super::{ID_LENGTH_MAX, is_plain_name};

/// The longest that an I/O thread looks for work before it sleeps, in microseconds: longer burns a CPU for nothing.
pub const POLL_US_MAX: u32 = 1000;

/// Where a device's queues are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoThreads {
    /// On so many threads of its own, the queues dealt out in turn.
    Own(usize),
    /// On a thread that it shares with the other devices that name it, all of which say how long it polls.
    Shared(String),
}

impl IoThreads {
    /// Those of a device of so many queues, or of pairs of them.
    pub(super) fn validate(&self, queues: usize) -> Result<(), TuningError> {
        match self {
            Self::Own(threads) if !(1..=queues).contains(threads) => {
                Err(TuningError::Threads { threads: *threads, queues })
            }
            Self::Own(_) => Ok(()),
            Self::Shared(name) => validate_name("iothread", name),
        }
    }
}

/// What is wrong with how a device is to be served.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum TuningError {
    /// None, or too many.
    #[error("queues={0}: use 1 to {QUEUES_MAX}")]
    Queues(usize),
    /// None, or too many, of a network.
    #[error("queues={0}: use 1 to {PAIRS_MAX}")]
    Pairs(usize),
    /// Not one for each descriptor.
    #[error("queues={queues}: there are {descriptors} descriptors: give one for each queue by fd=N,,N")]
    Descriptors {
        /// Queues.
        queues: usize,
        /// Descriptors.
        descriptors: usize,
    },
    /// No size that a queue has.
    #[error("queue_size={0}: use a power of two from {QUEUE_SIZE_MIN} to {QUEUE_SIZE_MAX}")]
    QueueSize(u16),
    /// A thread that would have nothing to do, or none at all.
    #[error("iothreads={threads}: use 1 to {queues}, its number of queues")]
    Threads {
        /// Threads.
        threads: usize,
        /// Queues.
        queues: usize,
    },
    /// No name for a thread or a group.
    #[error("{what}={name}: use 1 to {ID_LENGTH_MAX} letters, digits, `_` or `-`")]
    Name {
        /// Whose name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// No serial number.
    #[error("serial={0}: use 1 to {SERIAL_BYTES} printable ASCII characters")]
    Serial(String),
    /// No block.
    #[error("physical_block={0}: use a power of two from {PHYSICAL_BLOCK_MIN} to {PHYSICAL_BLOCK_MAX}")]
    PhysicalBlock(u32),
    /// Too long.
    #[error("poll_us={0}: use at most {POLL_US_MAX}")]
    Poll(u32),
    /// Two devices of a group say different things.
    #[error("limit_group={0}: its devices have different limits: give each the same")]
    GroupDiffers(String),
    /// Two devices of a thread say different things.
    #[error("iothread={0}: its devices have different poll_us: give each the same")]
    ThreadDiffers(String),
    /// No packet that is smaller than what IPv4 asks of every link.
    #[error("mtu={0}: use {MTU_MIN} to 65535")]
    Mtu(u16),
    /// A filter by an address that the guest chooses.
    #[error("filter={0}: there is no address to hold frames to: give mac=")]
    FilterWithoutMac(&'static str),
    /// No address to hold frames to, or too many.
    #[error("filter=mac+ip: {0} addresses: give 1 to {FILTER_ADDRESSES_MAX} by ip=")]
    FilterAddresses(usize),
    /// An address that is no station's.
    #[error("ip={0}: no frame comes from that address: give one of the guest's")]
    FilterAddress(IpAddr),
}

/// Devices that are held to their limits together have the same ones. `devices` are their limits and groups.
pub(super) fn validate_groups<'a>(
    devices: impl Iterator<Item = (LimiterConfig, Option<&'a str>)> + Clone,
) -> Result<(), TuningError> {
    differs(devices).map_or(Ok(()), |group| Err(TuningError::GroupDiffers(group.to_owned())))
}

/// A thread that devices share polls as each of them says. `devices` are their `poll_us` and where they are served.
pub(super) fn validate_shared_threads<'a>(
    devices: impl Iterator<Item = (u32, &'a IoThreads)> + Clone,
) -> Result<(), TuningError> {
    let named = devices.map(|(poll_us, threads)| match threads {
        IoThreads::Own(_) => (poll_us, None),
        IoThreads::Shared(name) => (poll_us, Some(name.as_str())),
    });
    differs(named).map_or(Ok(()), |thread| Err(TuningError::ThreadDiffers(thread.to_owned())))
}

/// The first name of which two devices say different things.
fn differs<'a, T: PartialEq>(devices: impl Iterator<Item = (T, Option<&'a str>)> + Clone) -> Option<&'a str> {
    let mut all = devices.clone();
    all.find_map(|(said, name)| {
        let name = name?;
        devices.clone().any(|(other, other_name)| other_name == Some(name) && other != said).then_some(name)
    })
}

pub(super) fn validate_poll(poll_us: u32) -> Result<(), TuningError> {
    if poll_us > POLL_US_MAX { Err(TuningError::Poll(poll_us)) } else { Ok(()) }
}

pub(super) fn validate_name(what: &'static str, name: &str) -> Result<(), TuningError> {
    if is_plain_name(name) { Ok(()) } else { Err(TuningError::Name { what, name: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_the_same_limits_everywhere() {
        let device = |group: Option<&'static str>, per_second| {
            let total = Limits { operations: Rate::per_second(per_second), bytes: None };
            (LimiterConfig { total, ..LimiterConfig::default() }, group)
        };
        let verdict = |devices: &[_]| validate_groups(devices.iter().copied());
        assert_eq!(
            verdict(&[device(Some("g"), 5), device(Some("g"), 5), device(None, 7), device(Some("h"), 9)]),
            Ok(())
        );
        let differ = verdict(&[device(Some("g"), 5), device(Some("g"), 6)]);
        assert_eq!(differ, Err(TuningError::GroupDiffers("g".to_owned())));
    }

    #[test]
    fn a_shared_thread_polls_as_each_of_its_devices_says() {
        let [own, shared, other] =
            [IoThreads::Own(1), IoThreads::Shared("io".to_owned()), IoThreads::Shared("other".to_owned())];
        let verdict = |devices: &[_]| validate_shared_threads(devices.iter().copied());
        assert_eq!(verdict(&[(50, &shared), (50, &shared), (7, &own), (9, &own), (0, &other)]), Ok(()));
        let differ = verdict(&[(0, &own), (0, &shared), (50, &shared)]).unwrap_err();
        assert_eq!(differ.to_string(), "iothread=io: its devices have different poll_us: give each the same");
    }
}
