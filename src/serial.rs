//! The other end of the guest's serial port: this process's standard streams, a file, a pseudo-terminal, or nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmm::config::SerialTarget;
use vmm::control::{Console, Escape};

use crate::pty::Pty;
use crate::terminal::{RawTerminal, TerminalError};

/// What keeps the serial port from having another end.
#[derive(Debug, Error)]
pub(crate) enum SerialTargetError {
    /// The file cannot be opened.
    #[error("cannot write serial output to {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The host gives no pseudo-terminal.
    #[error("cannot create a pseudo-terminal for the serial port")]
    Pty(#[source] io::Error),
    /// A descriptor cannot be duplicated.
    #[error("cannot duplicate the serial port's descriptor")]
    Duplicate(#[source] io::Error),
    /// The terminal cannot be the console.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
}

/// An open other end. A machine that is started again goes on with it.
#[derive(Debug)]
pub(crate) struct SerialEnd {
    output: OwnedFd,
    /// Where the guest's input comes from, if from anywhere.
    pub(crate) console: Option<Console>,
    /// The file, if it was not there before.
    made: Option<PathBuf>,
    /// The slave side stays open, or the master would see its end each time a user hangs up.
    _pty: Option<Pty>,
}

impl SerialEnd {
    /// Opens it. Nothing of the terminal changes yet.
    pub(crate) fn open(target: &SerialTarget, escape: Escape) -> Result<Self, SerialTargetError> {
        let plain = |output| Self { output, console: None, made: None, _pty: None };
        match target {
            SerialTarget::Stdio => {
                let output = io::stdout().as_fd().try_clone_to_owned().map_err(SerialTargetError::Duplicate)?;
                let escape = if RawTerminal::is_possible() { escape } else { Escape::None };
                // A standard input that is closed is an input at its end.
                let input = io::stdin().as_fd().try_clone_to_owned().ok();
                let console = input.map(|input| Console::new(File::from(input), escape));
                Ok(Self { output, console, made: None, _pty: None })
            }
            SerialTarget::File(path) => {
                Self::open_file(path).map_err(|source| SerialTargetError::Open { path: path.clone(), source })
            }
            SerialTarget::Pty => {
                let pty = Pty::open().map_err(SerialTargetError::Pty)?;
                let output = pty.master().try_clone().map_err(SerialTargetError::Duplicate)?;
                let input = pty.master().try_clone().map_err(SerialTargetError::Duplicate)?;
                log::info!("serial port: {}", pty.path().display());
                let console = Some(Console::new(input, Escape::None));
                Ok(Self { output: output.into(), console, made: None, _pty: Some(pty) })
            }
            SerialTarget::Null => {
                let path = PathBuf::from("/dev/null");
                let opened = OpenOptions::new().write(true).open(&path);
                opened.map(|file| plain(file.into())).map_err(|source| SerialTargetError::Open { path, source })
            }
        }
    }

    /// Nothing that is in a file is ever lost: a guest's last words are behind those of the one before.
    fn open_file(path: &Path) -> io::Result<Self> {
        // A named pipe is opened both ways, so that nobody has to read it yet.
        let fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
        let mut options = OpenOptions::new();
        options.append(true).read(fifo).mode(0o600);
        let (file, made) = match options.create_new(true).open(path) {
            Ok(file) => (file, Some(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (options.create_new(false).open(path)?, None),
            Err(error) => return Err(error),
        };
        Ok(Self { output: file.into(), console: None, made, _pty: None })
    }

    /// Takes back what opening made, if no machine came of it.
    pub(crate) fn abandon(&mut self) {
        if let Some(path) = self.made.take()
            && std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == 0)
        {
            // What keeps it from going is told by the next one who meets the empty file.
            let _ = std::fs::remove_file(&path);
        }
    }

    /// A descriptor for the guest's output.
    pub(crate) fn output(&self) -> Result<OwnedFd, SerialTargetError> {
        self.output.try_clone().map_err(SerialTargetError::Duplicate)
    }
}
