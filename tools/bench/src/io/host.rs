//! The host's end of the card: a network namespace with a tap, and a sender of frames to it.
#![expect(unsafe_code, reason = "namespaces, packet sockets and taps have no safe interface in std")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Error};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use libc::{c_int, c_void};

/// The tap of everyone's card.
pub(super) const TAP: &str = "bench0";

/// virtio 1.3 §5.1.6: before each frame on a tap, and as packet sockets take it.
pub(super) const TAP_HEADER_BYTES: usize = 12;
const PACKET_HEADER_BYTES: usize = 10;

/// Larger frames are left to be cut, as in the guest.
const GSO_BYTES_MIN: usize = 9000;
const ETHERNET: usize = 14;
const IP: usize = 20;
const SEGMENT: u16 = 1448;

/// Frames for a system call of the sender.
const BATCH: usize = 32;
/// The tap holds hundreds of frames; so long, some are left of them.
const FULL_FOR: Duration = Duration::from_micros(20);

/// Moves this process into a network namespace of its own and makes the tap there.
pub(super) fn enter_own_network() -> io::Result<()> {
    // SAFETY: unshare takes flags, and no memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    ip(&format!("tuntap add {TAP} mode tap vnet_hdr"))?;
    // Nothing of the host's own may be among the frames.
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1").or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    ip(&format!("link set {TAP} up mtu 65000"))
}

fn ip(words: &str) -> io::Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status()?;
    if status.success() { Ok(()) } else { Err(Error::other(format!("ip {words}: {status}"))) }
}

/// The tap, for a program that is no monitor.
pub(super) fn open_tap() -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let zeroes = libc::__c_anonymous_ifru_map { mem_start: 0, mem_end: 0, base_addr: 0, irq: 0, dma: 0, port: 0 };
    let mut request =
        libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_map: zeroes } };
    request.ifr_name.iter_mut().zip(TAP.bytes()).for_each(|(to, from)| *to = from.cast_signed());
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(Error::other)?;
    // SAFETY: TUNSETIFF reads and writes an ifreq = `request`, which is one and lives across the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let bytes = c_int::try_from(TAP_HEADER_BYTES).map_err(Error::other)?;
    // SAFETY: TUNSETVNETHDRSZ reads an int = `bytes`, which is one and lives across the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4;
    // SAFETY: TUNSETOFFLOAD takes its flags by value, and no memory.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })?;
    Ok(file)
}

/// virtio's header of `header_bytes` and a frame of so many bytes, the same as the bench guest's.
pub(super) fn frame(header_bytes: usize, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; header_bytes + size];
    let (header, frame) = bytes.split_at_mut(header_bytes);
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
    if size < GSO_BYTES_MIN {
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        return bytes;
    }
    let small = |number: usize| u16::try_from(number).expect("a header's or a frame's length");
    header[..2].copy_from_slice(&[1, 1]); // NEEDS_CSUM, GSO_TCPV4
    header[2..4].copy_from_slice(&small(ETHERNET + IP + 20).to_le_bytes());
    header[4..6].copy_from_slice(&SEGMENT.to_le_bytes());
    header[6..8].copy_from_slice(&small(ETHERNET + IP).to_le_bytes());
    header[8..10].copy_from_slice(&16u16.to_le_bytes());
    frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
    frame[16..18].copy_from_slice(&small(size - ETHERNET).to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 6]);
    frame[26..34].copy_from_slice(&[192, 0, 2, 2, 192, 0, 2, 99]);
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    bytes
}

/// Sends frames to the tap, as fast as they are taken, until it is dropped.
pub(super) struct Sender {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    pub(super) fn start(size: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            if let Err(error) = send(size, &told) {
                eprintln!("bench: cannot send frames to the tap: {error}");
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A sender that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn send(size: usize, stop: &AtomicBool) -> io::Result<()> {
    let socket = open_packet_socket()?;
    let mut bytes = frame(PACKET_HEADER_BYTES, size);
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let message = libc::mmsghdr {
        msg_hdr: libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: &raw mut vector,
            msg_iovlen: 1,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        },
        msg_len: 0,
    };
    let mut messages = [message; BATCH];
    while !stop.load(Ordering::Relaxed) {
        let count = libc::c_uint::try_from(BATCH).map_err(Error::other)?;
        // SAFETY: sendmmsg reads `count` mmsghdrs = all of `messages`, whose one iovec and its bytes live across the
        // call.
        let sent = check(unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) });
        match sent {
            Ok(count) if count == c_int::try_from(BATCH).map_err(Error::other)? => {}
            // The tap is full.
            Ok(_) => std::thread::sleep(FULL_FOR),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::sleep(FULL_FOR),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open_packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes three numbers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let name = CString::new(TAP).map_err(Error::other)?;
    // SAFETY: if_nametoindex reads a string that ends in a zero = `name`.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).map_err(Error::other)?,
        sll_protocol: 0,
        sll_ifindex: c_int::try_from(index).map_err(Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(Error::other)?;
    // SAFETY: bind reads `len` bytes = the address, which lives across the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    // A full tap is an error that the sender hears of, not a queue of the host's.
    set(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 8 << 20)?;
    Ok(socket)
}

fn set(socket: &OwnedFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<c_int>()).map_err(Error::other)?;
    let at = (&raw const value).cast::<c_void>();
    // SAFETY: setsockopt reads `len` bytes = an int, which lives across the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, len) }).map(drop)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}
