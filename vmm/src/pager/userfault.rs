//! userfaultfd(2), as much of it as a pager takes: ranges registered for missing pages, faults read, pages put in.
//! Written here since the field's crate generates its bindings with libclang when it is built.
#![expect(unsafe_code, reason = "userfaultfd has no safe interface in libc")]

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

/// Host addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[derive(Debug)]
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[derive(Debug)]
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[derive(Debug)]
#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

const UFFD: u32 = 0xaa;
const API: u64 = UFFD as u64;
const MODE_MISSING: u64 = 1;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const EVENT_PAGEFAULT: u8 = 0x12;

ioctl_iowr_nr!(UFFDIO_API, UFFD, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, UFFD, 0x00, Register);
ioctl_ior_nr!(UFFDIO_UNREGISTER, UFFD, 0x01, Range);
ioctl_iowr_nr!(UFFDIO_COPY, UFFD, 0x03, Copy);
ioctl_iowr_nr!(UFFDIO_ZEROPAGE, UFFD, 0x04, ZeroPage);
ioctl_io_nr!(USERFAULTFD_IOC_NEW, UFFD, 0x00);

/// A message of the kernel's: 32 bytes, of which a fault's address stands at 16.
const MESSAGE_BYTES: usize = 32;
const MESSAGE_ADDRESS: usize = 16;
/// Faults that are read at once: as many as there may be vCPUs, and some devices.
const MESSAGES_MAX: usize = 80;

/// A userfaultfd.
#[derive(Debug)]
pub(crate) struct UserFault {
    fd: OwnedFd,
}

/// What a waiting thread woke up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// It shall end.
    Stop,
    /// The other descriptor has something to read, or has been closed at its other end.
    Other,
    /// The time is over, or there was a signal.
    Nothing,
}

/// Waits until `other` is readable or `stop` is signalled, for so many milliseconds; -1 is for ever.
pub(super) fn wait_for(other: &dyn AsRawFd, stop: &dyn AsRawFd, timeout_ms: libc::c_int) -> Woken {
    let watch = |fd: &dyn AsRawFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut watched = [watch(stop), watch(other)];
    // SAFETY: the array has as many entries as are named, and its descriptors are open.
    let count = unsafe { libc::poll(watched.as_mut_ptr(), 2, timeout_ms) };
    match watched.map(|watched| watched.revents != 0) {
        _ if count <= 0 => Woken::Nothing,
        [true, _] => Woken::Stop,
        [false, true] => Woken::Other,
        [false, false] => Woken::Nothing,
    }
}

/// What came of putting pages in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// They are there now.
    Done,
    /// After so many bytes there was one already.
    Present(u64),
    /// After so many bytes the mapping was being changed: to be tried again.
    Again(u64),
    /// Not all of it is registered, or it is not one mapping: nothing was done.
    Foreign,
}

impl UserFault {
    /// A descriptor that gets the faults of the kernel (KVM's and system calls') as well as those of the process.
    pub(super) fn new() -> io::Result<Self> {
        Self::with(FEATURE_MISSING_HUGETLBFS | FEATURE_MISSING_SHMEM)
    }

    /// As [`Self::new`]; it also tells what the process gives away again (MADV_DONTNEED), and holds it up until that is read.
    pub(super) fn with_removals() -> io::Result<Self> {
        Self::with(FEATURE_MISSING_HUGETLBFS | FEATURE_MISSING_SHMEM | FEATURE_EVENT_REMOVE)
    }

    fn with(features: u64) -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes flags alone.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = match libc::c_int::try_from(fd) {
            Ok(fd) if fd >= 0 => fd,
            _ if io::Error::last_os_error().kind() == ErrorKind::PermissionDenied => Self::from_device(flags)?,
            _ => return Err(io::Error::last_os_error()),
        };
        // SAFETY: the kernel has just made the descriptor for us.
        let fault = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } };
        let mut api = Api { api: API, features, ioctls: 0 };
        fault.call(UFFDIO_API(), &mut api)?;
        Ok(fault)
    }

    /// Who may open the device may have kernel faults without CAP_SYS_PTRACE.
    fn from_device(flags: libc::c_int) -> io::Result<libc::c_int> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
        // SAFETY: the ioctl takes flags alone, and the device is open.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW(), flags) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
    }

    /// From now on, who touches a page of the range that is not there waits until somebody puts it in.
    pub(super) fn register(&self, start: u64, len: u64) -> io::Result<()> {
        self.call(UFFDIO_REGISTER(), &mut Register { range: Range { start, len }, mode: MODE_MISSING, ioctls: 0 })
    }

    /// Pages of the range that are not there are the kernel's again: zeros. Who waits goes on.
    pub(crate) fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        self.call(UFFDIO_UNREGISTER(), &mut Range { start, len })
    }

    /// Puts `bytes`, whole pages, at the host address `to`, and wakes who waits for them.
    pub(super) fn copy(&self, to: u64, bytes: &[u8]) -> io::Result<Put> {
        let len = bytes.len() as u64;
        let mut request = Copy { dst: to, src: bytes.as_ptr().expose_provenance() as u64, len, mode: 0, copy: 0 };
        let result = self.call(UFFDIO_COPY(), &mut request);
        outcome(result, request.copy)
    }

    /// Puts zeros there.
    pub(super) fn zero(&self, start: u64, len: u64) -> io::Result<Put> {
        let mut request = ZeroPage { range: Range { start, len }, mode: 0, zeropage: 0 };
        let result = self.call(UFFDIO_ZEROPAGE(), &mut request);
        outcome(result, request.zeropage)
    }

    /// The host addresses at which somebody waits, as far as they were not read before.
    pub(super) fn faults(&self, mut each: impl FnMut(u64)) -> io::Result<()> {
        let mut buffer = [0; MESSAGE_BYTES * MESSAGES_MAX];
        // SAFETY: the kernel writes at most the buffer's length to it, and the descriptor is open.
        let count = unsafe { libc::read(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let count = match usize::try_from(count).map_err(|_| io::Error::last_os_error()) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error),
        };
        for message in buffer[..count].chunks_exact(MESSAGE_BYTES).filter(|message| message[0] == EVENT_PAGEFAULT) {
            let address = message[MESSAGE_ADDRESS..][..8].try_into().expect("a slice of 8 is an array of 8");
            each(u64::from_ne_bytes(address));
        }
        Ok(())
    }

    fn call<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: each request is called with the structure that its number is made of; the kernel reads source bytes that
        // the caller borrows, and writes to addresses that it has checked to be registered.
        let result = unsafe { ioctl_with_mut_ref(&self.fd, request, argument) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for UserFault {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// `done` is what the kernel says it did: bytes, or a negative error number (man 2 ioctl_userfaultfd, UFFDIO_COPY).
fn outcome(result: io::Result<()>, done: i64) -> io::Result<Put> {
    let bytes = u64::try_from(done).unwrap_or(0);
    match result {
        Ok(()) => Ok(Put::Done),
        Err(error) => match error.raw_os_error() {
            Some(libc::EEXIST) => Ok(Put::Present(bytes)),
            Some(libc::EAGAIN) => Ok(Put::Again(bytes)),
            Some(libc::ENOENT) => Ok(Put::Foreign),
            _ => Err(error),
        },
    }
}

const _: () = assert!(size_of::<Api>() == 24 && size_of::<Register>() == 32);
const _: () = assert!(size_of::<Copy>() == 40 && size_of::<ZeroPage>() == 32);
