//! The monitors that are measured, which take the same command line, and their machines.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::json;

use super::socket_error;
use crate::BenchError;
use crate::child::Measured;
use crate::peer::from_environment;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);
const MEMORY_MIB: u64 = 128;

/// A program that is started as Firecracker is.
pub(super) struct Monitor {
    pub(super) name: &'static str,
    program: PathBuf,
    socket: PathBuf,
    place: Arc<Place>,
}

/// What they share; gone when the benchmark ends.
struct Place {
    folder: PathBuf,
    /// Writes a byte and halts.
    halting: PathBuf,
    /// Does what its command line says.
    bench: PathBuf,
}

impl Monitor {
    /// husk, and Firecracker if it is given.
    pub(super) fn all() -> Result<Vec<Self>, BenchError> {
        let husk = from_environment("HUSK_BENCH_HUSK", "the release build of husk")?;
        let halting = from_environment("HUSK_BENCH_FIRST", "the one-instruction guest")?;
        let bench = from_environment("HUSK_BENCH_GUEST", "the bench guest")?;
        let folder = husk.with_file_name("bench-api");
        let failed = |source| BenchError::Proc { path: folder.display().to_string(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let place = Arc::new(Place { folder, halting, bench });
        let peer = std::env::var_os("HUSK_BENCH_FIRECRACKER").map(|program| ("firecracker", PathBuf::from(program)));
        let monitor = |(name, program)| {
            let socket = place.folder.join(format!("{name}.sock"));
            Self { name, program, socket, place: Arc::clone(&place) }
        };
        Ok([("husk", husk)].into_iter().chain(peer).map(monitor).collect())
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The path of `name` among what is gone when the benchmark ends.
    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.place.folder.join(name)
    }

    fn command(&self) -> Command {
        // What was killed has left it.
        let _ = std::fs::remove_file(&self.socket);
        let mut command = Command::new(&self.program);
        command.arg("--api-sock").arg(&self.socket).stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// With a machine that runs `guest` at once.
    fn booting(&self, guest: &Path, words: &str) -> Result<Command, BenchError> {
        let config = json!({
            "boot-source": {"kernel_image_path": guest, "boot_args": words},
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
            "drives": [],
        });
        let path = self.at(&format!("{}.json", self.name));
        std::fs::write(&path, config.to_string())
            .map_err(|source| BenchError::Proc { path: path.display().to_string(), source })?;
        let mut command = self.command();
        command.args(["--level", "Error", "--config-file"]).arg(path);
        Ok(command)
    }

    /// From just before its exec to its socket's accepting.
    pub(super) fn accepts_within(&self) -> Result<Duration, BenchError> {
        let mut command = self.command();
        command.stdout(Stdio::null());
        let begun = Instant::now();
        let mut child = Running::spawn(command)?;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(_) => return Ok(begun.elapsed()),
                Err(error) if begun.elapsed() > LIMIT || child.has_ended() => {
                    return Err(socket_error(&self.socket, "connect")(error));
                }
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// With a machine whose guest has halted.
    pub(super) fn halted(&self) -> Result<Measured, BenchError> {
        Measured::start(self.booting(&self.place.halting, "")?, "!", LIMIT)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A failure leaves a folder in target/.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A process that is killed and reaped when dropped.
struct Running(Child);

impl Running {
    fn spawn(mut command: Command) -> Result<Self, BenchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.spawn().map(Self).map_err(|source| BenchError::Start { program, source })
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either fails only for a program that has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine that runs the bench guest.
pub(super) struct Machine {
    _process: Running,
    program: String,
    lines: Receiver<String>,
}

impl Machine {
    pub(super) fn start(monitor: &Monitor, words: &str) -> Result<Self, BenchError> {
        let mut command = monitor.booting(&monitor.place.bench, words)?;
        command.stdout(Stdio::piped());
        let mut process = Running::spawn(command)?;
        let output = process.0.stdout.take().expect("standard output is a pipe, as asked above");
        let (sender, lines) = mpsc::channel();
        // A thread, so that a silent program runs into the limit; it ends with the program's output.
        std::thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            for line in lines {
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { _process: process, program: monitor.name.to_owned(), lines })
    }

    /// The next line that starts so.
    pub(super) fn wait_for(&mut self, start: &str) -> Result<String, BenchError> {
        let mut seen = String::new();
        loop {
            match self.lines.recv_timeout(LIMIT) {
                Ok(line) if line.starts_with(start) => return Ok(line),
                Ok(line) => seen = line,
                Err(_) => {
                    let (program, wanted) = (self.program.clone(), start.to_owned());
                    return Err(BenchError::Silent { program, wanted, seconds: LIMIT.as_secs(), printed: seen });
                }
            }
        }
    }

    /// How many steps a second the guest's next run came to.
    pub(super) fn rate(&mut self) -> Result<f64, BenchError> {
        let line = self.wait_for("BENCH ")?;
        let rate = line.split(' ').find_map(|word| word.strip_prefix("rate="));
        Ok(rate.and_then(|rate| rate.parse().ok()).unwrap_or(f64::NAN))
    }
}

/// What all threads of a process have used of a CPU.
pub(super) struct Cpu(Duration);

impl Cpu {
    pub(super) fn of(pid: u32) -> Result<Self, BenchError> {
        let folder = format!("/proc/{pid}/task");
        let failed = |source| BenchError::Proc { path: folder.clone(), source };
        let mut sum = Duration::ZERO;
        for task in std::fs::read_dir(&folder).map_err(failed)? {
            let text = std::fs::read_to_string(task.map_err(failed)?.path().join("schedstat")).map_err(failed)?;
            sum += text.split(' ').next().and_then(|ns| ns.parse().ok()).map_or(Duration::ZERO, Duration::from_nanos);
        }
        Ok(Self(sum))
    }

    pub(super) fn share_since(&self, before: &Self, took: Duration) -> f64 {
        (self.0 - before.0).as_secs_f64() / took.as_secs_f64()
    }
}
