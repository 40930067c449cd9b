//! Random numbers from the host's generator.
#![expect(unsafe_code, reason = "getrandom has no safe interface in std")]

use std::io;

/// `N` bytes, at most 256: so many the host gives whole once it gives any (man 2 getrandom).
///
/// # Errors
/// The host has no generator.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256, "more may come in parts") };
    let mut bytes = [0; N];
    loop {
        // SAFETY: getrandom writes at most N bytes at the pointer = a live array of that length, ours alone.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
        if usize::try_from(got) == Ok(N) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
