//! The control socket: HTTP/1.1 on the thread `husk-api`, in two dialects. It turns requests into commands for the
//! control loop and replies into answers, and holds nothing of the machine itself.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`socket`] | the listening socket: bound, or inherited |
//! | [`server`] | the thread: connections and their limits |
//! | [`connection`] | one connection: who may take how long |
//! | [`routes`] | the table of all routes, and how a request finds its own |
//! | [`firecracker`], [`husk`] | the two dialects |
//! | [`shape`] | bodies held against their schemas |
//! | [`answer`] | what is said back |
//! | [`latency`] | how long that took |
//! | [`openapi`] | the routes as a document |
//!
//! Architecture invariant: nothing here waits for anything but sockets, timers and the reply to a command.

mod answer;
mod balloon;
mod connection;
mod firecracker;
mod hotplug;
mod husk;
mod latency;
mod openapi;
mod routes;
mod server;
mod shape;
mod snapshots;
mod socket;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use tokio::sync::oneshot;
use vmm::control::{Command, CommandResult, CommandSender, EventLog, StateCell};

pub(crate) use latency::RouteLatencies;
pub(crate) use server::{Server, ServerError};
pub(crate) use socket::{DEFAULT_PATH, Listener, SocketError, SocketMode};

/// The version of Firecracker's API that is followed.
pub(crate) const FIRECRACKER_VERSION: &str = FIRECRACKER_VERSION_TAG.split_at(1).1;
/// The same as the program `firecracker` says it.
pub(crate) const FIRECRACKER_VERSION_TAG: &str = "v1.17.0";

/// Bytes of a request, its headers and body, where nobody asks for another limit.
pub(crate) const REQUEST_BYTES_MAX: usize = 64 << 10;

/// What the routes work with.
pub(crate) struct Context {
    /// The VM's name.
    pub(crate) id: String,
    /// The way to the control loop.
    pub(crate) commands: CommandSender,
    /// What happens to the machine.
    pub(crate) news: EventLog,
    /// The machine's state.
    pub(crate) state: StateCell,
    /// Bytes that a request may have.
    pub(crate) request_bytes_max: usize,
    /// When the process began.
    pub(crate) started: Instant,
    /// How long requests took.
    pub(crate) latency: RouteLatencies,
    /// Clients that follow the events.
    pub(crate) followers: AtomicUsize,
}

/// The control loop has ended: the process is about to.
#[derive(Debug)]
pub(crate) struct Gone;

impl Context {
    /// Asks the control loop, and waits for its reply.
    async fn ask(self: &Arc<Self>, command: Command) -> Result<CommandResult, Gone> {
        let (sender, reply) = oneshot::channel();
        self.commands.send(command, move |result| {
            // A client that has hung up does not hear it.
            let _ = sender.send(result);
        });
        reply.await.map_err(|_| Gone)
    }
}
