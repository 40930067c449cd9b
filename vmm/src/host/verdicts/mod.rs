//! The judgement of a host: a pure function of its facts. One file a group, in the order of the table.

mod cpu;
mod devices;
mod io;
mod isolation;
mod kvm;
mod limits;
mod measured;
mod memory;

use serde::Serialize;

use super::facts::Facts;

pub use measured::measured_verdicts;

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// The hypervisor.
    Kvm,
    /// Processors and nodes.
    Cpu,
    /// Memory and how it can be had.
    Memory,
    /// What disks and networks are served with.
    Io,
    /// What keeps a VM apart from the host.
    Isolation,
    /// What husk itself is held to.
    Limits,
    /// Figures, where they were asked for.
    Measured,
    /// Files of the kernel's that are not understood; none on most hosts.
    Files,
}

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is there.
    Ok,
    /// What it is for cannot be had.
    Missing,
    /// What it is for works less well.
    Degraded,
    /// A fact that is neither good nor bad by itself.
    Info,
}

/// One line of the table. The serialized names are those of `husk host --json` and stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What the line is about.
    pub group: Group,
    /// What was looked at; no two verdicts have the same name.
    pub name: String,
    /// What is there.
    pub found: String,
    /// How good that is.
    #[serde(rename = "verdict")]
    pub level: Level,
    /// What husk uses it for.
    #[serde(rename = "use")]
    pub purpose: &'static str,
    /// What would mend or change it: a command, or the words for it where no command does.
    pub fix: Option<String>,
    /// Whether no VM can run unless it is [`Level::Ok`].
    #[serde(skip)]
    pub required: bool,
}

impl Group {
    /// Every group, in the order of the table.
    pub const ALL: [Self; 8] =
        [Self::Kvm, Self::Cpu, Self::Memory, Self::Io, Self::Isolation, Self::Limits, Self::Files, Self::Measured];

    /// As it is written in the table and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
            Self::Isolation => "isolation",
            Self::Limits => "limits",
            Self::Measured => "measured",
            Self::Files => "files",
        }
    }
}

impl Level {
    /// As it is written in the table and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Degraded => "degraded",
            Self::Info => "info",
        }
    }
}

/// Judges a host, group by group.
#[must_use]
pub fn verdicts(facts: &Facts) -> Vec<Verdict> {
    let mut verdicts = kvm::judge(facts);
    verdicts.extend(cpu::judge(facts));
    verdicts.extend(memory::judge(&facts.memory, &facts.cpu.nodes));
    verdicts.extend(io::judge(facts));
    verdicts.extend(devices::judge(facts));
    verdicts.extend(isolation::judge(&facts.isolation));
    verdicts.extend(limits::judge(facts));
    verdicts.extend(facts.malformed.iter().map(|(path, problem)| {
        Line::new(Group::Files, path, "a fact that is missing above").degraded(problem, format!("cat {path}"))
    }));
    verdicts
}

/// The first thing that keeps husk from running any VM on this host.
#[must_use]
pub fn obstacle(verdicts: &[Verdict]) -> Option<&Verdict> {
    verdicts.iter().find(|verdict| verdict.required && verdict.level != Level::Ok)
}

/// A line whose judgement is still open.
#[derive(Debug, Clone)]
struct Line {
    group: Group,
    name: String,
    purpose: &'static str,
    required: bool,
}

impl Line {
    fn new(group: Group, name: impl Into<String>, purpose: &'static str) -> Self {
        Self { group, name: name.into(), purpose, required: false }
    }

    /// No VM can run without it.
    fn required(self) -> Self {
        Self { required: true, ..self }
    }

    fn ok(self, found: impl Into<String>) -> Verdict {
        self.judged(Level::Ok, found, None)
    }

    fn missing(self, found: impl Into<String>, fix: impl Into<String>) -> Verdict {
        self.judged(Level::Missing, found, Some(fix.into()))
    }

    fn degraded(self, found: impl Into<String>, fix: impl Into<String>) -> Verdict {
        self.judged(Level::Degraded, found, Some(fix.into()))
    }

    fn info(self, found: impl Into<String>) -> Verdict {
        self.judged(Level::Info, found, None)
    }

    /// A choice that another use of the host would make otherwise.
    fn choice(self, found: impl Into<String>, fix: impl Into<String>) -> Verdict {
        self.judged(Level::Info, found, Some(fix.into()))
    }

    fn judged(self, level: Level, found: impl Into<String>, fix: Option<String>) -> Verdict {
        // Whatever a file holds, a line stays one line.
        let found: String = found.into().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        Verdict {
            group: self.group,
            name: self.name,
            found: if found.is_empty() { UNKNOWN.to_owned() } else { found },
            level,
            purpose: self.purpose,
            fix,
            required: self.required,
        }
    }
}

/// What a source that is not there is called.
const UNKNOWN: &str = "not told by this kernel";

/// A number of bytes for a table, rounded down.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")];
    match UNITS.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if (bytes % unit) * 10 < unit => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, (bytes % unit) * 10 / unit),
        None => format!("{} KiB", bytes / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_down_to_a_tenth() {
        let table = [
            (0, "0 KiB"),
            (64 << 10, "64 KiB"),
            (2 << 20, "2 MiB"),
            (1 << 30, "1 GiB"),
            ((1 << 30) + (1 << 29), "1.5 GiB"),
            (25_276_510_208, "23.5 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn names_are_those_of_the_json() {
        for group in Group::ALL {
            assert_eq!(serde_json::to_value(group).unwrap(), group.name());
        }
        for level in [Level::Ok, Level::Missing, Level::Degraded, Level::Info] {
            assert_eq!(serde_json::to_value(level).unwrap(), level.name());
        }
    }
}
