//! Files that live in memory.
#![expect(unsafe_code, reason = "memfd_create has no safe interface in libc")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

/// A new file of `bytes` bytes, all zero, that no path leads to.
///
/// # Errors
/// The host gives none of this size; a `name` with a NUL byte.
pub fn create(name: &str, bytes: u64) -> io::Result<File> {
    create_with(name, bytes, 0)
}

/// As [`create`], of a HugePage pool's pages of `page_bytes` bytes.
///
/// # Errors
/// Those of [`create`]; the host has no such pages.
pub fn create_huge(name: &str, bytes: u64, page_bytes: u64) -> io::Result<File> {
    create_with(name, bytes, libc::MFD_HUGETLB | page_bytes.trailing_zeros() << libc::MFD_HUGE_SHIFT)
}

fn create_with(name: &str, bytes: u64, flags: libc::c_uint) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: memfd_create just made this descriptor and nobody else knows of it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok(file)
}
