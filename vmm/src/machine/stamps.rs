//! When a machine's disks were written last, by which a restore knows those that somebody has written to since. Only their
//! hosts know, who may never answer, and the machine is held while they are asked: one that does not answer soon leaves its disk
//! without.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::{DiskConfig, DiskSource};
use crate::errand::Errand;

/// How long a machine is held for it at most.
pub(crate) const STAMP_PATIENCE: Duration = Duration::from_secs(1);

/// A disk's file as it was when the machine was held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskStamp {
    pub(crate) id: String,
    /// Its last change, in ns since 1970; none of a disk that cannot be written, and of one that cannot be asked.
    pub(crate) modified_ns: Option<i128>,
}

/// Which files to ask about.
#[derive(Debug)]
pub(crate) struct StampQuestion {
    /// With the path of what can be written.
    disks: Vec<(String, Option<PathBuf>)>,
}

/// That was asked.
#[derive(Debug)]
pub(crate) struct AskedStamps {
    disks: Vec<(String, Option<PathBuf>)>,
    /// An answer for each path, in their order; none if nobody is asked.
    errand: Option<Errand<Option<i128>>>,
    deadline: Instant,
}

/// What was answered.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    /// Of each disk.
    pub(crate) told: Vec<DiskStamp>,
    /// The first disk that nobody answers for, and its path. Those after it are not told of either.
    pub(crate) unanswered: Option<(String, PathBuf)>,
}

impl StampQuestion {
    /// Of all `disks`.
    pub(crate) fn of<'a>(disks: impl IntoIterator<Item = &'a DiskConfig>) -> Self {
        let path = |disk: &DiskConfig| match &disk.source {
            DiskSource::Path(path) if !disk.read_only => Some(path.clone()),
            DiskSource::Path(_) | DiskSource::Open(_) => None,
        };
        Self { disks: disks.into_iter().map(|disk| (disk.id.clone(), path(disk))).collect() }
    }

    /// Asks the hosts.
    pub(crate) fn ask(self) -> AskedStamps {
        let Self { disks } = self;
        let paths: Vec<PathBuf> = disks.iter().filter_map(|(_, path)| path.clone()).collect();
        let errand = (!paths.is_empty()).then(|| {
            Errand::begin(move |answers| {
                // Who has waited for long enough takes no more.
                let _late = paths.iter().try_for_each(|path| answers.send(modified_ns(path).ok()));
            })
        });
        let errand = errand.and_then(|begun| {
            begun.inspect_err(|error| log::warn!("no disk is asked when it was written last: {error}")).ok()
        });
        AskedStamps { disks, errand, deadline: Instant::now() + STAMP_PATIENCE }
    }
}

impl AskedStamps {
    /// The answers that come in time.
    pub(crate) fn wait(self) -> Stamps {
        let Self { disks, errand, deadline } = self;
        let mut unanswered = None;
        let stamp = |(id, path): (String, Option<PathBuf>)| {
            let asked = path.zip(errand.as_ref()).filter(|_| unanswered.is_none());
            let Some((path, answers)) = asked else { return DiskStamp { id, modified_ns: None } };
            let answer = answers.next_by(deadline);
            if answer.is_none() {
                unanswered = Some((id.clone(), path));
            }
            DiskStamp { id, modified_ns: answer.flatten() }
        };
        let told = disks.into_iter().map(stamp).collect();
        Stamps { told, unanswered }
    }
}

/// When the file at `path` was written last, in ns since 1970.
fn modified_ns(path: &Path) -> io::Result<i128> {
    let metadata = path.metadata()?;
    Ok(i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()))
}
