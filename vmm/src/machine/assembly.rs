//! Long work for a machine that is being assembled: whoever has it assembled sees to other things meanwhile, and may give
//! it up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::control::Progress;

/// How far the long work for a machine is, and whether it is still wanted.
#[derive(Debug, Default)]
pub struct Assembly {
    given_up: AtomicBool,
    progress: Arc<Progress>,
}

impl Assembly {
    /// Nobody wants the machine any more: the work ends at its next step, without an error of its own.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether that was said.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// How far the work is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }
}

/// Who has a machine assembled.
pub trait Attendant {
    /// Has `work` done, once, on this thread or another, and returns when it is. `assembly` is the work's.
    fn attend(&mut self, assembly: &Arc<Assembly>, work: &mut (dyn FnMut() + Send));
}

/// Has long work done, and sees to nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unattended;

impl Attendant for Unattended {
    fn attend(&mut self, _: &Arc<Assembly>, work: &mut (dyn FnMut() + Send)) {
        work();
    }
}

/// Has `work` done by `attendant`; None if it was given up.
pub(super) fn attended<T: Send>(attendant: &mut dyn Attendant, work: impl FnOnce(&Assembly) -> T + Send) -> Option<T> {
    let assembly = Arc::new(Assembly::default());
    let (mut work, mut result) = (Some(work), None);
    attendant.attend(&assembly, &mut || {
        let work = work.take().expect("an attendant has the work done once");
        result = Some(work(&assembly));
    });
    let result = result.expect("an attendant returns when the work is done");
    (!assembly.is_given_up()).then_some(result)
}
