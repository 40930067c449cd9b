//! The other end of the guest's serial port: this process's standard streams, a file, a pseudo-terminal, or nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use vmm::config::SerialTarget;
use vmm::control::{Console, Escape};
use vmm::machine::{SerialOutput, serial_output};

use crate::pty::Pty;
use crate::terminal::{RawTerminal, TerminalError};

/// What keeps the serial port from having another end.
#[derive(Debug, Error)]
pub(crate) enum SerialTargetError {
    /// The file cannot be opened.
    #[error("cannot write serial output to {}: {cause}: check the path and its mode", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
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
    output: Arc<SerialOutput>,
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
        match target {
            SerialTarget::Stdio => {
                let output = io::stdout().as_fd().try_clone_to_owned().map_err(SerialTargetError::Duplicate)?;
                let escape = if RawTerminal::is_possible() { escape } else { Escape::None };
                // A standard input that is closed is an input at its end.
                let input = io::stdin().as_fd().try_clone_to_owned().ok();
                let console = input.map(|input| Console::new(File::from(input), escape));
                Ok(Self { console, ..Self::to(output) })
            }
            SerialTarget::File(path) => {
                let opened = open_file(path);
                let (file, made) = opened.map_err(|cause| SerialTargetError::Open { path: path.clone(), cause })?;
                Ok(Self { made, ..Self::to(file.into()) })
            }
            SerialTarget::Pty => {
                let pty = Pty::open().map_err(SerialTargetError::Pty)?;
                let output = pty.master().try_clone().map_err(SerialTargetError::Duplicate)?;
                let input = pty.master().try_clone().map_err(SerialTargetError::Duplicate)?;
                log::info!("serial port: {}", pty.path().display());
                let console = Some(Console::new(input, Escape::None));
                Ok(Self { console, _pty: Some(pty), ..Self::to(output.into()) })
            }
            SerialTarget::Null => {
                let path = PathBuf::from("/dev/null");
                let opened = OpenOptions::new().write(true).open(&path);
                let file = opened.map_err(|cause| SerialTargetError::Open { path, cause })?;
                Ok(Self::to(file.into()))
            }
        }
    }

    /// An end that takes output alone.
    fn to(output: OwnedFd) -> Self {
        Self { output: serial_output(output), console: None, made: None, _pty: None }
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

    /// Where the guest's output goes.
    pub(crate) fn output(&self) -> Arc<SerialOutput> {
        Arc::clone(&self.output)
    }
}

/// Opens a file behind its end, since nothing that is in it may be lost: a guest's last words are behind those of the one
/// before. Tells the path if the file was made.
fn open_file(path: &Path) -> io::Result<(File, Option<PathBuf>)> {
    // A named pipe is opened both ways, so that nobody has to read it yet.
    let fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let mut options = OpenOptions::new();
    options.append(true).read(fifo).mode(0o600);
    match options.create_new(true).open(path) {
        Ok(file) => Ok((file, Some(path.to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options.create_new(false).open(path).map(|file| (file, None))
        }
        Err(error) => Err(error),
    }
}
