//! The listening socket: made with a mode of its own, cleaned of what a dead process left, or inherited from whoever
//! started this one (sd_listen_fds(3)).

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

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
    /// keeps them until the server takes them.
    pub(crate) fn open(path: &Path) -> Result<Self, SocketError> {
        match service::inherited_socket()? {
            Some(socket) => Ok(Self { socket, made: None }),
            None => Self::bind(path),
        }
    }

    fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |cause| SocketError::Bind { path: path.to_owned(), cause };
        let bind = || process::with_private_files(|| UnixListener::bind(path));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_is_private_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::InUse { .. })));
        drop(listener);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let missing = Listener::bind(&folder.path().join("no/s")).unwrap_err().to_string();
        assert!(missing.contains("check that its folder exists"), "{missing}");
    }
}
