//! A pseudo-terminal for the guest's serial port.
#![expect(unsafe_code, reason = "openpty, termios and poll have no safe interface in libc")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long somebody who has the terminal open may take to read the guest's last words, which go with it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Both sides of a pseudo-terminal in raw mode: what is written to one is read from the other, byte for byte.
#[derive(Debug)]
pub(crate) struct Pty {
    master: File,
    slave: Option<OwnedFd>,
    path: PathBuf,
}

impl Pty {
    /// Makes one.
    pub(crate) fn open() -> io::Result<Self> {
        let (mut master, mut slave) = (-1, -1);
        let (name, termios, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: the two descriptors have a place to go to; name, settings and size may be null.
        let opened = unsafe { libc::openpty(&raw mut master, &raw mut slave, name, termios, size) };
        if opened != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: openpty just made this descriptor and nobody else knows of it.
        let master = unsafe { File::from_raw_fd(master) };
        // SAFETY: as for the master.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        make_raw(&slave)?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd()))?;
        // openpty has no flag for it; husk starts no other program, but its users may wrap it.
        for fd in [master.as_raw_fd(), slave.as_raw_fd()] {
            // SAFETY: F_SETFD takes a number, and the descriptor is open.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        Ok(Self { master, slave: Some(slave), path })
    }

    /// husk's side.
    pub(crate) fn master(&self) -> &File {
        &self.master
    }

    /// What a user opens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody has the terminal open and has not read all of it. Our own side of that is closed by then.
    fn is_being_read(&self) -> bool {
        if poll(self.master.as_raw_fd(), 0) & libc::POLLHUP != 0 {
            return false;
        }
        let flags = libc::O_RDONLY | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: TIOCGPTPEER takes flags by value and no memory.
        let peer = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        if peer < 0 {
            return false;
        }
        // SAFETY: the ioctl just made this descriptor and nobody else knows of it.
        let peer = unsafe { OwnedFd::from_raw_fd(peer) };
        poll(peer.as_raw_fd(), libc::POLLIN) & libc::POLLIN != 0
    }
}

/// What of `events` is there, and whether the other side is gone.
fn poll(fd: RawFd, events: libc::c_short) -> libc::c_short {
    let mut looked = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: poll reads and writes one pollfd = `looked`, which lives across the call.
    unsafe { libc::poll(&raw mut looked, 1, 0) };
    looked.revents
}

impl Drop for Pty {
    /// The kernel forgets what is unread when the master is closed.
    fn drop(&mut self) {
        drop(self.slave.take());
        let deadline = Instant::now() + LAST_WORDS;
        while self.is_being_read() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn make_raw(slave: &OwnedFd) -> io::Result<()> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr writes a termios to the place it is given.
    if unsafe { libc::tcgetattr(slave.as_raw_fd(), settings.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr succeeded, so it has written all of it.
    let mut settings = unsafe { settings.assume_init() };
    // SAFETY: `settings` is a termios that the terminal itself gave.
    unsafe { libc::cfmakeraw(&raw mut settings) };
    // SAFETY: the pointer is to a whole termios.
    match unsafe { libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &raw const settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
