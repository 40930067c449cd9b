//! Opening what a disk lives in: refused by name if it is not one, locked if it is.
//!
//! Locks are open file descriptions' (OFD): exclusive for writing, shared for reading. They belong to the descriptor,
//! so they end with it and survive a hand-over of it. A ring that has the file registered holds them too. On NFS the
//! kernel turns them into byte-range locks of the server, so that they hold between hosts too.
#![expect(unsafe_code, reason = "fcntl for locks")]

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::image_error::DiskImageError;
use super::job::{Alignment, Job};
use super::probe::{self, check, sane_block_bytes};
use super::syncs::{Doubt, Syncs};
use super::{CacheMode, Discard, DiskAccess, DiskGeometry, SECTOR_BYTES};

/// How long to wait for a lock: the kernel holds that of a husk that was killed until the io_uring of its disk is gone,
/// some 50 ms (measured). An orchestrator that restarts a husk at once must not be refused for that; a disk that somebody
/// does use is refused so much later.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// What the user may say about a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// How writes reach it.
    pub cache: CacheMode,
    /// The logical block, in bytes, in place of the backing's own.
    pub block: Option<BlockSize>,
    /// The physical block, in bytes, likewise; a power of two of at least the logical one.
    pub physical_block: Option<u32>,
}

/// A logical block that guests know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// The one of so many bytes.
    pub fn of_bytes(bytes: u32) -> Option<Self> {
        [Self::B512, Self::B4096].into_iter().find(|block| block.bytes() == bytes)
    }

    /// In bytes.
    pub fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// A regular file or a block device, open and locked.
#[derive(Debug)]
pub struct DiskImage {
    file: File,
    identity: FileIdentity,
    geometry: DiskGeometry,
    kind: Kind,
    direct: Option<Alignment>,
    syncs: Arc<Syncs>,
}

/// Which file it is, whatever paths lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// That of an open file.
    ///
    /// # Errors
    /// That of the host.
    pub fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::from_metadata(&metadata))
    }

    /// That of the file at `path`, which is not opened.
    ///
    /// # Errors
    /// That of the host.
    pub fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::from_metadata(&metadata))
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file on some device.
    File,
    /// A regular file in memory.
    MemoryFile,
    /// A block device.
    Device,
}

impl DiskImage {
    /// Opens and locks the disk at `path`. Nothing is ever created.
    ///
    /// # Errors
    /// Each way in which it is no disk for us has its variant.
    pub fn open(path: &Path, access: DiskAccess, options: DiskOptions) -> Result<Self, DiskImageError> {
        Self::from_file(open_file(path, access)?, path, access, options)
    }

    /// The same open file again, as it was found to be now.
    pub(super) fn again(&self, geometry: DiskGeometry) -> io::Result<Self> {
        let Self { file, identity, kind, direct, syncs, .. } = self;
        let (file, syncs) = (file.try_clone()?, Arc::clone(syncs));
        Ok(Self { file, identity: *identity, geometry, kind: *kind, direct: *direct, syncs })
    }

    /// Which file it is, by what was found when it was opened: its host may not answer any more.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Makes a disk of an open file and locks it. `path` is for messages only.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_file(
        file: File,
        path: &Path,
        access: DiskAccess,
        options: DiskOptions,
    ) -> Result<Self, DiskImageError> {
        let kind = kind(&file, path)?;
        if size(&file, kind).map_err(host(path, "get the size of"))? == 0 {
            return Err(DiskImageError::Empty(path.to_owned()));
        }
        // Before the lock, only questions.
        lock(&file, path, access)?;
        Self::describe(file, kind, path, access, options)
    }

    /// As [`Self::from_file`], without a lock: it is of use only to look at what another image has locked.
    pub(super) fn from_unlocked(
        file: File,
        path: &Path,
        access: DiskAccess,
        options: DiskOptions,
    ) -> Result<Self, DiskImageError> {
        let kind = kind(&file, path)?;
        Self::describe(file, kind, path, access, options)
    }

    fn describe(
        file: File,
        kind: Kind,
        path: &Path,
        access: DiskAccess,
        options: DiskOptions,
    ) -> Result<Self, DiskImageError> {
        let identity = FileIdentity::of(&file).map_err(host(path, "examine"))?;
        let bytes = size(&file, kind).map_err(host(path, "get the size of"))?;
        if bytes == 0 {
            return Err(DiskImageError::Empty(path.to_owned()));
        }
        let direct = match options.cache {
            CacheMode::Direct => Some(bypass_cache(&file, path)?),
            CacheMode::Writeback | CacheMode::Writethrough | CacheMode::Unsafe => None,
        };
        let (own, physical) = block_sizes(&file, kind).map_err(host(path, "get the block size of"))?;
        let least = direct.map_or(SECTOR_BYTES_32, |alignment| alignment.offset);
        let block = options.block.map_or(own.max(least), BlockSize::bytes);
        if block < least {
            return Err(DiskImageError::BlockTooSmall { path: path.to_owned(), asked: block, own: least });
        }
        if let Some(asked) = options.physical_block.filter(|physical| *physical < block) {
            return Err(DiskImageError::PhysicalTooSmall { path: path.to_owned(), asked, block });
        }
        if !bytes.is_multiple_of(block.into()) {
            return Err(DiskImageError::Unaligned { path: path.to_owned(), bytes, block });
        }
        let discard = match (access, kind) {
            (DiskAccess::ReadOnly, _) => Discard::Unsupported,
            (DiskAccess::ReadWrite, Kind::Device) => probe::device_discard(&file),
            // Whether the file system punches holes could only be found out by changing the file's times. One that
            // does not takes the hint and keeps the space.
            (DiskAccess::ReadWrite, Kind::File | Kind::MemoryFile) => {
                Discard::Supported { granularity_bytes: physical }
            }
        };
        let geometry = DiskGeometry {
            sectors: bytes / SECTOR_BYTES,
            logical_block_bytes: block,
            physical_block_bytes: options.physical_block.unwrap_or(physical).max(block),
            access,
            cache: options.cache,
            discard,
        };
        Ok(Self { file, identity, geometry, kind, direct, syncs: Arc::default() })
    }

    /// How large the backing is now, in whole blocks, in sectors.
    ///
    /// # Errors
    /// That of the host.
    pub fn current_sectors(&self) -> io::Result<u64> {
        let block = u64::from(self.geometry.logical_block_bytes);
        Ok(size(&self.file, self.kind)? / block * block / SECTOR_BYTES)
    }

    /// The file is in memory: nothing about it waits for a device, so it needs no engine that waits well.
    pub fn is_in_memory(&self) -> bool {
        self.kind == Kind::MemoryFile
    }

    /// Of a job whose next step is about to be done. What is past the page cache is durable or not by itself: only syncs through
    /// the cache are watched.
    pub(super) fn watch(&self, job: &mut Job) {
        if self.direct.is_none() && job.ticket.is_none() {
            job.ticket = job.scope().map(|scope| self.syncs.begin(scope));
        }
    }

    /// What a job's result means for the disk. What failed before its sync has lost nothing.
    ///
    /// # Errors
    /// It cannot be said before other syncs have ended.
    pub(super) fn settle(&self, job: &mut Job, result: io::Result<()>) -> Result<io::Result<()>, Doubt> {
        match job.ticket.take() {
            Some(ticket) if job.is_syncing() => self.syncs.end(ticket, result),
            Some(ticket) => {
                self.syncs.withdraw(&ticket);
                Ok(result)
            }
            None => Ok(result),
        }
    }

    /// The syncs of the file.
    pub(super) fn syncs(&self) -> &Syncs {
        &self.syncs
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// What O_DIRECT wants, if it is used.
    pub(super) fn direct(&self) -> Option<Alignment> {
        self.direct
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

/// Opens what may be a disk, without a lock.
pub(super) fn open_file(path: &Path, access: DiskAccess) -> Result<File, DiskImageError> {
    let file = OpenOptions::new()
        .read(true)
        .write(access == DiskAccess::ReadWrite)
        // A pipe without a writer must not stop us before we know that it is one. std adds O_CLOEXEC.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| open_error(path, access, source))?;
    // The host would look at the file's access time with each of the guest's reads, for nobody. Only the owner may leave that
    // out.
    probe::change_flags(&file, libc::O_NOATIME, libc::O_NONBLOCK)
        .or_else(|_| probe::change_flags(&file, 0, libc::O_NONBLOCK))
        .map_err(host(path, "open"))?;
    Ok(file)
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

pub(super) fn host(path: &Path, attempt: &'static str) -> impl FnOnce(io::Error) -> DiskImageError {
    move |source| DiskImageError::Host { path: path.to_owned(), attempt, source }
}

const SECTOR_BYTES_32: u32 = 512;
const _: () = assert!(SECTOR_BYTES_32 as u64 == SECTOR_BYTES);

fn kind(file: &File, path: &Path) -> Result<Kind, DiskImageError> {
    let kind = file.metadata().map_err(host(path, "examine"))?.file_type();
    if kind.is_block_device() {
        Ok(Kind::Device)
    } else if kind.is_file() {
        Ok(if probe::is_in_memory(file) { Kind::MemoryFile } else { Kind::File })
    } else if kind.is_dir() {
        Err(DiskImageError::Directory(path.to_owned()))
    } else {
        Err(DiskImageError::Kind(path.to_owned()))
    }
}

fn size(file: &File, kind: Kind) -> io::Result<u64> {
    match kind {
        Kind::Device => probe::device_bytes(file),
        Kind::File | Kind::MemoryFile => Ok(file.metadata()?.len()),
    }
}

/// The logical and the physical block, in bytes.
fn block_sizes(file: &File, kind: Kind) -> io::Result<(u32, u32)> {
    match kind {
        Kind::Device => Ok((probe::device_logical_block_bytes(file)?, probe::device_physical_block_bytes(file)?)),
        Kind::File | Kind::MemoryFile => {
            let preferred = u32::try_from(file.metadata()?.blksize()).unwrap_or(0);
            Ok((SECTOR_BYTES_32, sane_block_bytes(preferred)))
        }
    }
}

fn bypass_cache(file: &File, path: &Path) -> Result<Alignment, DiskImageError> {
    probe::change_flags(file, libc::O_DIRECT, 0)
        .map_err(|source| DiskImageError::NoDirect { path: path.to_owned(), source })?;
    Ok(probe::direct_alignment(file))
}

/// Locks the whole file, for as long as its open file description lives.
fn lock(file: &File, path: &Path, access: DiskAccess) -> Result<(), DiskImageError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match try_lock_whole(file, access) {
            Ok(()) => return Ok(()),
            Err(error) if !is_locked(&error) => return Err(host(path, "lock")(error)),
            Err(_) if Instant::now() >= deadline => break,
            Err(_) => thread::sleep(LOCK_INTERVAL),
        }
    }
    let mut answer = whole_file(access);
    // SAFETY: F_OFD_GETLK reads and writes a flock = `answer`, which is one and lives across the call.
    let told = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut answer) });
    // The holder may be gone by now, and of an OFD lock the process is -1.
    let pid = told.ok().and_then(|_| u32::try_from(answer.l_pid).ok()).filter(|pid| *pid != 0);
    Err(DiskImageError::Locked { path: path.to_owned(), pid })
}

/// One attempt at a disk's lock.
pub(crate) fn try_lock_whole(file: &File, access: DiskAccess) -> io::Result<()> {
    let mut request = whole_file(access);
    // SAFETY: F_OFD_SETLK reads a flock = `request`, which is one and lives across the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut request) }).map(drop)
}

fn is_locked(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use tempfile::TempDir;

    fn folder_with_disk(bytes: u64) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        (folder, path)
    }

    fn refusal(path: &Path, access: DiskAccess) -> DiskImageError {
        DiskImage::open(path, access, DiskOptions::default()).unwrap_err()
    }

    #[test]
    fn a_file_is_a_disk_of_its_size() {
        let (_folder, path) = folder_with_disk(3 * 512);
        for access in [DiskAccess::ReadOnly, DiskAccess::ReadWrite] {
            let image = DiskImage::open(&path, access, DiskOptions::default()).unwrap();
            let geometry = image.geometry();
            assert_eq!((geometry.sectors, geometry.access), (3, access));
            assert!(geometry.physical_block_bytes.is_power_of_two() && geometry.physical_block_bytes >= 512);
            let fd = image.file().as_raw_fd();
            // SAFETY: F_GETFL takes an open descriptor, and no memory.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            assert_eq!(flags & libc::O_NONBLOCK, 0);
            assert_eq!(flags & libc::O_NOATIME, libc::O_NOATIME, "the file is ours");
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
        let writer = DiskImage::open(&path, DiskAccess::ReadWrite, DiskOptions::default()).unwrap();
        for access in [DiskAccess::ReadOnly, DiskAccess::ReadWrite] {
            let refused = refusal(&path, access);
            assert!(matches!(refused, DiskImageError::Locked { pid: None, .. }), "{refused:?}");
            assert!(
                refused.to_string().ends_with("is locked by another process: end that one, or give this one a copy")
            );
        }
        drop(writer);
        let _reader = DiskImage::open(&path, DiskAccess::ReadOnly, DiskOptions::default()).unwrap();
        let _another = DiskImage::open(&path, DiskAccess::ReadOnly, DiskOptions::default()).unwrap();
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
}
