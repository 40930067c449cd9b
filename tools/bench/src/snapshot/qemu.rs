//! QEMU's microvm with a machine, driven by QMP: its way to save one is a migration to a file.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{LIMIT, Place, STEP};
use crate::BenchError;
use crate::child::Measured;
use crate::peer::{Artifacts, from_environment};

pub(super) struct Qemu {
    path: PathBuf,
    socket: BufReader<UnixStream>,
    /// Killed with this.
    _process: Measured,
}

impl Qemu {
    /// One that is stopped, its bench guest in its run.
    pub(super) fn start(artifacts: &Artifacts, place: &Place, mib: u64, words: &str) -> Result<Self, BenchError> {
        let guest = from_environment("HUSK_BENCH_GUEST", "the bench guest")?;
        let path = place.at("qmp");
        let mut command = artifacts.qemu(&guest, mib, 1);
        command.args(["-append", words, "-qmp", &format!("unix:{},server=on,wait=off", path.display())]);
        let process = Measured::start(command, STEP, LIMIT)?;
        let failed = |source| BenchError::Socket { path: path.display().to_string(), what: "connect", source };
        let socket = UnixStream::connect(&path).map_err(failed)?;
        socket.set_read_timeout(Some(LIMIT)).map_err(failed)?;
        let mut qemu = Self { socket: BufReader::new(socket), path: path.clone(), _process: process };
        qemu.line()?;
        qemu.execute(&json!({ "execute": "qmp_capabilities" }))?;
        let limits = json!({ "max-bandwidth": 1_u64 << 40 });
        qemu.execute(&json!({ "execute": "migrate-set-parameters", "arguments": limits }))?;
        qemu.execute(&json!({ "execute": "stop" }))?;
        Ok(qemu)
    }

    /// Saves the machine to a file: from the command to the file's being durable.
    pub(super) fn save(&mut self, file: &Path) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        let uri = format!("exec:cat > {0} && sync {0}", file.display());
        self.execute(&json!({ "execute": "migrate", "arguments": { "uri": uri } }))?;
        loop {
            let state = self.execute(&json!({ "execute": "query-migrate" }))?;
            match state["status"].as_str() {
                Some("completed") => {
                    let took = begun.elapsed();
                    // A machine that has gone to a file does not go again before it has run.
                    self.execute(&json!({ "execute": "cont" }))?;
                    self.execute(&json!({ "execute": "stop" }))?;
                    return Ok(took);
                }
                Some("failed" | "cancelled") => return Err(self.failed(&state.to_string())),
                _ if begun.elapsed() > LIMIT => return Err(self.failed("it takes too long")),
                _ => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    fn execute(&mut self, command: &Value) -> Result<Value, BenchError> {
        let written = self.socket.get_mut().write_all(format!("{command}\n").as_bytes());
        written.map_err(|source| self.broken(source))?;
        loop {
            let answer = self.line()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if answer.get("error").is_some() {
                return Err(self.failed(&answer.to_string()));
            }
        }
    }

    fn line(&mut self) -> Result<Value, BenchError> {
        let mut line = String::new();
        let read = self.socket.read_line(&mut line);
        read.map_err(|source| self.broken(source))?;
        Ok(serde_json::from_str(&line).unwrap_or_default())
    }

    fn failed(&self, answer: &str) -> BenchError {
        self.broken(std::io::Error::other(answer.to_owned()))
    }

    fn broken(&self, source: std::io::Error) -> BenchError {
        BenchError::Socket { path: self.path.display().to_string(), what: "have QEMU save its machine", source }
    }
}
