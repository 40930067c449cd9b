//! A folder whose host fails, or says nothing any more, when it is asked for a certain thing.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::File;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Launch;
use super::folder::Folder;
use super::fuse::{self, Answer, Ask, ROOT, Request, Serve};

/// The folder `silent`.
pub(crate) struct SilentFolder {
    _device: File,
    fallen_silent: Receiver<()>,
}

/// What the host of a file does when it is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It answers.
    Answers,
    /// It answers for the last time.
    FallsSilent,
    /// It says EIO.
    Fails,
    /// It says that the file ends there.
    Ends,
}

/// A file's name, what is asked of it, and of which bytes, if it is a read.
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a str,
    pub(crate) ask: Ask,
    pub(crate) bytes: Range<usize>,
}

struct Server<M> {
    /// That of the first is [`FIRST`]; the others follow.
    files: Vec<(String, Vec<u8>)>,
    manner: M,
    now: Manner,
    falls_silent: Sender<()>,
}

const FIRST: u64 = 2;

impl SilentFolder {
    /// Starts `launch` in a namespace in which the folder is there, with files of these names and contents.
    pub(crate) fn around(
        folder: &Folder,
        files: Vec<(String, Vec<u8>)>,
        manner: impl FnMut(&Asked<'_>) -> Manner + Send + 'static,
        launch: Launch,
    ) -> (Self, Launch) {
        let (falls_silent, fallen_silent) = channel();
        let server = Server { files, manner, now: Manner::Answers, falls_silent };
        let (device, launch) = fuse::mount(folder, "silent", server, launch);
        (Self { _device: device, fallen_silent }, launch)
    }

    /// Waits until its host says nothing any more.
    pub(crate) fn wait_until_silent(&self) {
        self.fallen_silent.recv().unwrap();
    }
}

impl<M: FnMut(&Asked<'_>) -> Manner + Send + 'static> Serve for Server<M> {
    fn answer(&mut self, request: &Request<'_>) -> Answer {
        let ask = request.ask();
        let bytes = if ask == Ask::Read { request.range() } else { 0..0 };
        let name = match ask {
            Ask::LookUp | Ask::Create => request.name(),
            _ => self.place(request).map_or("", |place| &self.files[place].0),
        };
        self.now = (self.manner)(&Asked { name, ask, bytes });
        match self.now {
            Manner::Answers | Manner::FallsSilent => self.serve(request).map_or_else(Answer::Failed, Answer::Done),
            Manner::Fails => Answer::Failed(libc::EIO),
            Manner::Ends => Answer::Done(Vec::new()),
        }
    }

    fn goes_on(&mut self, _: &Request<'_>) -> bool {
        let goes_on = self.now != Manner::FallsSilent;
        if !goes_on {
            self.falls_silent.send(()).unwrap();
        }
        goes_on
    }
}

impl<M> Server<M> {
    /// The file that is asked of; none of the folder.
    fn place(&self, request: &Request<'_>) -> Option<usize> {
        (request.node() != ROOT).then(|| usize::try_from(request.node() - FIRST).unwrap())
    }

    fn serve(&mut self, request: &Request<'_>) -> Result<Vec<u8>, i32> {
        let place = self.place(request);
        let entry =
            |files: &[(String, Vec<u8>)], place: usize| fuse::entry(FIRST + place as u64, Some(files[place].1.len()));
        match (request.ask(), place) {
            (Ask::LookUp, _) => {
                let found = self.files.iter().position(|(name, _)| name == request.name());
                found.map(|place| entry(&self.files, place)).ok_or(libc::ENOENT)
            }
            (Ask::Create, _) => {
                self.files.push((request.name().to_owned(), Vec::new()));
                Ok([entry(&self.files, self.files.len() - 1), fuse::opened()].concat())
            }
            (Ask::SetAttributes, Some(place)) => {
                if let Some(length) = request.length() {
                    self.files[place].1.resize(length, 0);
                }
                Ok(fuse::attributes_of(request.node(), Some(self.files[place].1.len())))
            }
            (Ask::GetAttributes, _) => {
                Ok(fuse::attributes_of(request.node(), place.map(|place| self.files[place].1.len())))
            }
            (Ask::Read, Some(place)) => {
                let (file, range) = (&self.files[place].1, request.range());
                let end = range.end.min(file.len());
                Ok(file[range.start.min(end)..end].to_vec())
            }
            (Ask::Write, Some(place)) => {
                let (range, bytes) = (request.range(), request.written());
                let file = &mut self.files[place].1;
                file.resize(file.len().max(range.end), 0);
                file[range].copy_from_slice(bytes);
                Ok(fuse::wrote(bytes.len()))
            }
            (Ask::Open | Ask::OpenFolder, _) => Ok(fuse::opened()),
            (Ask::ReadFolder | Ask::Release | Ask::ReleaseFolder, _) => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        }
    }
}
