//! Starts the husk binary as a user would and watches it: its streams are read by threads into buffers, tests wait for
//! text or for the end with a deadline, and a process that a test leaves behind, also by failing, is killed and reaped.
#![allow(dead_code, reason = "each suite is a program of its own and uses the part that it needs")]
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

pub(crate) mod ended;
pub(crate) mod failing;
pub(crate) mod faults;
pub(crate) mod folder;
pub(crate) mod fuse;
pub(crate) mod guest;
pub(crate) mod http;
pub(crate) mod linux;
pub(crate) mod neighbour;
pub(crate) mod network;
pub(crate) mod pool;
pub(crate) mod refusal;
pub(crate) mod silent;
mod stream;
pub(crate) mod sys;
pub(crate) mod vm;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use ended::Ended;
use stream::{Seen, Stream};
use sys::Terminal;

/// The program under test.
pub(crate) const HUSK: &str = env!("CARGO_BIN_EXE_husk");

/// Whether soaks do all that they are for, and not a tenth of it: `HUSK_SOAK=1`.
pub(crate) fn soaks_in_full() -> bool {
    std::env::var_os("HUSK_SOAK").is_some()
}

/// A process to be started. Its standard input is /dev/null and its outputs are watched unless it is told otherwise.
pub(crate) struct Launch {
    command: Command,
}

/// `husk` with these arguments.
pub(crate) fn husk<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Launch {
    Launch::new(HUSK, args)
}

/// A shell command in which `"$@"` is husk with the arguments of `launch`: for redirections and namespaces.
pub(crate) fn through_shell(script: &str, launch: &Launch) -> Launch {
    let shell = ["-c", script, "sh"].map(OsStr::new);
    let wrapped = shell.into_iter().chain([launch.command.get_program()]).chain(launch.command.get_args());
    let mut shell = Launch::new("sh", wrapped);
    if let Some(folder) = launch.command.get_current_dir() {
        shell.command.current_dir(folder);
    }
    shell
}

impl Launch {
    pub(crate) fn new<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command }
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    pub(crate) fn stdin(mut self, input: impl Into<Stdio>) -> Self {
        self.command.stdin(input);
        self
    }

    pub(crate) fn stdout(mut self, output: impl Into<Stdio>) -> Self {
        self.command.stdout(output);
        self
    }

    pub(crate) fn stderr(mut self, output: impl Into<Stdio>) -> Self {
        self.command.stderr(output);
        self
    }

    /// Starts it with a pipe that the test types into.
    pub(crate) fn typed(self) -> Husk {
        self.stdin(Stdio::piped()).start()
    }

    /// Starts it with its console on a terminal.
    pub(crate) fn on_terminal(self, terminal: &Terminal) -> Husk {
        let mut husk = self.stdin(terminal.slave()).stdout(terminal.slave()).start();
        husk.stdout = Stream::of(terminal.master());
        husk.output = Output::Terminal;
        husk
    }

    pub(crate) fn start(mut self) -> Husk {
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map_or_else(Stream::none, Stream::of);
        let stderr = child.stderr.take().map_or_else(Stream::none, Stream::of);
        Husk { child, stdin, stdout, stderr, output: Output::Own }
    }

    /// Starts it and waits for its end.
    pub(crate) fn end(self) -> Ended {
        self.start().end()
    }
}

/// A process that runs. Dropped, it is killed.
pub(crate) struct Husk {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
    output: Output,
}

/// What standard output is.
#[derive(PartialEq, Eq)]
enum Output {
    /// It ends when the process ends.
    Own,
    /// The test holds it open, to look at its settings.
    Terminal,
}

impl Husk {
    /// Its threads that are called so, of which the kernel keeps 15 bytes.
    pub(crate) fn threads(&self, name: &str) -> Vec<libc::pid_t> {
        // One that has ended meanwhile is none.
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().map_while(Result::ok);
        let is_called =
            |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).is_ok_and(|own| own.trim_end() == name);
        tasks.filter(is_called).map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The number of the last whole tick that the counting guest has told.
    pub(crate) fn last_tick(&self) -> u64 {
        let text = self.output();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let tick = whole.lines().rev().find_map(|line| line.strip_prefix("TICK ")).unwrap();
        tick.split(' ').next().unwrap().parse().unwrap()
    }

    /// What it has written to its standard output so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&self.stdout.bytes()).into_owned()
    }

    /// Waits until its standard output contains `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait_until(&format!("`{text}` on standard output"), &self.stdout, |seen| contains(&seen.bytes, text));
    }

    /// Waits until its standard output contains `text` so often.
    pub(crate) fn wait_for_times(&self, text: &str, times: usize) {
        self.wait_until(&format!("`{text}` {times} times"), &self.stdout, |seen| {
            String::from_utf8_lossy(&seen.bytes).matches(text).count() >= times
        });
    }

    /// Waits until its standard error contains `text` so often.
    pub(crate) fn wait_for_error_times(&self, text: &str, times: usize) {
        self.wait_until(&format!("`{text}` {times} times on standard error"), &self.stderr, |seen| {
            String::from_utf8_lossy(&seen.bytes).matches(text).count() >= times
        });
    }

    /// Waits until its standard output has so many whole lines that begin with `start`, and returns the last.
    pub(crate) fn line(&self, start: &str, times: usize) -> String {
        let lines = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(bytes);
            let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n') && line.starts_with(start));
            whole.map(|line| line.trim_end().to_owned()).collect()
        };
        self.wait_until(&format!("{times} lines `{start}`"), &self.stdout, |seen| lines(&seen.bytes).len() >= times);
        lines(&self.stdout.bytes()).pop().expect("they have come")
    }

    /// What follows `start` on the line of standard error that begins so, which must have come.
    pub(crate) fn error_line(&self, start: &str) -> String {
        let text = String::from_utf8(self.stderr.bytes()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(start)).unwrap().to_owned()
    }

    /// Waits until its standard error contains `text`.
    pub(crate) fn wait_for_error(&self, text: &str) {
        self.wait_until(&format!("`{text}` on standard error"), &self.stderr, |seen| contains(&seen.bytes, text));
    }

    /// Waits until a thread of it whose name begins so is in an uninterruptible sleep.
    pub(crate) fn wait_until_held(&self, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_held = || {
            fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten().any(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                let is = |line: &str| status.lines().any(|own| own.starts_with(line));
                is(&format!("Name:\t{name}")) && is("State:\tD")
            })
        };
        while !is_held() {
            assert!(Instant::now() < deadline, "no thread {name} is held up");
            std::thread::yield_now();
        }
    }

    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Ends its standard input.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn signal(&self, signal: i32) {
        sys::signal(self.pid(), signal);
    }

    /// Waits for its end, which is when nobody holds its streams any more.
    pub(crate) fn end(mut self) -> Ended {
        self.wait_until("the end of standard error", &self.stderr, |seen| seen.ended);
        if self.output == Output::Own {
            self.wait_until("the end of standard output", &self.stdout, |seen| seen.ended);
        }
        let status = self.child.wait().unwrap();
        Ended { status, stdout: self.stdout.bytes(), stderr: String::from_utf8(self.stderr.bytes()).unwrap() }
    }

    /// As [`Self::end`], of what may take this long before.
    pub(crate) fn end_within(self, limit: Duration) -> Ended {
        let _ = self.stderr.wait_within(limit, |seen| seen.ended);
        self.end()
    }

    fn wait_until(&self, what: &str, stream: &Stream, done: impl Fn(&Seen) -> bool) {
        let outcome = stream.wait(|seen| done(seen) || seen.ended);
        if outcome.is_ok_and(|seen| done(&seen)) {
            return;
        }
        panic!(
            "no {what}\nstandard output:\n{}\nstandard error:\n{}",
            String::from_utf8_lossy(&self.stdout.bytes()),
            String::from_utf8_lossy(&self.stderr.bytes())
        );
    }
}

impl Drop for Husk {
    fn drop(&mut self) {
        // Of one that has ended and was waited for, both say so and do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
