//! A pair of queues, stopped or on its I/O thread.

use std::io;
use std::sync::Arc;

use super::Ends;
use super::receive::ReceiveWorker;
use super::transmit::TransmitWorker;
use crate::backend::net::NetBackend;
use crate::limit::Limiter;
use crate::virtio::queue::QueueState;
use crate::virtio::throttle::Throttle;
use crate::virtio::worker::{AttachError, Attachment, Holding, IoThreadHandle, Worker};
use crate::virtio::{ActiveQueue, StartError};

/// What serves one pair of queues of a device.
pub struct NetQueue {
    /// All pairs of a device have backends of one interface.
    pub backend: Arc<dyn NetBackend>,
    /// The thread of both workers.
    pub thread: IoThreadHandle,
}

/// One pair of queues.
pub(super) struct Pair {
    pub(super) queue: NetQueue,
    receive: Lane<ReceiveWorker>,
    transmit: Lane<TransmitWorker>,
}

/// One queue.
pub(super) enum Lane<W> {
    /// What it keeps while it is not served.
    Stopped(Option<Throttle>),
    Running(Attachment<W>),
    /// Only while it becomes another.
    Lost,
}

/// What becomes of a worker that is off its thread.
pub(super) trait Retired: Worker {
    fn into_parts(self) -> (QueueState, Option<Throttle>);
}

impl Pair {
    pub(super) fn new(queue: NetQueue, limiter: Option<&Arc<Limiter>>) -> io::Result<Self> {
        let throttle = || limiter.map(Throttle::new).transpose();
        Ok(Self { queue, receive: Lane::Stopped(throttle()?), transmit: Lane::Stopped(throttle()?) })
    }

    /// Begins to serve both queues. After an error [`Self::stop`] is due.
    pub(super) fn start(&mut self, [receive, transmit]: [ActiveQueue; 2], ends: &Ends) -> Result<(), StartError> {
        let thread = &self.queue.thread;
        self.receive.start(thread, |throttle| ReceiveWorker::new(receive, throttle, ends))?;
        self.transmit.start(thread, |throttle| TransmitWorker::new(transmit, throttle, ends))
    }

    /// As [`VirtioDevice::hold`](crate::virtio::VirtioDevice::hold), of both.
    pub(super) fn hold(&self) -> impl Iterator<Item = Holding> {
        [self.receive.hold(), self.transmit.hold()].into_iter().flatten()
    }

    /// Undoes [`Self::hold`].
    pub(super) fn release(&self) {
        self.receive.release();
        self.transmit.release();
    }

    /// Stops serving them, and says where those that were served have come to.
    pub(super) fn stop(&mut self) -> [Option<QueueState>; 2] {
        [self.receive.stop(), self.transmit.stop()]
    }
}

impl<W: Retired> Lane<W> {
    /// Begins to serve it.
    pub(super) fn start(
        &mut self,
        thread: &IoThreadHandle,
        worker: impl FnOnce(Option<Throttle>) -> W,
    ) -> Result<(), StartError> {
        let Self::Stopped(throttle) = std::mem::replace(self, Self::Lost) else {
            unreachable!("a transport starts only a stopped device");
        };
        match thread.attach(worker(throttle)) {
            Ok(attachment) => {
                *self = Self::Running(attachment);
                Ok(())
            }
            Err(AttachError { error, worker }) => {
                *self = Self::Stopped(worker.into_parts().1);
                Err(StartError::Attach(error))
            }
        }
    }

    /// Asks whether its thread answers. Frames never wait for the host, so they go on.
    pub(super) fn hold(&self) -> Option<Holding> {
        match self {
            Self::Running(attachment) => Some(attachment.hold()),
            Self::Stopped(_) | Self::Lost => None,
        }
    }

    /// Undoes [`Self::hold`].
    pub(super) fn release(&self) {
        if let Self::Running(attachment) = self {
            attachment.release();
        }
    }

    /// Stops serving it, and says where it has come to if it was served.
    pub(super) fn stop(&mut self) -> Option<QueueState> {
        match std::mem::replace(self, Self::Lost) {
            Self::Running(attachment) => {
                let (state, throttle) = attachment.detach().into_parts();
                *self = Self::Stopped(throttle);
                Some(state)
            }
            other => {
                *self = other;
                None
            }
        }
    }
}
