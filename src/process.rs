//! What the process is set to, and what it takes over, before its first thread is made.
#![expect(unsafe_code, reason = "mallopt, signal dispositions and what a process inherits have no safe interface")]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Where the C library starts husk, in place of Rust's own runtime. That reads /proc/self/maps for the end of the first
/// thread's stack and gives each thread a signal stack, all to name a stack's overflow before the process dies of it: a
/// twentieth of the time from exec to the guest's first instruction, and three system calls a thread. Its other habits are
/// husk's too.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, expect(dead_code, reason = "tests are started by their harness"))]
extern "C" fn main() -> libc::c_int {
    open_standard_streams();
    ignore(libc::SIGPIPE);
    // A guest's write beyond RLIMIT_FSIZE shall be an error to the guest (EFBIG), not the end of the VM.
    ignore(libc::SIGXFSZ);
    share_one_arena();
    populate();
    // It writes out what standard output holds back.
    std::process::exit(libc::c_int::from(crate::run() as u8))
}

/// Gives the heap and the stack at once the pages that every start uses: one system call in place of a fault for each.
fn populate() {
    /// Of what a running machine has there anyway, somewhat less (`tools/dev bench boot footprint`).
    const HEAP_BYTES: usize = 80 << 10;
    const STACK_BYTES: usize = 32 << 10;
    const PAGE_BYTES: usize = 4 << 10;
    let (heap, stack) = (Box::new(0_u8), 0_u8);
    let heap_start = (&raw const *heap).addr().next_multiple_of(PAGE_BYTES);
    let stack_end = (&raw const stack).addr() / PAGE_BYTES * PAGE_BYTES;
    for (start, bytes) in [(heap_start, HEAP_BYTES), (stack_end - STACK_BYTES, STACK_BYTES)] {
        // SAFETY: MADV_POPULATE_WRITE changes nothing that a program can read. Where there is nothing, or the kernel does not
        // know it (before 5.14), it fails, and the pages come one by one.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), bytes, libc::MADV_POPULATE_WRITE) };
    }
}

/// Puts /dev/null where a standard stream is closed, lest the next file that is opened be taken for it.
fn open_standard_streams() {
    let mut streams = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the three pollfds are valid for the call, which does not wait.
    let closed = unsafe { libc::poll(streams.as_mut_ptr(), 3, 0) };
    if closed > 0 {
        for _ in streams.iter().filter(|stream| stream.revents & libc::POLLNVAL != 0) {
            // The lowest number that is free is the one that is missing. Without /dev/null there is nothing to put there.
            // SAFETY: the path is a C string.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
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

fn ignore(signal: libc::c_int) {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Runs `make` such that what it makes has these permissions at most, at every instant. To be called before another thread
/// makes files.
pub(crate) fn with_permissions<T>(permissions: u32, make: impl FnOnce() -> T) -> T {
    // SAFETY: umask takes a number and cannot fail.
    let before = unsafe { libc::umask(!permissions & 0o777) };
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
