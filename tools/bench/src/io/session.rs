//! One machine under measurement: follows the guest's lines and reads the monitor's CPU time beside them.
//!
//! The guest is quiet before and after each run, so a reading at its line is one of a monitor at rest.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use super::host::Sender;
use crate::BenchError;

/// How long a line may take.
const LINE_WITHIN: Duration = Duration::from_secs(20);

const FAILED: &str = "BENCH-FAIL ";

/// What a run came to.
#[derive(Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) rate: f64,
    pub(super) per_cpu_second: f64,
    /// How long a request takes, as the guest sees it; of disks only, and not of the floor.
    pub(super) median_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
}

/// Does so many runs; a run that the monitor cannot do has no figures.
pub(crate) fn run(command: Result<Command, BenchError>, runs: usize) -> Result<Vec<Option<Figures>>, BenchError> {
    let mut session = Session::start(command?)?;
    let mut all = Vec::new();
    while all.len() < runs {
        all.push(session.one_run()?);
    }
    session.wait_for("BENCH-END")?;
    session.end();
    Ok(all)
}

struct Session {
    program: String,
    child: Child,
    lines: Receiver<String>,
    seen: String,
}

impl Session {
    fn start(mut command: Command) -> Result<Self, BenchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(|source| BenchError::Start { program: program.clone(), source })?;
        let output = child.stdout.take().expect("standard output is a pipe, as asked above");
        let (sender, lines) = mpsc::channel();
        // A thread, so that a silent program runs into the limit; it ends with the program's output.
        std::thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            let text = lines.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned());
            for line in text {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { program, child, lines, seen: String::new() })
    }

    fn one_run(&mut self) -> Result<Option<Figures>, BenchError> {
        let begun = self.wait_for("BENCH-BEGIN ")?;
        if self.has_failed(&begun) {
            return Ok(None);
        }
        let before = self.cpu_ns()?;
        let words: HashMap<&str, &str> = begun.split(' ').filter_map(|word| word.split_once('=')).collect();
        let size = words.get("size").and_then(|size| size.parse().ok());
        let sender = size.filter(|_| begun.contains("net-rx")).map(Sender::start);
        let line = self.wait_for("BENCH ")?;
        drop(sender);
        if self.has_failed(&line) {
            return Ok(None);
        }
        let cpu_ns = self.cpu_ns()? - before;
        let facts: HashMap<&str, &str> = line.split(' ').filter_map(|word| word.split_once('=')).collect();
        let fact = |name: &str| facts.get(name).and_then(|fact| fact.parse::<f64>().ok()).unwrap_or(f64::NAN);
        if counts_failures(&facts) {
            return Err(self.silent("a run without failures", &line));
        }
        let latency_us = |name: &str| Some(fact(name) / 1000.0).filter(|us| us.is_finite());
        Ok(Some(Figures {
            rate: fact("rate"),
            per_cpu_second: fact("requests") * 1e9 / cpu_ns,
            median_us: latency_us("p50_ns"),
            p99_us: latency_us("p99_ns"),
        }))
    }

    /// Lets the machine power off. One that is killed may hold its disk's lock for a while after.
    fn end(&mut self) {
        while self.lines.recv_timeout(LINE_WITHIN).is_ok() {}
    }

    fn has_failed(&self, line: &str) -> bool {
        let failed = line.starts_with(FAILED);
        if failed {
            eprintln!("bench: {}: {line}", self.program);
        }
        failed
    }

    /// The next line that starts so, or that says that a run failed.
    fn wait_for(&mut self, start: &str) -> Result<String, BenchError> {
        loop {
            let line = self.lines.recv_timeout(LINE_WITHIN).map_err(|_| self.silent(start, &self.seen))?;
            if line.starts_with(start) || line.starts_with(FAILED) {
                return Ok(line);
            }
            self.seen = line;
        }
    }

    fn silent(&self, wanted: &str, printed: &str) -> BenchError {
        BenchError::Silent {
            program: self.program.clone(),
            wanted: wanted.to_owned(),
            seconds: LINE_WITHIN.as_secs(),
            printed: printed.to_owned(),
        }
    }

    /// What all threads but vCPUs have used of a CPU, kernel threads of their io_urings included.
    fn cpu_ns(&self) -> Result<f64, BenchError> {
        let folder = format!("/proc/{}/task", self.child.id());
        let failed = |source| BenchError::Proc { path: folder.clone(), source };
        let mut sum = 0.0;
        for task in std::fs::read_dir(&folder).map_err(failed)? {
            let path = task.map_err(failed)?.path();
            // A thread may end in between.
            let read = |name| std::fs::read_to_string(path.join(name)).unwrap_or_default();
            if is_vcpu(&read("comm")) {
                continue;
            }
            let on_cpu = read("schedstat").split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
            sum += on_cpu.unwrap_or_default();
        }
        Ok(sum)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Either fails only for a program that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run that asks nothing of a device has no such counts.
fn counts_failures(facts: &HashMap<&str, &str>) -> bool {
    ["failed", "wrong"].iter().any(|name| facts.get(name).is_some_and(|count| *count != "0"))
}

/// `husk-vcpu0`, Firecracker's `fc_vcpu 0`, QEMU's `CPU 0/KVM`.
fn is_vcpu(comm: &str) -> bool {
    comm.contains("vcpu") || comm.starts_with("CPU ")
}

#[cfg(test)]
mod tests {
    use super::{counts_failures, is_vcpu};

    #[test]
    fn a_run_has_failed_if_it_counts_a_failure_and_not_if_it_counts_none() {
        let fails = |facts: &[(&'static str, &'static str)]| counts_failures(&facts.iter().copied().collect());
        assert!(!fails(&[("requests", "3"), ("rate", "5")]));
        assert!(!fails(&[("failed", "0"), ("wrong", "0")]));
        assert!(fails(&[("failed", "1"), ("wrong", "0")]));
        assert!(fails(&[("failed", "0"), ("wrong", "2")]));
    }

    #[test]
    fn threads_of_vcpus_are_told_from_the_others() {
        for vcpu in ["husk-vcpu0\n", "fc_vcpu 0\n", "CPU 0/KVM\n"] {
            assert!(is_vcpu(vcpu));
        }
        for other in ["husk-io-disk0\n", "IO io\n", "firecracker\n", "qemu-system-x86\n", "iou-wrk-123\n"] {
            assert!(!is_vcpu(other));
        }
    }
}
