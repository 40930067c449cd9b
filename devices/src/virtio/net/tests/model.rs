//! Random frames through random buffers: what goes in comes out, whole, once and in order.

use super::*;
use proptest::prelude::*;

/// What a test does next.
#[derive(Clone, Debug)]
enum Step {
    /// The driver sends a frame, cut at these distances.
    Send { len: usize, cuts: Vec<usize> },
    /// The wire has a frame for the driver.
    Arrive { len: usize },
    /// The driver makes a buffer available, in pieces of these lengths.
    Post { pieces: Vec<usize> },
    /// The machine pauses and goes on.
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![6 => 14..200_usize, 3 => 200..2000_usize, 1 => 2000..20_000_usize];
    let cuts = prop::collection::vec(1..600_usize, 0..6);
    let pieces = prop::collection::vec(prop_oneof![1 => 1..12_usize, 4 => 12..700_usize], 1..4)
        .prop_filter("a buffer has room for a header", |pieces| pieces.iter().sum::<usize>() >= HEADER);
    prop_oneof![
        3 => (len(), cuts).prop_map(|(len, cuts)| Step::Send { len, cuts }),
        3 => len().prop_map(|len| Step::Arrive { len }),
        6 => pieces.prop_map(|pieces| Step::Post { pieces }),
        1 => Just(Step::Pause),
    ]
}

/// A driver's buffers and the frames on their way to them.
struct Model {
    bench: Bench,
    /// Buffers that were made available and did not come back, oldest first.
    posted: std::collections::VecDeque<Vec<(GuestAddress, usize)>>,
    /// Frames on the wire, oldest first.
    coming: std::collections::VecDeque<Vec<u8>>,
    posted_bytes: usize,
}

impl Model {
    fn post(&mut self, pieces: &[usize]) {
        if self.bench.driver.queues[RX].free() < pieces.len() {
            return;
        }
        let mut buffers = Vec::new();
        let mut places = Vec::new();
        for len in pieces {
            let guarded = self.bench.room(len + 32);
            let place = GuestAddress(guarded.0 + 16);
            buffers.push(Buffer::Writable(place, u32::try_from(*len).unwrap()));
            places.push((place, *len));
        }
        self.bench.driver.queues[RX].add(&buffers);
        if self.bench.driver.queues[RX].needs_kick() {
            self.bench.driver.kick(RX);
        }
        self.posted_bytes += pieces.iter().sum::<usize>();
        self.posted.push_back(places);
    }

    /// Takes all frames off that have room for certain.
    fn take_frames(&mut self) {
        while self.coming.front().is_some_and(|sent| sent.len() <= self.posted_bytes) {
            let sent = self.coming.pop_front().unwrap();
            let mut got = Vec::new();
            let mut buffers = 0;
            while got.len() < sent.len() {
                let used = self.bench.driver.wait_used(RX);
                let written = usize::try_from(used.written).unwrap();
                let places = self.posted.pop_front().unwrap();
                let room: usize = places.iter().map(|(_, len)| len).sum();
                self.posted_bytes -= room;
                assert_eq!(written, room.min(sent.len() - got.len()), "all but the last are filled");
                let mut left = written;
                for (place, len) in places {
                    let bytes = self.bench.driver.bytes_at(GuestAddress(place.0 - 16), len + 32);
                    let here = left.min(len);
                    got.extend_from_slice(&bytes[16..16 + here]);
                    assert_eq!(bytes[..16], [UNWRITTEN; 16], "before a buffer");
                    assert_eq!(bytes[16 + len..], [UNWRITTEN; 16], "behind a buffer");
                    left -= here;
                }
                buffers += 1;
            }
            assert!(got == delivered(&sent, buffers), "a frame of {} comes as it was sent", sent.len());
        }
    }

    fn send(&mut self, sent: &[u8], cuts: &[usize]) {
        let mut pieces = Vec::new();
        let mut rest = sent;
        for cut in cuts.iter().filter(|cut| **cut < sent.len()) {
            let (here, later) = rest.split_at((*cut).min(rest.len()));
            pieces.extend((!here.is_empty()).then_some(here));
            rest = later;
        }
        pieces.extend((!rest.is_empty()).then_some(rest));
        self.bench.send(&pieces);
        assert!(self.bench.wire.receive() == sent, "a frame of {} goes as it was sent", sent.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_frame_comes_out_as_it_went_in(
        event_idx in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let wanted = if event_idx { ALL } else { ALL & !EVENT_IDX };
        let bench = Bench::new(wanted);
        let mut model = Model { bench, posted: Default::default(), coming: Default::default(), posted_bytes: 0 };
        for (seed, step) in steps.into_iter().enumerate() {
            match step {
                Step::Send { len, cuts } => model.send(&frame(len, seed), &cuts),
                // The wire of the test holds few frames.
                Step::Arrive { len } if model.coming.len() < 5 => {
                    let sent = frame(len, seed);
                    model.bench.wire.send(&sent);
                    model.coming.push_back(sent);
                    model.take_frames();
                }
                Step::Arrive { .. } => {}
                Step::Post { pieces } => {
                    model.post(&pieces);
                    model.take_frames();
                }
                // A frame that waits for buffers would be lost.
                Step::Pause if model.coming.is_empty() => {
                    model.bench.pause();
                    model.bench.resume();
                }
                Step::Pause => {}
            }
        }
        // What is still on the wire comes when there is room, unless the ring is too small for it.
        while model.coming.front().is_some_and(|sent| sent.len() < 16_000) {
            let free = model.bench.driver.queues[RX].free();
            if free == 0 {
                break;
            }
            model.post(&[700]);
            model.take_frames();
        }
        prop_assert_eq!(model.bench.count(|all| &all.pairs[0].transmitted.dropped), 0);
        prop_assert_eq!(model.bench.driver.status() & 0x40, 0);
    }
}
