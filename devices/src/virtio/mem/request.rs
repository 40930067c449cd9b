//! Requests and their answers as they are in guest memory (virtio 1.3 §5.15.6).

use arch::GuestMemory;
use vm_memory::Bytes;

use super::blocks::BlockState;
use crate::virtio::queue::Segment;

/// `struct virtio_mem_req`: type, padding, then an address, a number of blocks and padding.
pub(super) const REQUEST_BYTES: usize = 24;
/// `struct virtio_mem_resp`: type, padding, then a state.
pub(super) const ANSWER_BYTES: usize = 10;

/// What a driver asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug { start: u64, count: u16 },
    Unplug { start: u64, count: u16 },
    UnplugAll,
    State { start: u64, count: u16 },
}

/// What it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done.
    Ack,
    /// It is, and this is what was asked for.
    State(BlockState),
    /// It would be more than the host asks for.
    Nack,
    /// Not now.
    Busy,
    /// It makes no sense.
    Error,
}

impl Request {
    /// `None` for bytes that are no request.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let start = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        let count = half(16);
        match half(0) {
            0 => Some(Self::Plug { start, count }),
            1 => Some(Self::Unplug { start, count }),
            2 => Some(Self::UnplugAll),
            3 => Some(Self::State { start, count }),
            _ => None,
        }
    }
}

impl Answer {
    pub(super) fn bytes(self) -> [u8; ANSWER_BYTES] {
        let (kind, state) = match self {
            Self::Ack => (0, 0),
            Self::State(state) => (0, state as u8),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        let mut bytes = [0; ANSWER_BYTES];
        (bytes[0], bytes[8]) = (kind, state);
        bytes
    }
}

/// Copies the start of what `readable` holds; `None` if that is less.
pub(super) fn read<const N: usize>(memory: &GuestMemory, readable: &[Segment]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut done = 0;
    for segment in readable {
        let here = (N - done).min(usize::try_from(segment.len()).expect("32 bits fit"));
        let slice = &mut bytes[done..done + here];
        memory.read_slice(slice, segment.address()).expect("the chain was checked to be in memory");
        done += here;
    }
    (done == N).then_some(bytes)
}

/// Writes `bytes` to the start of what is `writable`; false, with nothing written, if that is less.
pub(super) fn write(memory: &GuestMemory, writable: &[Segment], bytes: &[u8]) -> bool {
    let room: u64 = writable.iter().map(|segment| u64::from(segment.len())).sum();
    if room < u64::try_from(bytes.len()).expect("64 bits fit") {
        return false;
    }
    let mut rest = bytes;
    for segment in writable {
        let (here, later) = rest.split_at(rest.len().min(usize::try_from(segment.len()).expect("32 bits fit")));
        memory.write_slice(here, segment.address()).expect("the chain was checked to be in memory");
        rest = later;
    }
    true
}
