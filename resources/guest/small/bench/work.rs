//! What a run is, as the command line says it.
//!
//! `blk-read`, `blk-write`: requests of `size` bytes, `depth` of them in flight; at random places when smaller than
//! [`SEQUENTIAL_BYTES_MIN`], else one after the other. `blk-flush`: a write of `size` bytes and a flush, again and again.
//! `net-tx`, `net-rx`: frames of `size` bytes. `notify`: doorbells of a queue in which there is nothing.
//! `spin`: steps of a computation. `touch`: pages round an area of `size` bytes, one each `us` microseconds.
//! `fill`: an area of `size` bytes, a byte a page, for each byte that comes by the serial port, for ever.
//! `access`: loads at random places of an area of `size` bytes that has been written, each waiting for the one before.
//!
//! `ms=` or `count=` says how long; `wait=poll|sleep` how the guest waits for answers: it turns on the used ring, so that
//! the monitor never waits for the guest, or sleeps until an interrupt. A card is always polled.

use core::fmt;

use guest::time;

/// Requests from this size on go through the disk in order.
pub(crate) const SEQUENTIAL_BYTES_MIN: u64 = 1 << 20;

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Transmit,
    Receive,
    Doorbell,
    Spin,
    Touch,
    Fill,
    Access,
}

/// How an answer is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Poll,
    Sleep,
}

/// When a run ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Count(u64),
    Ms(u64),
}

/// One run.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Bytes of a request or a frame.
    pub(crate) size: u64,
    /// Requests in flight.
    pub(crate) depth: usize,
    pub(crate) until: Until,
    pub(crate) wait: Wait,
    /// Microseconds between two steps.
    pub(crate) us: u64,
}

impl Work {
    /// From a word's value.
    pub(crate) fn parse(word: &'static str) -> Result<Self, &'static str> {
        let mut parts = word.split(':');
        let name = parts.next().unwrap_or_default();
        let kind = match name {
            "blk-read" => Kind::Read,
            "blk-write" => Kind::Write,
            "blk-flush" => Kind::Flush,
            "net-tx" => Kind::Transmit,
            "net-rx" => Kind::Receive,
            "notify" => Kind::Doorbell,
            "spin" => Kind::Spin,
            "touch" => Kind::Touch,
            "fill" => Kind::Fill,
            "access" => Kind::Access,
            _ => return Err("there is no such run"),
        };
        let mut work = Self { name, kind, size: 4096, depth: 1, until: Until::Ms(300), wait: Wait::Poll, us: 0 };
        for part in parts {
            let (key, value) = part.split_once('=').ok_or("a key without a value")?;
            let number = || value.parse::<u64>().map_err(|_| "a value that is no number");
            match (key, value) {
                ("size", _) => work.size = number()?,
                ("depth", _) => work.depth = number()? as usize,
                ("us", _) => work.us = number()?,
                ("ms", _) => work.until = Until::Ms(number()?),
                ("count", _) => work.until = Until::Count(number()?),
                ("wait", "poll") => work.wait = Wait::Poll,
                ("wait", "sleep") => work.wait = Wait::Sleep,
                _ => return Err("a key that there is not"),
            }
        }
        Ok(work)
    }

    /// The run that comes before, for caches and page tables, if this one is bound by time.
    pub(crate) fn warm_up(&self) -> Option<Self> {
        match self.until {
            Until::Count(_) => None,
            Until::Ms(ms) => Some(Self { until: Until::Ms(ms / 8 + 1), ..*self }),
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let wait = if self.wait == Wait::Poll { "poll" } else { "sleep" };
        write!(f, "{} size={} depth={} wait={wait}", self.name, self.size, self.depth)
    }
}

impl Until {
    /// Whether another is due `now` that `begun` have been begun since `start`, by the time stamp counter.
    pub(crate) fn goes_on(self, begun: u64, start: u64, now: u64) -> bool {
        match self {
            Self::Count(count) => begun < count,
            Self::Ms(ms) => now.wrapping_sub(start) < time::ticks(ms * 1000),
        }
    }
}
