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
/// How often the guest's loop runs beside each of [`Company`], and how long. A soak has a minute of requests.
const LOOPS: usize = 24;
const LOOP_MS: u64 = 200;
const LOOP_SOAK_MS: u64 = 2_500;
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
        rows.extend(beside.slowdown()?);
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

    /// By how much 1000 requests a second slow a loop of the guest's, and what of that is the monitor's own: the loop beside
    /// a client of the floor against the loop beside the same client of the monitor.
    fn slowdown(&self) -> Result<[Row; 2], BenchError> {
        let floor = FloorServer::start(&self.monitors[0].at("floor.sock"))?;
        let figures = self.monitors.iter().map(|monitor| Slowdown::of(monitor, floor.path()));
        let figures = figures.collect::<Result<Vec<_>, _>>()?;
        let all = |figure: fn(&Slowdown) -> Option<f64>| figures.iter().map(figure).collect::<Vec<_>>();
        let beside_floor = figures.first().and_then(|slowdown| slowdown.percent(Company::FloorsClient));
        let percent = all(|slowdown| slowdown.percent(Company::OwnClient));
        Ok([
            self.row("api-loop-slowdown", "%", &percent, beside_floor),
            self.row("api-loop-slowdown-own", "x", &all(Slowdown::over_floor), None),
        ])
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

/// What else runs while the guest's loop does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    Nobody,
    /// A client whose requests a thread of this program answers.
    FloorsClient,
    /// The same client, whose requests the monitor answers.
    OwnClient,
}

/// The median rate of the guest's loop in each company.
struct Slowdown([Option<f64>; 3]);

impl Slowdown {
    /// Runs the loop in each company in turn, within one boot: what the host does meanwhile befalls all alike.
    fn of(monitor: &Monitor, floor: &Path) -> Result<Self, BenchError> {
        let length_ms = if std::env::var_os("HUSK_SOAK").is_some() { LOOP_SOAK_MS } else { LOOP_MS };
        let mut companies = [Company::Nobody, Company::FloorsClient, Company::OwnClient];
        let words = vec![format!("run=spin:ms={length_ms}"); companies.len() * LOOPS].join(" ");
        let mut machine = Machine::start(monitor, &words)?;
        let mut rates: [Vec<f64>; 3] = Default::default();
        for _ in 0..LOOPS {
            for company in companies {
                machine.wait_for("BENCH-BEGIN ")?;
                let load = match company {
                    Company::Nobody => None,
                    Company::FloorsClient => Some(Load::start(floor)?),
                    Company::OwnClient => Some(Load::start(monitor.socket())?),
                };
                rates[company as usize].push(machine.rate()?);
                load.map_or(Ok(()), Load::end)?;
            }
            // None always comes after the same other.
            companies.rotate_left(1);
        }
        Ok(Self(rates.map(median)))
    }

    /// By how much the loop is slower than alone.
    fn percent(&self, company: Company) -> Option<f64> {
        let [alone, ..] = self.0;
        alone.zip(self.0[company as usize]).map(|(alone, beside)| (alone / beside - 1.0) * 100.0)
    }

    /// How often as long the loop takes beside the monitor's client as beside the floor's.
    fn over_floor(&self) -> Option<f64> {
        let [_, floor, own] = self.0;
        floor.zip(own).map(|(floor, own)| floor / own)
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn socket_error(path: &Path, what: &'static str) -> impl Fn(std::io::Error) -> BenchError {
    let path: PathBuf = path.to_owned();
    move |source| BenchError::Socket { path: path.display().to_string(), what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitors_own_share_is_what_its_client_slows_beyond_the_floors() {
        let slowdown = Slowdown([Some(110.0), Some(100.0), Some(80.0)]);
        assert!((slowdown.percent(Company::FloorsClient).unwrap_or(0.0) - 10.0).abs() < 1e-9);
        assert!((slowdown.percent(Company::OwnClient).unwrap_or(0.0) - 37.5).abs() < 1e-9);
        assert_eq!(slowdown.over_floor(), Some(1.25));
        assert_eq!(Slowdown([Some(1.0), None, Some(1.0)]).over_floor(), None);
    }
}
