//! A file system whose files fail now and then: its server knows what each file holds and how often it said EIO.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Launch;
use super::folder::Folder;
use super::fuse::{self, Answer, Ask, ROOT, Request, Serve};

/// Of how many reads, writes and flushes one fails.
const FAILS_ONE_IN: u64 = 12;

/// That of the first file; the others follow.
const FIRST: u64 = 2;

/// Files in the folder `failing`, named `disk0` and so on.
pub(crate) struct FailingFiles {
    state: Arc<Mutex<State>>,
    _device: File,
}

struct State {
    files: Vec<Vec<u8>>,
    dice: u64,
    /// From the first write on: what a guest's kernel reads to see what is there does not fail.
    armed: bool,
    failed: u64,
}

impl FailingFiles {
    /// Makes them of zeroes and starts `launch` in a namespace in which they are there.
    pub(crate) fn around(folder: &Folder, count: usize, bytes: usize, seed: u64, launch: Launch) -> (Self, Launch) {
        let state = State { files: vec![vec![0; bytes]; count], dice: seed | 1, armed: false, failed: 0 };
        let state = Arc::new(Mutex::new(state));
        let (device, launch) = fuse::mount(folder, "failing", Server(Arc::clone(&state)), launch);
        (Self { state, _device: device }, launch)
    }

    /// What a file holds now.
    pub(crate) fn content(&self, index: usize) -> Vec<u8> {
        self.state().files[index].clone()
    }

    /// How many requests were answered with EIO.
    pub(crate) fn failed(&self) -> u64 {
        self.state().failed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

struct Server(Arc<Mutex<State>>);

impl Serve for Server {
    fn answer(&mut self, request: &Request<'_>) -> Answer {
        let answer = self.0.lock().unwrap().answer(request);
        answer.map_or_else(Answer::Failed, Answer::Done)
    }
}

impl State {
    /// The answer's body or an errno.
    fn answer(&mut self, request: &Request<'_>) -> Result<Vec<u8>, i32> {
        let node = request.node();
        match request.ask() {
            Ask::LookUp => {
                let named = |index: &usize| request.name() == format!("disk{index}");
                let index = (0..self.files.len()).find(named).ok_or(libc::ENOENT)?;
                Ok(fuse::entry(FIRST + index as u64, Some(self.files[index].len())))
            }
            Ask::GetAttributes => Ok(fuse::attributes_of(node, (node != ROOT).then(|| self.files[index(node)].len()))),
            Ask::Open => Ok(fuse::opened()),
            Ask::Read => self.read(node, request.range()),
            Ask::Write => self.write(node, request.range(), request.written()),
            Ask::Sync if self.fails() => Err(libc::EIO),
            Ask::Sync | Ask::Release => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        }
    }

    fn read(&mut self, node: u64, range: std::ops::Range<usize>) -> Result<Vec<u8>, i32> {
        if self.fails() {
            return Err(libc::EIO);
        }
        let file = &self.files[index(node)];
        let end = range.end.min(file.len());
        Ok(file[range.start.min(end)..end].to_vec())
    }

    /// A write that fails has done a part of its work, or none of it, or all.
    fn write(&mut self, node: u64, range: std::ops::Range<usize>, bytes: &[u8]) -> Result<Vec<u8>, i32> {
        let fails = self.fails();
        self.armed = true;
        let done = if fails { usize::try_from(self.throw(bytes.len() as u64 + 1)).unwrap() } else { bytes.len() };
        self.files[index(node)][range][..done].copy_from_slice(&bytes[..done]);
        if fails { Err(libc::EIO) } else { Ok(fuse::wrote(done)) }
    }

    fn fails(&mut self) -> bool {
        let fails = self.armed && self.throw(FAILS_ONE_IN) == 0;
        self.failed += u64::from(fails);
        fails
    }

    /// A number below `limit`, of xorshift64.
    fn throw(&mut self, limit: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 16) % limit
    }
}

fn index(node: u64) -> usize {
    usize::try_from(node - FIRST).unwrap()
}
