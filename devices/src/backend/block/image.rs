//! Opening what a disk lives in: refused by name if it is not one, locked if it is.
//!
//! Locks are open file descriptions' (OFD): exclusive for writing, shared for reading. They belong to the descriptor,
//! so they end with it and survive a hand-over of it.
#![expect(unsafe_code, reason = "fcntl for locks, ioctl for the size of a block device")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{DiskAccess, DiskGeometry, SECTOR_BYTES};

/// `_IOR(0x12, 114, size_t)`, linux/fs.h.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `_IO(0x12, 123)`, linux/fs.h.
const BLKPBSZGET: libc::c_ulong = 0x127b;

/// The largest physical block that a guest is told of.
const PHYSICAL_BLOCK_BYTES_MAX: u32 = 1 << 20;

/// Why a path is no disk.
#[derive(Debug, Error)]
pub enum DiskImageError {
    /// Nothing is there.
    #[error("disk {0} does not exist: check the path")]
    Absent(PathBuf),
    /// We may not.
    #[error("no permission to open disk {path} for {} ({cause}): check its owner and mode, or add ,ro", purpose(.access))]
    Permission {
        /// The disk.
        path: PathBuf,
        /// What for.
        access: DiskAccess,
        /// What the host said.
        cause: io::Error,
    },
    /// It is a directory.
    #[error("disk {0} is a directory: give a file or a block device")]
    Directory(PathBuf),
    /// It is a pipe, a socket or a character device.
    #[error("disk {0} is neither a regular file nor a block device: give one of these")]
    Kind(PathBuf),
    /// It holds nothing.
    #[error("disk {0} is empty: give it a size, as by truncate -s 1G")]
    Empty(PathBuf),
    /// Its end is inside a sector.
    #[error(
        "disk {path} has {bytes} bytes, not a multiple of {SECTOR_BYTES}: extend it, as by truncate -s %{SECTOR_BYTES}"
    )]
    Unaligned {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Somebody else uses it.
    #[error("disk {path} is locked by {}: end that one, or give this one a copy", holder(.pid))]
    Locked {
        /// The disk.
        path: PathBuf,
        /// Who, if the kernel tells: it does not for locks like ours.
        pid: Option<u32>,
    },
    /// The host failed.
    #[error("cannot {attempt} disk {path}")]
    Host {
        /// The disk.
        path: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

fn purpose(access: &DiskAccess) -> &'static str {
    match access {
        DiskAccess::ReadOnly => "reading",
        DiskAccess::ReadWrite => "reading and writing",
    }
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// A regular file or a block device, open and locked.
#[derive(Debug)]
pub struct DiskImage {
    file: File,
    geometry: DiskGeometry,
}

impl DiskImage {
    /// Opens and locks the disk at `path`. Nothing is ever created.
    ///
    /// # Errors
    /// Each way in which it is no disk for us has its variant.
    pub fn open(path: &Path, access: DiskAccess) -> Result<Self, DiskImageError> {
        let file = OpenOptions::new()
            .read(true)
            .write(access == DiskAccess::ReadWrite)
            // A pipe without a writer must not stop us before we know that it is one. std adds O_CLOEXEC.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| open_error(path, access, source))?;
        set_blocking(&file).map_err(host(path, "open"))?;
        Self::from_file(file, path, access)
    }

    /// Makes a disk of an open file and locks it. `path` is for messages only.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_file(file: File, path: &Path, access: DiskAccess) -> Result<Self, DiskImageError> {
        let metadata = file.metadata().map_err(host(path, "examine"))?;
        let kind = metadata.file_type();
        let (bytes, physical_block_bytes) = if kind.is_block_device() {
            let bytes = block_device_bytes(&file).map_err(host(path, "get the size of"))?;
            (bytes, physical_block_bytes(&file).map_err(host(path, "get the block size of"))?)
        } else if kind.is_file() {
            (metadata.len(), u32::try_from(metadata.blksize()).unwrap_or(0))
        } else if kind.is_dir() {
            return Err(DiskImageError::Directory(path.to_owned()));
        } else {
            return Err(DiskImageError::Kind(path.to_owned()));
        };
        if bytes == 0 {
            return Err(DiskImageError::Empty(path.to_owned()));
        }
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskImageError::Unaligned { path: path.to_owned(), bytes });
        }
        lock(&file, path, access)?;
        let physical_block_bytes = sane_block_bytes(physical_block_bytes);
        Ok(Self { file, geometry: DiskGeometry { sectors: bytes / SECTOR_BYTES, physical_block_bytes, access } })
    }

    /// The disk's shape.
    pub fn geometry(&self) -> DiskGeometry {
        self.geometry
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

fn open_error(path: &Path, access: DiskAccess, source: io::Error) -> DiskImageError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => DiskImageError::Absent(path.to_owned()),
        Some(libc::EISDIR) => DiskImageError::Directory(path.to_owned()),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            DiskImageError::Permission { path: path.to_owned(), access, cause: source }
        }
        // No such device, or a socket.
        Some(libc::ENXIO) => DiskImageError::Kind(path.to_owned()),
        _ => DiskImageError::Host { path: path.to_owned(), attempt: "open", source },
    }
}

fn host(path: &Path, attempt: &'static str) -> impl FnOnce(io::Error) -> DiskImageError {
    move |source| DiskImageError::Host { path: path.to_owned(), attempt, source }
}

/// A disk's own block size as told by the host may be anything; a guest is told a power of two.
fn sane_block_bytes(bytes: u32) -> u32 {
    let sector = u32::try_from(SECTOR_BYTES).expect("512");
    if bytes.is_power_of_two() { bytes.clamp(sector, PHYSICAL_BLOCK_BYTES_MAX) } else { sector }
}

fn set_blocking(file: &File) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: F_GETFL takes a descriptor = an open one, and no memory.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes a descriptor = an open one, and an int.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK) }).map(drop)
}

fn block_device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: BLKGETSIZE64 writes a u64 = `bytes`, which is one and lives across the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) })?;
    Ok(bytes)
}

fn physical_block_bytes(file: &File) -> io::Result<u32> {
    let mut bytes: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET writes an unsigned int = `bytes`, which is one and lives across the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKPBSZGET, &raw mut bytes) })?;
    Ok(bytes)
}

/// Locks the whole file, for as long as its open file description lives.
fn lock(file: &File, path: &Path, access: DiskAccess) -> Result<(), DiskImageError> {
    let fd = file.as_raw_fd();
    let mut request = whole_file(access);
    // SAFETY: F_OFD_SETLK reads a flock = `request`, which is one and lives across the call.
    let Err(source) = check(unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw mut request) }) else {
        return Ok(());
    };
    if !matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) {
        return Err(host(path, "lock")(source));
    }
    let mut answer = whole_file(access);
    // SAFETY: F_OFD_GETLK reads and writes a flock = `answer`, which is one and lives across the call.
    let told = check(unsafe { libc::fcntl(fd, libc::F_OFD_GETLK, &raw mut answer) });
    // The holder may be gone by now, and of an OFD lock the process is -1.
    let pid = told.ok().and_then(|_| u32::try_from(answer.l_pid).ok()).filter(|pid| *pid != 0);
    Err(DiskImageError::Locked { path: path.to_owned(), pid })
}

fn whole_file(access: DiskAccess) -> libc::flock {
    let short = |constant| libc::c_short::try_from(constant).expect("constants of a field of 16 bits");
    let kind = match access {
        DiskAccess::ReadOnly => short(libc::F_RDLCK),
        DiskAccess::ReadWrite => short(libc::F_WRLCK),
    };
    // A length of 0 reaches to the end, wherever it moves; OFD locks want the process to be 0.
    libc::flock { l_type: kind, l_whence: short(libc::SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    fn folder_with_disk(bytes: u64) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        (folder, path)
    }

    fn refusal(path: &Path, access: DiskAccess) -> DiskImageError {
        DiskImage::open(path, access).unwrap_err()
    }

    #[test]
    fn a_file_is_a_disk_of_its_size() {
        let (_folder, path) = folder_with_disk(3 * 512);
        for access in [DiskAccess::ReadOnly, DiskAccess::ReadWrite] {
            let image = DiskImage::open(&path, access).unwrap();
            let geometry = image.geometry();
            assert_eq!((geometry.sectors, geometry.access), (3, access));
            assert!(geometry.physical_block_bytes.is_power_of_two() && geometry.physical_block_bytes >= 512);
            let fd = image.file().as_raw_fd();
            // SAFETY: F_GETFL takes an open descriptor, and no memory.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            assert_eq!(flags & libc::O_NONBLOCK, 0);
            // SAFETY: F_GETFD takes an open descriptor, and no memory.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_by_its_name_and_nothing_is_created() {
        for access in [DiskAccess::ReadOnly, DiskAccess::ReadWrite] {
            let (folder, path) = folder_with_disk(0);
            let absent = folder.path().join("absent");
            assert!(matches!(refusal(&absent, access), DiskImageError::Absent(_)));
            assert!(!absent.exists());
            assert!(matches!(refusal(&path.join("below"), access), DiskImageError::Absent(_)));
            assert!(matches!(refusal(folder.path(), access), DiskImageError::Directory(_)));
            assert!(matches!(refusal(&path, access), DiskImageError::Empty(_)));
            for bytes in [1, 511, 513, 1025] {
                let (_folder, path) = folder_with_disk(bytes);
                let refused = refusal(&path, access);
                assert!(matches!(refused, DiskImageError::Unaligned { bytes: told, .. } if told == bytes));
            }
            assert!(matches!(refusal(Path::new("/dev/null"), access), DiskImageError::Kind(_)));
            let socket = folder.path().join("socket");
            let _listener = UnixListener::bind(&socket).unwrap();
            assert!(matches!(refusal(&socket, access), DiskImageError::Kind(_)));
            let pipe = folder.path().join("pipe");
            let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
            assert!(made.success());
            assert!(matches!(refusal(&pipe, access), DiskImageError::Kind(_)));
        }
    }

    #[test]
    fn writers_exclude_everybody_and_readers_share() {
        let (_folder, path) = folder_with_disk(512);
        let writer = DiskImage::open(&path, DiskAccess::ReadWrite).unwrap();
        for access in [DiskAccess::ReadOnly, DiskAccess::ReadWrite] {
            let refused = refusal(&path, access);
            assert!(matches!(refused, DiskImageError::Locked { pid: None, .. }), "{refused:?}");
            assert!(
                refused.to_string().ends_with("is locked by another process: end that one, or give this one a copy")
            );
        }
        drop(writer);
        let _reader = DiskImage::open(&path, DiskAccess::ReadOnly).unwrap();
        let _another = DiskImage::open(&path, DiskAccess::ReadOnly).unwrap();
        assert!(matches!(refusal(&path, DiskAccess::ReadWrite), DiskImageError::Locked { .. }));
    }

    #[test]
    fn a_process_that_holds_an_old_style_lock_is_named() {
        let (_folder, path) = folder_with_disk(512);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut request = whole_file(DiskAccess::ReadWrite);
        // SAFETY: F_SETLK reads a flock = `request`, which is one and lives across the call.
        let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw mut request) };
        assert_eq!(locked, 0);
        let refused = refusal(&path, DiskAccess::ReadOnly);
        let us = std::process::id();
        assert!(matches!(refused, DiskImageError::Locked { pid: Some(pid), .. } if pid == us), "{refused:?}");
    }

    #[test]
    fn a_disk_that_we_may_not_open_is_refused_by_what_for() {
        // Root may open everything, but nobody writes to a read-only file system or to a running program.
        let (_folder, path) = folder_with_disk(512);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
        let source = io::Error::from_raw_os_error(libc::EACCES);
        let refused = open_error(&path, DiskAccess::ReadWrite, source);
        assert!(matches!(refused, DiskImageError::Permission { .. }));
        assert!(refused.to_string().contains("for reading and writing"));
    }

    #[test]
    fn block_sizes_that_make_no_sense_are_not_passed_on() {
        for (told, passed) in [(0, 512), (1, 512), (512, 512), (4096, 4096), (6000, 512), (1 << 30, 1 << 20)] {
            assert_eq!(sane_block_bytes(told), passed);
        }
    }
}
