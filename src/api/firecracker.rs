//! Firecracker's dialect; its OpenAPI document, version 1.17.0, is the authority. Where its behaviour differs from its
//! document, husk behaves like it, and the route says so.

use hyper::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmm::config::CpuTemplate;
use vmm::config::firecracker::bodies::{
    BootSource, Drive, EntropyDevice, FullVmConfiguration, Logger, MachineConfiguration, MachineConfigurationPart,
    Metrics, NetworkInterface, PartialDrive, PartialNetworkInterface, SerialDevice,
};
use vmm::config::firecracker::{Change, describe};
use vmm::control::{Command, DiskChange, NetChange, Reply, State};
use vmm::metrics::FirecrackerFile;

use super::answer::{Answer, Fault, json_answer, no_content};
use super::routes::{Plan, Request, Route, Success, required, schema};
use super::{Context, FIRECRACKER_VERSION};
use crate::{exit, logging};

/// `InstanceInfo`.
#[derive(Debug, Serialize, JsonSchema)]
struct InstanceInfo {
    app_name: &'static str,
    id: String,
    state: InstanceState,
    vmm_version: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

/// `FirecrackerVersion`.
#[derive(Debug, Serialize, JsonSchema)]
struct FirecrackerVersion {
    firecracker_version: &'static str,
}

/// `InstanceActionInfo`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InstanceActionInfo {
    action_type: ActionType,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

/// `Vm`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: VmState,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
enum VmState {
    Paused,
    Resumed,
}

/// `CpuConfig`: cpuid_modifiers, msr_modifiers, kvm_capabilities.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "it lends CpuTemplate, which reads the body, its name in the document")]
struct CpuConfig(serde_json::Map<String, serde_json::Value>);

/// What husk does not have yet: answered 400, by name. It shrinks as they come.
const NOT_YET: [(Method, &str, &str); 10] = [
    (Method::PUT, "/vsock", "the vsock device"),
    (Method::PUT, "/pmem/{id}", "the pmem device"),
    (Method::PATCH, "/pmem/{id}", "the pmem device"),
    (Method::GET, "/mmds", "the metadata service"),
    (Method::PUT, "/mmds", "the metadata service"),
    (Method::PATCH, "/mmds", "the metadata service"),
    (Method::PUT, "/mmds/config", "the metadata service"),
    (Method::DELETE, "/drives/{drive_id}", "unplugging a drive"),
    (Method::DELETE, "/network-interfaces/{iface_id}", "unplugging a network interface"),
    (Method::DELETE, "/pmem/{id}", "the pmem device"),
];

pub(super) fn routes() -> Vec<Route> {
    let route = Route::new;
    let (get, put, patch) = (Method::GET, Method::PUT, Method::PATCH);
    let mut routes = vec![
        route(get.clone(), "/", "What this instance is.", None, Success::Json(schema::<InstanceInfo>), instance),
        route(
            get.clone(),
            "/version",
            "The version of Firecracker's API that is followed.",
            None,
            Success::Json(schema::<FirecrackerVersion>),
            version,
        ),
        route(
            get.clone(),
            "/vm/config",
            "The whole machine.",
            None,
            Success::Json(schema::<FullVmConfiguration>),
            full_config,
        ),
        route(
            get,
            "/machine-config",
            "vCPUs and memory.",
            None,
            Success::Json(schema::<MachineConfiguration>),
            machine_config,
        ),
        route(
            put.clone(),
            "/machine-config",
            "Sets vCPUs and memory; before the start.",
            required::<MachineConfiguration>(),
            Success::NoContent,
            |_, request| configure(Change::Machine(request.parse()?)),
        ),
        route(
            patch.clone(),
            "/machine-config",
            "Changes some of them; before the start.",
            required::<MachineConfigurationPart>(),
            Success::NoContent,
            |_, request| {
                let part: MachineConfigurationPart = request.parse()?;
                if part == MachineConfigurationPart::default() {
                    return Err(Fault::bad("Empty PATCH request. Give one thing to change at least"));
                }
                configure(Change::MachinePart(part))
            },
        ),
        route(
            put.clone(),
            "/boot-source",
            "Sets what the machine starts with; before the start.",
            required::<BootSource>(),
            Success::NoContent,
            |_, request| configure(Change::BootSource(request.parse()?)),
        ),
        route(
            put.clone(),
            "/cpu-config",
            "Sets the CPU template; before the start.",
            required::<CpuConfig>(),
            Success::NoContent,
            |_, request| configure(Change::CpuConfig(Box::new(request.parse::<CpuTemplate>()?))),
        ),
        route(
            put.clone(),
            "/drives/{drive_id}",
            "Adds a drive, or replaces the one of that name; before the start.",
            required::<Drive>(),
            Success::NoContent,
            |_, request| {
                let drive = request.parse_named("drive_id", |drive: &Drive| &drive.drive_id)?;
                configure(Change::Drive(Box::new(drive)))
            },
        ),
        route(
            patch.clone(),
            "/drives/{drive_id}",
            "Gives a drive another file or other limits; after the start.",
            required::<PartialDrive>(),
            Success::NoContent,
            patch_drive,
        ),
        route(
            put.clone(),
            "/network-interfaces/{iface_id}",
            "Adds a network interface, or replaces the one of that name; before the start.",
            required::<NetworkInterface>(),
            Success::NoContent,
            |_, request| {
                let interface = request.parse_named("iface_id", |interface: &NetworkInterface| &interface.iface_id)?;
                configure(Change::NetworkInterface(Box::new(interface)))
            },
        ),
        route(
            patch.clone(),
            "/network-interfaces/{iface_id}",
            "Gives a network interface other limits; after the start.",
            required::<PartialNetworkInterface>(),
            Success::NoContent,
            patch_net,
        ),
        route(
            put.clone(),
            "/entropy",
            "Adds the entropy device; before the start.",
            required::<EntropyDevice>(),
            Success::NoContent,
            |_, request| configure(Change::Entropy(request.parse()?)),
        ),
        route(
            put.clone(),
            "/serial",
            "Sets the serial port's other end; before the start.",
            required::<SerialDevice>(),
            Success::NoContent,
            |_, request| configure(Change::Serial(request.parse()?)),
        ),
        route(
            put.clone(),
            "/logger",
            "Sets where husk's log goes and what is in it; a level that is absent is Info. At any time, and not, as with Firecracker, before the start alone.",
            required::<Logger>(),
            Success::NoContent,
            |_, request| {
                let configured = logging::configure(&request.parse()?);
                configured.map_err(|error| Fault::bad(exit::describe(&error)))?;
                Ok(Plan::Say(no_content()))
            },
        ),
        route(
            put.clone(),
            "/metrics",
            "Sets the file or named pipe that the machine's figures are written to, each minute; once. At any time, and not, as with Firecracker, before the start alone.",
            required::<Metrics>(),
            Success::NoContent,
            |context, request| {
                let file = FirecrackerFile::of_body(&request.parse()?, &context.id);
                let file = file.map_err(|error| Fault::bad(exit::describe(&error)))?;
                Ok(Plan::Ask(Command::MetricsTo(Box::new(file)), done))
            },
        ),
        route(
            put,
            "/actions",
            "Starts the machine, types Ctrl-Alt-Delete, or writes the machine's figures now.",
            required::<InstanceActionInfo>(),
            Success::NoContent,
            action,
        ),
        route(
            patch,
            "/vm",
            "Pauses or resumes the machine. As with Firecracker, one that is so already stays so.",
            required::<Vm>(),
            Success::NoContent,
            vm_state,
        ),
    ];
    let later = |(method, path, what): (Method, &'static str, &'static str)| {
        route(method, path, what, super::routes::optional::<serde_json::Value>(), Success::Never, not_yet)
    };
    routes.extend(NOT_YET.map(later));
    routes
}

fn instance(context: &Context, _: &Request) -> Result<Plan, Fault> {
    let state = match context.state.get() {
        State::NotStarted => InstanceState::NotStarted,
        State::Running => InstanceState::Running,
        // The vCPUs of one that has ended are parked as well; the process is about to end.
        State::Paused | State::Ended => InstanceState::Paused,
    };
    let id = context.id.clone();
    let info = InstanceInfo { app_name: "Firecracker", id, state, vmm_version: FIRECRACKER_VERSION };
    Ok(Plan::Say(json_answer(StatusCode::OK, &info)))
}

fn version(_: &Context, _: &Request) -> Result<Plan, Fault> {
    let version = FirecrackerVersion { firecracker_version: FIRECRACKER_VERSION };
    Ok(Plan::Say(json_answer(StatusCode::OK, &version)))
}

fn full_config(_: &Context, _: &Request) -> Result<Plan, Fault> {
    Ok(Plan::Ask(Command::ReadConfig, |reply, _| match reply {
        Reply::Config(config) => json_answer(StatusCode::OK, &describe::full(&config)),
        _ => no_content(),
    }))
}

fn machine_config(_: &Context, _: &Request) -> Result<Plan, Fault> {
    Ok(Plan::Ask(Command::ReadConfig, |reply, _| match reply {
        Reply::Config(config) => json_answer(StatusCode::OK, &describe::machine(&config)),
        _ => no_content(),
    }))
}

fn patch_drive(_: &Context, request: &Request) -> Result<Plan, Fault> {
    let PartialDrive { drive_id, path_on_host, rate_limiter } =
        request.parse_named("drive_id", |drive: &PartialDrive| &drive.drive_id)?;
    if path_on_host.is_none() && rate_limiter.is_none() {
        return Err(Fault::bad("the body changes nothing: give path_on_host or rate_limiter"));
    }
    let change = DiskChange::Part { path: path_on_host, limits: rate_limiter };
    Ok(Plan::Ask(Command::Disk(drive_id, Box::new(change)), done))
}

fn patch_net(_: &Context, request: &Request) -> Result<Plan, Fault> {
    let PartialNetworkInterface { iface_id, rx_rate_limiter, tx_rate_limiter } =
        request.parse_named("iface_id", |interface: &PartialNetworkInterface| &interface.iface_id)?;
    let change = NetChange::Limits { receive: rx_rate_limiter, transmit: tx_rate_limiter };
    Ok(Plan::Ask(Command::Net(iface_id, Box::new(change)), done))
}

fn action(_: &Context, request: &Request) -> Result<Plan, Fault> {
    match request.parse::<InstanceActionInfo>()?.action_type {
        ActionType::InstanceStart => Ok(Plan::Ask(Command::Start, done)),
        ActionType::SendCtrlAltDel => Ok(Plan::Ask(Command::CtrlAltDel, done)),
        ActionType::FlushMetrics => Ok(Plan::Ask(Command::FlushMetrics, done)),
    }
}

fn vm_state(_: &Context, request: &Request) -> Result<Plan, Fault> {
    let command = match request.parse::<Vm>()?.state {
        VmState::Paused => Command::Pause,
        VmState::Resumed => Command::Resume,
    };
    Ok(Plan::Ask(command, done))
}

fn configure(change: Change) -> Result<Plan, Fault> {
    Ok(Plan::Ask(Command::Configure(change), done))
}

fn done(_: Reply, _: &Context) -> Answer {
    no_content()
}

fn not_yet(_: &Context, request: &Request) -> Result<Plan, Fault> {
    Err(Fault::bad(format!("{} is not supported yet by husk", request.summary)))
}
