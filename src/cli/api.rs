//! A machine with or without its control socket.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use clap::Args;
use vmm::config::{OnEnospc, VmConfig};
use vmm::control::{Escape, command_queue};

use super::firecracker::parse_id;
use super::log::LogArgs;
use crate::api::{Context, Listener, REQUEST_BYTES_MAX, RouteLatencies, Server, SocketMode};
use crate::session::{Begin, Finished, Manners, OnReboot, RunError, Session};

/// The control socket that was asked for.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) path: PathBuf,
    pub(super) mode: SocketMode,
    pub(super) id: String,
    pub(super) request_bytes_max: usize,
    pub(super) started: Instant,
}

/// What all take that run a machine with its console on the terminal.
#[derive(Debug, Args)]
pub(super) struct SessionArgs {
    /// What a guest that resets itself gets: the end of husk, or the same machine again.
    #[arg(long, value_name = "exit|restart", default_value = "exit")]
    on_reboot: OnReboot,
    /// Path of a control socket; without it there is none.
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// Permissions of the control socket, in octal: whoever may write to it may use it. 0600 if not given.
    #[arg(long, value_name = "MODE", requires = "api_sock")]
    api_sock_mode: Option<SocketMode>,
    /// Name of the VM on the control socket: 1 to 64 letters, digits or `-`.
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", value_parser = parse_id)]
    id: String,
    /// Seconds that a guest which has enabled its power button has to end by itself when husk is asked to.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = super::parse_seconds)]
    stop_timeout: Duration,
    #[command(flatten)]
    log: LogArgs,
}

impl SessionArgs {
    /// The VM's name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Sets the log up; how the machine runs, and the control socket that was asked for.
    pub(super) fn settle(&mut self, started: Instant) -> Result<(Manners, Option<Api>), RunError> {
        self.log.apply(&self.id)?;
        let manners =
            Manners { escape: Escape::CtrlA, on_reboot: self.on_reboot, stop_grace: self.stop_timeout, metrics: None };
        let (id, request_bytes_max) = (std::mem::take(&mut self.id), REQUEST_BYTES_MAX);
        let mode = self.api_sock_mode.unwrap_or_default();
        let api = self.api_sock.take().map(|path| Api { path, mode, id, request_bytes_max, started });
        Ok((manners, api))
    }
}

/// Runs a machine to its end. The socket accepts before anything slow is done.
pub(super) fn run(config: VmConfig, begin: Begin, manners: Manners, api: Option<Api>) -> Result<Finished, RunError> {
    let Some(Api { path, mode, id, request_bytes_max, started }) = api else {
        if let Some(disk) = config.disks.iter().find(|disk| disk.tuning.on_enospc == OnEnospc::Stop) {
            return Err(RunError::NobodyResumes { disk: disk.id.clone() });
        }
        return Session::open(manners, None)?.run(config, begin);
    };
    let listener = Listener::open(&path, mode)?;
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
