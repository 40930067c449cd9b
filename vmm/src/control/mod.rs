//! The life of the machine: commands, the table of what each state accepts, and the loop on the thread `husk` that
//! owns the machine and is the only one to change its state.
//!
//! A process has one [`ControlPlane`]. It hears what describes a machine until one is started ([`ControlPlane::prepare`]),
//! and then runs it to its end ([`ControlLoop`]).

mod assembling;
mod changes;
mod command;
mod console;
mod control_loop;
mod events;
mod inquiries;
mod jobs;
mod lifecycle;
mod news;
mod plane;
mod prepare;
mod signals;
mod snapshots;
mod supervisor;

pub use assembling::Assembling;
pub use command::{
    Answered, BalloonAsk, Command, CommandError, CommandReceiver, CommandResult, CommandSender, DiskChange, HotplugAsk,
    NetChange, Reply, command_queue,
};
pub use console::{Console, Escape};
pub use control_loop::{ControlError, ControlLoop, Entrance, Outcome};
pub use events::{EventReceiver, EventSender, GuestEvent, event_queue};
pub use jobs::{JobId, JobKind, JobReport, JobState, Progress};
pub use lifecycle::{Action, Refusal, State, StateCell};
pub use news::{Event, EventKind, EventLog};
pub use plane::ControlPlane;
pub use prepare::{Prepared, Starter};
pub use signals::Signals;
pub use snapshots::AnswerWhen;
pub use supervisor::Supervisor;
