//! `tools/dev bench io`: a guest's requests a second, and requests for each CPU-second of the monitor's.
//!
//! Every contender runs the same guest (resources/guest/small/bench) with the same runs on the same file and tap, in
//! turn, round after round; a figure is the median of the rounds. CPU-seconds are those of a monitor's threads other than
//! its vCPUs. The floor is this program in another process, doing the same to the file and the tap without any guest.

mod contender;
mod floor;
mod host;
mod session;

use std::path::PathBuf;

pub(crate) use floor::{FLOOR, main as floor_main};

use crate::report::Row;
use crate::stats::median;
use crate::{BenchError, Wanted};
use contender::{Contender, Place};
use session::Figures;

const ROUNDS: usize = 5;
/// How long each run is.
const RUN_MS: u64 = 250;

/// A row's name, and what the guest is told to do.
type Work = (&'static str, &'static str);

/// A kind of row: the end of its name, its unit, and its figure.
type Kind = (&'static str, &'static str, fn(&Figures) -> f64);

/// Runs that one machine does one after the other.
struct Set {
    suffix: &'static str,
    contenders: fn() -> Vec<Contender>,
    works: &'static [Work],
}

const DISK: &[Work] = &[
    ("blk-read-4k-qd1", "blk-read:depth=1"),
    ("blk-read-4k-qd4", "blk-read:depth=4"),
    ("blk-read-4k-qd32", "blk-read:depth=32"),
    ("blk-write-4k-qd1", "blk-write:depth=1"),
    ("blk-write-4k-qd32", "blk-write:depth=32"),
    ("blk-read-1m", "blk-read:size=1048576:depth=4"),
    ("blk-write-1m", "blk-write:size=1048576:depth=4"),
    ("blk-flush", "blk-flush"),
];

/// Without flushes, which are the same as in the other set.
const DISK_DIRECT: &[Work] = DISK.split_at(DISK.len() - 1).0;

const DISK_POLLED: &[Work] = &[("blk-read-4k-qd1", "blk-read:depth=1"), ("blk-read-4k-qd32", "blk-read:depth=32")];

const NET: &[Work] = &[
    ("net-tx-64", "net-tx:size=64"),
    ("net-tx-1500", "net-tx:size=1500"),
    ("net-tx-64k", "net-tx:size=65535"),
    ("net-rx-64", "net-rx:size=64"),
    ("net-rx-1500", "net-rx:size=1500"),
    ("net-rx-64k", "net-rx:size=65535"),
];

const SETS: [Set; 4] = [
    Set { suffix: "", contenders: contender::cached, works: DISK },
    Set { suffix: "-poll", contenders: contender::polled, works: DISK_POLLED },
    Set { suffix: "-direct", contenders: contender::direct, works: DISK_DIRECT },
    Set { suffix: "", contenders: contender::net, works: NET },
];

pub(crate) fn run(wanted: &Wanted) -> Result<Vec<Row>, BenchError> {
    let place = Place::prepare()?;
    let mut rows = Vec::new();
    for set in SETS {
        let named = set.works.iter().map(|(name, run)| (format!("{name}{}", set.suffix), *run));
        let works: Vec<(String, &str)> = named.filter(|(name, _)| wanted.has(name)).collect();
        if !works.is_empty() {
            rows.extend(measure(&place, (set.contenders)(), &works)?);
        }
    }
    Ok(rows)
}

/// Two rows for each work.
fn measure(place: &Place, contenders: Vec<Contender>, works: &[(String, &str)]) -> Result<Vec<Row>, BenchError> {
    let words: Vec<String> = works.iter().map(|(_, run)| format!("run={run}:ms={RUN_MS}")).collect();
    let mut seen: Vec<Vec<Vec<Figures>>> = vec![vec![Vec::new(); works.len()]; contenders.len()];
    for _ in 0..ROUNDS {
        for (contender, seen) in contenders.iter().zip(&mut seen) {
            let figures = session::run(contender.command(place, &words.join(" ")), works.len())?;
            seen.iter_mut().zip(figures).for_each(|(seen, figures)| seen.extend(figures));
        }
    }
    let figure = |contender: usize, work: usize, what: fn(&Figures) -> f64| {
        median(seen[contender][work].iter().map(what).collect())
    };
    let mut rows = Vec::new();
    for (work, (name, _)) in works.iter().enumerate() {
        let kinds: [Kind; 2] =
            [("", "1/s", |figures| figures.rate), ("-percpu", "1/cpu-s", |figures| figures.per_cpu_second)];
        for (suffix, unit, what) in kinds {
            let named = |role| {
                let of_role = contenders.iter().enumerate().filter(move |(_, contender)| contender.role == role);
                of_role.filter_map(|(index, contender)| Some((contender.name, figure(index, work, what)?)))
            };
            let best = |role| named(role).max_by(|a: &(_, f64), b| a.1.total_cmp(&b.1));
            let husk = best(contender::Role::Husk).map(|(_, figure)| figure);
            let floor = best(contender::Role::Floor).map(|(_, figure)| figure);
            rows.push(Row::more_is_better(format!("{name}{suffix}"), unit, husk, best(contender::Role::Peer), floor));
        }
    }
    Ok(rows)
}

fn variable(name: &'static str, what: &'static str) -> Result<PathBuf, BenchError> {
    crate::peer::from_environment(name, what)
}
