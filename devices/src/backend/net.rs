//! Where a guest's frames go to and come from.
//!
//! A backend is shared by the two workers of a pair of queues, one of which receives while the other transmits. It never
//! waits: what cannot be done now is `WouldBlock`, and a descriptor tells when it can.

#[cfg(any(test, feature = "testing"))]
mod fake;
mod name;
mod tap;

use std::io;
use std::os::fd::RawFd;

#[cfg(any(test, feature = "testing"))]
pub use fake::{FakeNet, NetFault, Wire};
pub use name::InterfaceName;
pub use tap::{Tap, TapError};

use crate::virtio::net::{ReceiveRoom, TransmitFrame};

/// What a receiver of frames does itself, so that a sender may leave it out (linux/if_tun.h, `TUN_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames may lack their checksum. All others require it.
    pub csum: bool,
    /// TCP over IPv4 may come in frames larger than the MTU.
    pub tso4: bool,
    /// TCP over IPv6 may come in frames larger than the MTU.
    pub tso6: bool,
    /// Such TCP frames may carry congestion notification.
    pub tso_ecn: bool,
    /// UDP, over IPv4 and IPv6 alike, may come in frames larger than the MTU.
    pub uso: bool,
}

impl Offloads {
    /// Every one that husk knows.
    pub const ALL: Self = Self { csum: true, tso4: true, tso6: true, tso_ecn: true, uso: true };

    /// Without those whose requirements are not there.
    #[must_use]
    pub fn consistent(self) -> Self {
        let Self { csum, tso4, tso6, tso_ecn, uso } = self;
        let tso_ecn = csum && (tso4 || tso6) && tso_ecn;
        Self { csum, tso4: csum && tso4, tso6: csum && tso6, tso_ecn, uso: csum && uso }
    }

    /// Whether frames may be larger than the MTU.
    #[must_use]
    pub fn makes_large_frames(self) -> bool {
        self.tso4 || self.tso6 || self.uso
    }
}

/// Where frames go to and come from, each with the header of virtio 1.3 §5.1.6 in front, its number of buffers left to
/// the device.
pub trait NetBackend: Send + Sync {
    /// What the sender of received frames can leave to the guest.
    fn offloads(&self) -> Offloads;

    /// Says what the sender of received frames leaves to the guest from now on.
    ///
    /// # Errors
    /// What the host said.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Takes part in what comes to an interface of several queues, as it does at first.
    ///
    /// # Errors
    /// What the host said.
    fn attach(&self) -> io::Result<()>;

    /// Takes no part: what comes goes to the interface's other queues, of which there must be one.
    ///
    /// # Errors
    /// What the host said.
    fn detach(&self) -> io::Result<()>;

    /// Reads the next frame. Returns its bytes, header included.
    ///
    /// # Errors
    /// `WouldBlock` if there is none, and EBADFD if there will be none any more. After anything else the frame may be lost,
    /// or still there.
    fn receive(&self, room: &mut ReceiveRoom) -> io::Result<usize>;

    /// Reads up to `count` frames by one call, of as many as the room has said. Returns how many it has something to tell of,
    /// or nothing if it cannot, for now or ever: [`Self::receive`] does it then.
    fn receive_several(&self, _room: &mut ReceiveRoom, _count: usize) -> Option<usize> {
        None
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room now, and nothing was sent; anything else means that this frame is lost.
    fn transmit(&self, frame: &mut TransmitFrame) -> io::Result<()>;

    /// Sends frames, at most 32, in this order, and passes on with each one's place what
    /// [`Self::transmit`] would have said. Those behind one that finds no room have none either.
    fn transmit_all(&self, frames: &mut [TransmitFrame], sent: &mut dyn FnMut(usize, io::Result<()>)) {
        transmit_in_turn(self, frames, sent);
    }

    /// Is readable while there is a frame.
    fn receive_fd(&self) -> RawFd;

    /// Is writable while there is room for a frame. Not the same number as the other.
    fn transmit_fd(&self) -> RawFd;
}

fn transmit_in_turn(
    backend: &(impl NetBackend + ?Sized),
    frames: &mut [TransmitFrame],
    sent: &mut dyn FnMut(usize, io::Result<()>),
) {
    let mut is_full = false;
    for (place, frame) in frames.iter_mut().enumerate() {
        let result = loop {
            if is_full {
                break Err(io::ErrorKind::WouldBlock.into());
            }
            match backend.transmit(frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        is_full = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        sent(place, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_without_what_they_require_are_left_out() {
        let none = Offloads::default();
        assert_eq!(Offloads { csum: false, ..Offloads::ALL }.consistent(), none);
        assert_eq!(Offloads::ALL.consistent(), Offloads::ALL);
        let csum = Offloads { csum: true, ..none };
        assert_eq!(Offloads { tso_ecn: true, ..csum }.consistent(), csum);
        let tso6 = Offloads { tso6: true, tso_ecn: true, ..csum };
        assert_eq!(tso6.consistent(), tso6);
        assert!(!csum.makes_large_frames() && tso6.makes_large_frames());
    }
}
