//! What the kernel counts of this process.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// This process's own figures. What the kernel does not tell is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessFigures {
    /// CPU time by thread name; threads of one name count together.
    pub threads: Vec<(String, Duration)>,
    /// Resident memory in bytes, by kind: `anonymous`, `file`, `shared`, `hugetlb`.
    pub resident: Vec<(&'static str, u64)>,
    /// Log lines about faults that were left out, since a guest or the host repeated them.
    pub suppressed_log_lines: u64,
}

impl ProcessFigures {
    /// Asks the kernel: a few small files of /proc.
    #[must_use]
    pub fn read() -> Self {
        Self {
            threads: threads(Path::new("/proc/self/task")),
            resident: resident(Path::new("/proc/self/status")),
            suppressed_log_lines: devices::fault::suppressed_lines(),
        }
    }
}

/// Name and CPU time (schedstat's first field, nanoseconds) of each thread.
fn threads(tasks: &Path) -> Vec<(String, Duration)> {
    let mut threads: Vec<(String, Duration)> = Vec::new();
    for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).ok();
        let ran = read("schedstat").and_then(|text| text.split_ascii_whitespace().next()?.parse().ok());
        let (Some(name), Some(ran)) = (read("comm"), ran.map(Duration::from_nanos)) else { continue };
        let name = name.trim_end();
        match threads.iter_mut().find(|(other, _)| other == name) {
            Some((_, sum)) => *sum += ran,
            None => threads.push((name.to_owned(), ran)),
        }
    }
    threads.sort();
    threads
}

fn resident(status: &Path) -> Vec<(&'static str, u64)> {
    let text = fs::read_to_string(status).unwrap_or_default();
    let kib = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
    };
    // Pages of hugetlbfs are in none of the others.
    let kinds =
        [("anonymous", "RssAnon:"), ("file", "RssFile:"), ("shared", "RssShmem:"), ("hugetlb", "HugetlbPages:")];
    kinds.into_iter().filter_map(|(kind, name)| kib(name).map(|kib| (kind, kib << 10))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_threads_that_ran_and_memory_that_is_there() {
        let figures = ProcessFigures::read();
        assert!(figures.threads.iter().any(|(_, ran)| !ran.is_zero()), "{figures:?}");
        assert_eq!(figures.resident.len(), 4, "{figures:?}");
        assert!(figures.resident[0].1 > 0, "{figures:?}");
    }
}
