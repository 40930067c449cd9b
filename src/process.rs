//! What the process is set to before its first thread is made.
#![expect(unsafe_code, reason = "mallopt and signal dispositions have no safe interface in libc")]

use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;

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

/// The descriptor of the first socket that was handed over (sd_listen_fds(3)).
const LISTEN_FDS_START: libc::c_int = 3;

/// The listening socket that whoever started this process has handed to it, if they did. Once a process.
pub(crate) fn inherited_socket() -> io::Result<Option<UnixListener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    let (Some(pid), Some(count)) = (number("LISTEN_PID"), number("LISTEN_FDS")) else { return Ok(None) };
    if pid != std::process::id() || count == 0 {
        return Ok(None);
    }
    // SAFETY: F_SETFD takes a descriptor's number and flags.
    if unsafe { libc::fcntl(LISTEN_FDS_START, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as fcntl has just found, and it is ours by the protocol.
    let listener = unsafe { UnixListener::from_raw_fd(LISTEN_FDS_START) };
    // Of another kind it would fail only when a client comes.
    listener.local_addr()?;
    Ok(Some(listener))
}
