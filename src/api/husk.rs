//! husk's own dialect, under `/husk/v1`: plain REST. What is done to the machine is a job: POST begins it, and it may be
//! over by the time of the answer.

use std::time::Duration;

use hyper::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use vmm::config::extension::Placement;
use vmm::config::firecracker::Change;
use vmm::config::{BucketError, ConfigReport, DeviceLimits};
use vmm::control::{Command, DiskChange, Event, JobId, JobReport, NetChange, Reply, State};
use vmm::machine::{DeviceReport, LinkState};
use vmm::metrics::{ProcessFigures, prometheus};
use vmm::placement::PlacementReport;

use super::answer::{Answer, Code, Fault, accepted, json_answer, no_content, text_answer};
use super::routes::{Plan, Query, Request, Route, Success, optional, required, schema};
use super::{Context, FIRECRACKER_VERSION, openapi};
use crate::logging;

/// How long a guest has to end by itself where a request does not say.
const GRACE_MS_DEFAULT: u64 = 5_000;
/// A day: who wants to wait longer does not want a limit.
const GRACE_MS_MAX: u64 = 86_400_000;

const AFTER: Query = Query { name: "after", description: "the number of the last event that was seen" };

/// What this process is, and how it is.
#[derive(Debug, Serialize, JsonSchema)]
struct Health {
    /// `ok`: the socket answers.
    status: &'static str,
    /// husk's version.
    version: &'static str,
    /// The version of Firecracker's API that is followed.
    firecracker_version: &'static str,
    /// The VM's name.
    id: String,
    /// The machine's state.
    state: State,
    /// This process.
    pid: u32,
    /// How long it has run, in milliseconds.
    uptime_ms: u64,
}

/// How a machine is to be stopped.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Stop {
    /// How long the guest has to end by itself after its power button was pressed, in milliseconds; 0 ends it at once.
    #[schemars(range(max = GRACE_MS_MAX))]
    grace_ms: Option<u64>,
}

/// What changes of a device in use: exactly one of these, and none is null.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct DevicePart {
    /// A disk's size in bytes, which its file or device must have already.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "u64")]
    size_bytes: Option<u64>,
    /// A network's cable.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "Link")]
    link: Option<Link>,
    /// What a disk or a network, and with it all of its group, is held to from now on, in the place of what it was.
    #[serde(deserialize_with = "present")]
    #[schemars(with = "DeviceLimits")]
    limits: Option<DeviceLimits>,
}

/// What may be absent, and null not.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A network's cable.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Link {
    /// Plugged in.
    Up,
    /// Pulled: what is sent is lost.
    Down,
}

pub(super) fn routes() -> Vec<Route> {
    let route = Route::new;
    let (get, post) = (Method::GET, Method::POST);
    let act = |path, summary, plan| route(Method::POST, path, summary, None, Success::Accepted, plan);
    let jobs = Success::Json(schema::<Vec<JobReport>>);
    let job = || Success::Json(schema::<JobReport>);
    vec![
        route(get.clone(), "/husk/v1/health", "How husk is.", None, Success::Json(schema::<Health>), health),
        route(
            get.clone(),
            "/husk/v1/openapi.json",
            "This document.",
            None,
            Success::Json(schema::<serde_json::Map<String, serde_json::Value>>),
            |_, _| Ok(Plan::Say(json_answer(StatusCode::OK, &openapi::document()))),
        ),
        route(
            get.clone(),
            "/husk/v1/events",
            "What happens to the machine: one JSON object a line, the last 256 at first, then as they come.",
            None,
            Success::Lines(schema::<Event>),
            events,
        )
        .with_query(AFTER),
        route(
            get.clone(),
            "/husk/v1/metrics",
            "What the machine and this process count, as Prometheus reads it.",
            None,
            Success::Text("text/plain"),
            |_, _| {
                Ok(Plan::Ask(Command::ReadMetrics, |reply, context| match reply {
                    Reply::Metrics(machine) => {
                        let process = ProcessFigures::read();
                        let page = prometheus(&machine, &process, &context.latency.read(), logging::lost_lines());
                        text_answer("text/plain; version=0.0.4", page)
                    }
                    _ => no_content(),
                }))
            },
        ),
        route(get.clone(), "/husk/v1/jobs", "The jobs, oldest first.", None, jobs, |_, _| {
            Ok(Plan::Ask(Command::ListJobs, |reply, _| match reply {
                Reply::Jobs(jobs) => json_answer(StatusCode::OK, &jobs),
                _ => no_content(),
            }))
        }),
        route(get.clone(), "/husk/v1/jobs/{job}", "A job.", None, job(), |_, request| {
            Ok(Plan::Ask(Command::ReadJob(job_id(request)?), say_job))
        })
        .called::<JobId>(),
        route(Method::DELETE, "/husk/v1/jobs/{job}", "Gives a job up.", None, job(), |_, request| {
            Ok(Plan::Ask(Command::CancelJob(job_id(request)?), say_job))
        })
        .called::<JobId>(),
        act("/husk/v1/pause", "Parks the vCPUs and drains the devices.", |_, _| job_of(Command::Pause)),
        act("/husk/v1/resume", "Lets them go on.", |_, _| job_of(Command::Resume)),
        act("/husk/v1/power-button", "Presses the power button.", |_, _| job_of(Command::PowerButton)),
        act("/husk/v1/nmi", "Interrupts every vCPU by what it cannot mask.", |_, _| job_of(Command::Nmi)),
        act("/husk/v1/ctrl-alt-del", "Types Ctrl-Alt-Delete.", |_, _| job_of(Command::CtrlAltDel)),
        route(
            post,
            "/husk/v1/stop",
            "Ends the machine, and husk with it: by the power button, and at once when the grace has passed, when the guest has not enabled its button, and at a second request.",
            optional::<Stop>(),
            Success::Accepted,
            stop,
        ),
        route(
            get.clone(),
            "/husk/v1/config",
            "The whole VM in husk's own terms, defaults filled in.",
            None,
            Success::Json(schema::<ConfigReport>),
            |_, _| {
                Ok(Plan::Ask(Command::ReadConfig, |reply, _| match reply {
                    Reply::Config(config) => json_answer(StatusCode::OK, &ConfigReport::from(&*config)),
                    _ => no_content(),
                }))
            },
        ),
        route(
            get.clone(),
            "/husk/v1/placement",
            "Where guest memory is: what was asked, and what is.",
            None,
            Success::Json(schema::<PlacementReport>),
            |_, _| Ok(Plan::AskSlow(Command::ReadPlacement, say_placement)),
        ),
        route(
            Method::PUT,
            "/husk/v1/placement",
            "Says where the machine shall be on the host, before it is started.",
            required::<Placement>(),
            Success::NoContent,
            |_, request| Ok(Plan::Ask(Command::Configure(Change::Placement(request.parse()?)), |_, _| no_content())),
        ),
        route(
            get.clone(),
            "/husk/v1/devices",
            "The virtio devices, in the order of their interrupts; none before the start.",
            None,
            Success::Json(schema::<Vec<DeviceReport>>),
            |_, _| {
                Ok(Plan::Ask(Command::ListDevices, |reply, _| match reply {
                    Reply::Devices(devices) => json_answer(StatusCode::OK, &devices),
                    _ => no_content(),
                }))
            },
        ),
        route(
            Method::PATCH,
            "/husk/v1/devices/{id}",
            "Changes a device in use.",
            required::<DevicePart>(),
            Success::NoContent,
            patch_device,
        ),
    ]
}

fn health(context: &Context, _: &Request) -> Result<Plan, Fault> {
    let health = Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        firecracker_version: FIRECRACKER_VERSION,
        id: context.id.clone(),
        state: context.state.get(),
        pid: std::process::id(),
        uptime_ms: u64::try_from(context.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    Ok(Plan::Say(json_answer(StatusCode::OK, &health)))
}

fn events(_: &Context, request: &Request) -> Result<Plan, Fault> {
    Ok(Plan::Follow(request.number(&AFTER)?.unwrap_or(0)))
}

fn stop(_: &Context, request: &Request) -> Result<Plan, Fault> {
    let Stop { grace_ms } = request.parse_optional()?;
    let grace_ms = grace_ms.unwrap_or(GRACE_MS_DEFAULT);
    if grace_ms > GRACE_MS_MAX {
        let message = format!("grace_ms: {grace_ms} is more than a day: use at most {GRACE_MS_MAX}");
        return Err(Fault::field("grace_ms", message));
    }
    job_of(Command::Stop { grace: Duration::from_millis(grace_ms) })
}

fn patch_device(_: &Context, request: &Request) -> Result<Plan, Fault> {
    let id = request.argument.to_owned();
    let DevicePart { size_bytes, link, limits } = request.parse()?;
    let command = match (size_bytes, link, limits) {
        (Some(bytes), None, None) => Command::Disk(id, Box::new(DiskChange::Resize(bytes))),
        (None, Some(link), None) => {
            let state = match link {
                Link::Up => LinkState::Up,
                Link::Down => LinkState::Down,
            };
            Command::Net(id, Box::new(NetChange::Link(state)))
        }
        (None, None, Some(limits)) => {
            let refused = |error: BucketError| Fault::field("limits", format!("limits.{error}"));
            Command::Limit(id, Box::new(limits.try_into().map_err(refused)?))
        }
        _ => return Err(Fault::bad("give one thing to change: size_bytes, link or limits")),
    };
    Ok(Plan::Ask(command, |_, _| no_content()))
}

fn job_id(request: &Request) -> Result<JobId, Fault> {
    let number = request.argument;
    let no_number = |_| Fault::of(Code::NoSuchJob, format!("there is no job `{number}`: a job's name is a number"));
    number.parse().map(JobId).map_err(no_number)
}

pub(super) fn job_of(command: Command) -> Result<Plan, Fault> {
    Ok(Plan::Ask(command, |reply, _| match reply {
        Reply::Job(job) => accepted(&job),
        _ => no_content(),
    }))
}

fn say_placement(reply: Reply) -> Result<Answer, Fault> {
    let report = match reply {
        Reply::Placement(source) => source.report().map_err(|error| {
            Fault::of(Code::Host, format!("the kernel does not tell where guest memory is: {error}"))
        })?,
        Reply::Config(config) => PlacementReport::planned(&config),
        _ => return Ok(no_content()),
    };
    Ok(json_answer(StatusCode::OK, &report))
}

fn say_job(reply: Reply, _: &Context) -> Answer {
    match reply {
        Reply::Job(job) => json_answer(StatusCode::OK, &job),
        _ => text_answer("application/json", "null"),
    }
}
