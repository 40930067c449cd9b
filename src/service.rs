//! What a service manager hands to a process: a listening socket (sd_listen_fds(3)), where to tell it how the process is
//! (sd_notify(3)), and how often it wants to hear of it (sd_watchdog_enabled(3)). Nothing of it is handed on.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use thiserror::Error;
use vmm::control::Supervisor;

use crate::process::{socket_option, take_descriptor, take_variable};

/// The descriptor of the first socket that is handed over.
const LISTEN_FDS_START: RawFd = 3;

/// What was handed over and cannot be taken.
#[derive(Debug, Error)]
pub(crate) enum InheritError {
    /// More than there is a use for.
    #[error("LISTEN_FDS={0}: husk serves one socket: leave one ListenStream= in the socket unit")]
    Many(u64),
    /// It is not there.
    #[error("LISTEN_FDS=1: descriptor 3")]
    Missing(#[source] io::Error),
    /// It is of another kind.
    #[error("LISTEN_FDS=1: descriptor 3 is no listening UNIX stream socket: use ListenStream= with a path")]
    Kind,
}

/// The socket that was handed to this process, if one was. To be called before another thread runs.
pub(crate) fn inherited_socket() -> Result<Option<UnixListener>, InheritError> {
    let (pid, count) = (take_number("LISTEN_PID"), take_number("LISTEN_FDS"));
    let _names = take_variable("LISTEN_FDNAMES");
    let count = match (pid, count) {
        // One that was meant for the process which has started this one is not ours.
        (Some(pid), Some(count)) if pid == u64::from(std::process::id()) => count,
        _ => return Ok(None),
    };
    match count {
        0 => return Ok(None),
        1 => {}
        more => return Err(InheritError::Many(more)),
    }
    let socket = take_descriptor(LISTEN_FDS_START).map_err(InheritError::Missing)?;
    let is = |option, value| socket_option(socket.as_fd(), option).is_ok_and(|found| found == value);
    if is(libc::SO_DOMAIN, libc::AF_UNIX) && is(libc::SO_TYPE, libc::SOCK_STREAM) && is(libc::SO_ACCEPTCONN, 1) {
        Ok(Some(UnixListener::from(socket)))
    } else {
        Err(InheritError::Kind)
    }
}

/// The service manager that wants to hear of this process, if one does. To be called before another thread runs.
pub(crate) fn supervisor() -> Option<Supervisor> {
    let address = take_variable("NOTIFY_SOCKET");
    let (pid, limit_us) = (take_number("WATCHDOG_PID"), take_number("WATCHDOG_USEC"));
    let address = address?;
    let is_meant = pid.is_none_or(|pid| pid == u64::from(std::process::id()));
    let watchdog = limit_us.filter(|limit_us| is_meant && *limit_us > 0).map(Duration::from_micros);
    match notify_address(&address).and_then(|address| Supervisor::new(address, watchdog)) {
        Ok(supervisor) => Some(supervisor),
        Err(error) => {
            log::warn!("NOTIFY_SOCKET={}: the service manager is not told how husk is: {error}", address.display());
            None
        }
    }
}

/// A path, or after `@` an abstract name.
fn notify_address(text: &OsStr) -> io::Result<SocketAddr> {
    match text.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(text),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "use an absolute path, or @ and an abstract name")),
    }
}

fn take_number(name: &str) -> Option<u64> {
    take_variable(name)?.to_str()?.parse().ok()
}
