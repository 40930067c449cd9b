//! The machine's disks: opened, given an engine, threads and limits.

mod opening;
mod questions;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::{Duration, Instant};

use devices::backend::block::{BlockBackend, DiskImage, FileBackend, Predecessor, RingError, UringBackend};
use devices::limit::Limiter;
use devices::virtio::blk::{Blk, BlkOptions, DiskControl, DiskName, DiskQueue, OnFull};

use super::devices::{DeviceError, DiskChangeError, lock};
use super::pool::IoPool;
use crate::config::{DiskConfig, DiskEngine, DiskSource, DiskTuning, LimiterConfig, OnEnospc};
use crate::control::{EventSender, GuestEvent};
use crate::placement::leave_inherited_place;
pub(super) use opening::Opening;
pub use questions::{BackingSize, FileQuestion, OpenedFile, SizeQuestion};

/// A disk of a machine, for what is done to it while it is in use.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) id: String,
    tuning: DiskTuning,
    backing: Mutex<Backing>,
    control: DiskControl,
    limiter: Arc<Limiter>,
}

/// What holds a disk's bytes now.
#[derive(Debug)]
struct Backing {
    image: Arc<DiskImage>,
    /// None if it came as an open file.
    path: Option<PathBuf>,
}

/// How long the requests in flight may take when a disk is given another file: longer, and the control loop would be
/// missed.
const REPLACE_PATIENCE: Duration = Duration::from_secs(2);

impl Disk {
    /// What has to be known before it gets another size.
    pub(super) fn size_question(&self) -> SizeQuestion {
        let Backing { image, path } = &*lock(&self.backing);
        let path = path.clone().unwrap_or_else(|| OPEN_FILE.into());
        SizeQuestion { id: self.id.clone(), image: Arc::downgrade(image), path }
    }

    /// Gives it another size, which what it has must have.
    pub(super) fn resize(&self, found: &BackingSize, bytes: u64) -> Result<(), DiskChangeError> {
        if !found.is_of(&lock(&self.backing).image) {
            return Err(DiskChangeError::Replaced(self.id.clone()));
        }
        let resized = self.control.resize(found.sectors, bytes);
        resized.map_err(|source| DiskChangeError::Resize { id: self.id.clone(), source })
    }

    /// Whether a write waits for space, and with it the disk.
    pub(super) fn is_full(&self) -> bool {
        self.control.is_full()
    }

    /// What has to be known before it gets another file or device.
    pub(super) fn file_question(&self, path: &Path) -> FileQuestion {
        let current = Predecessor::of(&lock(&self.backing).image);
        FileQuestion { id: self.id.clone(), current, path: path.to_owned() }
    }

    /// Puts another file or device behind the disk.
    pub(super) fn replace(&self, opened: OpenedFile) -> Result<(), DiskChangeError> {
        let (id, path) = (|| self.id.clone(), &opened.path);
        let image = opened
            .file
            .succeed(&lock(&self.backing).image, path)
            .map_err(|source| DiskChangeError::Open { id: id(), source })?
            .ok_or_else(|| DiskChangeError::Replaced(id()))?;
        match self.exchange_engines(&image) {
            Ok(engines) => {
                let old = std::mem::replace(&mut *lock(&self.backing), Backing { image, path: Some(path.clone()) });
                close(engines, old.image);
                Ok(())
            }
            Err(error) => {
                // Its thread is there until `opened` goes.
                let _taken = opened.home.send(image);
                Err(error)
            }
        }
    }

    /// Serves the disk from `image` and gives back the engines that did.
    fn exchange_engines(&self, image: &Arc<DiskImage>) -> Result<Vec<Box<dyn BlockBackend>>, DiskChangeError> {
        let id = || self.id.clone();
        let engines = engines(&self.id, &self.tuning, image)
            .map_err(|source| DiskChangeError::Engine { id: id(), source: Box::new(source) })?;
        let replaced = self.control.replace(engines, Instant::now() + REPLACE_PATIENCE);
        replaced.map_err(|source| DiskChangeError::Replace { id: id(), source })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.control.size_bytes()
    }

    pub(super) fn limit(&self, limits: LimiterConfig) {
        self.limiter.change(limits);
    }
}

/// Gives a file and its engines up. The last to close it waits for its host, which may not answer: a thread of its own does.
fn close(engines: Vec<Box<dyn BlockBackend>>, image: Arc<DiskImage>) {
    let close = move || {
        leave_inherited_place();
        drop((engines, image));
    };
    if let Err(error) = Builder::new().name("husk-job-file".to_owned()).spawn(close) {
        log::warn!("a file is closed where others wait for it: there is no thread: {error}");
    }
}

/// Stands for the path of a disk that came as an open file.
const OPEN_FILE: &str = "(open file)";

/// Makes disks, which take threads and limiters from the pool.
#[derive(Debug)]
pub(super) struct DiskMaker<'a> {
    events: EventSender,
    pool: &'a mut IoPool,
}

impl<'a> DiskMaker<'a> {
    /// Disks that tell `events` what the machine has to know.
    pub(super) fn new(events: EventSender, pool: &'a mut IoPool) -> Self {
        Self { events, pool }
    }

    pub(super) fn make(&mut self, disk: &DiskConfig, image: DiskImage) -> Result<(Blk, Disk), DeviceError> {
        let DiskConfig { id, tuning, .. } = disk;
        let host = |what: &str| {
            let what = format!("{what} of disk `{id}`");
            move |source| DeviceError::Host { what, source }
        };
        let image = Arc::new(image);
        let threads = self.pool.threads(id, &tuning.threads, Duration::from_micros(tuning.poll_us.into()))?;
        let engines = engines(id, tuning, &image)?;
        let queues = engines.into_iter().zip(threads.iter().cycle());
        let queues = queues.map(|(backend, thread)| DiskQueue { backend, thread: thread.clone() }).collect();
        let name = match &tuning.serial {
            None => DiskName::new(id),
            Some(serial) => DiskName::with_serial(id, serial),
        };
        let limiter = self.pool.limiter(tuning.limits, tuning.limit_group.as_deref());
        let options = BlkOptions {
            queue_size: tuning.queue_size,
            limiter: Some(Arc::clone(&limiter)),
            on_full: self.on_full(disk),
        };
        let block = Blk::new(name, queues, options).map_err(host("the timers"))?;
        let control = block.control();
        let path = match &disk.source {
            DiskSource::Path(path) => Some(path.clone()),
            DiskSource::Open(_) => None,
        };
        let backing = Mutex::new(Backing { image, path });
        Ok((block, Disk { id: id.clone(), tuning: tuning.clone(), backing, control, limiter }))
    }

    fn on_full(&self, disk: &DiskConfig) -> OnFull {
        match disk.tuning.on_enospc {
            OnEnospc::Report => OnFull::Report,
            OnEnospc::Stop => {
                let (events, id) = (self.events.clone(), disk.id.clone());
                OnFull::Keep(Arc::new(move || events.send(GuestEvent::DiskFull { id: id.clone() })))
            }
        }
    }
}

/// An engine for each queue.
fn engines(id: &str, tuning: &DiskTuning, image: &Arc<DiskImage>) -> Result<Vec<Box<dyn BlockBackend>>, DeviceError> {
    let wants_ring = match tuning.engine {
        DiskEngine::Sync => false,
        DiskEngine::IoUring => true,
        DiskEngine::Auto => !image.is_in_memory(),
    };
    let queues = 0..tuning.queues;
    if wants_ring {
        let rings = queues.clone().map(|_| UringBackend::new(Arc::clone(image)));
        match rings.collect::<Result<Vec<_>, RingError>>() {
            Ok(rings) => return Ok(rings.into_iter().map(|ring| Box::new(ring) as Box<dyn BlockBackend>).collect()),
            Err(error) => fall_back(id, tuning, error)?,
        }
    }
    Ok(queues.map(|_| Box::new(FileBackend::new(Arc::clone(image))) as Box<dyn BlockBackend>).collect())
}

/// One line for a host without io_uring.
fn fall_back(id: &str, tuning: &DiskTuning, error: RingError) -> Result<(), DeviceError> {
    match error.exhaustion() {
        Ok(source) => Err(DeviceError::Host { what: format!("an io_uring for disk `{id}`"), source }),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            log::warn!("disk `{id}`: engine=sync instead of {}: {error}{cause}", tuning.engine);
            Ok(())
        }
    }
}
