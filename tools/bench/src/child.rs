//! A program under measurement: from just before its exec to a text on its standard output.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::BenchError;

/// A running program whose output has shown the awaited text. Killed and reaped when dropped.
pub(crate) struct Measured {
    child: Child,
    /// From just before the exec to the text.
    pub(crate) took: Duration,
}

impl Measured {
    /// Starts `command` and waits for `wanted` on its standard output.
    pub(crate) fn start(mut command: Command, wanted: &str, limit: Duration) -> Result<Self, BenchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let began = Instant::now();
        let mut child =
            command.spawn().map_err(|source| BenchError::Start { program: program.clone(), source })?;
        let mut output = child.stdout.take().expect("standard output is a pipe, as asked above");
        let mut measured = Self { child, took: Duration::ZERO };
        let (sender, receiver) = mpsc::channel();
        let pattern = wanted.as_bytes().to_vec();
        // A thread, so that a silent program runs into the limit; it ends with the program's output.
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut chunk) {
                seen.extend_from_slice(&chunk[..length]);
                if seen.windows(pattern.len()).any(|window| window == pattern) {
                    let _ = sender.send((Instant::now(), true, Vec::new()));
                    let _ = std::io::copy(&mut output, &mut std::io::sink());
                    return;
                }
            }
            let _ = sender.send((Instant::now(), false, seen));
        });
        let silent = |printed: Vec<u8>| BenchError::Silent {
            program: program.clone(),
            wanted: wanted.to_owned(),
            seconds: limit.as_secs(),
            printed: String::from_utf8_lossy(&printed).into_owned(),
        };
        match receiver.recv_timeout(limit) {
            Ok((at, true, _)) => {
                measured.took = at - began;
                Ok(measured)
            }
            Ok((_, false, printed)) => Err(silent(printed)),
            Err(_) => Err(silent(Vec::new())),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        // Either fails only for a program that has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
