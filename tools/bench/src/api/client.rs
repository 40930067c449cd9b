//! A client of a control socket, and the least that could answer it.

use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::socket_error;
use crate::BenchError;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// As long as what husk answers.
const FLOOR_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 85\r\n\r\n\
    {\"app_name\":\"Firecracker\",\"id\":\"anonymous\",\"state\":\"Running\",\"vmm_version\":\"1.17.0\"} ";
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// Between two requests of a load.
const LOAD_PERIOD: Duration = Duration::from_millis(1);

/// A connection that is kept.
pub(super) struct Client {
    path: PathBuf,
    socket: UnixStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(super) fn connect(path: &Path) -> Result<Self, BenchError> {
        let socket = UnixStream::connect(path).map_err(socket_error(path, "connect"))?;
        socket.set_read_timeout(Some(Duration::from_secs(10))).map_err(socket_error(path, "set a time limit"))?;
        Ok(Self { path: path.to_owned(), socket, buffer: vec![0; 4096] })
    }

    /// Asks `GET /`; how long the answer took.
    pub(super) fn get(&mut self) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        self.exchange().map_err(socket_error(&self.path, "get an answer to GET /"))?;
        Ok(begun.elapsed())
    }

    fn exchange(&mut self) -> std::io::Result<()> {
        self.socket.write_all(REQUEST)?;
        let mut filled = 0;
        loop {
            let count = self.socket.read(&mut self.buffer[filled..])?;
            filled += count;
            match answer_bytes(&self.buffer[..filled]) {
                Some(bytes) if filled >= bytes => break,
                _ if count == 0 => return Err(ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
        let is_good = self.buffer.starts_with(b"HTTP/1.1 200");
        if is_good { Ok(()) } else { Err(Error::other("the answer is not 200")) }
    }
}

/// How long an answer is, once its head is there.
fn answer_bytes(received: &[u8]) -> Option<usize> {
    let head = received.windows(END_OF_HEAD.len()).position(|window| window == END_OF_HEAD)? + END_OF_HEAD.len();
    let text = std::str::from_utf8(&received[..head]).ok()?.to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse::<usize>().ok()?;
    Some(head + length)
}

/// 1000 requests a second from a thread of its own, until it is ended.
pub(super) struct Load {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), BenchError>>,
}

impl Load {
    pub(super) fn start(path: &Path) -> Result<Self, BenchError> {
        let mut client = Client::connect(path)?;
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut next = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                client.get()?;
                // One that was late is followed at once: the rate is kept.
                next += LOAD_PERIOD;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(())
        });
        Ok(Self { ends, thread })
    }

    pub(super) fn end(self) -> Result<(), BenchError> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("a load returns its errors")
    }
}

/// A thread that answers every request with the same bytes. It ends with this program.
pub(super) struct FloorServer(PathBuf);

impl FloorServer {
    pub(super) fn start(path: &Path) -> Result<Self, BenchError> {
        // One that an earlier row has left.
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).map_err(socket_error(path, "bind"))?;
        std::thread::spawn(move || {
            for mut socket in listener.incoming().map_while(Result::ok) {
                let mut buffer = [0; 4096];
                while let Ok(1..) = socket.read(&mut buffer) {
                    if socket.write_all(FLOOR_ANSWER).is_err() {
                        break;
                    }
                }
            }
        });
        Ok(Self(path.to_owned()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        assert_eq!(answer_bytes(FLOOR_ANSWER), Some(FLOOR_ANSWER.len()));
        assert_eq!(answer_bytes(&FLOOR_ANSWER[..20]), None);
        assert_eq!(answer_bytes(b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n"), Some(38));
    }
}
