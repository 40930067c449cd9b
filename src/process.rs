//! What the process is set to before its first thread is made.
#![expect(unsafe_code, reason = "mallopt and signal dispositions have no safe interface in libc")]

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
