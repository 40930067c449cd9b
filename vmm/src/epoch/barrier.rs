//! A full memory barrier in every thread of the process at once, paid by the one that asks: so that the others' hot paths need
//! none of their own.
#![expect(unsafe_code, reason = "membarrier has no safe interface in libc")]

use std::io;

/// From <linux/membarrier.h>.
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// Has every thread of this process pass a full barrier between this call's beginning and its end. The first call of a
/// process waits for a grace period.
///
/// # Errors
/// The kernel has no such call, or the sandbox does not let it through.
pub(super) fn in_all_threads() -> io::Result<()> {
    membarrier(REGISTER_PRIVATE_EXPEDITED)?;
    membarrier(PRIVATE_EXPEDITED)
}

fn membarrier(command: libc::c_int) -> io::Result<()> {
    const NO_FLAGS: libc::c_uint = 0;
    const ANY_CPU: libc::c_int = 0;
    // SAFETY: membarrier takes numbers, and touches no memory.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, NO_FLAGS, ANY_CPU) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
