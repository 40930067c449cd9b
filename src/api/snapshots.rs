//! Snapshots, in both dialects. Firecracker's clients wait for the files; husk's follow a job.

use std::path::PathBuf;

use hyper::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use vmm::config::ClockPolicy;
use vmm::config::firecracker::snapshot::{SnapshotCreateParams, SnapshotLoadParams};
use vmm::control::{AnswerWhen, Command, Reply};
use vmm::snapshot::{
    MemoryMode, MemorySource, Overrides, PointFiles, PointKind, PointReport, RestoreRequest, SnapshotRequest,
};

use super::Context;
use super::answer::{Fault, json_answer, no_content};
use super::husk::job_of;
use super::routes::{Plan, Request, Route, Success, required, schema};

/// A point to be made.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    /// The folder of its files, which is made if it is not there.
    path: PathBuf,
    /// The folder of the machine's last point: this one holds what has changed since.
    #[serde(default)]
    parent: Option<PathBuf>,
    /// Whether what is written from now on is recorded, so that the next point can be an increment.
    #[serde(default)]
    track: bool,
}

/// A point that a machine is to be made from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Restore {
    /// The folder of its files.
    path: PathBuf,
    /// How its memory file gets into memory; absent is as fast as its kind and its pages let it.
    #[serde(default)]
    memory: Option<Mode>,
    /// Whether the machine runs at once.
    #[serde(default)]
    resume: bool,
    /// What its clocks do.
    #[serde(default)]
    clock: ClockWord,
    /// Whether what is written is recorded from its start, so that its first point can be an increment.
    #[serde(default)]
    track_dirty_pages: bool,
    /// Disks with other files.
    #[serde(default)]
    disks: Vec<DiskOverride>,
    /// Networks with other taps.
    #[serde(default)]
    nets: Vec<NetOverride>,
    /// Whether a disk that was written to since is refused, and not only told of.
    #[serde(default)]
    strict_disks: bool,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// The file is mapped, privately.
    Map,
    /// Each page is read when the guest wants it, and the rest behind it.
    Lazy,
    /// All of it is read first.
    Copy,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ClockWord {
    /// They go on where they stopped.
    #[default]
    Freeze,
    /// They advance by the time away.
    Realtime,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DiskOverride {
    /// The disk.
    id: String,
    /// Its file or device from now on.
    path: PathBuf,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NetOverride {
    /// The network.
    id: String,
    /// Its tap from now on.
    tap: String,
}

pub(super) fn routes() -> Vec<Route> {
    let route = Route::new;
    vec![
        route(
            Method::PUT,
            "/snapshot/create",
            "Writes a paused machine to two files, and answers when they are durable.",
            required::<SnapshotCreateParams>(),
            Success::NoContent,
            |_, request| {
                let request = SnapshotRequest::from(request.parse::<SnapshotCreateParams>()?);
                Ok(Plan::Ask(Command::Snapshot(Box::new(request), AnswerWhen::Done), |_, _| no_content()))
            },
        ),
        route(
            Method::PUT,
            "/snapshot/load",
            "Makes the machine that such files hold; before anything else is configured.",
            required::<SnapshotLoadParams>(),
            Success::NoContent,
            |_, request| {
                let request = request.parse::<SnapshotLoadParams>()?.into_request()?;
                Ok(Plan::Ask(Command::Restore(Box::new(request), AnswerWhen::Done), |_, _| no_content()))
            },
        ),
        route(
            Method::POST,
            "/husk/v1/snapshots",
            "Writes the machine, which may run, to a folder.",
            required::<Snapshot>(),
            Success::Accepted,
            create,
        ),
        route(
            Method::GET,
            "/husk/v1/snapshots",
            "The snapshots that the machine goes on from, and has made, oldest first: the last 256, whatever became of their files.",
            None,
            Success::Json(schema::<Vec<PointReport>>),
            |_, _| {
                Ok(Plan::Ask(Command::ListPoints, |reply, _| match reply {
                    Reply::Points(points) => json_answer(StatusCode::OK, &points),
                    _ => no_content(),
                }))
            },
        ),
        route(
            Method::POST,
            "/husk/v1/restore",
            "Makes the machine that such a folder holds; before anything else is configured.",
            required::<Restore>(),
            Success::Accepted,
            restore,
        ),
    ]
}

fn create(_: &Context, request: &Request) -> Result<Plan, Fault> {
    let Snapshot { path, parent, track } = request.parse()?;
    let kind = match parent {
        None => PointKind::Full,
        Some(parent) => PointKind::Increment(Some(PointFiles::in_folder(&parent).memory)),
    };
    let request = SnapshotRequest { files: PointFiles::in_folder(&path), kind, track };
    job_of(Command::Snapshot(Box::new(request), AnswerWhen::Begun))
}

fn restore(_: &Context, request: &Request) -> Result<Plan, Fault> {
    let Restore { path, memory, resume, clock, track_dirty_pages, disks, nets, strict_disks } = request.parse()?;
    let files = PointFiles::in_folder(&path);
    let mode = memory.map(|mode| match mode {
        Mode::Map => MemoryMode::Map,
        Mode::Lazy => MemoryMode::Lazy,
        Mode::Copy => MemoryMode::Copy,
    });
    let overrides = Overrides {
        disks: disks.into_iter().map(|disk| (disk.id, disk.path)).collect(),
        nets: nets.into_iter().map(|net| (net.id, net.tap)).collect(),
        pages: None,
        serial: None,
        strict_disks,
    };
    let clock = match clock {
        ClockWord::Freeze => ClockPolicy::Freeze,
        ClockWord::Realtime => ClockPolicy::Realtime,
    };
    let memory = MemorySource::File { path: files.memory, mode };
    let request = RestoreRequest { state: files.state, memory, resume, track_dirty_pages, clock, overrides };
    job_of(Command::Restore(Box::new(request), AnswerWhen::Begun))
}
