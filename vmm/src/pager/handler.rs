//! Another process that answers the page faults of guest memory. It listens on a UNIX socket and gets, in one message, a
//! JSON list of the regions and with it the descriptor of a userfaultfd: Firecracker's protocol, so that its handlers work.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::userfault::{UserFault, Woken, wait_for};
use super::{FOR_EVER_MS, Span, wait_until_stopped};
use crate::control::{EventSender, GuestEvent};

/// What keeps another process from answering page faults.
#[derive(Debug, Error)]
pub enum HandlerError {
    /// Nobody listens.
    #[error("cannot connect to the page fault handler on {}: {cause}: start it first", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// It does not take what it is given.
    #[error("cannot hand guest memory to the page fault handler on {}", path.display())]
    HandOver {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// A region, as the protocol has it.
#[derive(Debug, Serialize)]
struct Region {
    base_host_virt_addr: u64,
    size: u64,
    /// In the memory file.
    offset: u64,
    /// In bytes; the second name is older, and of the same meaning.
    page_size: u64,
    page_size_kib: u64,
}

/// How long a handler may take to take what it is given.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// Connects to the process that listens at `path`.
pub(super) fn connect(path: &Path) -> Result<UnixStream, HandlerError> {
    UnixStream::connect(path).map_err(|cause| HandlerError::Connect { path: path.to_owned(), cause })
}

/// Gives it the faults in `spans`, whose pages have `page_bytes`.
pub(super) fn hand_over(
    socket: &UnixStream,
    spans: &[Span],
    page_bytes: u64,
    faults: &UserFault,
    path: &Path,
) -> Result<(), HandlerError> {
    let region = |span: &Span| Region {
        base_host_virt_addr: span.host,
        size: span.bytes,
        offset: span.offset,
        page_size: page_bytes,
        page_size_kib: page_bytes,
    };
    let list = serde_json::to_vec(&spans.iter().map(region).collect::<Vec<_>>()).expect("numbers have a form in JSON");
    send(socket, &list, faults).map_err(|source| HandlerError::HandOver { path: path.to_owned(), source })
}

fn send(socket: &UnixStream, list: &[u8], faults: &UserFault) -> io::Result<()> {
    socket.set_write_timeout(Some(HAND_OVER_MAX))?;
    let sent = socket.send_with_fd(list, faults.as_raw_fd()).map_err(io::Error::from)?;
    if sent == list.len() { Ok(()) } else { Err(io::Error::other("it took only a part of the list of regions")) }
}

/// Tells when the handler hangs up. What it says is not ours to understand.
pub(super) fn watch(socket: &UnixStream, stop: &EventFd, path: &Path, events: &EventSender) {
    let (mut socket, mut said) = (socket, [0; 256]);
    loop {
        match wait_for(socket, stop, FOR_EVER_MS) {
            Woken::Stop => return,
            Woken::Nothing => {}
            Woken::Other => match socket.read(&mut said) {
                Err(error) if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => break,
                Ok(0) => break,
                _ => {}
            },
        }
    }
    events.send(GuestEvent::MemoryLost(format!("the page fault handler on {} has hung up", path.display())));
    wait_until_stopped(stop);
}
