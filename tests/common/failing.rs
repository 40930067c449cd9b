//! A file system whose files fail now and then: it is served over /dev/fuse by a thread of the test, which knows what
//! each file holds and how often it said EIO. It is gone when nobody uses it any more.
//!
//! Numbers and layouts are those of linux/fuse.h, version 7.31 and later.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::folder::Folder;
use super::{Launch, through_shell};

/// How long the mount may take on a loaded machine.
const MOUNTED_WITHIN: Duration = Duration::from_secs(60);
/// Of how many reads, writes and flushes one fails.
const FAILS_ONE_IN: u64 = 12;

const ROOT: u64 = 1;
/// That of the first file; the others follow.
const FIRST: u64 = 2;
/// struct fuse_in_header.
const HEADER_BYTES: usize = 40;
/// struct fuse_write_in.
const WRITE_BYTES: usize = 40;
const WRITE_MAX: u32 = 128 << 10;
const FOPEN_DIRECT_IO: u32 = 1;

/// Files in the folder `failing`, named `disk0` and so on.
pub(crate) struct FailingFiles(Arc<Mutex<State>>);

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
        std::fs::create_dir(folder.at("failing")).unwrap();
        let state = State { files: vec![vec![0; bytes]; count], dice: seed | 1, armed: false, failed: 0 };
        let served = Self(Arc::new(Mutex::new(state)));
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let script = "exec unshare -m sh -c '
            mount -i -t fuse -o fd=0,rootmode=40000,user_id=0,group_id=0 failing failing && exec \"$@\" < /dev/null
            ' sh \"$@\"";
        let launch = through_shell(script, &launch.folder(folder.path())).stdin(device.try_clone().unwrap());
        let state = Arc::clone(&served.0);
        thread::spawn(move || serve(device, &state));
        (served, launch)
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
        self.0.lock().unwrap()
    }
}

/// Answers the kernel until the file system is gone.
fn serve(mut device: File, state: &Mutex<State>) {
    let mut request = vec![0; WRITE_MAX as usize + 4096];
    let deadline = Instant::now() + MOUNTED_WITHIN;
    loop {
        match device.read(&mut request) {
            Ok(len) => {
                let request = Request(&request[..len]);
                let Some(answer) = state.lock().unwrap().answer(&request) else { continue };
                let (error, body) = answer.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
                let mut reply = Vec::new();
                reply.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
                reply.extend(error.to_ne_bytes());
                reply.extend(request.u64(8).to_ne_bytes());
                reply.extend(body);
                // A request that was given up meanwhile has no use for it.
                let _ = device.write(&reply);
            }
            // Nobody has mounted it yet.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && Instant::now() < deadline => thread::yield_now(),
            Err(_) => return,
        }
    }
}

/// What the kernel asks: a header and what belongs to it.
struct Request<'a>(&'a [u8]);

impl Request<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    /// Offset and length of a read or a write.
    fn range(&self) -> std::ops::Range<usize> {
        let start = usize::try_from(self.u64(HEADER_BYTES + 8)).unwrap();
        start..start + self.u32(HEADER_BYTES + 16) as usize
    }
}

impl State {
    /// The answer's body or an errno; none where the kernel wants no answer.
    fn answer(&mut self, request: &Request) -> Option<Result<Vec<u8>, i32>> {
        const FORGET: u32 = 2;
        const BATCH_FORGET: u32 = 42;
        let node = request.u64(16);
        Some(match request.u32(4) {
            FORGET | BATCH_FORGET => return None,
            // INIT.
            26 => Ok(words([7, 31, 0, 0, 0, WRITE_MAX, 1]).into_iter().chain([0; 36]).collect()),
            // LOOKUP.
            1 => self.look_up(&request.0[HEADER_BYTES..]),
            // GETATTR: to be asked again each time, as all attributes are.
            3 => Ok([vec![0; 16], self.attributes(node)].concat()),
            // OPEN.
            14 => Ok(words([0, 0, FOPEN_DIRECT_IO, 0])),
            // READ.
            15 => self.read(node, request.range()),
            // WRITE.
            16 => self.write(node, request.range(), &request.0[HEADER_BYTES + WRITE_BYTES..]),
            // FSYNC.
            20 if self.fails() => Err(libc::EIO),
            // FSYNC, and FLUSH and RELEASE, which are a descriptor's end.
            18 | 20 | 25 => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        })
    }

    fn look_up(&self, name: &[u8]) -> Result<Vec<u8>, i32> {
        let named = |index: &usize| name == format!("disk{index}\0").as_bytes();
        let index = (0..self.files.len()).find(named).ok_or(libc::ENOENT)?;
        let node = FIRST + index as u64;
        Ok([node.to_ne_bytes().to_vec(), vec![0; 32], self.attributes(node)].concat())
    }

    /// struct fuse_attr.
    fn attributes(&self, node: u64) -> Vec<u8> {
        let (mode, size) = match node {
            ROOT => (libc::S_IFDIR | 0o755, 0),
            _ => (libc::S_IFREG | 0o600, self.files[index(node)].len() as u64),
        };
        let longs = [node, size, size / 512, 0, 0, 0].map(u64::to_ne_bytes).concat();
        [longs, words([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
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
        if fails { Err(libc::EIO) } else { Ok(words([u32::try_from(done).unwrap(), 0])) }
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

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.map(u32::to_ne_bytes).concat()
}
