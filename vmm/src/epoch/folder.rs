//! A folder held open, in which a point's files are opened, made, linked, renamed and removed by name alone: nobody can put
//! a link in the way between two steps. Symbolic links are never followed, pipes are never waited for, and nothing but
//! plain files is read.
#![expect(unsafe_code, reason = "the *at calls and extended attributes have no safe interface in std")]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::PointId;
use crate::faults;

/// A point's files hold a guest's secrets: they are their maker's alone.
const FILE_MODE: libc::mode_t = 0o600;
const FOLDER_MODE: libc::mode_t = 0o700;
const ID_ATTRIBUTE: &CStr = c"user.husk";

/// A step on a file that the host refused.
#[derive(Debug, Error)]
#[error("cannot {attempt} {}", path.display())]
pub struct FileError {
    /// The step.
    pub attempt: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the host said.
    pub source: io::Error,
}

/// A folder held open.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// What a memory file says of itself, where its filesystem keeps attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    /// The point it belongs to.
    Point(PointId),
    /// Something that names no point.
    Foreign,
    /// Nothing.
    Absent,
}

impl Folder {
    /// Opens the folder at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let opened = c_string(path.as_os_str()).and_then(|name| open_at(libc::AT_FDCWD, &name, flags));
        let fd = opened.map_err(|source| FileError { attempt: "open the folder", path: path.to_owned(), source })?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the folder that `file` is in; the second is the file's name in it.
    pub(super) fn around(file: &Path) -> Result<(Self, OsString), FileError> {
        let source = || io::Error::new(io::ErrorKind::InvalidInput, "the path ends in no file's name");
        let name =
            file.file_name().ok_or_else(|| FileError { attempt: "open", path: file.to_owned(), source: source() })?;
        Ok((Self::open(file.parent().unwrap_or(Path::new(".")))?, name.to_owned()))
    }

    /// Opens the folder `name` in this one.
    pub(super) fn folder(&self, name: &OsStr) -> Result<Self, FileError> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let fd = self.open_fd(name, flags).map_err(self.failed("open the folder", name))?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// As [`Folder::folder`]; `None` if there is no such folder.
    pub(super) fn folder_if_there(&self, name: &OsStr) -> Result<Option<Self>, FileError> {
        match self.folder(name) {
            Ok(folder) => Ok(Some(folder)),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where `name` is, for people.
    pub(super) fn at(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a plain file to read it.
    pub(super) fn read(&self, name: &OsStr) -> Result<File, FileError> {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = self.open_fd(name, flags).map(File::from).and_then(|file| {
            let plain = file.metadata()?.is_file();
            if plain { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file")) }
        });
        let named = opened.map_err(|source| match source.raw_os_error() {
            Some(libc::ELOOP) => io::Error::new(io::ErrorKind::InvalidInput, "it is a symbolic link"),
            _ => source,
        });
        named.map_err(self.failed("open", name))
    }

    /// As [`Folder::read`]; `None` if there is no such file.
    pub(super) fn read_if_there(&self, name: &OsStr) -> Result<Option<File>, FileError> {
        match self.read(name) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names in it, in no order.
    pub(super) fn names(&self) -> Result<Vec<OsString>, FileError> {
        let listed =
            std::fs::read_dir(&self.path).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
        listed.map_err(|source| FileError { attempt: "list", path: self.path.clone(), source })
    }

    /// Makes the folder `name`; false if it is there.
    pub(super) fn make_folder(&self, name: &OsStr) -> Result<bool, FileError> {
        let made = step().and_then(|()| c_string(name)).and_then(|name| {
            // SAFETY: the descriptor is open as long as `self`, and the name is a NUL-terminated string.
            result(unsafe { libc::mkdirat(self.fd.as_raw_fd(), name.as_ptr(), FOLDER_MODE) })
        });
        match made {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.failed("make the folder", name)(error)),
        }
    }

    /// Gives `name` in `from` the name `to` in this folder too; false if there is a `to` already.
    pub(super) fn link(&self, from: &Self, name: &OsStr, to: &OsStr) -> Result<bool, FileError> {
        let linked = step().and_then(|()| Ok((c_string(name)?, c_string(to)?))).and_then(|(name, to)| {
            // SAFETY: both descriptors are open as long as their folders, both names are NUL-terminated strings.
            result(unsafe { libc::linkat(from.fd.as_raw_fd(), name.as_ptr(), self.fd.as_raw_fd(), to.as_ptr(), 0) })
        });
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(FileError { attempt: "link", path: from.at(name), source }),
        }
    }

    /// Gives `from` the name `to`, in place of what has it.
    pub(super) fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), FileError> {
        let renamed = step().and_then(|()| Ok((c_string(from)?, c_string(to)?))).and_then(|(from, to)| {
            let fd = self.fd.as_raw_fd();
            // SAFETY: the descriptor is open as long as `self`, both names are NUL-terminated strings.
            result(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) })
        });
        renamed.map_err(self.failed("replace", to))
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: &OsStr) -> Result<(), FileError> {
        self.unlink(name, 0).map_err(self.failed("remove", name))
    }

    /// Removes an empty folder.
    pub(super) fn remove_folder(&self, name: &OsStr) -> Result<(), FileError> {
        self.unlink(name, libc::AT_REMOVEDIR).map_err(self.failed("remove the folder", name))
    }

    /// Waits until what was made, renamed and removed in it is on the disk.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        let synced = step().and_then(|()| {
            // SAFETY: the descriptor is open as long as `self`.
            result(unsafe { libc::fsync(self.fd.as_raw_fd()) })
        });
        synced.map_err(|source| FileError { attempt: "write out the folder", path: self.path.clone(), source })
    }

    pub(super) fn failed(&self, attempt: &'static str, name: &OsStr) -> impl FnOnce(io::Error) -> FileError {
        move |source| FileError { attempt, path: self.path.join(name), source }
    }

    fn open_fd(&self, name: &OsStr, flags: libc::c_int) -> io::Result<OwnedFd> {
        open_at(self.fd.as_raw_fd(), &c_string(name)?, flags)
    }

    fn unlink(&self, name: &OsStr, flags: libc::c_int) -> io::Result<()> {
        step()?;
        let name = c_string(name)?;
        // SAFETY: the descriptor is open as long as `self`, and the name is a NUL-terminated string.
        result(unsafe { libc::unlinkat(self.fd.as_raw_fd(), name.as_ptr(), flags) })
    }
}

/// A file under a temporary name beside the one it will have. It is gone if it never gets that.
#[derive(Debug)]
pub(super) struct Temporary {
    folder: Arc<Folder>,
    beside: OsString,
    name: OsString,
    file: File,
    placed: bool,
}

impl Temporary {
    /// A new, empty file for the name `name`, locked: one that nobody has locked is a dead writer's.
    pub(super) fn create(folder: &Arc<Folder>, name: &OsStr, id: PointId) -> Result<Self, FileError> {
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{id}.new"));
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        loop {
            let made = step().and_then(|()| folder.open_fd(&beside, flags));
            let file = File::from(made.map_err(folder.failed("make", &beside))?);
            let (folder, beside, name) = (Arc::clone(folder), beside.clone(), name.to_owned());
            let new = Self { folder, beside, name, file, placed: false };
            // A filesystem without locks has none for a sweep to take either.
            let _ = new.file.lock();
            // Another writer's sweep may have come between the two.
            let links = new.file.metadata().map(|metadata| metadata.nlink());
            if links.map_err(new.folder.failed("read", &new.beside))? > 0 {
                return Ok(new);
            }
        }
    }

    /// Removes what writers of the file `name` left behind that died.
    pub(super) fn sweep(folder: &Folder, name: &OsStr) {
        for beside in folder.names().unwrap_or_default() {
            let dead =
                temporary_of(&beside) == Some(name) && folder.read(&beside).is_ok_and(|file| file.try_lock().is_ok());
            if dead {
                // It is tried again by the next writer.
                let _ = folder.remove(&beside);
            }
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.at(&self.name)
    }

    /// Makes it `bytes` long, all of it a hole.
    pub(super) fn set_len(&self, bytes: u64) -> Result<(), FileError> {
        step().and_then(|()| self.file.set_len(bytes)).map_err(self.folder.failed("make room in", &self.name))
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), FileError> {
        step().and_then(|()| self.file.write_all_at(bytes, offset)).map_err(self.folder.failed("write", &self.name))
    }

    /// Says on the file whose it is, where the filesystem keeps attributes: a reader that finds none has the index.
    pub(super) fn label(&self, id: PointId) {
        let text = id.to_string();
        // SAFETY: the name is a NUL-terminated string, the value a live slice of the length given.
        let _ = unsafe {
            libc::fsetxattr(self.file.as_raw_fd(), ID_ATTRIBUTE.as_ptr(), text.as_ptr().cast(), text.len(), 0)
        };
    }

    /// Starts to write it out, and waits for nothing.
    pub(super) fn start_sync(&self) {
        // SAFETY: the descriptor is open as long as `self`; what fails here fails again, and is told, in `sync`.
        let _ = unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    }

    /// Waits until it is on the disk.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        step().and_then(|()| self.file.sync_all()).map_err(self.folder.failed("write out", &self.name))
    }

    /// Gives it its name, in place of what has it.
    pub(super) fn place(&mut self) -> Result<(), FileError> {
        self.folder.rename(&self.beside, &self.name)?;
        self.placed = true;
        Ok(())
    }

    /// Removes it again if it has its name.
    pub(super) fn displace(&self) {
        if self.placed {
            // The error that brought us here is the one to tell.
            let _ = self.folder.remove(&self.name);
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            // The error that brought us here is the one to tell.
            let _ = self.folder.remove(&self.beside);
        }
    }
}

/// The file whose temporary name `beside` is: `.NAME.HEXID.new`.
pub(super) fn temporary_of(beside: &OsStr) -> Option<&OsStr> {
    let inner = beside.as_bytes().strip_prefix(b".")?.strip_suffix(b".new")?;
    let dot = inner.iter().rposition(|&byte| byte == b'.')?;
    std::str::from_utf8(&inner[dot + 1..]).ok()?.parse::<PointId>().ok()?;
    Some(OsStr::from_bytes(&inner[..dot]))
}

/// What a memory file says of itself.
pub(super) fn label(file: &File) -> Label {
    let mut text = [0; 33];
    // SAFETY: the name is a NUL-terminated string, the value a live array of the length given.
    let len = unsafe { libc::fgetxattr(file.as_raw_fd(), ID_ATTRIBUTE.as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    let Ok(len) = usize::try_from(len) else {
        let absent = matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ENODATA | libc::ENOTSUP));
        return if absent { Label::Absent } else { Label::Foreign };
    };
    let id = std::str::from_utf8(&text[..len]).ok().and_then(|text| text.parse().ok());
    id.map_or(Label::Foreign, Label::Point)
}

/// Where the file has data next, from `from` on; `None` where it is a hole to its end.
pub(super) fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    let from = libc::off_t::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open as long as `file`; reads here name their offset, none relies on the position.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from, libc::SEEK_DATA) };
    match u64::try_from(at) {
        Ok(at) => Ok(Some(at)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// All of a file that may have at most `bytes_max`; the length it has when opened is the one that is read.
pub(super) fn read_all(file: &File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    if len > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has {len} bytes, more than {bytes_max}")));
    }
    // The file's own length, and one more, at which its end is seen: one read.
    let room = usize::try_from(len).expect("a bounded length fits into memory");
    let mut bytes = Vec::with_capacity(room + 1);
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn open_at(folder: libc::c_int, name: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the folder is AT_FDCWD or a descriptor its owner holds open, the name is a NUL-terminated string.
    let fd = unsafe { libc::openat(folder, name.as_ptr(), flags | libc::O_CLOEXEC, FILE_MODE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: openat just made this descriptor and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_string(name: &OsStr) -> io::Result<CString> {
    Ok(CString::new(name.as_bytes())?)
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the host does the next step that changes files: as on a full disk, it does not.
fn step() -> io::Result<()> {
    faults::step(libc::ENOSPC)
}
