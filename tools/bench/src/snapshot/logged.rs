//! What a guest's writes cost while they are logged: husk beside a program that has KVM log them, and does nothing else.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::json;

use super::machine::Machine;
use super::{Place, milliseconds};
use crate::BenchError;
use crate::peer::{Artifacts, from_environment};
use crate::report::Row;
use crate::stats::median;

const ROUNDS: usize = 11;

/// A guest that writes to each of its pages when it is sent a byte, and answers when it has.
struct Guest {
    input: ChildStdin,
    output: ChildStdout,
}

impl Guest {
    fn start(mut command: Command) -> Result<(Self, Child), BenchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|source| BenchError::Start { program, source })?;
        let input = child.stdin.take().expect("standard input is a pipe, as asked above");
        let output = child.stdout.take().expect("standard output is a pipe, as asked above");
        Ok((Self { input, output }, child))
    }

    /// How long it takes, in ms.
    fn write_all_pages(&mut self) -> Result<f64, BenchError> {
        let begun = Instant::now();
        let sent = self.input.write_all(b"g").map_err(broken);
        sent.and_then(|()| self.wait_for(b"!"))?;
        Ok(milliseconds(begun.elapsed()))
    }

    fn wait_for(&mut self, text: &[u8]) -> Result<(), BenchError> {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(text) {
            self.output.read_exact(&mut byte).map_err(broken)?;
            seen.extend(byte);
        }
        Ok(())
    }
}

fn broken(source: std::io::Error) -> BenchError {
    BenchError::Proc { path: "the guest's serial port".to_owned(), source }
}

/// How long a guest takes to write to 64 MiB, a byte a page, of which every page is logged anew: husk's after an increment, the
/// other's after KVM's log was read and cleared.
pub(super) fn writes(artifacts: &Artifacts, place: &Place) -> Result<Row, BenchError> {
    let kernel = from_environment("HUSK_BENCH_GUEST", "the bench guest")?;
    let socket = place.at("socket");
    let mut command = artifacts.husk(&kernel, 128, 1);
    command.args(["--cmdline", "run=fill:size=67108864", "--api-sock"]).arg(&socket);
    let (mut husk, child) = Guest::start(command)?;
    husk.wait_for(b"BENCH-BEGIN")?;
    let mut machine = Machine::of(child, socket);
    let mut command = artifacts.floor(128, 1);
    command.arg("logged");
    let (mut floor, mut process) = Guest::start(command)?;
    // Pages are there from then on.
    husk.write_all_pages()?;
    floor.write_all_pages()?;
    let mut parent = place.at("points/0");
    machine.snapshot(&json!({ "path": parent, "track": true }))?;
    let (mut logged, mut raw) = (Vec::new(), Vec::new());
    for number in 1..=ROUNDS {
        logged.push(husk.write_all_pages()?);
        let path = place.at(&format!("points/{number}"));
        machine.snapshot(&json!({ "path": path, "parent": parent, "track": true }))?;
        parent = path;
        // A guest that looks for its next byte takes a CPU.
        machine.pause()?;
        raw.push(floor.write_all_pages()?);
        machine.resume()?;
    }
    // Either fails only for a program that has ended, which is what is wanted.
    let _ = process.kill();
    let _ = process.wait();
    place.clear();
    Ok(Row::less_is_better("dirty-log-writes", "ms", median(logged), None, median(raw)))
}
