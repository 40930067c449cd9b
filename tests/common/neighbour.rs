//! The neighbour of a Linux guest's `load`, for one that is taken back in time: it answers each request, and holds it
//! against all that came before. What a request says follows from its number, but for the guest's clocks.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::linux::pattern;
use super::network::HOST;

const PORT: u16 = 4244;
const DATAGRAM: usize = 1024;
/// Heads in words of 8 bytes: number, monotonic and real-time clock in ns, sums of the bodies sent and received; and number,
/// whether it is enough.
const REQUEST_WORDS: usize = 5;
const ANSWER_WORDS: usize = 2;
/// Where the patterns' indices of requests and answers begin.
const REQUESTS: u64 = 1 << 32;
const ANSWERS: u64 = 2 << 32;
/// As long as nothing comes, nothing is under way.
const QUIET: Duration = Duration::from_millis(20);
/// How long a guest may take to do what it is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Neighbour {
    socket: UdpSocket,
    seed: u64,
    begun: Instant,
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    /// The guest's past, as it knows it: the first is request 1.
    exchanges: Vec<Exchange>,
    life: Life,
    /// How often nothing came for a while.
    quiets: u64,
    asked: Asked,
    fault: Option<String>,
}

/// What the neighbour is asked to do.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Asked {
    #[default]
    GoOn,
    /// Tell the guest that it is enough.
    Enough,
    /// End itself.
    End,
}

/// An exchange that the guest knows of, and what came before.
#[derive(Clone, Copy)]
struct Exchange {
    monotonic: i128,
    /// Over the bodies to here, as they came.
    sent: u64,
    /// As they were answered.
    received: u64,
}

/// What one process has let the guest do.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Life {
    /// The number of its first request.
    pub(crate) first: Option<u64>,
    /// How many requests were new in it.
    pub(crate) fresh: u64,
    /// How far the guest's clocks are behind the host's in ns, at least: monotonic, which the host counts from when the
    /// neighbour began, and real-time.
    pub(crate) behind: Option<[i128; 2]>,
}

impl Neighbour {
    pub(crate) fn new(seed: u64) -> Self {
        let socket = UdpSocket::bind((HOST, PORT)).unwrap();
        socket.set_read_timeout(Some(QUIET)).unwrap();
        Self { socket, seed, begun: Instant::now(), seen: Mutex::default(), changed: Condvar::new() }
    }

    /// Answers until [`Self::end`], on a thread of its own.
    pub(crate) fn run(&self) {
        let mut request = [0; 2 * DATAGRAM];
        loop {
            let came = self.socket.recv_from(&mut request);
            let mut seen = self.seen.lock().unwrap();
            if seen.asked == Asked::End || seen.fault.is_some() {
                return;
            }
            match came {
                Ok((len, from)) => match seen.take(&request[..len], self.seed, self.begun) {
                    Ok(answer) => drop(self.socket.send_to(&answer, from).unwrap()),
                    Err(fault) => seen.fault = Some(fault),
                },
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => seen.quiets += 1,
                Err(error) => seen.fault = Some(error.to_string()),
            }
            self.changed.notify_all();
        }
    }

    /// Waits until the guest has made so many new requests in this life.
    #[track_caller]
    pub(crate) fn wait_for_fresh(&self, count: u64) {
        self.wait(&format!("{count} new requests"), |seen| seen.life.fresh >= count);
    }

    /// How many exchanges the guest knows of.
    pub(crate) fn exchanges(&self) -> u64 {
        self.seen.lock().unwrap().exchanges.len() as u64
    }

    /// Ends a life, whose process is no more, and returns what it was.
    #[track_caller]
    pub(crate) fn next_life(&self) -> Life {
        let quiets = self.seen.lock().unwrap().quiets;
        // What the process sent last may still come, and one wait may have been under way.
        self.wait("a quiet network", |seen| seen.quiets >= quiets + 2);
        std::mem::take(&mut self.seen.lock().unwrap().life)
    }

    /// What this life is so far.
    pub(crate) fn life(&self) -> Life {
        self.seen.lock().unwrap().life
    }

    /// Tells the guest that it is enough when it asks next.
    pub(crate) fn say_enough(&self) {
        self.seen.lock().unwrap().asked = Asked::Enough;
    }

    /// Ends [`Self::run`]; what the guest must say of its exchanges: their number, and the sums over what it sent and
    /// received.
    #[track_caller]
    pub(crate) fn end(&self) -> (u64, u64, u64) {
        let mut seen = self.seen.lock().unwrap();
        assert_eq!(seen.fault, None);
        seen.asked = Asked::End;
        let last = seen.exchanges.last().unwrap();
        (seen.exchanges.len() as u64, last.sent, last.received)
    }

    #[track_caller]
    fn wait(&self, what: &str, done: impl Fn(&Seen) -> bool) {
        let seen = self.seen.lock().unwrap();
        let more = |seen: &mut Seen| seen.fault.is_none() && !done(seen);
        let (seen, timeout) = self.changed.wait_timeout_while(seen, DEADLINE, more).unwrap();
        assert_eq!(seen.fault, None);
        assert!(!timeout.timed_out(), "{what} do not come: {:?} of {}", seen.life, seen.exchanges.len());
    }
}

/// A test that fails leaves no thread behind.
pub(crate) struct EndsAtLast<'a>(pub(crate) &'a Neighbour);

impl Drop for EndsAtLast<'_> {
    fn drop(&mut self) {
        if let Ok(mut seen) = self.0.seen.lock() {
            seen.asked = Asked::End;
        }
    }
}

impl Seen {
    /// Holds a request against the past, and answers it.
    fn take(&mut self, request: &[u8], seed: u64, begun: Instant) -> Result<Vec<u8>, String> {
        if request.len() != DATAGRAM {
            return Err(format!("a request has {} bytes", request.len()));
        }
        let (head, body) = request.split_at(REQUEST_WORDS * 8);
        let word = |place: usize| u64::from_le_bytes(head[place * 8..][..8].try_into().unwrap());
        let (number, monotonic) = (word(0), i128::from(word(1)));
        let known = self.exchanges.len() as u64;
        let same = |exchange: &Exchange| exchange.monotonic == monotonic;
        let index = usize::try_from(number).unwrap().checked_sub(1).ok_or("request 0")?;
        if number > known + 1 {
            return Err(format!("request {number} comes after {known}"));
        }
        let is_again = self.exchanges.get(index).is_some_and(same);
        if number <= known && self.life.first.is_some() && !(is_again && number == known) {
            return Err(format!("request {number} comes after {known} in one life"));
        }
        // A guest that was taken back has not sent what comes after.
        self.exchanges.truncate(index);
        let before = self.exchanges.last();
        if before.is_some_and(|before| before.monotonic >= monotonic) {
            return Err(format!("the guest's clock has not advanced to request {number}"));
        }
        if body != pattern(seed, REQUESTS + number, body.len()) {
            return Err(format!("request {number} is not what the guest sent"));
        }
        let answer = pattern(seed, ANSWERS + number, DATAGRAM - ANSWER_WORDS * 8);
        let (sent, received) = before.map_or((FNV_BASIS, FNV_BASIS), |before| (before.sent, before.received));
        let (sent, told) = (fnv1a_after(sent, body), [word(3), word(4)]);
        if told != [sent, received] {
            return Err(format!("the sums of request {number} are {told:x?}, not {:x?}", [sent, received]));
        }
        self.exchanges.push(Exchange { monotonic, sent, received: fnv1a_after(received, &answer) });
        if !is_again {
            let real = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let nanoseconds = |time: Duration| i128::try_from(time.as_nanos()).unwrap();
            let behind = [nanoseconds(begun.elapsed()) - monotonic, nanoseconds(real) - i128::from(word(2))];
            let least = self.life.behind.unwrap_or(behind);
            self.life.behind = Some([least[0].min(behind[0]), least[1].min(behind[1])]);
            self.life.fresh += 1;
        }
        self.life.first.get_or_insert(number);
        let enough = u64::from(self.asked == Asked::Enough);
        Ok([&number.to_le_bytes(), &enough.to_le_bytes(), &*answer].concat())
    }
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a with 64 bits over what follows what has this sum.
fn fnv1a_after(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
