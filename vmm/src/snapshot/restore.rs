//! A point that becomes a machine: opened, held against what it says of itself and what this host is, and changed as asked.

use std::path::PathBuf;
use std::sync::Arc;

use arch::GuestAddress;
use arch::clock::ClockPolicy;
use arch::cpu_identity::CpuIdentity;
use thiserror::Error;

use super::{LastPoint, MemoryMode, MemorySource, Overrides, PointReport, Relation, RestoreRequest};
use crate::config::{ConfigError, DiskSource, HostFacts, MIB, MemoryBacking, NetSource, Pages, VmConfig};
use crate::epoch::{Point, PointError, PointFiles, StateError, StateFile};
use crate::machine::{DiskStamp, MachineState, MachineStateError, STAMP_PATIENCE, StampQuestion, Stamps, cpu_of};

/// Runs of pages that a private mapping is made of at most: the kernel's default limit of mappings is 65,530
/// (vm.max_map_count), and each costs 200 bytes of its memory.
pub const MAPPED_RUNS_MAX: u64 = 8192;

/// What keeps a point from becoming a machine.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Its state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its memory.
    #[error(transparent)]
    Point(#[from] PointError),
    /// The machine in it.
    #[error(transparent)]
    Machine(#[from] MachineStateError),
    /// A limit that the machine in it breaks here.
    #[error("the machine in the snapshot cannot be here")]
    Config(#[from] ConfigError),
    /// Memory of another size than the machine's.
    #[error("the snapshot has {} MiB of memory, its machine {} MiB", memory / MIB, machine / MIB)]
    MemorySize {
        /// What the header says, in bytes.
        memory: u64,
        /// What the configuration says, in bytes.
        machine: u64,
    },
    /// A device that is to be changed, and is not there.
    #[error("the machine in the snapshot has no {kind} `{id}`")]
    NoSuchDevice {
        /// What it should be.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// Memory that cannot be mapped.
    #[error("memory cannot be mapped from the snapshot: {why}: use lazy or copy")]
    NotMapped {
        /// Why not.
        why: Unmapped,
    },
    /// Memory that cannot come page by page.
    #[error("memory that is locked, or on 1 GiB pages, cannot come as it is wanted: use copy")]
    NotLazy,
    /// Memory that cannot be checked as it is read.
    #[error("the memory file has no index (.idx) beside it, so what is read cannot be checked: use map")]
    NoIndex,
    /// A disk that somebody may have written to since.
    #[error("disk `{id}`: nobody says within {} s when {} was written last: check the server or device behind it, or leave strict_disks out", STAMP_PATIENCE.as_secs(), path.display())]
    DiskUnanswered {
        /// The disk.
        id: String,
        /// Its file.
        path: PathBuf,
    },
    /// A disk that somebody wrote to since.
    #[error("disk `{id}`: {} has been written to since the snapshot: restore the file as well, or leave strict_disks out", path.display())]
    DiskChanged {
        /// The disk.
        id: String,
        /// Its file.
        path: PathBuf,
    },
}

/// Why memory cannot be a private mapping of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unmapped {
    /// It is made of pages that files have not.
    #[error("it is on {0} pages")]
    Pages(Pages),
    /// It is to be somewhere, and file pages are where they are.
    #[error("it is bound to nodes")]
    Nodes,
    /// It is to be in memory from the start.
    #[error("it is prefaulted or locked")]
    Present,
    /// Other processes are handed it.
    #[error("it is shared")]
    Shared,
    /// There would be too many mappings.
    #[error("its chain has {0} runs of pages, more than {MAPPED_RUNS_MAX}")]
    Runs(u64),
}

/// A point on its way to be a machine.
#[derive(Debug)]
pub struct Restore {
    pub(crate) state: MachineState,
    pub(crate) memory: RestoredMemory,
    /// What of the memory that can be plugged is: where each run of blocks begins, and its size in bytes.
    pub(crate) plugged: Vec<(GuestAddress, u64)>,
    pub(crate) clock: ClockPolicy,
    /// The CPU that its guest has seen.
    pub(crate) cpu: CpuIdentity,
    report: PointReport,
    changed_disks: Vec<String>,
}

/// Where its memory comes from.
#[derive(Debug)]
pub(crate) enum RestoredMemory {
    /// The point's files.
    Files {
        point: Arc<Point>,
        mode: MemoryMode,
        /// What was wanted first the last time.
        record: PathBuf,
        last: Box<LastPoint>,
    },
    /// Another process.
    Handler(PathBuf),
}

impl RestoredMemory {
    /// Whether all of it is read before the guest goes on.
    pub(crate) fn takes_long(&self) -> bool {
        matches!(self, Self::Files { mode: MemoryMode::Copy, .. })
    }
}

impl Restore {
    /// Opens what `request` names and checks all that can be checked before anything is created.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn open(request: RestoreRequest) -> Result<(VmConfig, Self), RestoreError> {
        let RestoreRequest { state: state_path, memory, resume: _, track_dirty_pages, clock, overrides } = request;
        let StateFile { header, sections } = StateFile::read(&state_path)?;
        let cpu = cpu_of(&header).map_err(MachineStateError::from)?;
        let (mut config, state) = MachineState::take(sections)?;
        let machine = config.memory.size_bytes.saturating_add(config.hotplug.map_or(0, |hotplug| hotplug.total_bytes));
        if header.memory_bytes != machine {
            return Err(RestoreError::MemorySize { memory: header.memory_bytes, machine });
        }
        config.memory.track_dirty_pages = track_dirty_pages;
        let changed_disks = check_disks(&state.stamps, &config, &overrides)?;
        change(&mut config, overrides)?;
        config.validate_restored(HostFacts::read())?;
        let plugged = state.plugged(&config)?;
        let report = |memory, pages| PointReport::new(Relation::Origin, (&state_path, memory), &header, pages);
        let (memory, report) = match memory {
            MemorySource::Handler(_) if config.memory.placement.lock => return Err(RestoreError::NotLazy),
            MemorySource::Handler(path) => (RestoredMemory::Handler(path), report(None, None)),
            MemorySource::File { path, mode } => {
                let point = Point::open(&path, &header)?;
                let mode = settle_mode(mode, &config, &point, plugged.len())?;
                if mode == MemoryMode::Map {
                    point.check_sample()?;
                }
                let mut record = path.clone().into_os_string();
                record.push(".ws");
                let report = report(Some(&path), point.own_pages());
                let (files, point) = (PointFiles::new(state_path, path), Arc::new(point));
                let last = Box::new(LastPoint { files, header, point: Some(Arc::clone(&point)) });
                (RestoredMemory::Files { point, mode, record: record.into(), last }, report)
            }
        };
        Ok((config, Self { state, memory, plugged, clock, cpu, report, changed_disks }))
    }

    /// The point.
    #[must_use]
    pub fn report(&self) -> &PointReport {
        &self.report
    }

    /// The disks that were written to after the machine was held.
    #[must_use]
    pub fn changed_disks(&self) -> &[String] {
        &self.changed_disks
    }
}

/// How memory gets there, as it was asked or as fast as can be, in RAM and so many plugged parts.
fn settle_mode(
    asked: Option<MemoryMode>,
    config: &VmConfig,
    point: &Point,
    parts: usize,
) -> Result<MemoryMode, RestoreError> {
    let placement = &config.memory.placement;
    let lazy = match () {
        () if !point.has_index() => Err(RestoreError::NoIndex),
        () if placement.lock || placement.pages == Pages::Huge1G => Err(RestoreError::NotLazy),
        () => Ok(MemoryMode::Lazy),
    };
    match (asked, unmapped(config, point, parts)) {
        (Some(MemoryMode::Map), Some(why)) => Err(RestoreError::NotMapped { why }),
        (Some(MemoryMode::Map) | None, None) => Ok(MemoryMode::Map),
        (Some(MemoryMode::Lazy), _) => lazy,
        (Some(MemoryMode::Copy), _) if !point.has_index() => Err(RestoreError::NoIndex),
        (Some(MemoryMode::Copy), _) => Ok(MemoryMode::Copy),
        (None, Some(_)) if is_prefaulted(config) => settle_mode(Some(MemoryMode::Copy), config, point, parts),
        (None, Some(_)) => lazy.or_else(|_| settle_mode(Some(MemoryMode::Copy), config, point, parts)),
    }
}

/// Whether a part of memory shall be there before the guest goes on.
fn is_prefaulted(config: &VmConfig) -> bool {
    config.memory_parts().iter().any(|part| config.memory.placement.is_prefaulted(part.nodes.as_ref()))
}

fn unmapped(config: &VmConfig, point: &Point, parts: usize) -> Option<Unmapped> {
    let placement = &config.memory.placement;
    // A full point is one mapping of each part, with its holes.
    let runs = || if point.layer_ids().count() == 1 { 0 } else { point.run_count() } + parts as u64;
    match placement.pages {
        pages @ (Pages::Transparent | Pages::Huge2M | Pages::Huge1G) => Some(Unmapped::Pages(pages)),
        _ if placement.nodes.is_some() || config.numa.iter().any(|node| node.host.is_some()) => Some(Unmapped::Nodes),
        _ if placement.prefault || placement.lock => Some(Unmapped::Present),
        _ if config.memory.backing == MemoryBacking::Memfd => Some(Unmapped::Shared),
        _ => Some(runs()).filter(|&runs| runs > MAPPED_RUNS_MAX).map(Unmapped::Runs),
    }
}

/// A disk that was written to after its machine was held has not what the guest believes.
fn check_disks(stamps: &[DiskStamp], config: &VmConfig, overrides: &Overrides) -> Result<Vec<String>, RestoreError> {
    let mut changed = Vec::new();
    let replaced = |id: &str| overrides.disks.iter().any(|(other, _)| other == id);
    let then = |id: &str| stamps.iter().find(|stamp| stamp.id == id).and_then(|stamp| stamp.modified_ns);
    let kept = config.disks.iter().filter(|disk| !replaced(&disk.id) && then(&disk.id).is_some());
    let Stamps { told, unanswered } = StampQuestion::of(kept.clone()).ask().wait();
    if let Some((id, path)) = unanswered
        && overrides.strict_disks
    {
        return Err(RestoreError::DiskUnanswered { id, path });
    }
    for (disk, DiskStamp { id, modified_ns: now }) in kept.zip(told) {
        // A file that cannot be asked is refused by who opens it.
        let (Some(now), Some(then), DiskSource::Path(path)) = (now, then(&id), &disk.source) else { continue };
        if now > then {
            if overrides.strict_disks {
                return Err(RestoreError::DiskChanged { id, path: path.clone() });
            }
            log::warn!(
                "disk `{id}`: {} has been written to since the snapshot: the guest may find what it does not expect",
                path.display()
            );
            changed.push(id);
        }
    }
    Ok(changed)
}

/// Changes what is asked to be other than in the point.
fn change(config: &mut VmConfig, overrides: Overrides) -> Result<(), RestoreError> {
    let Overrides { disks, nets, pages, serial, strict_disks: _ } = overrides;
    for (id, path) in disks {
        let disk = config.disks.iter_mut().find(|disk| disk.id == id);
        disk.ok_or(RestoreError::NoSuchDevice { kind: "disk", id })?.source = DiskSource::Path(path);
    }
    for (id, tap) in nets {
        let net = config.nets.iter_mut().find(|net| net.id == id);
        net.ok_or(RestoreError::NoSuchDevice { kind: "network", id })?.source = NetSource::Tap(tap);
    }
    if let Some(pages) = pages {
        config.memory.placement.pages = pages;
    }
    if let Some((target, limit)) = serial {
        (config.serial, config.serial_limit) = (target, limit);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::firecracker::blank;
    use crate::epoch::{Described, Digest, Encoded, LayerWriter, PAGE_BYTES};

    const PAGE: [u8; 4096] = [7; 4096];

    /// An increment of so many runs, on a point of one page.
    fn chain(runs: u64) -> (tempfile::TempDir, Point) {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let memory_bytes = (2 * MAPPED_RUNS_MAX + 512) * PAGE_BYTES;
        let publish = |name: &str, parent: Option<Point>, pages: &mut dyn Iterator<Item = u64>| {
            let files = PointFiles::in_folder(&folder.path().join(name));
            let writer = LayerWriter::create(&files, memory_bytes, parent.map(Arc::new)).unwrap();
            let mut pen = writer.pen();
            pages.for_each(|page| pen.write_bytes(page, &PAGE).unwrap());
            drop(pen);
            let described = Described { created_ms: 1, cpu: Encoded::of(1, &0).unwrap(), config: Digest::of(b"") };
            let header = writer.finish().unwrap().publish(&described, &[]).unwrap();
            Point::open(&files.memory, &header).unwrap()
        };
        let base = publish("base", None, &mut [0].into_iter());
        let point = publish("point", Some(base), &mut (1..runs).map(|run| 2 * run));
        (folder, point)
    }

    #[test]
    fn a_chain_of_too_many_runs_is_not_mapped_and_how_many_there_are_is_told() {
        let config = blank();
        let settle =
            |asked, point: &Point, parts| settle_mode(asked, &config, point, parts).map_err(|error| error.to_string());
        let (_most, most) = chain(MAPPED_RUNS_MAX);
        assert_eq!(most.run_count(), MAPPED_RUNS_MAX);
        assert_eq!(settle(None, &most, 0), Ok(MemoryMode::Map));
        // A part that is plugged is a mapping as well.
        let refused = settle(Some(MemoryMode::Map), &most, 1).unwrap_err();
        let why = "memory cannot be mapped from the snapshot: its chain has 8193 runs of pages, more than 8192: use lazy or copy";
        assert_eq!((refused.as_str(), settle(None, &most, 1)), (why, Ok(MemoryMode::Lazy)));
        let (_more, more) = chain(MAPPED_RUNS_MAX + 1);
        assert_eq!(settle(Some(MemoryMode::Map), &more, 0).unwrap_err(), why);
        assert_eq!(settle(Some(MemoryMode::Copy), &more, 0), Ok(MemoryMode::Copy));
    }
}
