//! How the process ends: exit codes and the one line that says why.

use std::io::Write as _;

pub(crate) use vmm::describe;

/// The exit codes of CONTRACT.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitStatus {
    /// The guest powered off, reset itself or was asked to stop.
    Success = 0,
    /// The host or the configuration is wrong.
    Failure = 1,
    /// The guest crashed.
    GuestCrashed = 3,
}

/// Says one line on standard error. That nobody may be there to read it changes nothing.
pub(crate) fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("husk: {text}\n").as_bytes());
}
