//! Firecracker's routes of memory that is plugged.

use hyper::{Method, StatusCode};
use vmm::config::firecracker::Change;
use vmm::config::firecracker::hotplug::{MemoryHotplugConfig, MemoryHotplugSizeUpdate, MemoryHotplugStatus};
use vmm::control::{Command, HotplugAsk, Reply};

use super::Context;
use super::answer::{Answer, Fault, json_answer, no_content};
use super::routes::{Plan, Route, Success, required, schema};

const PATH: &str = "/hotplug/memory";

pub(super) fn routes() -> Vec<Route> {
    let status = Success::Json(schema::<MemoryHotplugStatus>);
    vec![
        Route::new(Method::GET, PATH, "Memory that can be plugged.", None, status, |_, _| ask(HotplugAsk::Read)),
        Route::new(
            Method::PUT,
            PATH,
            "Adds memory that can be plugged, or replaces it; before the start.",
            required::<MemoryHotplugConfig>(),
            Success::NoContent,
            |_, request| Ok(Plan::Ask(Command::Configure(Change::Hotplug(request.parse()?)), |_, _| no_content())),
        ),
        Route::new(
            Method::PATCH,
            PATH,
            "Asks the guest to have so much plugged; after the start.",
            required::<MemoryHotplugSizeUpdate>(),
            Success::NoContent,
            |_, request| {
                let MemoryHotplugSizeUpdate { requested_size_mib: mib } = request.parse()?;
                ask(HotplugAsk::Request { mib })
            },
        ),
    ]
}

fn ask(ask: HotplugAsk) -> Result<Plan, Fault> {
    Ok(Plan::Ask(Command::Hotplug(ask), say))
}

fn say(reply: Reply, _: &Context) -> Answer {
    match reply {
        Reply::Hotplug(status) => json_answer(StatusCode::OK, &status),
        _ => no_content(),
    }
}
