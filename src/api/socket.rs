//! The listening socket: made with a mode of its own, cleaned of what a dead process left, or inherited from whoever
//! started this one (sd_listen_fds(3)).

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::process;
use crate::service::{self, InheritError};

/// Where Firecracker's clients look for it.
pub(crate) const DEFAULT_PATH: &str = "/run/firecracker.socket";

/// What keeps the socket from being there.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    /// Another process answers on it.
    #[error("API socket {}: another process listens on it: give another --api-sock, or stop that process", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else has its path.
    #[error("API socket {}: there is something else, which husk leaves alone: remove it or give another --api-sock", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The host does not make it.
    #[error("API socket {}: {cause}: check that its folder exists and can be written, and that the path has at most 107 bytes", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// The process was handed one that it cannot take.
    #[error(transparent)]
    Inherited(#[from] InheritError),
}

/// A socket that accepts, and its file, which goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(super) socket: UnixListener,
    made: Option<PathBuf>,
}

impl Listener {
    /// The socket that was handed to this process, or a new one at `path`. Connections are accepted from now on: the kernel
    /// keeps them until the server takes them. The mode is that of a new one: who hands one over has chosen its own.
    pub(crate) fn open(path: &Path, mode: SocketMode) -> Result<Self, SocketError> {
        match service::inherited_socket()? {
            Some(socket) => Ok(Self { socket, made: None }),
            None => Self::bind(path, mode),
        }
    }

    fn bind(path: &Path, SocketMode(mode): SocketMode) -> Result<Self, SocketError> {
        let failed = |cause| SocketError::Bind { path: path.to_owned(), cause };
        let bind = || process::with_permissions(mode, || UnixListener::bind(path));
        let bound = match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                bind()
            }
            bound => bound,
        };
        Ok(Self { socket: bound.map_err(failed)?, made: Some(path.to_owned()) })
    }
}

/// Removes a socket on which nobody listens any more.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|cause| SocketError::Bind { path: path.to_owned(), cause })
        }
        _ => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            // What keeps it from going is told by the next one who meets it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Who may connect to a socket that is made: the permissions of its file, of which writing is what counts (unix(7)).
#[derive(Debug, Clone, Copy)]
pub(crate) struct SocketMode(u32);

/// This user alone.
impl Default for SocketMode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl FromStr for SocketMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let octal = (1..=4).contains(&text.len()) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
        mode.map(Self).ok_or("use an octal mode of at most 0777, as in 0660")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_is_private_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path, SocketMode::default()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_mode_is_octal_and_has_permissions_alone() {
        for (text, mode) in [("600", 0o600), ("0660", 0o660), ("777", 0o777), ("0", 0)] {
            assert_eq!(text.parse::<SocketMode>().unwrap().0, mode);
        }
        for text in ["", "1000", "4755", "00660", "0o660", "+660", "-1", "668", "rw", " 660", "6_0"] {
            assert!(text.parse::<SocketMode>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path, SocketMode::default()).unwrap();
        assert!(matches!(Listener::bind(&path, SocketMode::default()), Err(SocketError::InUse { .. })));
        drop(listener);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path, SocketMode::default()), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let missing = Listener::bind(&folder.path().join("no/s"), SocketMode::default()).unwrap_err().to_string();
        assert!(missing.contains("check that its folder exists"), "{missing}");
    }
}
