//! `tools/dev bench memory`: the same guest on pages of 4 KiB, on transparent huge pages and on a pool of 2 MiB pages, in turn.
//!
//! The pool is raised for each figure and put back after it; where the host does not give it, its rows have no figure.

mod pool;

use crate::boot::{FIRST_BYTE, LINUX_READY, linux_guest, milliseconds};
use crate::io::session;
use crate::peer::{Artifacts, from_environment};
use crate::report::Row;
use crate::stats::median;
use crate::{BenchError, Wanted};
use pool::Pool;

/// The name of what all others are held against.
const PEER: &str = "4 KiB pages";

/// What backs a guest's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    Small,
    Transparent,
    Pool,
}

impl Backing {
    /// What it adds to `--memory`.
    fn words(self) -> &'static str {
        match self {
            Self::Small => "",
            Self::Transparent => ",pages=transparent",
            Self::Pool => ",pages=2M",
        }
    }
}

/// One thing that is measured on several backings.
struct Figure {
    /// The rows, and first the one on pages of 4 KiB, which the others are held against.
    rows: &'static [(&'static str, Backing)],
    unit: &'static str,
    /// Of a name, a unit, the figure, and that on pages of 4 KiB.
    row: fn(&'static str, &'static str, Option<f64>, Option<f64>) -> Row,
    mib: u64,
    /// One round more comes first and does not count: caches and the host's free memory are as they will be from then on.
    rounds: usize,
    /// With `--memory` as it is to be.
    measure: fn(&Artifacts, &str) -> Result<f64, BenchError>,
}

const FIGURES: [Figure; 4] = [
    Figure {
        rows: &[("prefault-4g-4k", Backing::Small), ("prefault-4g-2m", Backing::Pool)],
        unit: "ms",
        row: less,
        mib: 4096,
        rounds: 5,
        measure: prefault,
    },
    // Neither is asked to be there beforehand: the kernel's first pages are touched when husk loads it.
    Figure {
        rows: &[("first-instruction-4k", Backing::Small), ("first-instruction-2m", Backing::Pool)],
        unit: "ms",
        row: less,
        mib: 128,
        rounds: 31,
        measure: first_instruction,
    },
    Figure {
        rows: &[
            ("access-1g-4k", Backing::Small),
            ("access-1g-thp", Backing::Transparent),
            ("access-1g-2m", Backing::Pool),
        ],
        unit: "M/s",
        row: more,
        mib: 1536,
        rounds: 5,
        measure: access,
    },
    Figure {
        rows: &[("linux-userspace-4k", Backing::Small), ("linux-userspace-2m", Backing::Pool)],
        unit: "ms",
        row: less,
        mib: 128,
        rounds: 3,
        measure: linux,
    },
];

pub(crate) fn run(wanted: &Wanted) -> Result<Vec<Row>, BenchError> {
    let artifacts = Artifacts::find()?;
    let mut rows = Vec::new();
    for figure in FIGURES.iter().filter(|figure| figure.rows.iter().any(|(name, _)| wanted.has(name))) {
        let all = figure.rows(&figure.medians(&artifacts)?);
        rows.extend(all.into_iter().filter(|row| wanted.has(&row.name)));
    }
    Ok(rows)
}

impl Figure {
    /// Of each row, in rounds of all of them.
    fn medians(&self, artifacts: &Artifacts) -> Result<Vec<Option<f64>>, BenchError> {
        let pages = self.mib / 2;
        let pool = Pool::of_2m(pages);
        if pool.is_none() {
            eprintln!("bench: the host does not give {pages} HugePages of 2 MiB: what needs them is left out");
        }
        let mut seen = vec![Vec::new(); self.rows.len()];
        for round in 0..=self.rounds {
            for ((_, backing), seen) in self.rows.iter().zip(&mut seen) {
                if *backing == Backing::Pool && !pool.as_ref().is_some_and(Pool::is_free) {
                    continue;
                }
                let figure = (self.measure)(artifacts, &format!("{}M{}", self.mib, backing.words()))?;
                seen.extend((round > 0).then_some(figure));
            }
        }
        Ok(seen.into_iter().map(median).collect())
    }

    fn rows(&self, medians: &[Option<f64>]) -> Vec<Row> {
        let small = medians.first().copied().flatten();
        let rows = self.rows.iter().zip(medians).map(|((name, backing), figure)| {
            (self.row)(name, self.unit, *figure, small.filter(|_| *backing != Backing::Small))
        });
        rows.collect()
    }
}

fn less(name: &'static str, unit: &'static str, figure: Option<f64>, small: Option<f64>) -> Row {
    Row::less_is_better(name, unit, figure, small.map(|small| (PEER, small)), None)
}

fn more(name: &'static str, unit: &'static str, figure: Option<f64>, small: Option<f64>) -> Row {
    Row::more_is_better(name, unit, figure, small.map(|small| (PEER, small)), None)
}

/// From exec to the first instruction, all memory being there by then.
fn prefault(artifacts: &Artifacts, memory: &str) -> Result<f64, BenchError> {
    first_instruction(artifacts, &format!("{memory},prefault"))
}

fn first_instruction(artifacts: &Artifacts, memory: &str) -> Result<f64, BenchError> {
    milliseconds(artifacts.husk_on(&artifacts.first, memory, 1), FIRST_BYTE)
}

/// Loads at random places of an area that the guest has written, in millions a second.
fn access(artifacts: &Artifacts, memory: &str) -> Result<f64, BenchError> {
    let guest = from_environment("HUSK_BENCH_GUEST", "the bench guest")?;
    let mut command = artifacts.husk_on(&guest, memory, 1);
    command.args(["--cmdline", "run=access:size=1073741824:ms=400"]);
    let figures = session::run(Ok(command), 1)?;
    Ok(figures[0].map_or(f64::NAN, |figures| figures.rate / 1e6))
}

fn linux(artifacts: &Artifacts, memory: &str) -> Result<f64, BenchError> {
    let command = artifacts.husk_on(&artifacts.vmlinux, memory, 1);
    milliseconds(linux_guest(command, "--initrd", "--cmdline", &artifacts.initramfs), LINUX_READY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_but_the_one_of_4_kib_pages_is_held_against_it() {
        let [prefault, _, access, _] = &FIGURES;
        let rows = access.rows(&[Some(2.0), Some(3.0), Some(4.0)]);
        let ratios: Vec<Option<f64>> = rows.iter().map(|row| row.ratio).collect();
        assert_eq!(ratios, [None, Some(1.5), Some(2.0)]);
        assert_eq!((rows[0].peer, rows[2].peer, rows[2].peer_name), (None, Some(2.0), Some(PEER)));
        assert_eq!(prefault.rows(&[Some(3.0), Some(1.0)])[1].ratio, Some(3.0));
    }

    #[test]
    fn a_row_whose_pool_could_not_be_had_has_no_figure_and_no_ratio() {
        for figure in &FIGURES {
            let medians: Vec<Option<f64>> =
                figure.rows.iter().map(|(_, backing)| (*backing != Backing::Pool).then_some(1.0)).collect();
            let last = figure.rows(&medians).pop().expect("a figure has rows");
            assert_eq!((last.husk, last.ratio, last.peer), (None, None, Some(1.0)), "{}", last.name);
        }
    }

    #[test]
    fn the_first_row_of_a_figure_is_the_one_of_4_kib_pages() {
        assert!(FIGURES.iter().all(|figure| figure.rows[0].1 == Backing::Small));
    }
}
