//! Every answer that a host's system call can give, and what survives a loss of power: with a backend that answers by a
//! script and remembers what the host was told.

use super::*;
use crate::backend::block::{Answer, Script, ScriptedBackend, Told};

const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// A disk behind a script.
fn scripted(cache: CacheMode, features: u64, script: Script) -> (Bench, Arc<Mutex<Vec<Told>>>) {
    scripted_as(
        &Setup { options: DiskOptions { cache, block: None, ..DiskOptions::default() }, features, ..Setup::default() },
        script,
    )
}

fn scripted_as(setup: &Setup, script: Script) -> (Bench, Arc<Mutex<Vec<Told>>>) {
    let bench = Bench::build(setup);
    let told = Arc::<Mutex<Vec<Told>>>::default();
    let backend = ScriptedBackend::new(Arc::clone(&bench.image), script, Arc::clone(&told));
    let deadline = std::time::Instant::now() + crate::testing::DEADLINE;
    bench.control.replace(vec![Box::new(backend)], deadline).unwrap();
    while bench.driver.take_interrupt().is_some() {}
    (bench, told)
}

/// What a host's answer means for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Success,
    Failure,
}

/// Answers, given `count` times from the nth call on.
const ANSWERS: [(Answer, u64, Means); 9] = [
    (Answer::Errno(libc::EIO), 1, Means::Failure),
    (Answer::Errno(libc::ENOSPC), 1, Means::Failure),
    (Answer::Errno(libc::EINTR), 1, Means::Success),
    (Answer::Errno(libc::EINTR), 100, Means::Success),
    (Answer::Errno(libc::EAGAIN), 1, Means::Success),
    (Answer::Errno(libc::EAGAIN), u64::MAX, Means::Failure),
    (Answer::Short(512), 1, Means::Success),
    (Answer::Short(1), 3, Means::Success),
    (Answer::Nothing, 1, Means::Failure),
];

#[test]
fn transfers_are_whole_or_an_error_whatever_a_system_call_answers() {
    for (answer, count, means) in ANSWERS {
        for nth in 0..2_u64 {
            let script =
                move |step| if (nth..nth.saturating_add(count)).contains(&step) { answer } else { Answer::Host };
            for kind in [IN, OUT] {
                let (mut bench, _told) = scripted(CacheMode::Writeback, FLUSH, Box::new(script));
                // The first request meets the answer if it is the first call's, the second if not.
                for request in 0..=nth {
                    let sector = 8 * request;
                    let (status, data, expected) = if kind == IN {
                        let (status, _, data) = bench.read(sector, 4 * SECTOR);
                        (status, data, (sector..sector + 4).flat_map(pattern).collect::<Vec<_>>())
                    } else {
                        let status = bench.write(sector, &[0x6b; 4 * SECTOR]).0;
                        let start = usize::try_from(sector).unwrap() * SECTOR;
                        (status, bench.disk()[start..start + 4 * SECTOR].to_vec(), vec![0x6b; 4 * SECTOR])
                    };
                    let met = request == nth;
                    let status_due = if met && means == Means::Failure { IOERR } else { OK };
                    assert_eq!(status, status_due, "{answer:?} {count} {nth} {kind}");
                    assert!(status == IOERR || data == expected, "a success is a whole one: {answer:?} {count}");
                }
                assert_eq!(bench.count(|all| &all.errors), u64::from(means == Means::Failure));
            }
        }
    }
}

#[test]
fn flushes_discards_and_zeroes_are_done_or_an_error() {
    for (answer, count, means) in ANSWERS.into_iter().filter(|(answer, ..)| matches!(answer, Answer::Errno(_))) {
        for kind in [FLUSH_REQUEST, 11, 13] {
            let script = move |step| if step < count { answer } else { Answer::Host };
            let (mut bench, told) = scripted(CacheMode::Writeback, FLUSH | DISCARD | WRITE_ZEROES, Box::new(script));
            let range = [&8_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat();
            let data = bench.driver.place(&range);
            let data = if kind == FLUSH_REQUEST { vec![] } else { vec![Buffer::Readable(data, 16)] };
            let status = bench.request(kind, 0, &data).0;
            assert_eq!(status, if means == Means::Failure { IOERR } else { OK }, "{answer:?} {count} {kind}");
            assert_eq!(told.lock().unwrap().len(), usize::from(means == Means::Success), "done once");
        }
    }
}

#[test]
fn after_a_flush_has_failed_no_later_one_is_believed() {
    let script = |step| if step == 1 { Answer::Errno(libc::EIO) } else { Answer::Host };
    let (mut bench, _told) = scripted(CacheMode::Writeback, FLUSH, Box::new(script));
    assert_eq!(bench.write(0, &[1; SECTOR]).0, OK);
    // The kernel marks the pages clean that it could not write: the next fdatasync succeeds, and the data are gone.
    for _ in 0..3 {
        assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, IOERR);
    }
    assert_eq!(bench.read(0, SECTOR).0, OK, "nothing else is refused");
}

#[test]
fn zeroes_that_find_no_space_before_they_are_synced_cost_no_later_request_its_answer() {
    let zeroes = |bench: &mut Bench| {
        let range = [&8_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat();
        let (data, status) = (bench.driver.place(&range), bench.status_byte());
        let header = bench.header(13, 0);
        bench.driver.queues[0].add(&[header, Buffer::Readable(data, 16), Buffer::Writable(status, 1)]);
        bench.driver.kick(0);
        status
    };
    let (tell, full) = std::sync::mpsc::channel();
    let setup = Setup {
        options: DiskOptions { cache: CacheMode::Writethrough, block: None, ..DiskOptions::default() },
        features: WRITE_ZEROES,
        on_full: OnFull::Keep(Arc::new(move || tell.send(()).unwrap())),
        ..Setup::default()
    };
    let script = |step| if step == 0 { Answer::Errno(libc::ENOSPC) } else { Answer::Host };
    let (mut bench, told) = scripted_as(&setup, Box::new(script));
    let kept = zeroes(&mut bench);
    full.recv_timeout(crate::testing::DEADLINE).unwrap();
    bench.pause();
    bench.resume();
    bench.driver.wait_used(0);
    let later = zeroes(&mut bench);
    bench.driver.wait_used(0);
    assert_eq!([kept, later].map(|status| bench.status(status)), [OK; 2]);
    assert_eq!(*told.lock().unwrap(), [Told::Other, Told::Synced, Told::Other, Told::Synced]);
}

/// Writes and flushes as a driver issues them, in batches.
struct Workload {
    bench: Bench,
    told: Arc<Mutex<Vec<Told>>>,
    /// What each sector was last written with, and was acknowledged.
    written: Vec<u64>,
    /// Where the host had come to when a promise was made, and the least that each sector must have from there on.
    promises: Vec<(usize, Vec<u64>)>,
    random: u64,
}

impl Workload {
    fn new(cache: CacheMode, features: u64, seed: u64) -> Self {
        let mut random = seed;
        // Calls that are interrupted or cut short at whole sectors change nothing.
        let script = move |_| match next(&mut random) % 8 {
            0 => Answer::Errno(libc::EINTR),
            1 => Answer::Short(SECTOR),
            _ => Answer::Host,
        };
        let (bench, told) = scripted(cache, features, Box::new(script));
        let written = vec![0; usize::try_from(SECTORS).unwrap()];
        Self { bench, told, written, promises: Vec::new(), random: seed ^ 0x5555 }
    }

    /// A batch of requests, all in flight at once. A flush promises what was acknowledged before the batch; without
    /// flushes every acknowledged write is a promise.
    fn batch(&mut self, stamp: &mut u64, promise: Promise) {
        let before = self.written.clone();
        let mut flushes = 0;
        let count = 1 + next(&mut self.random) % 6;
        for _ in 0..count {
            let status = self.bench.status_byte();
            let chain = if promise == Promise::ByFlush && next(&mut self.random).is_multiple_of(4) {
                flushes += 1;
                vec![self.bench.header(FLUSH_REQUEST, 0), Buffer::Writable(status, 1)]
            } else {
                *stamp += 1;
                let len = usize::try_from(1 + next(&mut self.random) % 4).unwrap();
                let at = next(&mut self.random) % (SECTORS - 4);
                let bytes = stamp.to_le_bytes().repeat(len * SECTOR / 8);
                let data = self.bench.driver.place(&bytes);
                self.written[usize::try_from(at).unwrap()..][..len].fill(*stamp);
                let len = u32::try_from(len * SECTOR).unwrap();
                vec![self.bench.header(OUT, at), Buffer::Readable(data, len), Buffer::Writable(status, 1)]
            };
            self.bench.driver.queues[0].add(&chain);
        }
        self.bench.driver.kick(0);
        for _ in 0..count {
            self.bench.driver.wait_used(0);
        }
        let position = self.told.lock().unwrap().len();
        match promise {
            Promise::ByFlush if flushes > 0 => self.promises.push((position, before)),
            Promise::ByFlush => {}
            Promise::ByWrite => self.promises.push((position, self.written.clone())),
        }
    }

    /// Cuts the power after each call to the host in turn, and counts promises that the disk does not keep then: what was
    /// written and not synced is lost.
    fn broken_promises(&self) -> usize {
        let told = self.told.lock().unwrap();
        let sectors = usize::try_from(SECTORS).unwrap();
        let (mut cached, mut durable) = (vec![0; sectors], vec![0; sectors]);
        let mut broken = 0;
        let mut promises = self.promises.iter().peekable();
        let mut due = &vec![0; sectors];
        for cut in 0..=told.len() {
            while let Some((_, least)) = promises.next_if(|(position, _)| *position <= cut) {
                due = least;
            }
            broken += usize::from(durable.iter().zip(due).any(|(has, least)| has < least));
            match told.get(cut) {
                Some(Told::Wrote { offset, bytes, durability }) => {
                    let first = usize::try_from(offset / SECTOR_BYTES).unwrap();
                    for (at, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                        let stamp = u64::from_le_bytes(sector[..8].try_into().unwrap());
                        cached[first + at] = stamp;
                        if *durability == Durability::Durable {
                            durable[first + at] = stamp;
                        }
                    }
                }
                Some(Told::Synced) => durable.clone_from(&cached),
                Some(Told::Other) | None => {}
            }
        }
        broken
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Promise {
    ByFlush,
    ByWrite,
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 8
}

fn broken_promises(cache: CacheMode, features: u64, promise: Promise, seed: u64) -> usize {
    let mut workload = Workload::new(cache, features, seed);
    let mut stamp = 0;
    for _ in 0..60 {
        workload.batch(&mut stamp, promise);
    }
    assert!(workload.promises.len() > 5);
    workload.broken_promises()
}

#[test]
fn what_was_flushed_survives_a_loss_of_power_at_any_moment() {
    for seed in 1..=3 {
        let flushed = broken_promises(CacheMode::Writeback, FLUSH, Promise::ByFlush, seed);
        assert_eq!(flushed, 0, "seed {seed}");
        // A driver that cannot flush, and a disk that offers no flush, rely on each write.
        assert_eq!(broken_promises(CacheMode::Writeback, 0, Promise::ByWrite, seed), 0, "seed {seed}");
        assert_eq!(broken_promises(CacheMode::Writethrough, FLUSH, Promise::ByWrite, seed), 0, "seed {seed}");
    }
}

#[test]
fn a_disk_that_ignores_flushes_loses_data_in_the_same_test() {
    assert_ne!(broken_promises(CacheMode::Unsafe, FLUSH, Promise::ByFlush, 1), 0);
    assert_ne!(broken_promises(CacheMode::Writeback, FLUSH, Promise::ByWrite, 1), 0, "a write alone is no promise");
}
