//! `tools/dev bench io`: a guest's requests a second, and requests for each CPU-second of the monitor's.
//!
//! Every contender runs the same guest (resources/guest/small/bench) with the same runs on the same file and tap, in
//! turn, round after round; a figure is the median of the rounds. CPU-seconds are those of a monitor's threads other than
//! its vCPUs. The floor is this program in another process, doing the same to the file and the tap without any guest.

mod contender;
mod floor;
mod host;
pub(crate) mod session;

use std::path::PathBuf;

pub(crate) use floor::{FLOOR, main as floor_main};

use crate::report::Row;
use crate::stats::median;
use crate::{BenchError, Wanted};
use contender::{Contender, Place, Role};
use session::Figures;

const ROUNDS: usize = 5;
/// How long each run is.
const RUN_MS: u64 = 250;

/// A row's name, and what the guest is told to do.
type Work = (&'static str, &'static str);

/// A kind of row.
struct Kind {
    /// The end of its name.
    suffix: &'static str,
    unit: &'static str,
    figure: fn(&Figures) -> Option<f64>,
    better: Better,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

const KINDS: [Kind; 4] = [
    Kind { suffix: "", unit: "1/s", figure: |figures| Some(figures.rate), better: Better::More },
    Kind { suffix: "-percpu", unit: "1/cpu-s", figure: |figures| Some(figures.per_cpu_second), better: Better::More },
    Kind { suffix: "-p50", unit: "us", figure: |figures| figures.median_us, better: Better::Less },
    Kind { suffix: "-p99", unit: "us", figure: |figures| figures.p99_us, better: Better::Less },
];

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
    ("blk-write-4k-qd4", "blk-write:depth=4"),
    ("blk-write-4k-qd32", "blk-write:depth=32"),
    ("blk-read-1m", "blk-read:size=1048576:depth=4"),
    ("blk-write-1m", "blk-write:size=1048576:depth=4"),
    ("blk-flush", "blk-flush"),
    // A doorbell for nothing; a request that is waited for by its interrupt.
    ("notify", "notify"),
    ("blk-read-4k-qd1-sleep", "blk-read:depth=1:wait=sleep"),
];

/// Without what is the same as in the other set.
const DISK_DIRECT: &[Work] = DISK.split_at(DISK.len() - 3).0;

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

/// A row of each kind for each work, as far as there is a figure.
fn measure(place: &Place, contenders: Vec<Contender>, works: &[(String, &str)]) -> Result<Vec<Row>, BenchError> {
    let words: Vec<String> = works.iter().map(|(_, run)| format!("run={run}:ms={RUN_MS}")).collect();
    let mut seen: Vec<Vec<Vec<Figures>>> = vec![vec![Vec::new(); works.len()]; contenders.len()];
    for _ in 0..ROUNDS {
        for (contender, seen) in contenders.iter().zip(&mut seen) {
            place.clean()?;
            let figures = session::run(contender.command(place, &words.join(" ")), works.len())?;
            seen.iter_mut().zip(figures).for_each(|(seen, figures)| seen.extend(figures));
        }
    }
    let mut rows = Vec::new();
    for (work, (name, _)) in works.iter().enumerate() {
        for Kind { suffix, unit, figure, better } in &KINDS {
            let best = |role| {
                let of_role = contenders.iter().zip(&seen).filter(|(contender, _)| contender.role == role);
                let figures = of_role.filter_map(|(contender, seen)| {
                    let figures: Vec<f64> = seen[work].iter().filter_map(figure).collect();
                    Some((contender.name, median(figures)?))
                });
                figures.max_by(|(_, one), (_, other)| match better {
                    Better::More => one.total_cmp(other),
                    Better::Less => other.total_cmp(one),
                })
            };
            let [husk, floor] = [Role::Husk, Role::Floor].map(|role| best(role).map(|(_, figure)| figure));
            let peer = best(Role::Peer);
            if husk.or(floor).or(peer.map(|(_, figure)| figure)).is_none() {
                continue;
            }
            let row = match better {
                Better::More => Row::more_is_better,
                Better::Less => Row::less_is_better,
            };
            rows.push(row(format!("{name}{suffix}"), unit, husk, peer, floor));
        }
    }
    Ok(rows)
}

fn variable(name: &'static str, what: &'static str) -> Result<PathBuf, BenchError> {
    crate::peer::from_environment(name, what)
}
