//! Another process that answers the page faults of guest memory. It listens on a UNIX socket and gets, in one message, a
//! JSON list of the regions and with it the descriptor of a userfaultfd: Firecracker's protocol, so that its handlers work.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arch::GuestMemory;
use serde::Serialize;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::userfault::{UserFault, Woken, wait_for};
use super::{FOR_EVER_MS, PagerError, spans};
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

/// The thread that watches over the handler. Dropped, it watches no more.
#[derive(Debug)]
pub(crate) struct Handler {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Handler {
    /// Gives all faults in `memory` to the process that listens at `path`. If that one goes, so does the machine.
    pub(crate) fn start(
        memory: &GuestMemory,
        page_bytes: u64,
        path: &Path,
        events: EventSender,
    ) -> Result<Self, PagerError> {
        let user = |attempt| move |source| PagerError::UserFault { attempt, source };
        let socket =
            UnixStream::connect(path).map_err(|cause| HandlerError::Connect { path: path.to_owned(), cause })?;
        let fault = UserFault::with_removals().map_err(user("open a userfaultfd"))?;
        let spans = spans(memory);
        for span in &spans {
            fault.register(span.range()).map_err(user("register guest memory"))?;
        }
        let region = |span: &super::Span| Region {
            base_host_virt_addr: span.host,
            size: span.bytes,
            offset: span.offset,
            page_size: page_bytes,
            page_size_kib: page_bytes,
        };
        let list =
            serde_json::to_vec(&spans.iter().map(region).collect::<Vec<_>>()).expect("numbers have a form in JSON");
        hand_over(&socket, &list, &fault).map_err(|source| HandlerError::HandOver { path: path.to_owned(), source })?;
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(PagerError::Thread)?);
        let (stopped, path) = (Arc::clone(&stop), path.to_owned());
        let thread = std::thread::Builder::new()
            .name("husk-pager".to_owned())
            // It holds the descriptor: were it closed, who waits for a page would get zeros.
            .spawn(move || watch(socket, fault, &stopped, &path, &events))
            .map_err(PagerError::Thread)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // It fails only when the counter is full, and then the thread is awake.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok(), "the watch over the page fault handler does not unwind");
        }
    }
}

fn hand_over(socket: &UnixStream, list: &[u8], fault: &UserFault) -> io::Result<()> {
    socket.set_write_timeout(Some(HAND_OVER_MAX))?;
    let sent = socket.send_with_fd(list, fault.as_raw_fd()).map_err(io::Error::from)?;
    if sent == list.len() { Ok(()) } else { Err(io::Error::other("it took only a part of the list of regions")) }
}

/// Tells when the handler hangs up. What it says is not ours to understand.
fn watch(mut socket: UnixStream, fault: UserFault, stop: &EventFd, path: &Path, events: &EventSender) {
    let mut said = [0; 256];
    let mut deaf = false;
    loop {
        let source: &dyn AsRawFd = if deaf { stop } else { &socket };
        match wait_for(source, stop, FOR_EVER_MS) {
            Woken::Stop => break,
            Woken::Nothing => {}
            Woken::Other => match socket.read(&mut said) {
                Ok(0) => deaf = true,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(_) => deaf = true,
            },
        }
        if deaf {
            let lost = format!("the page fault handler on {} has hung up", path.display());
            events.send(GuestEvent::MemoryLost(lost));
            while wait_for(stop, stop, FOR_EVER_MS) != Woken::Stop {}
            break;
        }
    }
    drop(fault);
}
