//! What the host says of an open file or block device.
#![expect(unsafe_code, reason = "fcntl, ioctl, statx and fstatfs")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::job::Alignment;
use super::{Discard, SECTOR_BYTES};

/// `_IO(0x12, 104)`, linux/fs.h.
const BLKSSZGET: libc::c_ulong = 0x1268;
/// `_IOR(0x12, 114, size_t)`, linux/fs.h.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `_IO(0x12, 123)`, linux/fs.h.
const BLKPBSZGET: libc::c_ulong = 0x127b;

/// The largest block that a guest is told of.
const BLOCK_BYTES_MAX: u32 = 1 << 20;

/// What O_DIRECT wants where the kernel does not say: no device wants more.
const DIRECT_DEFAULT: Alignment = Alignment { memory: 4096, offset: 4096 };

pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A block size as told by the host may be anything; a guest is told a power of two.
pub(super) fn sane_block_bytes(bytes: u32) -> u32 {
    let sector = u32::try_from(SECTOR_BYTES).expect("512");
    if bytes.is_power_of_two() { bytes.clamp(sector, BLOCK_BYTES_MAX) } else { sector }
}

/// Sets and clears flags of the open file description.
pub(super) fn change_flags(file: &File, set: libc::c_int, clear: libc::c_int) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: F_GETFL takes a descriptor = an open one, and no memory.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes a descriptor = an open one, and an int.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, (flags | set) & !clear) }).map(drop)
}

pub(super) fn device_bytes(device: &File) -> io::Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: BLKGETSIZE64 writes a u64 = `bytes`, which is one and lives across the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) })?;
    Ok(bytes)
}

pub(super) fn device_logical_block_bytes(device: &File) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes an int = `bytes`, which is one and lives across the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET, &raw mut bytes) })?;
    Ok(sane_block_bytes(u32::try_from(bytes).unwrap_or(0)))
}

pub(super) fn device_physical_block_bytes(device: &File) -> io::Result<u32> {
    let mut bytes: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET writes an unsigned int = `bytes`, which is one and lives across the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKPBSZGET, &raw mut bytes) })?;
    Ok(sane_block_bytes(bytes))
}

/// What O_DIRECT wants of memory and offsets (statx, STATX_DIOALIGN).
pub(super) fn direct_alignment(file: &File) -> Alignment {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: statx reads a path = an empty literal with its NUL, and writes a statx = `answer`, which has its size.
    let told = check(unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, answer.as_mut_ptr())
    });
    // SAFETY: a statx is integers = any bytes are one, and all of `answer` was zeroed.
    let answer = unsafe { answer.assume_init() };
    let (memory, offset) = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    if told.is_err() || answer.stx_mask & libc::STATX_DIOALIGN == 0 || memory == 0 || offset == 0 {
        return DIRECT_DEFAULT;
    }
    Alignment { memory: sane_block_bytes(memory.next_power_of_two()), offset: sane_block_bytes(offset) }
}

/// A file in memory: nothing that is done to it waits for a device.
pub(super) fn is_in_memory(file: &File) -> bool {
    let mut answer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: fstatfs writes a statfs = `answer`, which has its size.
    let told = check(unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) });
    // SAFETY: a statfs is integers = any bytes are one, and all of `answer` was zeroed.
    let answer = unsafe { answer.assume_init() };
    told.is_ok() && answer.f_type == libc::TMPFS_MAGIC
}

/// Whether the device discards. A partition's limits are those of its disk.
pub(super) fn device_discard(device: &File) -> Discard {
    let Ok(metadata) = device.metadata() else {
        return Discard::Unsupported;
    };
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let limit = |name: &str| {
        let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let text = std::fs::read_to_string(folder.join("queue").join(name))
            .or_else(|_| std::fs::read_to_string(folder.join("../queue").join(name)));
        text.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    if limit("discard_max_bytes") == 0 {
        return Discard::Unsupported;
    }
    let granularity = u32::try_from(limit("discard_granularity")).unwrap_or(BLOCK_BYTES_MAX);
    Discard::Supported { granularity_bytes: sane_block_bytes(granularity) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_that_make_no_sense_are_not_passed_on() {
        for (told, passed) in [(0, 512), (1, 512), (512, 512), (4096, 4096), (6000, 512), (1 << 30, 1 << 20)] {
            assert_eq!(sane_block_bytes(told), passed);
        }
    }
}
