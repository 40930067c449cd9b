//! Why a path is no disk, in words that say what would make it one.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::DiskAccess;

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
    /// Its end is inside a block.
    #[error("disk {path} has {bytes} bytes, not a multiple of {block}: extend it, as by truncate -s %{block}")]
    Unaligned {
        /// The disk.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Its logical block, in bytes.
        block: u32,
    },
    /// The file system has no way around the page cache.
    #[error("disk {path} cannot bypass the page cache (O_DIRECT): use another cache=")]
    NoDirect {
        /// The disk.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Its own blocks are larger than those asked for.
    #[error("disk {path} takes no transfers below {own} bytes past the page cache: use block={own}, not {asked}")]
    BlockTooSmall {
        /// The disk.
        path: PathBuf,
        /// What was asked for, in bytes.
        asked: u32,
        /// What the disk takes, in bytes.
        own: u32,
    },
    /// A physical block is one logical one or more.
    #[error("disk {path} has logical blocks of {block} bytes: use physical_block={block} or more, not {asked}")]
    PhysicalTooSmall {
        /// The disk.
        path: PathBuf,
        /// What was asked for, in bytes.
        asked: u32,
        /// Its logical block, in bytes.
        block: u32,
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
