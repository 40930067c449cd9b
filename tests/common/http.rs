//! A client of the control socket, as small as one can be: what it sends is what the test wrote.
#![expect(clippy::unwrap_used, reason = "a test whose socket breaks fails")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A connection that is kept.
pub(crate) struct Connection {
    socket: UnixStream,
    received: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Connection {
    /// Connects as soon as there is somebody who listens.
    pub(crate) fn open(path: impl AsRef<Path>) -> Self {
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            match UnixStream::connect(path.as_ref()) {
                Ok(socket) => {
                    socket.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
                    return Self { socket, received: Vec::new() };
                }
                Err(error) if Instant::now() > deadline => panic!("{}: {error}", path.as_ref().display()),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    /// As [`Self::send`], to a server that may have closed the connection.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Sends nothing more.
    pub(crate) fn end_sending(&mut self) {
        self.socket.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Sends a request with a body, or with none if that is empty.
    pub(crate) fn ask(&mut self, method: &str, target: &str, body: &str) -> Answer {
        self.send(request(method, target, body).as_bytes());
        self.answer()
    }

    /// The next answer, all of it.
    pub(crate) fn answer(&mut self) -> Answer {
        let end = self.read_until(b"\r\n\r\n");
        let head = String::from_utf8(self.received.drain(..end).collect()).unwrap();
        let status = head["HTTP/1.1 ".len()..][..3].parse().unwrap();
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        while self.received.len() < length {
            assert!(self.read_more(), "the answer ends early: {head}");
        }
        let body = String::from_utf8(self.received.drain(..length).collect()).unwrap();
        Answer { status, head, body }
    }

    /// All that comes until a text is there.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let end = self.read_until(text.as_bytes());
        String::from_utf8_lossy(&self.received[..end]).into_owned()
    }

    /// Whether the server closes the connection within this time.
    pub(crate) fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.socket.set_read_timeout(Some(limit)).unwrap();
        loop {
            match self.socket.read(&mut [0; 1024]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
                Err(_) => return true,
            }
        }
    }

    fn read_until(&mut self, mark: &[u8]) -> usize {
        loop {
            if let Some(place) = self.received.windows(mark.len()).position(|window| window == mark) {
                return place + mark.len();
            }
            let text = String::from_utf8_lossy(&self.received).into_owned();
            assert!(self.read_more(), "the connection ends before `{}`: {text}", String::from_utf8_lossy(mark));
        }
    }

    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = self.socket.read(&mut buffer).unwrap();
        self.received.extend_from_slice(&buffer[..count]);
        count > 0
    }
}

/// A request as bytes.
pub(crate) fn request(method: &str, target: &str, body: &str) -> String {
    let length = match body {
        "" => String::new(),
        body => format!("Content-Length: {}\r\n", body.len()),
    };
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}")
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// It was done, and there is nothing to say.
    #[track_caller]
    pub(crate) fn done(&self) {
        assert_eq!((self.status, self.body.as_str()), (204, ""), "{self:?}");
    }

    /// It was refused as Firecracker does, and the message has these parts.
    #[track_caller]
    pub(crate) fn refused(&self, parts: &[&str]) {
        assert_eq!(self.status, 400, "{self:?}");
        let json = self.json();
        let message = json["fault_message"].as_str().unwrap_or_else(|| panic!("{self:?}"));
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in `{message}`");
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}
