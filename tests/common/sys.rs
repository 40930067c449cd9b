//! System calls that tests need and std does not have: terminals, signals, threads that stand still, locks, networks.
#![expect(
    unsafe_code,
    reason = "openpty, tcgetattr, kill, ptrace, fcntl, unshare and ioctl have no safe interface in libc"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// A pseudo-terminal: the test sits at its master, husk's streams are its slave.
pub(crate) struct Terminal {
    master: File,
    slave: OwnedFd,
}

/// What is read from a terminal until `text` has come; the harness's deadline for the process bounds it.
pub(crate) fn read_until(terminal: &mut File, text: &str) -> String {
    let mut seen = String::new();
    let mut chunk = [0; 256];
    while !seen.contains(text) {
        let count = terminal.read(&mut chunk).unwrap();
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    seen
}

/// A terminal's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) input: libc::tcflag_t,
    pub(crate) output: libc::tcflag_t,
    pub(crate) control: libc::tcflag_t,
    pub(crate) local: libc::tcflag_t,
    pub(crate) keys: [libc::cc_t; libc::NCCS],
}

impl Terminal {
    pub(crate) fn open() -> Self {
        let (mut master, mut slave) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: openpty writes two ints = the two here, and takes null for the name, the settings and the size.
        let opened = unsafe { libc::openpty(&raw mut master, &raw mut slave, null, null.cast(), null.cast()) };
        assert_eq!(opened, 0, "openpty: {}", io::Error::last_os_error());
        // SAFETY: openpty has just made it, and nobody else knows of it.
        let master = unsafe { File::from_raw_fd(master) };
        // SAFETY: as above.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        // A child that held the master would keep the terminal alive.
        for fd in [master.as_raw_fd(), slave.as_raw_fd()] {
            // SAFETY: F_SETFD takes a descriptor = an open one, and an int.
            let set = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            assert_eq!(set, 0, "{}", io::Error::last_os_error());
        }
        Self { master, slave }
    }

    /// The end at which one types and reads.
    pub(crate) fn master(&self) -> File {
        self.master.try_clone().unwrap()
    }

    /// The end for a process's streams.
    pub(crate) fn slave(&self) -> OwnedFd {
        self.slave.try_clone().unwrap()
    }

    pub(crate) fn settings(&self) -> Settings {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr writes a termios = the place it is given.
        let got = unsafe { libc::tcgetattr(self.slave.as_raw_fd(), settings.as_mut_ptr()) };
        assert_eq!(got, 0, "tcgetattr: {}", io::Error::last_os_error());
        // SAFETY: tcgetattr succeeded, so it has written all of it.
        let settings = unsafe { settings.assume_init() };
        Settings {
            input: settings.c_iflag,
            output: settings.c_oflag,
            control: settings.c_cflag,
            local: settings.c_lflag,
            keys: settings.c_cc,
        }
    }
}

impl Settings {
    /// Neither echo nor lines, no key that is a signal, no byte that becomes another.
    pub(crate) fn is_raw(&self) -> bool {
        let input = libc::ICRNL | libc::INLCR | libc::IGNCR | libc::IXON | libc::ISTRIP;
        let local = libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN;
        self.input & input == 0 && self.output & libc::OPOST == 0 && self.local & local == 0
    }
}

/// What a pipe of [`small_pipe`] holds: a page, the least that Linux gives.
pub(crate) const SMALL_PIPE_BYTES: usize = 4096;

/// A pipe that is soon full.
pub(crate) fn small_pipe() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let size: libc::c_int = SMALL_PIPE_BYTES.try_into().unwrap();
    // SAFETY: F_SETPIPE_SZ takes a descriptor = an open pipe, and an int.
    let set = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    assert_eq!(set, size, "{}", io::Error::last_os_error());
    (reader, writer)
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes two ints and no memory; the process is a child of ours that is not reaped, so the number is its own.
    let sent = unsafe { libc::kill(pid.try_into().unwrap(), signal) };
    assert_eq!(sent, 0, "kill: {}", io::Error::last_os_error());
}

/// A child's thread that does not run, while its other threads do. Dropped, it goes on.
pub(crate) struct Held(libc::pid_t);

impl Held {
    /// Stops a child's first thread; it stands when this returns.
    pub(crate) fn hold(child: u32) -> Self {
        Self::hold_thread(child.try_into().unwrap())
    }

    /// Stops any thread of a child's.
    pub(crate) fn hold_thread(thread: libc::pid_t) -> Self {
        let none = std::ptr::null_mut::<libc::c_void>();
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            // SAFETY: these requests take a thread's number and no memory; the child is ours and is not reaped.
            let asked = unsafe { libc::ptrace(request, thread, none, none) };
            assert_eq!(asked, 0, "ptrace: {}", io::Error::last_os_error());
        }
        let mut status = 0;
        // SAFETY: waitpid writes an int = the place it is given.
        let stopped = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        assert!(stopped == thread && libc::WIFSTOPPED(status), "{status:#x}: {}", io::Error::last_os_error());
        Self(thread)
    }

    /// The system call that it was in when it was stopped. In none it may hold a lock that all of its process waits for, such as
    /// the allocator's.
    pub(crate) fn call(&self) -> Option<libc::c_long> {
        let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: PTRACE_GETREGS writes a user_regs_struct = the place it is given; the thread is stopped and ours.
        let asked = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.0, none, registers.as_mut_ptr()) };
        assert_eq!(asked, 0, "ptrace: {}", io::Error::last_os_error());
        // SAFETY: it was written whole.
        let call = unsafe { registers.assume_init() }.orig_rax.cast_signed();
        (call >= 0).then_some(call)
    }

    pub(crate) fn release(self) {
        drop(self);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: PTRACE_DETACH takes a thread's number and no memory; of one that is gone it says so and does nothing.
        let gone = unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) } != 0;
        if gone {
            // The end of a thread that was held is its holder's to take note of, and only then its process's.
            // SAFETY: waitpid takes null for a status that nobody wants.
            unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) };
        }
    }
}

/// What an OFD lock keeps others from.
#[derive(Clone, Copy)]
pub(crate) enum Lock {
    Shared,
    Exclusive,
}

/// Locks all of a file as another program would, for as long as `file` is open; whether it could be had.
pub(crate) fn lock(file: &File, lock: Lock) -> bool {
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
    };
    let request = libc::flock {
        l_type: kind.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads a flock = `request`, which is one and lives across the call.
    let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    locked == 0
}

/// Lets programs that are started from now on have this file too, by this number.
pub(crate) fn pass_on(file: &File) -> libc::c_int {
    // SAFETY: F_SETFD takes a descriptor = an open one, and an int.
    let passed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(passed, 0, "F_SETFD: {}", io::Error::last_os_error());
    file.as_raw_fd()
}

/// Gives this thread a network namespace of its own.
pub(crate) fn unshare_network() {
    // SAFETY: unshare takes flags and no memory = CLONE_NEWNET changes this thread's network namespace alone.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(unshared, 0, "unshare: {}", io::Error::last_os_error());
}

/// A descriptor that is attached to a tap, which is made if it does not exist, as a management program does it. With
/// headers before frames if `flags` has `IFF_VNET_HDR`.
pub(crate) fn attach(tap: &str, flags: libc::c_int) -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut name = [0; libc::IFNAMSIZ];
    for (place, byte) in name.iter_mut().zip(tap.bytes()) {
        *place = libc::c_char::try_from(byte).unwrap();
    }
    let flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | flags).unwrap();
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_newname: [0; 16] } };
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes an ifreq = `request`, which is one and lives across the call.
    let attached = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(attached, 0, "TUNSETIFF: {}", io::Error::last_os_error());
    file
}

/// What arrives on a socket in one message, and the descriptor with it.
pub(crate) fn receive_with_descriptor(socket: &UnixStream) -> (Vec<u8>, OwnedFd) {
    let mut bytes = vec![0; 64 << 10];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = [0_u64; 8];
    // SAFETY: all zeroes is a message without parts.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message's parts and its control buffer live, and have the lengths that it says.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    bytes.truncate(usize::try_from(count).unwrap());
    // SAFETY: the message is the one that recvmsg filled in.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    assert!(!header.is_null(), "no descriptor came");
    // SAFETY: the header is of the message, and a descriptor's follows it.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: SCM_RIGHTS data is an array of descriptors, of which one was sent.
    let fd = unsafe { data.cast::<RawFd>().read_unaligned() };
    // SAFETY: the kernel has just made it for this process.
    (bytes, unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The address of the next fault of a userfaultfd; none when its memory is gone.
pub(crate) fn next_fault(fault: &OwnedFd) -> Option<u64> {
    const PAGEFAULT: u8 = 0x12;
    loop {
        let mut watched = libc::pollfd { fd: fault.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor is named, and there is one.
        unsafe { libc::poll(&raw mut watched, 1, -1) };
        if watched.revents & libc::POLLIN == 0 {
            return None;
        }
        let mut message = [0_u8; 32];
        // SAFETY: the kernel writes at most the length that it is told.
        let count = unsafe { libc::read(fault.as_raw_fd(), message.as_mut_ptr().cast(), message.len()) };
        match count {
            32 if message[0] == PAGEFAULT => return Some(u64::from_ne_bytes(message[16..24].try_into().unwrap())),
            0 => return None,
            _ => {}
        }
    }
}

/// Puts a page at an address of another process, through its userfaultfd.
pub(crate) fn put_page(fault: &OwnedFd, address: u64, page: &[u8; 4096]) {
    // UFFDIO_COPY of <linux/userfaultfd.h>: to, from, length, mode, what was done.
    const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
    let mut request = [address, page.as_ptr().expose_provenance() as u64, 4096, 0, 0];
    // SAFETY: the kernel reads the page, which lives, and writes the last word of the request.
    let done = unsafe { libc::ioctl(fault.as_raw_fd(), UFFDIO_COPY, request.as_mut_ptr()) };
    let error = std::io::Error::last_os_error();
    assert!(done == 0 || error.raw_os_error() == Some(libc::EEXIST), "{error}");
}
