//! Starts the husk binary as a user would and watches it: its streams are read by threads into buffers, tests wait for
//! text or for the end with a deadline, and a process that a test leaves behind, also by failing, is killed and reaped.
#![allow(dead_code, reason = "each suite is a program of its own and uses the part that it needs")]
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

pub(crate) mod folder;
pub(crate) mod sys;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sys::Terminal;

/// The program under test.
pub(crate) const HUSK: &str = env!("CARGO_BIN_EXE_husk");
/// The test guest, resources/guest/small/probe.
pub(crate) const PROBE: &str = env!("HUSK_GUEST_PROBE");
/// The same without its PVH note.
pub(crate) const PROBE_NO_NOTE: &str = env!("HUSK_GUEST_PROBE_NO_NOTE");
/// What the probe prints when it runs.
pub(crate) const READY: &str = "PROBE READY";

/// How long anything may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(45);

/// A process to be started. Its standard input is /dev/null and its outputs are watched unless it is told otherwise.
pub(crate) struct Launch {
    command: Command,
}

/// `husk` with these arguments.
pub(crate) fn husk<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Launch {
    Launch::new(HUSK, args)
}

/// `husk run` with the probe as its kernel and `words` as its command line.
pub(crate) fn probe(words: &str) -> Launch {
    husk(["run", "--kernel", PROBE, "--cmdline", words])
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
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
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

    /// What follows `start` on the line of standard error that begins so, which must have come.
    pub(crate) fn error_line(&self, start: &str) -> String {
        let text = String::from_utf8(self.stderr.bytes()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(start)).unwrap().to_owned()
    }

    /// Waits until its standard error contains `text`.
    pub(crate) fn wait_for_error(&self, text: &str) {
        self.wait_until(&format!("`{text}` on standard error"), &self.stderr, |seen| contains(&seen.bytes, text));
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

/// What a stream has given so far.
#[derive(Clone, Default)]
struct Seen {
    bytes: Vec<u8>,
    ended: bool,
}

/// A stream that a thread reads into a buffer.
#[derive(Clone, Default)]
struct Stream(Arc<(Mutex<Seen>, Condvar)>);

impl Stream {
    fn of(mut source: impl Read + Send + 'static) -> Self {
        let stream = Self::default();
        let filled = stream.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = source.read(&mut buffer).unwrap_or(0);
                let mut seen = filled.0.0.lock().unwrap();
                seen.bytes.extend(&buffer[..count]);
                seen.ended = count == 0;
                filled.0.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        stream
    }

    /// A stream that the test does not watch.
    fn none() -> Self {
        let stream = Self::default();
        stream.0.0.lock().unwrap().ended = true;
        stream
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().bytes.clone()
    }

    /// What was seen when `done` held; nothing after the deadline.
    fn wait(&self, done: impl Fn(&Seen) -> bool) -> Result<Seen, ()> {
        let (seen, changed) = &*self.0;
        let (seen, timeout) = changed.wait_timeout_while(seen.lock().unwrap(), DEADLINE, |seen| !done(seen)).unwrap();
        if timeout.timed_out() { Err(()) } else { Ok(seen.clone()) }
    }
}

/// A process that has ended by itself.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The lines of standard output that start so, without that start.
    pub(crate) fn lines(&self, start: &str) -> Vec<String> {
        self.text().lines().filter_map(|line| line.strip_prefix(start)).map(str::to_owned).collect()
    }

    /// The one such line.
    #[track_caller]
    pub(crate) fn line(&self, start: &str) -> String {
        let lines = self.lines(start);
        assert_eq!(lines.len(), 1, "lines that start with `{start}`:\n{self}");
        lines[0].clone()
    }

    /// The figures of a check of the probe that went well; of the last, if it was done more than once.
    #[track_caller]
    pub(crate) fn check(&self, name: &str) -> Facts {
        let lines = self.lines(&format!("CHECK {name} ok "));
        Facts::of(lines.last().unwrap_or_else(|| panic!("check {name} did not go well:\n{self}")))
    }

    /// Ends with code 0, no check failed and nothing to say of it.
    #[track_caller]
    pub(crate) fn went_well(self) -> Self {
        assert_eq!(self.code(), Some(0), "{self}");
        assert!(!self.text().contains(" FAIL "), "{self}");
        assert_eq!(self.stderr, "", "{self}");
        self
    }

    /// The one line that standard error has.
    #[track_caller]
    pub(crate) fn message(&self) -> &str {
        let line = self.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no line on standard error:\n{self}"));
        assert!(!line.contains('\n') && line.starts_with("husk: "), "one line that starts with `husk: `:\n{self}");
        line
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nstandard output:\n{}\nstandard error:\n{}", self.status, self.text(), self.stderr)
    }
}

/// `key=value` words of a line.
pub(crate) struct Facts(HashMap<String, String>);

impl Facts {
    pub(crate) fn of(line: &str) -> Self {
        let pairs = line.split(' ').filter_map(|word| word.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned())).collect())
    }

    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.get(key).unwrap_or_else(|| panic!("no `{key}` in {:?}", self.0))
    }

    /// A number in decimal, or in hexadecimal after `0x`.
    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u64 {
        let text = self.get(key);
        let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16));
        parsed.unwrap_or_else(|error| panic!("{key}={text}: {error}"))
    }
}

/// FNV-1a with 64 bits, as the guests sum.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, add)
}

/// Bytes that are different for each seed and have no pattern to speak of.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    };
    (0..len).map(|_| next()).collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
