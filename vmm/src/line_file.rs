//! Files and named pipes that lines are appended to without waiting: logs and figures.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a file behind its end, and makes it if it is not there, for this user alone. A named pipe is opened both ways, so
/// that nobody has to read it yet, and neither is ever waited for.
///
/// # Errors
/// Those of the host.
pub fn open(path: &Path) -> io::Result<File> {
    let fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let mut options = OpenOptions::new();
    options.append(true).create(!fifo).read(fifo).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path)
}
