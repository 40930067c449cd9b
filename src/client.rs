//! A client of the control socket: one request a connection, answered whole or line by line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

/// How long an answer may take. Every request of husk's is answered at once; long work is a job.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How often a job is looked at: soon at first, since most are short.
const JOB_LOOK_MIN: Duration = Duration::from_millis(2);
const JOB_LOOK_MAX: Duration = Duration::from_millis(250);
/// The longest answer that is taken.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What keeps a request from being answered as it should.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    /// Nobody answers there.
    #[error("cannot reach husk on {}: {cause}: check --api-sock, and that the VM runs", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
    },
    /// The connection broke.
    #[error("husk's answer did not arrive")]
    Broken(#[source] io::Error),
    /// What came is no answer of HTTP's.
    #[error("what answers on the socket is not husk: `{0}`")]
    NotHttp(String),
    /// husk refused.
    #[error("{message}")]
    Refused {
        /// What it said.
        message: String,
    },
}

/// The way to a VM.
#[derive(Debug)]
pub(crate) struct Client {
    path: PathBuf,
}

impl Client {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Sends a request, and returns what was answered: JSON, or null where there was nothing to say.
    pub(crate) fn request(&self, method: &str, target: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let text = self.text(method, target, body)?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|_| ClientError::NotHttp(first_line(&text)))
    }

    /// Sends a request that is answered when the machine is there, however long that takes.
    pub(crate) fn awaited(&self, method: &str, target: &str, body: Option<&Value>) -> Result<(), ClientError> {
        self.text_within(None, method, target, body).map(drop)
    }

    /// Follows a job that was begun to its end, and returns what is told of it then. `each` has what is told of it before.
    pub(crate) fn finished(&self, begun: &Value, mut each: impl FnMut(&Value)) -> Result<Value, ClientError> {
        let target = format!("/husk/v1/jobs/{}", begun["id"]);
        let mut wait = JOB_LOOK_MIN;
        loop {
            let job = self.request("GET", &target, None)?;
            match job["state"].as_str() {
                Some("running") => {
                    each(&job);
                    std::thread::sleep(wait);
                    wait = (2 * wait).min(JOB_LOOK_MAX);
                }
                Some("done") => return Ok(job),
                state => {
                    let why = job["error"].as_str().or(state).unwrap_or("it has no state");
                    return Err(ClientError::Refused { message: format!("job {}: {why}", begun["id"]) });
                }
            }
        }
    }

    /// As [`Self::request`], of what is answered as text.
    pub(crate) fn text(&self, method: &str, target: &str, body: Option<&Value>) -> Result<String, ClientError> {
        self.text_within(Some(ANSWER_MAX), method, target, body)
    }

    fn text_within(
        &self,
        patience: Option<Duration>,
        method: &str,
        target: &str,
        body: Option<&Value>,
    ) -> Result<String, ClientError> {
        let (status, mut answer) = self.send(method, target, body, patience)?;
        let mut text = String::new();
        answer.read_to_string(&mut text).map_err(ClientError::Broken)?;
        check(status, &text)?;
        Ok(text)
    }

    /// Sends a request whose answer comes line by line, for as long as there are lines and `each` wants more.
    pub(crate) fn lines(&self, target: &str, mut each: impl FnMut(&str) -> io::Result<()>) -> Result<(), ClientError> {
        let (status, answer) = self.send("GET", target, None, Some(ANSWER_MAX))?;
        for line in BufReader::new(answer).lines() {
            let line = line.map_err(ClientError::Broken)?;
            check(status, &line)?;
            if each(&line).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn send(
        &self,
        method: &str,
        target: &str,
        body: Option<&Value>,
        patience: Option<Duration>,
    ) -> Result<(u16, Box<dyn Read>), ClientError> {
        let connect = |cause| ClientError::Connect { path: self.path.clone(), cause };
        let mut socket = UnixStream::connect(&self.path).map_err(connect)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        socket.set_read_timeout(patience).map_err(ClientError::Broken)?;
        socket.write_all((head + &body).as_bytes()).map_err(ClientError::Broken)?;
        let mut reader = BufReader::new(socket);
        let status_line = line(&mut reader)?;
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| ClientError::NotHttp(first_line(&status_line)))?;
        let mut chunked = false;
        loop {
            let header = line(&mut reader)?.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        }
        match chunked {
            true => {
                // Events come when they come.
                reader.get_ref().set_read_timeout(None).map_err(ClientError::Broken)?;
                Ok((status, Box::new(Chunks { reader, left: 0 })))
            }
            false => Ok((status, Box::new(reader.take(ANSWER_BYTES_MAX)))),
        }
    }
}

fn check(status: u16, text: &str) -> Result<(), ClientError> {
    if (200..300).contains(&status) {
        return Ok(());
    }
    let said: Value = serde_json::from_str(text).unwrap_or_default();
    let message = ["message", "fault_message"].iter().find_map(|field| said[field].as_str());
    let message = message.map_or_else(|| format!("husk answers {status}"), str::to_owned);
    Err(ClientError::Refused { message })
}

fn line(reader: &mut BufReader<UnixStream>) -> Result<String, ClientError> {
    const LINE_BYTES_MAX: u64 = 8 << 10;
    let mut line = String::new();
    reader.take(LINE_BYTES_MAX).read_line(&mut line).map_err(ClientError::Broken)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(ClientError::NotHttp(first_line(&line))),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(80).collect()
}

/// A body in chunks (RFC 9112 §7.1).
struct Chunks {
    reader: BufReader<UnixStream>,
    left: u64,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let mut size = String::new();
            (&mut self.reader).take(32).read_line(&mut size)?;
            self.left = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let count = (&mut self.reader).take(self.left).read(buffer)?;
        self.left -= u64::try_from(count).expect("64 bits fit");
        if self.left == 0 {
            self.reader.read_exact(&mut [0; 2])?;
        } else if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}
