//! A machine with or without its control socket.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use vmm::config::{OnEnospc, VmConfig};
use vmm::control::command_queue;

use crate::api::{Context, Listener, RouteLatencies, Server};
use crate::session::{Begin, Finished, Manners, RunError, Session};

/// The control socket that was asked for.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) path: PathBuf,
    pub(super) id: String,
    pub(super) request_bytes_max: usize,
    pub(super) started: Instant,
}

/// Runs a machine to its end. The socket accepts before anything slow is done.
pub(super) fn run(config: VmConfig, begin: Begin, manners: Manners, api: Option<Api>) -> Result<Finished, RunError> {
    let Some(Api { path, id, request_bytes_max, started }) = api else {
        if let Some(disk) = config.disks.iter().find(|disk| disk.tuning.on_enospc == OnEnospc::Stop) {
            return Err(RunError::NobodyResumes { disk: disk.id.clone() });
        }
        return Session::open(manners, None)?.run(config, begin);
    };
    let listener = Listener::open(&path)?;
    let host = |source| RunError::Host { what: "create the command queue", source };
    let (commands, received) = command_queue().map_err(host)?;
    let mut session = Session::open(manners, Some(received))?;
    let (news, state, latency) = (session.news(), session.state(), RouteLatencies::default());
    let context =
        Context { id, commands, news, state, request_bytes_max, started, latency, followers: AtomicUsize::new(0) };
    let _server = Server::start(listener, context)?;
    session.serves();
    session.run(config, begin)
}
