//! Opening a machine's disks, beside what else makes it: their hosts may never answer.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use devices::backend::block::{DiskAccess, DiskImage, DiskOptions, FileIdentity};

use super::super::assembly::{Assembly, Attendant, attended};
use super::super::build::BuildError;
use super::super::devices::DeviceError;
use super::OPEN_FILE;
use crate::config::{DiskConfig, DiskSource, DiskTuning};
use crate::errand::{Errand, ErrandError, PATIENCE};

/// How long nobody else is seen to: a host that does answer takes no longer, nor does a lock of a husk that was killed.
const SOON: Duration = Duration::from_millis(600);
/// Between two looks whether the machine is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Disks that are being opened.
#[derive(Debug)]
pub(in crate::machine) struct Opening {
    /// None for no disk.
    errand: Option<Errand<Result<DiskImage, DeviceError>>>,
    /// What each is called, for messages.
    names: Vec<(String, PathBuf)>,
}

impl Opening {
    /// Begins to open and lock what holds the bytes of each disk.
    pub(in crate::machine) fn begin(disks: &[DiskConfig]) -> Result<Self, DeviceError> {
        let name = |disk: &DiskConfig| match &disk.source {
            DiskSource::Path(path) => (disk.id.clone(), path.clone()),
            DiskSource::Open(_) => (disk.id.clone(), OPEN_FILE.into()),
        };
        let names: Vec<_> = disks.iter().map(name).collect();
        let Some((id, path)) = names.first().cloned() else { return Ok(Self { errand: None, names }) };
        let disks = disks.to_vec();
        let errand = Errand::begin(move |images| open_all(&disks, images)).map_err(|error| match error {
            ErrandError::Crowded => DeviceError::Unasked { id, path, cause: error.to_string() },
            ErrandError::Thread(source) => DeviceError::Host { what: "a thread to open disks".to_owned(), source },
        })?;
        Ok(Self { errand: Some(errand), names })
    }

    /// The disks. While they are waited for, `attendant` sees to everybody else.
    pub(in crate::machine) fn images(self, attendant: &mut dyn Attendant) -> Result<Vec<DiskImage>, BuildError> {
        let Self { errand, names } = self;
        let mut images = Vec::with_capacity(names.len());
        let Some(errand) = errand else { return Ok(images) };
        let soon = Instant::now() + SOON;
        while images.len() < names.len()
            && let Some(image) = errand.next_by(soon)
        {
            images.push(image?);
        }
        if images.len() == names.len() {
            return Ok(images);
        }
        let wait = move |assembly: &Assembly| {
            while images.len() < names.len() && !assembly.is_given_up() {
                match errand.next_by(Instant::now() + LOOK_EVERY) {
                    Some(image) => images.push(image?),
                    None if Instant::now() < errand.deadline() => {}
                    None => {
                        let (id, path) = names[images.len()].clone();
                        return Err(DeviceError::Unanswered { id, path, seconds: PATIENCE.as_secs() });
                    }
                }
            }
            Ok(images)
        };
        Ok(attended(attendant, wait).ok_or(BuildError::GivenUp)??)
    }
}

/// Each as soon as it is open, so that none is kept here while another is waited for.
fn open_all(disks: &[DiskConfig], images: &Sender<Result<DiskImage, DeviceError>>) {
    let mut identities = Vec::with_capacity(disks.len());
    for disk in disks {
        let image = refuse_twice(disks, &identities, disk).and_then(|()| open(disk));
        let identity = image.as_ref().ok().map(DiskImage::identity);
        let (taken, Some(identity)) = (images.send(image), identity) else { return };
        if taken.is_err() {
            return;
        }
        identities.push(identity);
    }
}

/// A disk may not be an earlier one too, unless both only read: the lock would say so after a while, but not by name.
fn refuse_twice(disks: &[DiskConfig], earlier: &[FileIdentity], disk: &DiskConfig) -> Result<(), DeviceError> {
    let DiskSource::Path(path) = &disk.source else { return Ok(()) };
    // What cannot be found here cannot be opened either, and that says why.
    let Ok(identity) = FileIdentity::at(path) else { return Ok(()) };
    let mut earlier = disks.iter().zip(earlier);
    let twin = earlier.find(|(other, its)| **its == identity && !(other.read_only && disk.read_only));
    match twin {
        Some((first, _)) => {
            Err(DeviceError::SameDisk { first: first.id.clone(), second: disk.id.clone(), path: path.clone() })
        }
        None => Ok(()),
    }
}

/// Opens and locks what holds a disk's bytes.
fn open(disk: &DiskConfig) -> Result<DiskImage, DeviceError> {
    let id = disk.id.clone();
    let access = if disk.read_only { DiskAccess::ReadOnly } else { DiskAccess::ReadWrite };
    let DiskTuning { cache, block, physical_block, .. } = disk.tuning;
    let options = DiskOptions { cache: cache.unwrap_or_default(), block, physical_block };
    let image = match &disk.source {
        DiskSource::Path(path) => DiskImage::open(path, access, options),
        DiskSource::Open(file) => {
            let file = file
                .try_clone()
                .map_err(|source| DeviceError::Host { what: format!("a descriptor for disk `{id}`"), source })?;
            DiskImage::from_file(file, Path::new(OPEN_FILE), access, options)
        }
    };
    image.map_err(|source| DeviceError::Disk { id, source })
}
