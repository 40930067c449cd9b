//! Puts frames into the driver's buffers, on the device's I/O thread.
//!
//! No allocation after warm-up, no copy of a large frame that has room and is no larger than those before it: chains for the
//! largest frame are gathered first, one system call reads the frame into them, and those that it did not need are for
//! the next. Small frames are read many by one system call, and copied. While the driver has left no room, the backend is
//! not listened to.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};

use super::counters::{NetQueueCounters, Tally};
use super::frames::{Fit, ReceiveRoom, SEVERAL_MAX};
use super::header::{
    ETHERNET_BYTES, FLAGS, FRAME_BYTES_MAX, GSO_TYPE, HEADER_BYTES, HEADER_LEN, NUM_BUFFERS, VLAN_TAG_BYTES,
    VLAN_TAGS_MAX, VLAN_TYPES,
};
use super::pair::Retired;
use super::steering::{Seat, Steering};
use super::{Ends, Link, NetCounters, Publishing, features, publish};
use crate::backend::burst::WORTH_A_RING;
use crate::backend::net::NetBackend;
use crate::fault::FaultLog;
use crate::limit::Flow;
use crate::virtio::ActiveQueue;
use crate::virtio::abi::net_header::{GSO_ECN, GSO_NONE};
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::throttle::Throttle;
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};

/// A frame of the usual MTU, with its header (virtio 1.3 §5.1.6.3.1).
const SMALL_FRAME_BYTES: usize = 1526;
/// The largest frame that offloads make, with its header.
const LARGE_FRAME_BYTES: usize = HEADER_BYTES + FRAME_BYTES_MAX as usize;

/// Failed reads after which the queue rests: a tap that cannot give a frame loses it, so that it comes to an end of them. A
/// host that fails for another reason does not.
const FAILURES_IN_A_ROW_MAX: u16 = 64;
/// How long it rests then.
const REST: Duration = Duration::from_millis(10);

/// The receive queue and its way from the backend.
pub(super) struct ReceiveWorker {
    queue: ActiveQueue,
    interrupt: Arc<Interrupt>,
    backend: Arc<dyn NetBackend>,
    link: Arc<Link>,
    steering: Arc<Steering>,
    pair: usize,
    throttle: Option<Throttle>,
    /// The MTU that the driver knows.
    mtu: Option<u16>,
    features: u64,
    buffers: BuffersPerFrame,
    publishing: Publishing,
    /// Room to gather before a read, in bytes.
    gather_bytes: usize,
    /// Frames that may be there the next time.
    expected: usize,
    chain: Chain,
    room: ReceiveRoom,
    room_order: RoomOrder,
    waits_for: WaitsFor,
    /// Reads that failed since the last that did not.
    failures: u16,
    tally: Tally,
    counters: Arc<NetCounters>,
    log: FaultLog,
}

/// What came of a call for several frames.
struct Several {
    asked: usize,
    came: usize,
}

/// How many chains a frame may be spread over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BuffersPerFrame {
    One,
    Any,
}

/// How the room's chains stand among those that were popped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RoomOrder {
    /// They are the last ones, so that the pops can be taken back.
    Newest,
    /// One behind them, which was no receive buffer, has come back already.
    Overtaken,
}

/// What the worker cannot go on without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    Frames,
    Buffers,
    /// A frame of so many bytes, header included, is in the room and may not be delivered yet: the throttle wakes us.
    Admission(usize),
    /// Reads failed over and over: the link wakes us to try again.
    Rest,
    /// The pair takes no part.
    Seat,
    /// The backend is gone.
    Reset,
}

impl ReceiveWorker {
    pub(super) fn new(queue: ActiveQueue, throttle: Option<Throttle>, ends: &Ends) -> Self {
        let merges = ends.features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        let large = features::offloads(ends.features).makes_large_frames();
        Self {
            interrupt: Arc::clone(&ends.interrupt),
            backend: Arc::clone(&ends.backend),
            link: Arc::clone(&ends.link),
            steering: Arc::clone(&ends.steering),
            pair: ends.pair,
            throttle,
            mtu: ends.mtu,
            features: ends.features,
            buffers: if merges { BuffersPerFrame::Any } else { BuffersPerFrame::One },
            publishing: Publishing::new(ends.features),
            gather_bytes: if large { LARGE_FRAME_BYTES } else { SMALL_FRAME_BYTES },
            expected: 1,
            chain: Chain::new(),
            room: ReceiveRoom::new(Arc::clone(queue.ring.memory())),
            room_order: RoomOrder::Newest,
            waits_for: WaitsFor::Frames,
            failures: 0,
            tally: Tally::default(),
            counters: Arc::clone(&ends.counters),
            log: ends.log.clone(),
            queue,
        }
    }

    /// Moves at most a wake's worth of frames.
    fn serve(&mut self) -> Result<Progress, QueueError> {
        if self.waits_for == WaitsFor::Reset {
            return Ok(Progress::Idle);
        }
        if !self.link.is_plugged() {
            return Ok(self.lose());
        }
        if let WaitsFor::Admission(len) = std::mem::replace(&mut self.waits_for, WaitsFor::Frames) {
            self.ask(len);
        }
        let mut frames = 0;
        let served = self.serve_frames(&mut frames);
        // One more is asked for, to find out that there is none.
        self.expected = (frames + 1).min(SEVERAL_MAX);
        served
    }

    /// As [`Self::serve`], while there may be some. Counts those that came.
    fn serve_frames(&mut self, frames: &mut usize) -> Result<Progress, QueueError> {
        let mut turn = 0;
        while turn < CHAINS_PER_WAKE_MAX {
            turn += 1;
            if self.waits_for != WaitsFor::Frames {
                return Ok(Progress::Idle);
            }
            self.gather()?;
            if let Some(len) = self.room.spilled()
                && self.room.unspill()
            {
                self.admit(len);
                continue;
            }
            if self.needs_buffers() {
                // What the driver has not seen yet may be what it waits for before it makes more available.
                self.publish();
                if !self.queue.ring.enable_notification()? {
                    self.waits_for = WaitsFor::Buffers;
                }
                continue;
            }
            if let Some(Several { asked, came }) = self.receive_several() {
                *frames += came;
                turn += u16::try_from(came).expect("at most SEVERAL_MAX");
                if came < asked && !self.room.holds_frames() {
                    return Ok(Progress::Idle);
                }
                self.expected = SEVERAL_MAX;
                if self.publishing == Publishing::Early {
                    self.publish();
                }
                continue;
            }
            match self.receive() {
                Ok(()) => {
                    *frames += 1;
                    // Soon at first, for those that come alone, and then less and less often.
                    if self.publishing == Publishing::Early && turn.is_power_of_two() {
                        self.publish();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Idle),
                Err(error) => self.fail(&error),
            }
        }
        Ok(if self.waits_for == WaitsFor::Frames { Progress::More } else { Progress::Idle })
    }

    /// The pair takes no part: what is the driver's goes back to it, before anybody says so.
    fn leave(&mut self) {
        if !matches!(self.waits_for, WaitsFor::Seat | WaitsFor::Reset) {
            self.drain();
            self.waits_for = WaitsFor::Seat;
        }
        self.steering.leave(self.pair);
    }

    /// The cable is out: what comes is lost. The driver's chains are as if they had never been popped.
    fn lose(&mut self) -> Progress {
        if self.room.spilled().is_some() || matches!(self.waits_for, WaitsFor::Admission(_)) {
            self.queue_counters().count_dropped();
        }
        self.drop_reads();
        self.give_chains_back();
        self.waits_for = WaitsFor::Frames;
        if let Some(throttle) = &mut self.throttle {
            throttle.stop();
        }
        for _ in 0..CHAINS_PER_WAKE_MAX {
            match self.read() {
                Ok(_) => self.queue_counters().count_dropped(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Idle,
                Err(error) => self.fail(&error),
            }
            if self.waits_for != WaitsFor::Frames {
                return Progress::Idle;
            }
        }
        Progress::More
    }

    /// Pops chains until there is room for the largest frame, or for the one that waits in the spill.
    fn gather(&mut self) -> Result<(), QueueError> {
        self.queue.ring.disable_notification();
        let wanted = self.room.spilled().unwrap_or(self.gather_bytes);
        let mut budget = CHAINS_PER_WAKE_MAX;
        while self.wants_chains(wanted) && budget > 0 && self.queue.ring.pop(&mut self.chain)? {
            // A driver offers nothing but room, for a header at least (virtio 1.3 §5.1.6.3.1).
            if self.chain.readable_len() == 0 && self.chain.writable_len() >= HEADER_LEN {
                if self.room.chains() == 0 {
                    self.room_order = RoomOrder::Newest;
                }
                self.room.push(&self.chain);
            } else {
                budget -= 1;
                self.log.report(format_args!("a receive buffer that is none"));
                self.queue_counters().count_error();
                self.queue.ring.add_used(self.chain.head(), 0);
                self.room_order = RoomOrder::Overtaken;
            }
        }
        Ok(())
    }

    fn wants_chains(&self, wanted: usize) -> bool {
        match self.buffers {
            BuffersPerFrame::One => self.room.chains() == 0,
            BuffersPerFrame::Any => {
                let lacks_bytes = self.room.bytes() < wanted;
                if self.room.spilled().is_some() {
                    return lacks_bytes;
                }
                (lacks_bytes || self.room.chains() < self.at_once()) && !self.room.is_crowded()
            }
        }
    }

    /// Whether nothing can be read before the driver makes buffers available.
    fn needs_buffers(&mut self) -> bool {
        if self.room.spilled().is_some() && usize::from(self.queue.ring.size()) == self.room.chains() {
            // All that the driver has is here, and does not suffice.
            self.drop_spilled();
        }
        self.room.chains() == 0 || self.room.spilled().is_some()
    }

    /// How many frames to read at once. One that does not fit its chain is spread over several, or dropped where that cannot be;
    /// and of a queue that is limited, those that may not be delivered yet would have to be kept, and were lost in a pause.
    fn at_once(&self) -> usize {
        let is_limited = self.throttle.as_ref().is_some_and(Throttle::is_limited);
        if self.buffers == BuffersPerFrame::Any && !is_limited { self.expected } else { 1 }
    }

    /// Reads the frames that there are, if as many as are worth it came the last time, and delivers those that fit.
    fn receive_several(&mut self) -> Option<Several> {
        let asked = self.room.room_for(self.at_once());
        if asked < WORTH_A_RING {
            return None;
        }
        let came = self.backend.receive_several(&mut self.room, asked)?;
        if came < asked {
            self.failures = 0;
        }
        while self.waits_for == WaitsFor::Frames && self.room.has_room_for_next() {
            if let Err(error) = self.receive() {
                self.fail(&error);
            }
        }
        Some(Several { asked, came })
    }

    /// Reads a frame into the room that there is, and delivers it if it fits.
    fn receive(&mut self) -> io::Result<()> {
        let len = self.read()?;
        match self.room.settle(len) {
            Fit::Whole => self.admit(len),
            Fit::Partial if self.room.unspill() => self.admit(len),
            Fit::Partial if self.buffers == BuffersPerFrame::One => self.drop_spilled(),
            Fit::Partial => {}
            Fit::Never => {
                self.log.report(format_args!("a received frame of {len} bytes, header included"));
                self.queue_counters().count_dropped();
            }
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<usize> {
        let read = self.room.next_read().unwrap_or_else(|| self.backend.receive(&mut self.room));
        // A tap without frames has lost those that it could not give.
        if read.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |_| true) {
            self.failures = 0;
        }
        read
    }

    fn drop_reads(&mut self) {
        for _ in 0..self.room.forget_reads() {
            self.queue_counters().count_dropped();
        }
    }

    fn drop_spilled(&mut self) {
        self.log.report(format_args!("a received frame that is larger than the driver's buffers"));
        self.queue_counters().count_dropped();
        self.room.forget_spilled();
    }

    /// Delivers the frame of `len` bytes, header included, that the room begins with, or has it wait there.
    fn admit(&mut self, len: usize) {
        if self.mtu.is_some_and(|mtu| is_longer(&self.room, len, mtu)) {
            self.log.report(format_args!("a received frame of {len} bytes, header included, for a smaller MTU"));
            self.queue_counters().count_dropped();
            return;
        }
        self.ask(len);
    }

    /// As [`Self::admit`], of a frame that was found short enough: in its room the driver may have changed it since.
    fn ask(&mut self, len: usize) {
        let granted = self.throttle.as_mut().is_none_or(|throttle| throttle.admit(Flow::In, frame_bytes(len)));
        if granted { self.deliver(len) } else { self.waits_for = WaitsFor::Admission(len) }
    }

    /// Gives the chains that hold a frame of `len` bytes back to the driver, all at once when they are published.
    fn deliver(&mut self, len: usize) {
        let chains = u16::try_from(self.room.chains_for(len)).expect("a queue has at most 32768 entries");
        // virtio 1.3 §5.1.6.4: set in any case.
        self.room.write(NUM_BUFFERS, &chains.to_le_bytes());
        if self.features & (1 << VIRTIO_NET_F_GUEST_CSUM) == 0 {
            // virtio 1.3 §5.1.6.4.1: a driver that knows no checksums is told nothing of them.
            self.room.write(FLAGS, &[0]);
        }
        let ring = &mut self.queue.ring;
        self.room.take(len, |head, written| ring.add_used(head, written));
        self.tally.begin();
        self.tally.add(frame_bytes(len));
    }

    /// A read failed. A tap says so of one frame, which is gone then, since no header says what it is; or the host says that
    /// it cannot read now, and the frame is still there.
    fn fail(&mut self, error: &io::Error) {
        self.log.report(format_args!("cannot receive: {error}"));
        self.queue_counters().count_error();
        // The interface was deleted, and with it the wire. A reset tries again.
        if error.raw_os_error() == Some(libc::EBADFD) {
            self.waits_for = WaitsFor::Reset;
            self.link.cut();
            return;
        }
        self.failures += 1;
        if self.failures == FAILURES_IN_A_ROW_MAX {
            self.failures = 0;
            self.waits_for = WaitsFor::Rest;
            self.link.wake_after(self.pair, REST);
        }
    }

    /// Chains without a frame are as if they had never been popped, or come back empty where a later one came back
    /// before them.
    fn give_chains_back(&mut self) {
        let ring = &mut self.queue.ring;
        match std::mem::replace(&mut self.room_order, RoomOrder::Newest) {
            RoomOrder::Overtaken if self.room.chains() > 0 => {
                self.room.forget_spilled();
                self.room.take(self.room.bytes(), |head, _room| ring.add_used(head, 0));
                self.publish();
            }
            _ => ring.unpop(self.room.clear()),
        }
    }

    fn queue_counters(&self) -> &NetQueueCounters {
        &self.counters.pairs[self.pair].received
    }

    fn count(&mut self) {
        super::count(&self.counters.pairs[self.pair].received, &mut self.tally, &mut self.throttle);
    }

    fn publish(&mut self) {
        self.count();
        publish(&mut self.queue, &self.interrupt);
    }
}

impl Worker for ReceiveWorker {
    fn sources(&self) -> Vec<Source> {
        let ends = [
            Source::Edge(self.queue.doorbell.as_raw_fd()),
            Source::Level(self.backend.receive_fd()),
            Source::Edge(self.link.wake_fd(self.pair)),
        ];
        ends.into_iter().chain(self.throttle.iter().flat_map(Throttle::sources)).collect()
    }

    fn wake(&mut self) -> Progress {
        if self.steering.seat(self.pair) != Seat::In {
            self.leave();
            return Progress::Idle;
        }
        let served = self.serve();
        if let Some(throttle) = &mut self.throttle {
            throttle.settle();
        }
        self.publish();
        served.unwrap_or_else(|error| {
            super::retire(&self.counters, &self.log, &self.interrupt, error);
            self.waits_for = WaitsFor::Reset;
            Progress::Idle
        })
    }

    fn begin_looking(&mut self) {
        self.queue.ring.retract_notification();
    }

    /// Frames are seen by the thread.
    fn look(&self) -> bool {
        self.waits_for == WaitsFor::Buffers && self.queue.ring.is_available()
    }

    fn is_listening(&self) -> bool {
        self.waits_for == WaitsFor::Frames
    }

    /// A frame that may not be delivered yet cannot be kept: it is delivered on credit, or dropped where the driver has had
    /// that already. One whose end still waits for room is dropped, too.
    fn drain(&mut self) {
        match self.waits_for {
            WaitsFor::Admission(len) => {
                if self.throttle.as_mut().is_none_or(|throttle| throttle.borrow(Flow::In, frame_bytes(len))) {
                    self.deliver(len);
                    self.publish();
                } else {
                    self.queue_counters().count_dropped();
                }
            }
            _ if self.room.spilled().is_some() => self.queue_counters().count_dropped(),
            _ => {}
        }
        self.drop_reads();
        self.waits_for = WaitsFor::Frames;
        self.give_chains_back();
        if let Some(throttle) = &mut self.throttle {
            throttle.stop();
        }
        self.count();
    }
}

impl Retired for ReceiveWorker {
    fn into_parts(self) -> (QueueState, Option<Throttle>) {
        (self.queue.ring.state(), self.throttle)
    }
}

/// What a limit counts of what was read, header included.
fn frame_bytes(len: usize) -> u64 {
    u64::try_from(len - HEADER_BYTES).expect("64 bits fit")
}

/// Whether a frame is not segmented and its packet larger than `mtu` (virtio 1.3 §5.1.4.1). VLAN tags belong to the
/// frame, not to the packet.
fn is_longer(room: &ReceiveRoom, len: usize, mtu: u16) -> bool {
    let mut ethernet = HEADER_BYTES + ETHERNET_BYTES;
    if len <= ethernet + usize::from(mtu) {
        return false;
    }
    let [gso] = room.read(GSO_TYPE);
    if gso & !GSO_ECN != GSO_NONE {
        return false;
    }
    for _ in 0..VLAN_TAGS_MAX {
        if !VLAN_TYPES.contains(&u16::from_be_bytes(room.read(ethernet - 2))) {
            break;
        }
        ethernet += VLAN_TAG_BYTES;
    }
    len > ethernet + usize::from(mtu)
}
