//! What the process is set to, and what it takes over, before its first thread is made.
#![expect(unsafe_code, reason = "mallopt, signal dispositions and what a process inherits have no safe interface")]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Prepares the process. To be called first.
pub(crate) fn prepare() {
    share_one_arena();
    ignore_file_size_signal();
}

/// Whether a line can be written to standard error without waiting for who reads it.
pub(crate) fn standard_error_takes_a_line() -> bool {
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the one pollfd is valid for the call, which does not wait.
    let ready = unsafe { libc::poll(&raw mut stderr, 1, 0) };
    ready > 0 && stderr.revents & libc::POLLOUT != 0
}

/// Makes all threads share malloc's first arena. An arena of its own costs each thread six system calls and pages of
/// memory at its first allocation, and no thread of husk allocates where it matters.
fn share_one_arena() {
    // SAFETY: mallopt takes two numbers, and no other thread runs yet.
    let accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    assert!(accepted == 1, "glibc knows M_ARENA_MAX");
}

/// A guest's write beyond RLIMIT_FSIZE shall be an error to the guest (EFBIG), not the end of the VM by SIGXFSZ.
fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Runs `make` such that the files it makes are this user's alone. To be called before another thread makes files.
pub(crate) fn with_private_files<T>(make: impl FnOnce() -> T) -> T {
    // SAFETY: umask takes a number and cannot fail.
    let before = unsafe { libc::umask(0o177) };
    let made = make();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    made
}

/// An environment variable, which this process does not hand on. To be called before another thread runs.
pub(crate) fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    // SAFETY: no other thread reads or writes the environment: none runs yet.
    unsafe { std::env::remove_var(name) };
    Some(value)
}

/// A descriptor that whoever started this process has handed to it, and that goes no further. To be called once for each.
pub(crate) fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes a descriptor's number and flags.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as fcntl has just found, and it is ours by what the caller knows.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// One of a socket's own options (socket(7)) that are a number.
pub(crate) fn socket_option(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&value)).expect("an int is small");
    let place = (&raw mut value).cast();
    // SAFETY: the descriptor is open; the value and its size have places of their types, and the size is the value's.
    let got = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, place, &raw mut size) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
