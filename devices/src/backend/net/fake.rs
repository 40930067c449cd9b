//! A backend for tests: frames go to a [`Wire`] that the test holds, and it fails when told to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{NetBackend, Offloads};
use crate::backend::burst::LazyBurst;
use crate::bus::lock;
use crate::testing::DEADLINE;
use crate::virtio::net::{ReceiveRoom, TransmitFrame};

/// How the backend misbehaves, from when it is set until it is cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetFault {
    /// The error that every receive gives, by number. As with a tap it takes a frame with it, unless the interface is gone
    /// (EBADFD) or the host cannot read now (ENOBUFS).
    pub receive: Option<i32>,
    /// The error that every transmit gives, by number.
    pub transmit: Option<i32>,
    /// The error that every change of offloads gives, by number.
    pub offloads: Option<i32>,
    /// The error that attaching gives, by number.
    pub attach: Option<i32>,
}

/// A backend whose frames go over a pair of sockets.
pub struct FakeNet {
    socket: UnixDatagram,
    transmit: UnixDatagram,
    burst: Mutex<LazyBurst>,
    able: Offloads,
    shared: Arc<Shared>,
}

/// The other end, in the hands of a test. Headers are part of frames here.
pub struct Wire {
    socket: UnixDatagram,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    fault: Mutex<NetFault>,
    offloads: Mutex<Offloads>,
    detached: AtomicBool,
    /// Calls for several frames.
    several: AtomicUsize,
}

impl FakeNet {
    /// A backend that can do `able`, and its other end.
    ///
    /// # Panics
    /// If no sockets can be had.
    pub fn new(able: Offloads) -> (Self, Wire) {
        let (ours, wire) = UnixDatagram::pair().expect("a test has sockets");
        ours.set_nonblocking(true).expect("a socket can be made so");
        wire.set_read_timeout(Some(DEADLINE)).expect("a socket takes a deadline");
        wire.set_write_timeout(Some(DEADLINE)).expect("a socket takes a deadline");
        let transmit = ours.try_clone().expect("a test has descriptors");
        let shared = Arc::<Shared>::default();
        let wire = Wire { socket: wire, shared: Arc::clone(&shared) };
        (Self { socket: ours, transmit, burst: Mutex::default(), able, shared }, wire)
    }
}

impl Wire {
    /// Puts a frame on the wire, header included.
    ///
    /// # Panics
    /// If nobody takes frames off it for too long.
    pub fn send(&self, frame: &[u8]) {
        self.socket.send(frame).expect("the device takes frames in time");
    }

    /// Puts a frame on the wire, header included, if there is room. Whether there was.
    ///
    /// # Panics
    /// If the socket fails.
    pub fn try_send(&self, frame: &[u8]) -> bool {
        self.socket.set_nonblocking(true).expect("a socket can be made so");
        let sent = self.socket.send(frame).is_ok();
        self.socket.set_nonblocking(false).expect("a socket can be made so");
        sent
    }

    /// Takes the next frame off the wire, header included.
    ///
    /// # Panics
    /// If none comes in time.
    pub fn receive(&self) -> Vec<u8> {
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame).expect("a frame comes in time");
        frame.truncate(len);
        frame
    }

    /// Takes a frame off the wire if one is there.
    ///
    /// # Panics
    /// If the socket fails.
    pub fn try_receive(&self) -> Option<Vec<u8>> {
        self.socket.set_nonblocking(true).expect("a socket can be made so");
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame).ok();
        self.socket.set_nonblocking(false).expect("a socket can be made so");
        len.map(|len| frame[..len].to_vec())
    }

    /// Makes the backend fail.
    pub fn set_fault(&self, fault: NetFault) {
        *lock(&self.shared.fault) = fault;
    }

    /// Whether the backend takes part in what comes.
    pub fn is_attached(&self) -> bool {
        !self.shared.detached.load(Ordering::SeqCst)
    }

    /// How often the device has read several frames at once.
    pub fn reads_of_several(&self) -> usize {
        self.shared.several.load(Ordering::SeqCst)
    }

    /// What the device set last.
    pub fn offloads(&self) -> Offloads {
        *lock(&self.shared.offloads)
    }
}

fn fail(error: Option<i32>) -> io::Result<()> {
    error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))
}

impl NetBackend for FakeNet {
    fn offloads(&self) -> Offloads {
        self.able
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        fail(lock(&self.shared.fault).offloads)?;
        *lock(&self.shared.offloads) = offloads;
        Ok(())
    }

    fn attach(&self) -> io::Result<()> {
        fail(lock(&self.shared.fault).attach)?;
        self.shared.detached.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn detach(&self) -> io::Result<()> {
        self.shared.detached.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn receive(&self, room: &mut ReceiveRoom) -> io::Result<usize> {
        let fault = lock(&self.shared.fault).receive;
        if fault.is_some_and(|error| !matches!(error, libc::EBADFD | libc::ENOBUFS)) {
            self.socket.recv(&mut [0])?;
        }
        fail(fault)?;
        room.read_from(self.socket.as_fd())
    }

    fn receive_several(&self, room: &mut ReceiveRoom, count: usize) -> Option<usize> {
        let mut burst = lock(&self.burst);
        let burst = burst.get().filter(|_| lock(&self.shared.fault).receive.is_none())?;
        self.shared.several.fetch_add(1, Ordering::SeqCst);
        Some(room.read_several_from(self.socket.as_fd(), burst, count))
    }

    fn transmit(&self, frame: &mut TransmitFrame) -> io::Result<()> {
        fail(lock(&self.shared.fault).transmit)?;
        frame.write_to(self.transmit.as_fd())
    }

    fn receive_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn transmit_fd(&self) -> RawFd {
        self.transmit.as_raw_fd()
    }
}
