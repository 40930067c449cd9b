//! `husk host`: what this host can do, as a table or as JSON.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vmm::host::{Asked, Facts, Group, Level, Measured, Verdict, measured_verdicts, obstacle, verdicts};

use super::RunError;
use crate::exit::ExitStatus;

/// A text that is longer pushes the rest of its own line aside, not of all.
const FOUND_WIDTH_MAX: usize = 48;

/// Arguments of `husk host`.
#[derive(Debug, Args)]
pub(super) struct HostArgs {
    /// Print one JSON object, `{"verdicts": [...], "facts": {...}}`, in place of the table; with --measure, `measured` too.
    #[arg(long)]
    json: bool,
    /// Measure too: memory by pair of nodes, timers by CPU, reads of the disks asked about. Takes seconds.
    #[arg(long)]
    measure: bool,
    /// Show this disk's scheduler, queue and interrupts too: a block device, or a file on one. May be given more than
    /// once.
    #[arg(long, value_name = "PATH")]
    disk: Vec<PathBuf>,
    /// Show this network interface's queues and interrupts too. May be given more than once.
    #[arg(long, value_name = "NAME")]
    net: Vec<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    verdicts: &'a [Verdict],
    facts: &'a Facts,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<&'a Measured>,
}

impl HostArgs {
    /// Success says that husk can run a VM here.
    pub(super) fn run(self) -> Result<ExitStatus, RunError> {
        let facts = Facts::read(&Asked { disks: once_each(self.disk), nets: once_each(self.net) })?;
        let mut verdicts = verdicts(&facts);
        let measured = self.measure.then(|| Measured::take(&facts));
        verdicts.extend(measured.iter().flat_map(measured_verdicts));
        let mut out = io::stdout().lock();
        let printed = if self.json {
            let report = Report { verdicts: &verdicts, facts: &facts, measured: measured.as_ref() };
            write_json(&mut out, &report)
        } else {
            write_table(&mut out, &verdicts)
        };
        match printed {
            // Who reads only the first lines (`husk host | head`) has what they want.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            printed => printed.map_err(|source| RunError::Host { what: "print what this host can do", source })?,
        }
        Ok(match obstacle(&verdicts) {
            None => ExitStatus::Success,
            Some(obstacle) => {
                let fix = obstacle.fix.as_deref().unwrap_or_default();
                eprintln!("husk: no VM can run here: {}: {}: {fix}", obstacle.name, obstacle.found);
                ExitStatus::Failure
            }
        })
    }
}

/// In the order of their first mention.
fn once_each<T: PartialEq>(items: Vec<T>) -> Vec<T> {
    let mut once: Vec<T> = Vec::with_capacity(items.len());
    for item in items {
        if !once.contains(&item) {
            once.push(item);
        }
    }
    once
}

fn write_json(out: &mut impl Write, report: &Report) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)?;
    out.flush()
}

fn write_table(out: &mut impl Write, verdicts: &[Verdict]) -> io::Result<()> {
    for group in Group::ALL {
        let lines: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.group == group).collect();
        if lines.is_empty() {
            continue;
        }
        writeln!(out, "{}", group.name())?;
        let width = |text: fn(&Verdict) -> &str| lines.iter().map(|line| text(line).chars().count()).max();
        let name_width = width(|line| &line.name).unwrap_or(0);
        let found_width = width(|line| &line.found).unwrap_or(0).min(FOUND_WIDTH_MAX);
        for verdict in lines {
            write_line(out, verdict, name_width, found_width)?;
        }
    }
    let count = |level| verdicts.iter().filter(|verdict| verdict.level == level).count();
    writeln!(
        out,
        "{} ok, {} degraded, {} missing: husk {} here",
        count(Level::Ok),
        count(Level::Degraded),
        count(Level::Missing),
        if obstacle(verdicts).is_none() { "runs" } else { "cannot run" }
    )?;
    out.flush()
}

/// A line, and below it what would mend it.
fn write_line(out: &mut impl Write, verdict: &Verdict, name_width: usize, found_width: usize) -> io::Result<()> {
    let level = verdict.level.name();
    let (name, found, purpose) = (&verdict.name, &verdict.found, verdict.purpose);
    writeln!(out, "  {level:8}  {name:name_width$}  {found:found_width$}  {purpose}")?;
    match &verdict.fix {
        Some(fix) => writeln!(out, "            fix: {fix}"),
        None => Ok(()),
    }
}
