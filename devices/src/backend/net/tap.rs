//! A tap: a network interface of the host whose other end is a descriptor.
//!
//! husk never makes one: it is made and given an owner by whoever sets up the host's networks, and is still there when
//! husk has gone. It is looked up by the interface ioctls and not in sysfs, which shows the network namespace of whoever
//! mounted it.
#![expect(unsafe_code, reason = "ioctls of tun and of interfaces, dup of a descriptor given by number")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;

use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO_ECN,
    TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6, c_int, c_uint,
};
use thiserror::Error;

use super::{InterfaceName, NetBackend, Offloads, transmit_in_turn};
use crate::backend::burst::{LazyBurst, WORTH_A_RING};
use crate::bus::lock;
use crate::virtio::net::{HEADER_BYTES, ReceiveRoom, TransmitFrame};

const TUN_PATH: &str = "/dev/net/tun";

/// The lowest number that a copy of a descriptor gets: the standard ones are spoken for.
const FD_MIN: c_int = 3;

/// `TUNGETSNDBUF`, linux/if_tun.h.
const TUNGETSNDBUF: libc::c_ulong = 0x8004_54d3;

/// `ETHTOOL_GDRVINFO`, linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 3;

/// Why there is no tap.
#[derive(Debug, Error)]
pub enum TapError {
    /// Nothing is called so here.
    #[error("tap {0} does not exist: create it with `ip tuntap add {0} mode tap`")]
    Absent(InterfaceName),
    /// The interface is of another kind.
    #[error("{0} is a network interface, but no tap: name one made with `ip tuntap add NAME mode tap`")]
    OtherKind(InterfaceName),
    /// It carries packets, and no frames.
    #[error("{0} is a tun, not a tap: make one with `ip tuntap add NAME mode tap`")]
    Tun(InterfaceName),
    /// Another descriptor is attached to it.
    #[error("tap {0} is in use by another process: end that, or give each machine its own")]
    Busy(InterfaceName),
    /// It was made with one queue.
    #[error("tap {0} has one queue: make it with `ip tuntap add {0} mode tap multi_queue`")]
    OneQueue(InterfaceName),
    /// It has no more queues, or its others are in use.
    #[error("tap {tap} gives {given} queues and no more: ask for fewer")]
    FewQueues {
        /// Its name.
        tap: InterfaceName,
        /// What it gave.
        given: usize,
    },
    /// Two descriptors are of different taps, or of one that has one queue only.
    #[error(
        "descriptors {0} and {1} are not queues of one tap: give those that TUNSETIFF has attached to it with IFF_MULTI_QUEUE"
    )]
    Strangers(RawFd, RawFd),
    /// It has another owner, and we lack the capability that overrides it.
    #[error("tap {0} belongs to another user: make it with `ip tuntap add {0} mode tap user $USER`")]
    Foreign(InterfaceName),
    /// The kernel has no tun driver here.
    #[error("{TUN_PATH} does not exist: load it with `modprobe tun`")]
    NoDriver,
    /// We may not.
    #[error("no permission to open {TUN_PATH} ({0}): give it, as by setfacl -m u:$USER:rw {TUN_PATH}")]
    Permission(io::Error),
    /// No descriptor of that number is open.
    #[error("descriptor {0} is not open: give the number of one that husk inherits")]
    NotOpen(RawFd),
    /// It is something else.
    #[error("descriptor {0} is no tap: give one of {TUN_PATH} that TUNSETIFF has attached to a tap")]
    OtherDescriptor(RawFd),
    /// It is a tap of another form of frames.
    #[error("descriptor {0} is a tap without headers: give one attached with IFF_VNET_HDR and IFF_NO_PI")]
    OtherFrames(RawFd),
    /// The host failed.
    #[error("cannot {attempt} of tap {tap}")]
    Host {
        /// The name, or the descriptor.
        tap: String,
        /// What was attempted.
        attempt: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// The same, under another number for the same epoll.
    transmit: OwnedFd,
    offloads: Offloads,
    mtu: Option<u32>,
    /// Of the one thread that receives and transmits.
    burst: Mutex<LazyBurst>,
    order: Order,
}

/// Whether one frame of a burst could overtake another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Kept,
    /// The buffer is bounded, which Linux's are not unless somebody bounds them: the first might find no room, and the
    /// second some.
    AtRisk,
}

/// What a descriptor is attached to.
struct Attached {
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: c_int,
}

impl Tap {
    /// Attaches to the tap called `name`, which must exist.
    ///
    /// # Errors
    /// Each way in which it is no tap for us has its variant.
    pub fn open(name: &InterfaceName) -> Result<Self, TapError> {
        let interfaces = Interfaces::new().map_err(host(name.as_str(), "look up the name"))?;
        let index = interfaces.index(name)?;
        let file = open_driver(name)?;
        let attached = match attach(&file, name, 0) {
            // A tap of several queues wants to be asked for one of them.
            Err(source) if source.raw_os_error() == Some(libc::EINVAL) => {
                interfaces.expect_tap(name)?;
                attach(&file, name, IFF_MULTI_QUEUE)
            }
            attached => attached,
        };
        attached.map_err(|source| attach_error(name, source))?;
        // If it was deleted meanwhile, the kernel has made another, which goes when `file` is closed.
        if interfaces.index(name)? != index {
            return Err(TapError::Absent(name.clone()));
        }
        let mtu = interfaces.mtu(name)?;
        Ok(Self { mtu: Some(mtu), ..Self::set_up(file.into(), name.as_str(), None)? })
    }

    /// Attaches `count` queues to the tap called `name`, which must exist.
    ///
    /// # Errors
    /// Each way in which it is no tap for us has its variant.
    pub fn open_queues(name: &InterfaceName, count: usize) -> Result<Vec<Self>, TapError> {
        if count == 1 {
            return Self::open(name).map(|tap| vec![tap]);
        }
        let interfaces = Interfaces::new().map_err(host(name.as_str(), "look up the name"))?;
        let index = interfaces.index(name)?;
        let mut taps: Vec<Self> = Vec::with_capacity(count);
        for given in 0..count {
            let file = open_driver(name)?;
            attach(&file, name, IFF_MULTI_QUEUE).map_err(|source| match source.raw_os_error() {
                Some(libc::E2BIG) => TapError::FewQueues { tap: name.clone(), given },
                Some(libc::EINVAL) => interfaces.expect_tap(name).err().unwrap_or(TapError::OneQueue(name.clone())),
                _ => attach_error(name, source),
            })?;
            if interfaces.index(name)? != index {
                return Err(TapError::Absent(name.clone()));
            }
            let mtu = Some(interfaces.mtu(name)?);
            taps.push(Self { mtu, ..Self::set_up(file.into(), name.as_str(), taps.first())? });
        }
        Ok(taps)
    }

    /// The interface's MTU when it was opened by its name. A descriptor's may be in another network namespace, where
    /// nobody can be asked.
    pub fn mtu(&self) -> Option<u32> {
        self.mtu
    }

    /// A tap that somebody else attached, by the number of its descriptor, with IFF_NO_PI and IFF_VNET_HDR. Of that there is a copy afterwards, and it
    /// stays open itself; both are non-blocking.
    ///
    /// # Errors
    /// Each way in which it is no tap for us has its variant.
    pub fn from_fd(number: RawFd) -> Result<Self, TapError> {
        // SAFETY: F_DUPFD_CLOEXEC takes any number and an int, and no memory.
        let copy = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FD_MIN) });
        let copy = copy.map_err(|_| TapError::NotOpen(number))?;
        // SAFETY: the descriptor must be open and nobody else's = fcntl made it just now.
        let fd = unsafe { OwnedFd::from_raw_fd(copy) };
        let Attached { flags, .. } = attached(&fd).map_err(|_| TapError::OtherDescriptor(number))?;
        if flags & IFF_TAP == 0 {
            return Err(TapError::OtherDescriptor(number));
        }
        // Of IFF_NO_PI the kernel does not tell: its bit says here that there is no filter (linux/if_tun.h).
        if flags & IFF_VNET_HDR == 0 {
            return Err(TapError::OtherFrames(number));
        }
        let tap = format!("(descriptor {number})");
        set_nonblocking(&fd).map_err(host(&tap, "set the mode"))?;
        Self::set_up(fd, &tap, None)
    }

    /// As [`Self::from_fd`], of the queues of one tap.
    ///
    /// # Errors
    /// As [`Self::from_fd`], and if they are not that.
    pub fn from_fds(numbers: &[RawFd]) -> Result<Vec<Self>, TapError> {
        let taps = numbers.iter().map(|number| Self::from_fd(*number)).collect::<Result<Vec<_>, _>>()?;
        let queues = taps.iter().map(|tap| attached(&tap.fd)).collect::<io::Result<Vec<_>>>();
        let queues = queues.map_err(host("(descriptors)", "look up the name"))?;
        let is_strange = |queue: &Attached| queue.name != queues[0].name || queue.flags & IFF_MULTI_QUEUE == 0;
        if let Some((_, number)) = queues.iter().zip(numbers).skip(1).find(|(queue, _)| is_strange(queue)) {
            return Err(TapError::Strangers(numbers[0], *number));
        }
        // A machine that used them before left them as its guest did.
        for (tap, _) in taps.iter().zip(&queues).filter(|(_, queue)| queue.flags & IFF_DETACH_QUEUE != 0) {
            tap.attach().map_err(host("(descriptors)", "attach to a queue"))?;
        }
        Ok(taps)
    }

    /// A queue that is attached, beside `first` of the same tap.
    fn set_up(fd: OwnedFd, tap: &str, first: Option<&Self>) -> Result<Self, TapError> {
        let header_bytes = c_int::try_from(HEADER_BYTES).expect("12");
        // SAFETY: TUNSETVNETHDRSZ reads an int = `header_bytes`, which is one and lives across the call.
        let set = check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes) });
        set.map_err(host(tap, "set the header size"))?;
        let offloads = match first {
            Some(first) => first.offloads,
            None => probe(&fd).map_err(host(tap, "set the offloads"))?,
        };
        let transmit = fd.try_clone().map_err(host(tap, "duplicate the descriptor"))?;
        let order = order(&fd).map_err(host(tap, "read the buffer's size"))?;
        Ok(Self { fd, transmit, offloads, mtu: None, burst: Mutex::default(), order })
    }
}

impl NetBackend for Tap {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        set_offloads(&self.fd, offloads)
    }

    fn attach(&self) -> io::Result<()> {
        set_queue(&self.fd, IFF_ATTACH_QUEUE)
    }

    fn detach(&self) -> io::Result<()> {
        set_queue(&self.fd, IFF_DETACH_QUEUE)
    }

    fn receive(&self, room: &mut ReceiveRoom) -> io::Result<usize> {
        room.read_from(self.fd.as_fd())
    }

    fn receive_several(&self, room: &mut ReceiveRoom, count: usize) -> Option<usize> {
        let mut burst = lock(&self.burst);
        burst.get().map(|burst| room.read_several_from(self.fd.as_fd(), burst, count))
    }

    fn transmit(&self, frame: &mut TransmitFrame) -> io::Result<()> {
        frame.write_to(self.transmit.as_fd())
    }

    fn transmit_all(&self, frames: &mut [TransmitFrame], sent: &mut dyn FnMut(usize, io::Result<()>)) {
        if frames.len() >= WORTH_A_RING
            && self.order == Order::Kept
            && let Some(burst) = lock(&self.burst).get()
        {
            return TransmitFrame::write_all_to(frames, self.transmit.as_fd(), burst, sent);
        }
        transmit_in_turn(self, frames, sent);
    }

    fn receive_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn transmit_fd(&self) -> RawFd {
        self.transmit.as_raw_fd()
    }
}

fn order(fd: &OwnedFd) -> io::Result<Order> {
    let mut bytes: c_int = 0;
    // SAFETY: TUNGETSNDBUF writes an int = `bytes`, which is one and lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETSNDBUF, &raw mut bytes) })?;
    Ok(if bytes == c_int::MAX { Order::Kept } else { Order::AtRisk })
}

/// Finds what the tap takes, by trying the kernel's newest first, and leaves it with none.
fn probe(fd: &OwnedFd) -> io::Result<Offloads> {
    let all = Offloads::ALL;
    let without_uso = Offloads { uso: false, ..all };
    let csum = Offloads { csum: true, ..Offloads::default() };
    let able = [all, without_uso, csum].into_iter().find(|offloads| set_offloads(fd, *offloads).is_ok());
    set_offloads(fd, Offloads::default())?;
    Ok(able.unwrap_or_default())
}

fn set_offloads(fd: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let Offloads { csum, tso4, tso6, tso_ecn, uso } = offloads.consistent();
    let flags = [
        (csum, TUN_F_CSUM),
        (tso4, TUN_F_TSO4),
        (tso6, TUN_F_TSO6),
        (tso_ecn, TUN_F_TSO_ECN),
        (uso, TUN_F_USO4 | TUN_F_USO6),
    ];
    let flags = flags.into_iter().filter(|(set, _)| *set).fold(0, |all: c_uint, (_, flag)| all | flag);
    // SAFETY: TUNSETOFFLOAD takes its flags by value = an unsigned int that the kernel reads as a long, and no memory.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) }).map(drop)
}

fn attach(file: &File, name: &InterfaceName, more: c_int) -> io::Result<()> {
    let mut request = request(name.field());
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | more;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("flags of a field of 16 bits");
    // SAFETY: TUNSETIFF reads and writes an ifreq = `request`, which is one and lives across the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).map(drop)
}

fn set_queue(fd: &OwnedFd, flag: c_int) -> io::Result<()> {
    let mut request = request([0; libc::IFNAMSIZ]);
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flag).expect("a flag of a field of 16 bits");
    // SAFETY: TUNSETQUEUE reads an ifreq = `request`, which is one and lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) }).map(drop)
}

fn attached(fd: &OwnedFd) -> io::Result<Attached> {
    let mut request = request([0; libc::IFNAMSIZ]);
    // SAFETY: TUNGETIFF writes an ifreq = `request`, which is one and lives across the call; of another file's driver
    // it is unknown.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: the union's flags are read = TUNGETIFF wrote them.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok(Attached { name: request.ifr_name, flags })
}

/// A socket to ask about the interfaces of this thread's network namespace.
struct Interfaces(UnixDatagram);

/// `struct ethtool_drvinfo`, linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus_info: [u8; 32],
    expansion_rom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}
const _: () = assert!(size_of::<DriverInfo>() == 196);

impl Interfaces {
    fn new() -> io::Result<Self> {
        // A socket of any family answers; this one has no address of its own.
        UnixDatagram::unbound().map(Self)
    }

    fn index(&self, name: &InterfaceName) -> Result<c_int, TapError> {
        let mut request = request(name.field());
        // SAFETY: SIOCGIFINDEX reads and writes an ifreq = `request`, which is one and lives across the call.
        match check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) }) {
            Ok(_) => {
                // SAFETY: the union's index is read = SIOCGIFINDEX wrote it.
                Ok(unsafe { request.ifr_ifru.ifru_ifindex })
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(TapError::Absent(name.clone())),
            Err(error) => Err(host(name.as_str(), "look up the name")(error)),
        }
    }

    fn mtu(&self, name: &InterfaceName) -> Result<u32, TapError> {
        let mut request = request(name.field());
        // SAFETY: SIOCGIFMTU reads and writes an ifreq = `request`, which is one and lives across the call.
        let asked = check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) });
        asked.map_err(host(name.as_str(), "get the MTU"))?;
        // SAFETY: the union's mtu is read = SIOCGIFMTU wrote it.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u32::try_from(mtu).unwrap_or_default())
    }

    /// Asks the interface's driver what it is.
    fn expect_tap(&self, name: &InterfaceName) -> Result<(), TapError> {
        let mut info = DriverInfo {
            command: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware_version: [0; 32],
            bus_info: [0; 32],
            expansion_rom_version: [0; 32],
            reserved: [0; 12],
            counts: [0; 5],
        };
        let mut request = request(name.field());
        request.ifr_ifru.ifru_data = (&raw mut info).cast();
        // SAFETY: SIOCETHTOOL reads an ifreq, and by its pointer reads and writes an ethtool_drvinfo = `request` and
        // `info`, which are that and live across the call.
        let asked = check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) });
        let is = |field: &[u8; 32], text: &[u8]| field.starts_with(text) && field[text.len()] == 0;
        match asked {
            Ok(_) if is(&info.driver, b"tun") && is(&info.bus_info, b"tap") => Ok(()),
            Ok(_) if is(&info.driver, b"tun") => Err(TapError::Tun(name.clone())),
            // A driver that says nothing of itself is another one.
            _ => Err(TapError::OtherKind(name.clone())),
        }
    }
}

fn request(name: [libc::c_char; libc::IFNAMSIZ]) -> libc::ifreq {
    // All of the union, which is as large as this member.
    let zeroes = libc::__c_anonymous_ifru_map { mem_start: 0, mem_end: 0, base_addr: 0, irq: 0, dma: 0, port: 0 };
    libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_map: zeroes } }
}

fn open_driver(name: &InterfaceName) -> Result<File, TapError> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN_PATH);
    file.map_err(|source| open_error(name, source))
}

fn open_error(name: &InterfaceName, source: io::Error) -> TapError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => TapError::NoDriver,
        Some(libc::EACCES | libc::EPERM) => TapError::Permission(source),
        _ => host(name.as_str(), "open the driver")(source),
    }
}

fn attach_error(name: &InterfaceName, source: io::Error) -> TapError {
    match source.raw_os_error() {
        Some(libc::EBUSY) => TapError::Busy(name.clone()),
        Some(libc::EPERM) => TapError::Foreign(name.clone()),
        _ => host(name.as_str(), "attach to a queue")(source),
    }
}

fn host(tap: &str, attempt: &'static str) -> impl FnOnce(io::Error) -> TapError {
    move |source| TapError::Host { tap: tap.to_owned(), attempt, source }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: F_GETFL takes a descriptor = an open one, and no memory.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes a descriptor = an open one, and an int.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests;
