//! A file system that a thread of the test serves over /dev/fuse. It is gone when nobody uses it any more.
//!
//! Numbers and layouts are those of linux/fuse.h, version 7.31 and later.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use super::folder::Folder;
use super::{Launch, through_shell};

/// How long the mount may take on a loaded machine.
const MOUNTED_WITHIN: Duration = Duration::from_secs(60);

pub(crate) const ROOT: u64 = 1;
/// struct fuse_in_header.
const HEADER_BYTES: usize = 40;
/// struct fuse_write_in.
const WRITE_BYTES: usize = 40;
const WRITE_MAX: u32 = 128 << 10;
/// Who touches a page of a mapped file waits for the page, and not for the answer: in a sleep that tests can tell from others.
const FUSE_ASYNC_READ: u32 = 1;
const FOPEN_DIRECT_IO: u32 = 1;
const FOPEN_NOFLUSH: u32 = 1 << 5;

/// What the kernel asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    LookUp,
    GetAttributes,
    SetAttributes,
    Open,
    Read,
    Write,
    Release,
    Sync,
    SetLabel,
    OpenFolder,
    ReadFolder,
    ReleaseFolder,
    Create,
    Other,
}

/// What is said to it.
pub(crate) enum Answer {
    /// What was asked for.
    Done(Vec<u8>),
    /// An errno.
    Failed(i32),
}

/// A file system's server.
pub(crate) trait Serve: Send + 'static {
    fn answer(&mut self, request: &Request<'_>) -> Answer;

    /// Whether it goes on after an answer. If not, nothing that is asked later is even read, so that who waits can be killed.
    fn goes_on(&mut self, _answered: &Request<'_>) -> bool {
        true
    }
}

/// Starts `launch` in a namespace in which `server` has the folder `name`. The file is the server's: where it does not go on,
/// askers wait as long as that is open.
pub(crate) fn mount(folder: &Folder, name: &str, server: impl Serve, launch: Launch) -> (File, Launch) {
    std::fs::create_dir(folder.at(name)).unwrap();
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let script = format!(
        "exec unshare -m sh -c '
        mount -i -t fuse -o fd=0,rootmode=40000,user_id=0,group_id=0 {name} {name} && exec \"$@\" < /dev/null
        ' sh \"$@\""
    );
    let launch = through_shell(&script, &launch.folder(folder.path())).stdin(device.try_clone().unwrap());
    let served = device.try_clone().unwrap();
    thread::spawn(move || serve(served, server));
    (device, launch)
}

/// Answers the kernel until the file system is gone.
fn serve(mut device: File, mut server: impl Serve) {
    let mut request = vec![0; WRITE_MAX as usize + 4096];
    let deadline = Instant::now() + MOUNTED_WITHIN;
    loop {
        match device.read(&mut request) {
            Ok(len) => {
                let request = Request(&request[..len]);
                let answer = match request.u32(4) {
                    // FORGET and BATCH_FORGET are not answered.
                    2 | 42 => continue,
                    // INIT.
                    26 => Answer::Done(
                        words([7, 31, WRITE_MAX, FUSE_ASYNC_READ, 0, WRITE_MAX, 1])
                            .into_iter()
                            .chain([0; 36])
                            .collect(),
                    ),
                    _ => server.answer(&request),
                };
                let (error, body) = match answer {
                    Answer::Done(body) => (0, body),
                    Answer::Failed(error) => (-error, Vec::new()),
                };
                let mut reply = Vec::new();
                reply.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
                reply.extend(error.to_ne_bytes());
                reply.extend(request.u64(8).to_ne_bytes());
                reply.extend(body);
                // A request that was given up meanwhile has no use for it.
                let _ = device.write(&reply);
                if !server.goes_on(&request) {
                    return;
                }
            }
            // Nobody has mounted it yet.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) && Instant::now() < deadline => thread::yield_now(),
            Err(_) => return,
        }
    }
}

/// What the kernel asks: a header and what belongs to it.
pub(crate) struct Request<'a>(&'a [u8]);

impl Request<'_> {
    pub(crate) fn ask(&self) -> Ask {
        match self.u32(4) {
            1 => Ask::LookUp,
            3 => Ask::GetAttributes,
            4 => Ask::SetAttributes,
            14 => Ask::Open,
            15 => Ask::Read,
            16 => Ask::Write,
            18 => Ask::Release,
            20 => Ask::Sync,
            21 => Ask::SetLabel,
            27 => Ask::OpenFolder,
            28 => Ask::ReadFolder,
            29 => Ask::ReleaseFolder,
            35 => Ask::Create,
            _ => Ask::Other,
        }
    }

    /// Of what it is asked.
    pub(crate) fn node(&self) -> u64 {
        self.u64(16)
    }

    /// Offset and length of a read or a write.
    pub(crate) fn range(&self) -> Range<usize> {
        let start = usize::try_from(self.u64(HEADER_BYTES + 8)).unwrap();
        start..start + self.u32(HEADER_BYTES + 16) as usize
    }

    /// What is to be written.
    pub(crate) fn written(&self) -> &[u8] {
        &self.0[HEADER_BYTES + WRITE_BYTES..]
    }

    /// What is looked up or created.
    pub(crate) fn name(&self) -> &str {
        /// struct fuse_create_in.
        const CREATE_BYTES: usize = 16;
        let skipped = if self.ask() == Ask::Create { CREATE_BYTES } else { 0 };
        std::str::from_utf8(&self.0[HEADER_BYTES + skipped..]).unwrap().trim_end_matches('\0')
    }

    /// The length that a file shall have, of struct fuse_setattr_in.
    pub(crate) fn length(&self) -> Option<usize> {
        const FATTR_SIZE: u32 = 1 << 3;
        let is_asked = self.u32(HEADER_BYTES) & FATTR_SIZE != 0;
        is_asked.then(|| usize::try_from(self.u64(HEADER_BYTES + 16)).unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().unwrap())
    }
}

/// A node that was looked up, to be looked up again each time: struct fuse_entry_out. A file of this length, or a folder.
pub(crate) fn entry(node: u64, length: Option<usize>) -> Vec<u8> {
    [node.to_ne_bytes().to_vec(), vec![0; 32], attributes(node, length)].concat()
}

/// What a node is, to be asked again each time: struct fuse_attr_out.
pub(crate) fn attributes_of(node: u64, length: Option<usize>) -> Vec<u8> {
    [vec![0; 16], attributes(node, length)].concat()
}

/// An open file that goes past the page cache: struct fuse_open_out. Who closes it asks nothing, for what would wait even if it
/// was killed.
pub(crate) fn opened() -> Vec<u8> {
    words([0, 0, FOPEN_DIRECT_IO | FOPEN_NOFLUSH, 0])
}

/// How much of a write was done: struct fuse_write_out.
pub(crate) fn wrote(bytes: usize) -> Vec<u8> {
    words([u32::try_from(bytes).unwrap(), 0])
}

/// struct fuse_attr.
fn attributes(node: u64, length: Option<usize>) -> Vec<u8> {
    let (mode, size) = length.map_or((libc::S_IFDIR | 0o755, 0), |length| (libc::S_IFREG | 0o600, length as u64));
    let longs = [node, size, size / 512, 0, 0, 0].map(u64::to_ne_bytes).concat();
    [longs, words([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
}

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.map(u32::to_ne_bytes).concat()
}
