//! How a driver is told that its device's configuration space changed.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::transport::Interrupt;
use crate::bus::lock;

/// A device's word to its driver, for the device and its owner. What changes while the device is paused is told when it
/// goes on.
#[derive(Debug)]
pub(super) struct ConfigVoice(Mutex<State>);

#[derive(Debug)]
enum State {
    /// Nobody listens.
    Stopped,
    /// Nobody listens, and there is news.
    News,
    Running(Arc<Interrupt>),
}

impl ConfigVoice {
    /// Of a device that is stopped.
    pub(super) fn new() -> Self {
        Self(Mutex::new(State::Stopped))
    }

    /// Makes a change and tells the driver of it, if the change says that it is one.
    pub(super) fn tell(&self, change: impl FnOnce() -> Changed) {
        let mut state = lock(&self.0);
        // Ordered before the driver's look by `config_changed`, or by the lock.
        if change() == Changed::No {
            return;
        }
        match &*state {
            State::Running(interrupt) => interrupt.config_changed(),
            State::Stopped | State::News => *state = State::News,
        }
    }

    /// The device runs, and tells at once what came up while it did not.
    pub(super) fn started(&self, interrupt: Arc<Interrupt>) {
        let mut state = lock(&self.0);
        if matches!(*state, State::News) {
            interrupt.config_changed();
        }
        *state = State::Running(interrupt);
    }

    pub(super) fn stopped(&self) {
        let mut state = lock(&self.0);
        if matches!(*state, State::Running(_)) {
            *state = State::Stopped;
        }
    }

    /// Whether a driver has yet to be told of a change. Of a device that is stopped.
    pub(super) fn news(&self) -> News {
        if matches!(*lock(&self.0), State::News) { News::Untold } else { News::None }
    }

    /// As another one's was. Of a device that is stopped.
    pub(super) fn inherit(&self, news: News) {
        *lock(&self.0) = match news {
            News::None => State::Stopped,
            News::Untold => State::News,
        };
    }

    /// The next driver reads the configuration anyway.
    pub(super) fn reset(&self) {
        *lock(&self.0) = State::Stopped;
    }
}

/// Whether a driver has yet to be told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum News {
    /// It knows all.
    None,
    /// It has to be told when the device goes on.
    Untold,
}

/// Whether there is something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    No,
    Yes,
}
