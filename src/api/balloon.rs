//! Firecracker's routes of the balloon.

use hyper::{Method, StatusCode};
use vmm::config::firecracker::Change;
use vmm::config::firecracker::balloon::{
    Balloon, BalloonHintingStatus, BalloonStartCmd, BalloonStats, BalloonStatsUpdate, BalloonUpdate,
};
use vmm::control::{BalloonAsk, Command, Reply};

use super::Context;
use super::answer::{Answer, Fault, json_answer, no_content};
use super::routes::{Plan, Request, Route, Success, optional, required, schema};

pub(super) fn routes() -> Vec<Route> {
    let route = Route::new;
    let (get, put, patch) = (Method::GET, Method::PUT, Method::PATCH);
    vec![
        route(get.clone(), "/balloon", "The balloon.", None, Success::Json(schema::<Balloon>), |_, _| {
            ask(BalloonAsk::Read)
        }),
        route(
            put,
            "/balloon",
            "Adds a balloon, or replaces it; before the start.",
            required::<Balloon>(),
            Success::NoContent,
            |_, request| Ok(Plan::Ask(Command::Configure(Change::Balloon(request.parse()?)), |_, _| no_content())),
        ),
        route(
            patch.clone(),
            "/balloon",
            "Gives the balloon another target; after the start.",
            required::<BalloonUpdate>(),
            Success::NoContent,
            |_, request| ask(BalloonAsk::Target { mib: request.parse::<BalloonUpdate>()?.amount_mib }),
        ),
        route(
            get.clone(),
            "/balloon/statistics",
            "What the guest tells of its memory; after the start.",
            None,
            Success::Json(schema::<BalloonStats>),
            |_, _| ask(BalloonAsk::Statistics),
        ),
        route(
            patch.clone(),
            "/balloon/statistics",
            "Asks the guest so often; after the start, and only of a balloon that was made with statistics.",
            required::<BalloonStatsUpdate>(),
            Success::NoContent,
            |_, request| {
                let BalloonStatsUpdate { stats_polling_interval_s } = request.parse()?;
                ask(BalloonAsk::Interval { seconds: stats_polling_interval_s })
            },
        ),
        route(
            patch.clone(),
            "/balloon/hinting/start",
            "Asks the guest which pages are free, and gives them to the host; after the start.",
            optional::<BalloonStartCmd>(),
            Success::NoContent,
            start_hinting,
        ),
        route(
            get,
            "/balloon/hinting/status",
            "Where hinting has come to; after the start.",
            None,
            Success::Json(schema::<BalloonHintingStatus>),
            |_, _| ask(BalloonAsk::Hinting),
        ),
        route(
            patch,
            "/balloon/hinting/stop",
            "Ends hinting: the guest has its pages back; after the start. As with Firecracker, a body is not looked at.",
            optional::<serde_json::Value>(),
            Success::NoContent,
            |_, _| ask(BalloonAsk::StopHinting),
        ),
    ]
}

fn start_hinting(_: &Context, request: &Request) -> Result<Plan, Fault> {
    let command: BalloonStartCmd = request.parse_optional()?;
    ask(BalloonAsk::StartHinting { acknowledge: command.acknowledge_on_stop.unwrap_or(true) })
}

fn ask(ask: BalloonAsk) -> Result<Plan, Fault> {
    Ok(Plan::Ask(Command::Balloon(ask), say))
}

fn say(reply: Reply, _: &Context) -> Answer {
    match reply {
        Reply::Balloon(balloon) => json_answer(StatusCode::OK, &balloon),
        Reply::BalloonStatistics(statistics) => json_answer(StatusCode::OK, &statistics),
        Reply::BalloonHinting(status) => json_answer(StatusCode::OK, &status),
        _ => no_content(),
    }
}
