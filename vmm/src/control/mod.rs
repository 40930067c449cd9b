//! The life of the machine: commands, the table of what each state accepts, and the loop on the thread `husk` that
//! owns the machine and is the only one to change its state.

mod console;
mod control_loop;
mod events;
mod lifecycle;
mod signals;

pub use console::{Console, Escape};
pub use control_loop::{ControlError, ControlLoop, Outcome};
pub use events::{EventReceiver, EventSender, GuestEvent, event_queue};
pub use lifecycle::{Command, Refusal, State};
pub use signals::Signals;
