//! What the process's clients ask of the control loop, and the way there and back: a queue, the eventfd that wakes the
//! loop, and for each command the one who waits for its reply.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use devices::backend::net::TapError;
use devices::virtio::balloon::BalloonError;
use devices::virtio::mem::MemoryRequestError;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::jobs::{JobId, JobReport};
use super::snapshots::AnswerWhen;
use super::{Refusal, State};
use crate::config::firecracker::balloon::{Balloon, BalloonHintingStatus, BalloonStats};
use crate::config::firecracker::bodies::RateLimiter;
use crate::config::firecracker::hotplug::MemoryHotplugStatus;
use crate::config::firecracker::{BodyError, Change};
use crate::config::{LimiterConfig, VmConfig};
use crate::machine::{
    BackingSize, DeviceReport, DiskChangeError, KvmError, LinkState, MachineError, NetChangeError, OpenedFile,
};
use crate::metrics::{FirecrackerFile, Snapshot};
use crate::placement::PlacementSource;
use crate::snapshot::{PointReport, RestoreRequest, SnapshotError, SnapshotRequest};

/// What a client asks.
#[derive(Debug)]
pub enum Command {
    /// Describe a part of the machine.
    Configure(Change),
    /// Assemble the machine and start it.
    Start,
    /// Park all vCPUs and drain the devices.
    Pause,
    /// Go on.
    Resume,
    /// Press the power button.
    PowerButton,
    /// Type Ctrl-Alt-Delete.
    CtrlAltDel,
    /// Interrupt the guest by what it cannot mask.
    Nmi,
    /// End the machine, and with it the process: by the power button, and at once when `grace` has passed or the guest
    /// has not enabled the button.
    Stop {
        /// How long the guest has.
        grace: Duration,
    },
    /// Change a disk in use.
    Disk(String, Box<DiskChange>),
    /// Change a network in use.
    Net(String, Box<NetChange>),
    /// Hold a disk or a network in use, and with it all of its group, to these limits.
    Limit(String, Box<LimiterConfig>),
    /// Look at the balloon, or change it.
    Balloon(BalloonAsk),
    /// Look at the memory that can be plugged, or have it plugged.
    Hotplug(HotplugAsk),
    /// Write a point of the machine to files.
    Snapshot(Box<SnapshotRequest>, AnswerWhen),
    /// Make a machine from such a point.
    Restore(Box<RestoreRequest>, AnswerWhen),
    /// Tell what the machine is.
    ReadConfig,
    /// Tell what its devices do.
    ListDevices,
    /// Tell what tells where its memory is; what it is, before there is a machine.
    ReadPlacement,
    /// Tell what the machine has counted.
    ReadMetrics,
    /// Write these figures to this file from now on.
    MetricsTo(Box<FirecrackerFile>),
    /// Write them now.
    FlushMetrics,
    /// Tell of the points that the machine goes on from, and has made.
    ListPoints,
    /// Tell of the jobs.
    ListJobs,
    /// Tell of one.
    ReadJob(JobId),
    /// Give one up.
    CancelJob(JobId),
    /// Go on with what the host was asked about first.
    Answered(Answered),
}

/// What the host answered, by a thread of the control loop's.
#[derive(Debug)]
pub struct Answered(pub(super) Box<HostAnswer>);

/// As [`Answered`], for the loop alone.
#[derive(Debug)]
pub(super) enum HostAnswer {
    /// What a change names is there, or not.
    Configure(Change, Result<(), CommandError>),
    /// How large what a disk has is, which shall have so many bytes.
    DiskSize(String, u64, Result<BackingSize, DiskChangeError>),
    /// What a disk shall have, and its buckets, is open.
    DiskFile(String, Option<RateLimiter>, Result<OpenedFile, DiskChangeError>),
}

/// What changes of a disk.
#[derive(Debug)]
pub enum DiskChange {
    /// What it holds, and how fast: Firecracker's `PATCH /drives/{drive_id}`.
    Part {
        /// The file or device from now on; the same again is looked at anew.
        path: Option<PathBuf>,
        /// The buckets from now on.
        limits: Option<RateLimiter>,
    },
    /// Its size, in bytes.
    Resize(u64),
}

/// What changes of a network.
#[derive(Debug)]
pub enum NetChange {
    /// The buckets from now on: Firecracker's `PATCH /network-interfaces/{iface_id}`.
    Limits {
        /// Of frames to the guest.
        receive: Option<RateLimiter>,
        /// Of frames from the guest.
        transmit: Option<RateLimiter>,
    },
    /// The cable.
    Link(LinkState),
}

/// What is asked of the balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalloonAsk {
    /// What it is.
    Read,
    /// To have so much.
    Target {
        /// In MiB.
        mib: u32,
    },
    /// What the guest tells.
    Statistics,
    /// To ask the guest so often.
    Interval {
        /// In seconds; 0 asks no more.
        seconds: u16,
    },
    /// To ask the guest which pages are free.
    StartHinting {
        /// Whether it has them back when it has told all.
        acknowledge: bool,
    },
    /// To ask no more.
    StopHinting,
    /// How far that is.
    Hinting,
}

/// What is asked of memory that can be plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HotplugAsk {
    /// What it is.
    Read,
    /// That the guest has so much of it plugged.
    Request {
        /// In MiB.
        mib: u32,
    },
}

/// What the control loop answers to a command that it carried out.
#[derive(Debug)]
pub enum Reply {
    /// It is done.
    Done,
    /// What the machine is.
    Config(Box<VmConfig>),
    /// What its devices do.
    Devices(Vec<DeviceReport>),
    /// What tells where its memory is.
    Placement(PlacementSource),
    /// The balloon.
    Balloon(Balloon),
    /// What the guest tells of its memory.
    BalloonStatistics(Box<BalloonStats>),
    /// How far hinting is.
    BalloonHinting(BalloonHintingStatus),
    /// Memory that can be plugged.
    Hotplug(MemoryHotplugStatus),
    /// What it has counted.
    Metrics(Box<Snapshot>),
    /// The jobs, oldest first.
    Jobs(Vec<JobReport>),
    /// The points that the machine goes on from, and has made, oldest first.
    Points(Vec<PointReport>),
    /// A job.
    Job(JobReport),
}

/// Why a command was not carried out. Nothing has changed then.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The present state does not accept it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The machine cannot be so.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// A file that the machine shall have cannot be opened.
    #[error("{field}: cannot open {}: {cause}: check the path, its owner and mode", path.display())]
    File {
        /// The field that names it.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// Its host does not say whether it can be opened.
    #[error("cannot open {}: no answer within {seconds} s: check the server or device behind it", path.display())]
    Unanswered {
        /// The path.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// Hosts that do not answer are waited for already.
    #[error("cannot open {}: {asked} others are waited for already: check the servers and devices behind those", path.display())]
    Unasked {
        /// The path.
        path: PathBuf,
        /// How many others.
        asked: usize,
    },
    /// A tap that it shall have cannot be attached to.
    #[error("host_dev_name")]
    Tap(#[source] TapError),
    /// The machine cannot be assembled. The program, which assembles it, has said why.
    #[error("cannot start the machine: {0}")]
    Start(String),
    /// A disk does not take the change.
    #[error(transparent)]
    Disk(#[from] DiskChangeError),
    /// A network does not take the change.
    #[error(transparent)]
    Net(#[from] NetChangeError),
    /// Nothing of that name moves bytes.
    #[error("there is no disk and no network `{0}`")]
    NothingToLimit(String),
    /// There is no balloon.
    #[error("balloon: the machine has none: PUT /balloon before the start")]
    NoBalloon,
    /// The balloon does not take the change.
    #[error("balloon: {0}")]
    Balloon(#[from] BalloonError),
    /// There is no memory that can be plugged.
    #[error("hotplug: the machine has none: PUT /hotplug/memory before the start")]
    NoHotplug,
    /// So much cannot be plugged.
    #[error("requested_size_mib: {0}")]
    Hotplug(#[from] MemoryRequestError),
    /// KVM does not do it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The metrics go somewhere already.
    #[error("metrics_path: the metrics go to {} already: that is for the life of the process", .0.display())]
    MetricsGo(PathBuf),
    /// Its memory is brought in first.
    #[error("the machine is being assembled: wait for the end of job {0}, or cancel it")]
    Assembling(JobId),
    /// A device's host does not answer, and the machine runs on; or the host gives no thread.
    #[error("{0}")]
    Held(String),
    /// A snapshot cannot be made.
    #[error(transparent)]
    Snapshot(Box<SnapshotError>),
    /// One at a time.
    #[error("job {0} makes a snapshot already: wait for its end, or cancel it")]
    SnapshotIsMade(JobId),
    /// A snapshot brings its own machine.
    #[error("cannot load a snapshot into a machine that has been configured: load it first, in a new process")]
    Configured,
    /// No job has this number, or it was so long ago that it is forgotten.
    #[error("there is no job {0}")]
    NoSuchJob(JobId),
    /// The job has ended.
    #[error("job {0} has ended")]
    JobEnded(JobId),
}

impl From<SnapshotError> for CommandError {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(Box::new(error))
    }
}

impl From<MachineError> for CommandError {
    fn from(error: MachineError) -> Self {
        match error {
            MachineError::Refused(refusal) => Self::Refused(refusal),
            MachineError::Kvm(error) => Self::Kvm(error),
            host @ (MachineError::Held { .. } | MachineError::Thread { .. }) => Self::Held(host.to_string()),
        }
    }
}

impl CommandError {
    /// The state that refused it, if one did.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        match self {
            Self::Refused(refusal) => Some(refusal.state),
            _ => None,
        }
    }
}

/// What comes of a command.
pub type CommandResult = Result<Reply, CommandError>;

/// A command, and who waits for its reply.
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) reply: ReplyTo,
}

/// Called once, on the control loop's thread: it must not wait. Dropped uncalled when the loop ends first.
pub(super) type ReplyTo = Box<dyn FnOnce(CommandResult) + Send>;

/// A client's end; it may have many.
#[derive(Debug, Clone)]
pub struct CommandSender {
    queue: Sender<Request>,
    wake: Arc<EventFd>,
}

/// The control loop's end.
#[derive(Debug)]
pub struct CommandReceiver {
    queue: Receiver<Request>,
    own: CommandSender,
    wake: Arc<EventFd>,
}

/// A queue of commands.
///
/// # Errors
/// The host gives no eventfd.
pub fn command_queue() -> io::Result<(CommandSender, CommandReceiver)> {
    let (sender, receiver) = channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let sender = CommandSender { queue: sender, wake: Arc::clone(&wake) };
    Ok((sender.clone(), CommandReceiver { queue: receiver, own: sender, wake }))
}

impl CommandSender {
    /// Asks without waiting. `reply` is called on the control loop's thread, or dropped if the loop ends before.
    pub fn send(&self, command: Command, reply: impl FnOnce(CommandResult) + Send + 'static) {
        self.give(Request { command, reply: Box::new(reply) });
    }

    /// As [`Self::send`], of a command with one who waits already.
    pub(super) fn give(&self, request: Request) {
        if self.queue.send(request).is_ok() {
            // It can only fail by the counter's overflow, and then the loop is awake already.
            let _ = self.wake.write(1);
        }
    }
}

impl CommandReceiver {
    /// Readable while there may be commands.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// A client's end, for the loop's own threads.
    pub(super) fn sender(&self) -> CommandSender {
        self.own.clone()
    }

    /// The oldest command, if there is one.
    pub(super) fn next(&self) -> Option<Request> {
        self.queue.try_recv().ok()
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Request").field(&self.command).finish()
    }
}
