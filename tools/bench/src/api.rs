//! `tools/dev bench api`: what the control socket takes to be there, to answer, and from the guest.
//!
//! husk and Firecracker get the same command line, the same guest and the same requests, in turn, round after round. The
//! floor of an exec is that of /bin/true to its end; the floor of a request is a thread of this program that answers it
//! with bytes which are there already, while husk's guest runs just the same.

mod client;
mod monitor;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::report::Row;
use crate::stats::{median, percentile};
use crate::{BenchError, Wanted};
use client::{Client, FloorServer, Load};
use monitor::{Cpu, Machine, Monitor};

const EXECS: usize = 41;
/// The kernel goes on taking a process apart after it has been reaped; the next one must not pay for it.
const SETTLE: Duration = Duration::from_millis(20);
const GET_ROUNDS: usize = 7;
const GETS: usize = 1000;
/// The guest's loop, with requests and without in turn. A soak has a minute of requests.
const LOOPS: usize = 12;
const LOOP_MS: u64 = 500;
const LOOP_SOAK_MS: u64 = 5_000;
const IDLE: Duration = Duration::from_secs(10);
/// What follows a start has been done by then.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// Figures of each contender, in order: husk, Firecracker if it is given, the floor.
struct Beside {
    monitors: Vec<Monitor>,
}

pub(crate) fn run(wanted: &Wanted) -> Result<Vec<Row>, BenchError> {
    let beside = Beside { monitors: Monitor::all()? };
    let mut rows = Vec::new();
    if wanted.has("api-accepts") {
        rows.extend(beside.accepts()?);
    }
    if wanted.has("api-get") {
        rows.extend(beside.get()?);
    }
    if wanted.has("api-loop-slowdown") {
        rows.push(beside.slowdown()?);
    }
    if wanted.has("api-idle-cpu") {
        rows.push(beside.idle()?);
    }
    Ok(rows)
}

impl Beside {
    /// A row of which less is better, from the figures of the monitors and of the floor.
    fn row(&self, name: &str, unit: &'static str, figures: &[Option<f64>], floor: Option<f64>) -> Row {
        let peer = self.monitors.get(1).zip(figures.get(1).copied().flatten());
        let peer = peer.map(|(monitor, figure)| (monitor.name, figure));
        Row::less_is_better(name, unit, figures.first().copied().flatten(), peer, floor)
    }

    /// From exec to a socket that accepts, and what of it is not the exec.
    fn accepts(&self) -> Result<[Row; 2], BenchError> {
        let mut seen = vec![Vec::new(); self.monitors.len()];
        let mut floor = Vec::new();
        for _ in 0..EXECS {
            for (monitor, seen) in self.monitors.iter().zip(&mut seen) {
                std::thread::sleep(SETTLE);
                seen.push(ms(monitor.accepts_within()?));
            }
            std::thread::sleep(SETTLE);
            floor.push(ms(true_ends_within()?));
        }
        let (medians, floor) = (seen.into_iter().map(median).collect::<Vec<_>>(), median(floor));
        let over: Vec<_> =
            medians.iter().map(|figure| figure.zip(floor).map(|(figure, floor)| figure - floor)).collect();
        Ok([self.row("api-accepts", "ms", &medians, floor), self.row("api-accepts-over-true", "ms", &over, None)])
    }

    /// `GET /` on a kept connection while the guest computes: the medians of each round's median and 99th percentile.
    fn get(&self) -> Result<[Row; 2], BenchError> {
        let floor = FloorServer::start(&self.monitors[0].at("floor.sock"))?;
        let mut seen: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); self.monitors.len() + 1];
        for _ in 0..GET_ROUNDS {
            for (index, (medians, tails)) in seen.iter_mut().enumerate() {
                let monitor = self.monitors.get(index);
                let mut machine = Machine::start(monitor.unwrap_or(&self.monitors[0]), "run=spin:ms=60000")?;
                machine.wait_for("BENCH-BEGIN ")?;
                let socket = monitor.map_or(floor.path(), Monitor::socket);
                let figures = latencies_us(socket)?;
                medians.extend(median(figures.clone()));
                tails.extend(percentile(figures, 99));
            }
        }
        let (medians, tails): (Vec<_>, Vec<_>) =
            seen.into_iter().map(|(medians, tails)| (median(medians), median(tails))).unzip();
        let floor = self.monitors.len();
        Ok([
            self.row("api-get-median", "us", &medians[..floor], medians[floor]),
            self.row("api-get-p99", "us", &tails[..floor], tails[floor]),
        ])
    }

    /// By how much 1000 requests a second slow a loop of the guest's.
    fn slowdown(&self) -> Result<Row, BenchError> {
        let floor = FloorServer::start(&self.monitors[0].at("floor.sock"))?;
        let monitors = self.monitors.iter().map(|monitor| slowdown_of(monitor, monitor.socket()));
        let figures = monitors.collect::<Result<Vec<_>, _>>()?;
        let floor = slowdown_of(&self.monitors[0], floor.path())?;
        Ok(self.row("api-loop-slowdown", "%", &figures, floor))
    }

    /// What a monitor uses of a CPU whose guest has halted.
    fn idle(&self) -> Result<Row, BenchError> {
        let machines = self.monitors.iter().map(Monitor::halted).collect::<Result<Vec<_>, _>>()?;
        std::thread::sleep(IDLE_AFTER);
        let read = || machines.iter().map(|machine| Cpu::of(machine.pid())).collect::<Result<Vec<_>, _>>();
        let (begun, before) = (Instant::now(), read()?);
        std::thread::sleep(IDLE);
        let (after, took) = (read()?, begun.elapsed());
        let shares = before.iter().zip(&after).map(|(before, after)| Some(after.share_since(before, took) * 100.0));
        Ok(self.row("api-idle-cpu", "%", &shares.collect::<Vec<_>>(), None))
    }
}

fn true_ends_within() -> Result<Duration, BenchError> {
    let program = "/bin/true";
    let begun = Instant::now();
    let failed = |source| BenchError::Start { program: program.to_owned(), source };
    let mut child = Command::new(program).spawn().map_err(failed)?;
    child.wait().map_err(failed)?;
    Ok(begun.elapsed())
}

fn latencies_us(socket: &Path) -> Result<Vec<f64>, BenchError> {
    let mut client = Client::connect(socket)?;
    // The first few pay for caches and for what is made once.
    for _ in 0..GETS / 10 {
        client.get()?;
    }
    (0..GETS).map(|_| client.get().map(|took| ms(took) * 1e3)).collect()
}

/// In percent: the guest's loop without requests against the same with requests to `socket`, medians of runs in turn.
fn slowdown_of(monitor: &Monitor, socket: &Path) -> Result<Option<f64>, BenchError> {
    let length_ms = if std::env::var_os("HUSK_SOAK").is_some() { LOOP_SOAK_MS } else { LOOP_MS };
    let words = vec![format!("run=spin:ms={length_ms}"); 2 * LOOPS].join(" ");
    let mut machine = Machine::start(monitor, &words)?;
    let (mut quiet, mut loaded) = (Vec::new(), Vec::new());
    for _ in 0..LOOPS {
        machine.wait_for("BENCH-BEGIN ")?;
        quiet.push(machine.rate()?);
        machine.wait_for("BENCH-BEGIN ")?;
        let load = Load::start(socket)?;
        loaded.push(machine.rate()?);
        load.end()?;
    }
    Ok(median(quiet).zip(median(loaded)).map(|(quiet, loaded)| (quiet / loaded - 1.0) * 100.0))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn socket_error(path: &Path, what: &'static str) -> impl Fn(std::io::Error) -> BenchError {
    let path: PathBuf = path.to_owned();
    move |source| BenchError::Socket { path: path.display().to_string(), what, source }
}
