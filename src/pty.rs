//! A pseudo-terminal for the guest's serial port.
#![expect(unsafe_code, reason = "openpty and termios have no safe interface in libc")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Both sides of a pseudo-terminal in raw mode: what is written to one is read from the other, byte for byte.
#[derive(Debug)]
pub(crate) struct Pty {
    master: File,
    _slave: OwnedFd,
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
        Ok(Self { master, _slave: slave, path })
    }

    /// husk's side.
    pub(crate) fn master(&self) -> &File {
        &self.master
    }

    /// What a user opens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
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
