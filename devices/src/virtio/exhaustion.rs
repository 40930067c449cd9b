//! A host that has no memory left for a device, told to the device's owner once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Called when the host has no memory for what a driver asks: the driver waits, or tries again later.
pub type OnExhausted = Arc<dyn Fn() + Send + Sync>;

/// Whether the host lacks memory for a device. A driver can ask as often as it likes, through any number of resets: the
/// owner hears of it when it begins, and not again before it has ended.
pub(super) struct Exhaustion {
    tell: OnExhausted,
    lasts: AtomicBool,
}

impl Exhaustion {
    pub(super) fn new(tell: OnExhausted) -> Self {
        Self { tell, lasts: AtomicBool::new(false) }
    }

    /// The host had no memory.
    pub(super) fn begin(&self) {
        if !self.lasts.swap(true, Ordering::Relaxed) {
            (self.tell)();
        }
    }

    /// The host has given what there was none for, or it is wanted no more.
    pub(super) fn end(&self) {
        self.lasts.store(false, Ordering::Relaxed);
    }
}

impl fmt::Debug for Exhaustion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exhaustion").field(&self.lasts).finish()
    }
}
