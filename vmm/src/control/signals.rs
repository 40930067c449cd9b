//! The signals that ask the process to end, as a descriptor for the control loop.
#![expect(unsafe_code, reason = "signal masks and signalfd have no safe interface in libc")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// SIGTERM, SIGINT and SIGHUP, blocked in this thread and the threads it makes, and readable here instead.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Takes them over. To be called before the first thread is made.
    ///
    /// # Errors
    /// The host refuses.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set it is given.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // A signal that the parent had us ignore, as nohup does with SIGHUP, stays ignored: once blocked it would be queued.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP].into_iter().filter(|signal| !is_ignored(*signal)) {
            // SAFETY: the set is initialised, and the signal's number is valid.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: the set is initialised; the old mask is not asked for.
        let masked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
        if masked != 0 {
            return Err(io::Error::from_raw_os_error(masked));
        }
        // SAFETY: -1 asks for a new descriptor; the set is initialised.
        let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just made this descriptor and nobody else knows of it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl Signals {
    /// Consumes one signal, if there is one: each of a kind counts once, however often it was sent before.
    pub(super) fn take(&self) {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        // SAFETY: the descriptor is a signalfd; the buffer is as large as said and nothing is read from it.
        let _seen = unsafe { libc::read(self.as_raw_fd(), info.as_mut_ptr().cast(), size_of_val(&info)) };
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given; the present one has a place of its type to go to.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeroes is a valid sigaction, so it is initialised whether or not the call wrote to it.
    let action = unsafe { action.assume_init() };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
