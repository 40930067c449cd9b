//! Sockets and network interfaces: IPv4 only, waiting with a limit.

use core::time::Duration;

use super::{Fd, Plain, Result, call, give, plain, syscall};

/// An IPv4 address, in the order in which it is sent.
pub(crate) type Ip = [u8; 4];

/// `AF_INET`, as numbers of the two widths in which the kernel wants it.
const INET: usize = 2;
const INET_FIELD: u16 = 2;

/// What a socket carries: type and protocol of socket(2).
#[derive(Clone, Copy)]
pub(crate) enum Carries {
    /// TCP.
    Stream,
    /// UDP; also what is asked about interfaces.
    Datagrams,
    /// ICMP messages, with the IP header before those that come.
    Icmp,
}

/// struct sockaddr_in.
#[repr(C)]
struct Address {
    family: u16,
    port: [u8; 2],
    ip: Ip,
    rest: [u8; 8],
}

impl Plain for Address {
    const ZERO: Self = Self { family: 0, port: [0; 2], ip: [0; 4], rest: [0; 8] };
}

/// struct ifreq: a name, and a union of which each request uses another part.
#[repr(C)]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

impl Plain for Request {
    const ZERO: Self = Self { name: [0; 16], value: [0; 24] };
}

impl Plain for [u64; 2] {
    const ZERO: Self = [0; 2];
}

/// A socket that is closed when it goes.
pub(crate) struct Socket(Fd);

impl Socket {
    pub(crate) fn new(carries: Carries) -> Result<Self> {
        let (kind, protocol) = match carries {
            Carries::Stream => (1, 0),
            Carries::Datagrams => (2, 0),
            Carries::Icmp => (3, 1),
        };
        plain(call::SOCKET, [INET, kind, protocol, 0, 0, 0]).map(|fd| Self(Fd(fd)))
    }

    /// Lets no call on it wait longer (SO_RCVTIMEO_OLD and SO_SNDTIMEO_OLD).
    pub(crate) fn limit(&self, time: Duration) -> Result<()> {
        const SOL_SOCKET: usize = 1;
        let time = [time.as_secs(), u64::from(time.subsec_micros())];
        for option in [20, 21] {
            let args = [self.0.0, SOL_SOCKET, option, 0, size_of::<[u64; 2]>(), 0];
            give(call::SETSOCKOPT, args, 3, &time)?;
        }
        Ok(())
    }

    /// From now on talks to one address; of a stream, makes the connection.
    pub(crate) fn connect(&self, ip: Ip, port: u16) -> Result<()> {
        let address = Address { family: INET_FIELD, port: port.to_be_bytes(), ip, rest: [0; 8] };
        give(call::CONNECT, [self.0.0, 0, size_of::<Address>(), 0, 0, 0], 1, &address).map(drop)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Result<usize> {
        super::write(self.0, bytes)
    }

    pub(crate) fn receive(&self, place: &mut [u8]) -> Result<usize> {
        super::read(self.0, place)
    }

    /// Says that no more will be sent.
    pub(crate) fn end_sending(&self) -> Result<()> {
        const SHUT_WR: usize = 1;
        plain(call::SHUTDOWN, [self.0.0, SHUT_WR, 0, 0, 0, 0]).map(drop)
    }

    fn ask(&self, request: usize, name: &str, value: [u8; 24]) -> Result<[u8; 24]> {
        let mut filled = Request { value, ..Request::ZERO };
        for (place, byte) in filled.name.iter_mut().take(15).zip(name.bytes()) {
            *place = byte;
        }
        let address = (&raw mut filled).expose_provenance();
        // SAFETY: the interface ioctls of this file read and write one ifreq = `filled`, borrowed for nobody else.
        unsafe { syscall(call::IOCTL, [self.0.0, request, address, 0, 0, 0]) }?;
        Ok(filled.value)
    }

    fn set_address(&self, request: usize, name: &str, ip: Ip) -> Result<()> {
        let mut value = [0; 24];
        value[..2].copy_from_slice(&INET_FIELD.to_ne_bytes());
        value[4..8].copy_from_slice(&ip);
        self.ask(request, name, value).map(drop)
    }

    /// Gives an interface an address with a mask of 24 bits (SIOCSIFADDR, SIOCSIFNETMASK).
    pub(crate) fn set_interface_address(&self, name: &str, ip: Ip) -> Result<()> {
        self.set_address(0x8916, name, ip)?;
        self.set_address(0x891c, name, [255, 255, 255, 0])
    }

    /// Turns an interface on or off (SIOCGIFFLAGS, SIOCSIFFLAGS).
    pub(crate) fn set_interface(&self, name: &str, state: Interface) -> Result<()> {
        const UP: u8 = 1;
        let mut flags = self.ask(0x8913, name, [0; 24])?;
        match state {
            Interface::Up => flags[0] |= UP,
            Interface::Down => flags[0] &= !UP,
        }
        self.ask(0x8914, name, flags).map(drop)
    }

    /// An interface's Ethernet address (SIOCGIFHWADDR).
    pub(crate) fn interface_mac(&self, name: &str) -> Result<[u8; 6]> {
        let [_, _, a, b, c, d, e, f, ..] = self.ask(0x8927, name, [0; 24])?;
        Ok([a, b, c, d, e, f])
    }
}

/// Whether an interface is on.
#[derive(Clone, Copy)]
pub(crate) enum Interface {
    Up,
    Down,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // As for files.
        let _ = plain(call::CLOSE, [self.0.0, 0, 0, 0, 0, 0]);
    }
}
