//! A disk whose state is saved and given to another, in the middle of I/O.

use super::*;
use crate::backend::block::{BlockSize, Release};
use crate::state::SaveState;
use crate::testing::DEADLINE;
use crate::virtio::transport::MmioState;
use proptest::prelude::*;
use std::sync::mpsc::channel;
use std::time::Instant;

const CONFIG_CHANGE: u32 = 2;
const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;

impl Bench {
    /// Moves the driver to another disk over the same file, made as `setup` says, which has the state of this one. It does
    /// not go on yet.
    fn move_to(&mut self, setup: &Setup) {
        let (blk, threads) = setup.disk(&self.image, &self.taken);
        (self.counters, self.control) = (blk.counters(), blk.control());
        let heir = MmioTransport::new("disk0", Box::new(blk), self.driver.memory().clone()).unwrap();
        self.driver.migrate(heir);
        self._threads = threads;
    }

    fn begin_read(&mut self, sector: u64) -> (GuestAddress, GuestAddress) {
        let (header, status) = (self.header(IN, sector), self.status_byte());
        let data = self.driver.allocate(512);
        self.driver.queues[0].add(&[header, Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
        (status, data)
    }
}

/// What another disk says of a state.
fn refusal(state: &MmioState, setup: &Setup, sectors: u64) -> String {
    let file = tempfile::tempfile_in(setup.folder).unwrap();
    file.set_len(sectors * SECTOR_BYTES).unwrap();
    let image = DiskImage::from_file(file, Path::new("other"), setup.access, setup.options).unwrap();
    let (blk, _threads) = setup.disk(&Arc::new(image), &Arc::default());
    let mut heir = MmioTransport::new("disk0", Box::new(blk), (setup.memory)()).unwrap();
    heir.restore(state.clone()).map_or_else(|error| error.to_string(), |()| "none".to_owned())
}

#[test]
fn requests_are_done_once_wherever_the_disk_is_saved() {
    for (engine, depth, release) in [
        (Engine::Sync, 0, Release::Polled),
        (Engine::Sync, 3, Release::Polled),
        (Engine::Sync, 8, Release::Drained),
        (Engine::Uring, 0, Release::Polled),
        (Engine::Uring, 3, Release::Polled),
    ] {
        let fault = Fault { depth, release, ..Fault::default() };
        let setup = Setup { engine, fault, ..Setup::default() };
        let mut bench = Bench::build(&setup);
        let mut requests = Vec::new();
        for round in 0..6 {
            for sector in 0..10 {
                requests.push((bench.begin_read(sector), sector));
            }
            bench.driver.kick(0);
            if round == 3 && engine == Engine::Sync {
                let deadline = Instant::now() + DEADLINE;
                while bench.taken.lock().unwrap().len() <= requests.len() - 10 {
                    assert!(Instant::now() < deadline, "the first is taken in time");
                    std::thread::yield_now();
                }
            }
            bench.move_to(&Setup { fault: Fault::default(), ..setup.clone() });
            bench.resume();
            for _ in 0..10 {
                bench.driver.wait_used(0);
            }
            assert!(bench.driver.queues[0].take_used().is_none(), "nothing twice");
            if engine == Engine::Sync {
                assert_eq!(bench.submitted(), 10 * (round + 1), "to the driver nor to the file");
            }
        }
        for ((status, data), sector) in requests {
            assert_eq!((bench.status(status), bench.driver.bytes_at(data, SECTOR)), (OK, pattern(sector)));
        }
    }
}

#[test]
fn a_doorbell_that_nobody_heard_is_not_missed() {
    let setup = Setup::default();
    let mut bench = Bench::build(&setup);
    bench.pause();
    let status = bench.begin_write(4, 0x77);
    assert!(bench.driver.queues[0].needs_kick(), "the driver rings");
    bench.move_to(&setup);
    bench.resume();
    bench.driver.wait_used(0);
    assert_eq!((bench.status(status), &bench.disk()[4 * SECTOR..5 * SECTOR]), (OK, &[0x77; SECTOR][..]));
}

#[test]
fn all_queues_go_on_each_where_it_was() {
    let setup = Setup { queues: 3, features: FLUSH | 1 << VIRTIO_BLK_F_MQ, ..Setup::default() };
    let mut bench = Bench::build(&setup);
    for round in 0..3 {
        for queue in 0..3 {
            for _ in 0..=queue {
                let (header, status) = (bench.header(OUT, 7), bench.status_byte());
                let data = bench.driver.place(&[round; SECTOR]);
                let chain = [header, Buffer::Readable(data, 512), Buffer::Writable(status, 1)];
                let used = bench.driver.run(queue, &chain);
                assert_eq!((used.written, bench.status(status)), (1, OK));
            }
        }
        bench.move_to(&setup);
        bench.resume();
    }
}

#[test]
fn what_is_kept_for_want_of_space_is_done_by_the_other_disk() {
    for depth in [0, 4] {
        let (tell, told) = channel();
        let on_full = OnFull::Keep(Arc::new(move || tell.send(()).unwrap()));
        let fault = Fault { fail_nth: Some(1), fail_count: 2, errno: libc::ENOSPC, depth, ..Fault::default() };
        let setup = Setup { fault, on_full, ..Setup::default() };
        let mut bench = Bench::build(&setup);
        let statuses: Vec<_> = (0..6).map(|sector| bench.begin_write(sector, 0x40)).collect();
        bench.driver.kick(0);
        told.recv_timeout(DEADLINE).unwrap();
        let held = bench.driver.save().core.queues[0].held.len();
        assert!((1..=2).contains(&held), "{held} are kept");
        bench.move_to(&Setup { fault: Fault::default(), ..setup });
        bench.resume();
        for _ in 0..6 {
            bench.driver.wait_used(0);
        }
        assert!(statuses.iter().all(|at| bench.status(*at) == OK));
        assert_eq!(bench.disk()[..6 * SECTOR], [0x40; 6 * SECTOR]);
        assert_eq!(bench.submitted(), 6 + u64::try_from(held).unwrap(), "the others once");
    }
}

#[test]
fn a_limit_that_is_used_up_still_is() {
    let rate = Rate::new(3, 0, 24 * 3_600_000);
    let limits = LimiterConfig { total: Limits { operations: rate, bytes: None }, ..LimiterConfig::default() };
    let setup = || Setup { limiter: Some(Limiter::new(limits)), ..Setup::default() };
    let mut bench = Bench::build(&setup());
    for _ in 0..3 {
        assert_eq!(bench.read(0, SECTOR).0, OK);
    }
    bench.begin_read(0);
    bench.driver.kick(0);
    let state = bench.driver.save();
    let (blk, _threads) = setup().disk(&bench.image, &bench.taken);
    let mut heir = MmioTransport::new("disk0", Box::new(blk), bench.driver.memory().clone()).unwrap();
    heir.restore(state).unwrap();
    bench.driver.move_to(heir);
    bench.resume();
    bench.pause();
    assert_eq!(bench.submitted(), 3, "a restore gives nothing away");
    let unlimited = Setup { limiter: None, ..setup() };
    bench.counters = Arc::default();
    let state = bench.driver.save();
    let (blk, threads) = unlimited.disk(&bench.image, &bench.taken);
    let mut heir = MmioTransport::new("disk0", Box::new(blk), bench.driver.memory().clone()).unwrap();
    heir.restore(state).unwrap();
    bench.driver.move_to(heir);
    bench._threads = threads;
    bench.resume();
    bench.driver.wait_used(0);
}

#[test]
fn a_resize_that_the_driver_has_not_heard_of_is_told_by_the_other_disk() {
    let setup = Setup::default();
    let mut bench = Bench::build(&setup);
    while bench.driver.take_interrupt().is_some() {}
    bench.pause();
    bench.control.resize(bench.image.current_sectors().unwrap(), SECTORS / 2 * SECTOR_BYTES).unwrap();
    bench.move_to(&setup);
    assert_eq!(bench.driver.take_interrupt(), None, "it does not run yet");
    bench.resume();
    assert_eq!(bench.driver.take_interrupt(), Some(CONFIG_CHANGE));
    assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS / 2);
    assert_eq!(bench.read(SECTORS / 2, SECTOR).0, IOERR);
    while bench.driver.take_interrupt().is_some() {}
    bench.move_to(&setup);
    bench.resume();
    assert_eq!(bench.driver.take_interrupt(), None, "once");
}

#[test]
fn a_disk_that_differs_says_in_what() {
    let setup = Setup { features: FLUSH | EVENT_IDX | DISCARD | WRITE_ZEROES, queues: 2, ..Setup::default() };
    let mut bench = Bench::build(&setup);
    let state = bench.driver.save();
    assert_eq!(refusal(&state, &setup, SECTORS), "none");
    let size = |now: u64| format!("the disk had {} bytes when it was saved, and has {now} now", 64 * 512);
    assert_eq!(refusal(&state, &setup, SECTORS + 8), size(72 * 512));
    assert_eq!(refusal(&state, &setup, SECTORS - 8), size(56 * 512));
    let one = Setup { queues: 1, ..setup.clone() };
    assert_eq!(refusal(&state, &one, SECTORS), "the guest was told a number of queues of 2, and here it is 1");
    let read_only = Setup { access: DiskAccess::ReadOnly, ..setup.clone() };
    let missing = "the driver uses VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, which the device does not offer";
    assert!(refusal(&state, &read_only, SECTORS).starts_with(missing));
    let durable = DiskOptions { cache: CacheMode::Writethrough, block: None, ..DiskOptions::default() };
    let durable = Setup { options: durable, ..setup.clone() };
    assert!(refusal(&state, &durable, SECTORS).starts_with("the driver uses VIRTIO_BLK_F_FLUSH,"));
    let blocks = DiskOptions { cache: CacheMode::Writeback, block: Some(BlockSize::B4096), ..DiskOptions::default() };
    let blocks = Setup { options: blocks, ..setup.clone() };
    assert!(refusal(&state, &blocks, SECTORS).starts_with("the guest was told a logical block, in bytes, of 512"));
    bench.driver.initialize(0, &[64]);
    let plain = bench.driver.save();
    assert_eq!(refusal(&plain, &read_only, SECTORS), "the disk was ReadWrite when it was saved, and is ReadOnly now");
    let mut other = plain;
    let DeviceState::Block(disk) = &mut other.core.device else { unreachable!("it is a disk's") };
    disk.serial[0] = b'D';
    let error = refusal(&other, &setup, SECTORS);
    assert!(error.starts_with("the guest was told serial number `Disk0\\x00"), "{error}");
}

#[test]
fn a_disk_that_no_owner_makes_is_refused() {
    let setup = Setup::default();
    let bench = Bench::build(&setup);
    let good = bench.driver.save();
    for sectors in [0, SECTORS + 1, u64::MAX] {
        let mut state = good.clone();
        let DeviceState::Block(disk) = &mut state.core.device else { unreachable!("it is a disk's") };
        disk.sectors = sectors;
        assert!(refusal(&state, &setup, SECTORS).starts_with("no device comes to such a state"), "{sectors}");
    }
}

#[test]
fn after_a_reset_a_disk_that_was_restored_is_as_new() {
    let setup = Setup::default();
    let mut bench = Bench::build(&setup);
    bench.driver.reset();
    let new = bench.driver.save();
    bench.driver.initialize(setup.features, &[64]);
    assert_eq!(bench.write(1, &[5; SECTOR]).0, OK);
    bench.begin_write(0, 0x66);
    bench.driver.kick(0);
    bench.move_to(&setup);
    bench.driver.reset();
    assert_eq!(bench.driver.save(), new);
    bench.driver.initialize(setup.features, &[64]);
    assert_eq!(bench.read(1, SECTOR), (OK, 513, vec![5; SECTOR]));
}

#[test]
fn held_chains_that_a_file_invents_retire_the_queue() {
    let setup = Setup::default();
    for head in [63, 9] {
        let mut bench = Bench::build(&setup);
        let mut state = bench.driver.save();
        let queue = &mut state.core.queues[0];
        // One more has been popped than the driver made available.
        (queue.next_avail, queue.held) = (queue.next_avail.wrapping_add(1), vec![head]);
        let (blk, threads) = setup.disk(&bench.image, &bench.taken);
        let mut heir = MmioTransport::new("disk0", Box::new(blk), bench.driver.memory().clone()).unwrap();
        heir.restore(state).unwrap();
        bench.driver.move_to(heir);
        bench._threads = threads;
        bench.resume();
        bench.driver.wait_needs_reset();
        bench.driver.initialize(setup.features, &[64]);
        assert_eq!(bench.read(0, SECTOR).0, OK);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However often a disk is moved between requests, each is done once and the file is what a model says.
    #[test]
    fn moves_between_random_writes_lose_nothing(
        steps in prop::collection::vec((0..SECTORS, 1..250_u8, 0..4_u8), 1..40),
        depth in 0..4_usize,
    ) {
        let setup = Setup { fault: Fault { depth, ..Fault::default() }, ..Setup::default() };
        let mut bench = Bench::build(&setup);
        let mut model = bench.disk();
        let (mut statuses, mut open) = (Vec::new(), std::collections::HashSet::new());
        for (sector, byte, then) in steps {
            // Writes of the same sector at once may be done in any order.
            if then == 0 || open.contains(&sector) || bench.driver.queues[0].free() < 3 {
                bench.move_to(&setup);
                bench.resume();
                for _ in 0..std::mem::take(&mut open).len() {
                    bench.driver.wait_used(0);
                }
            }
            statuses.push(bench.begin_write(sector, byte));
            open.insert(sector);
            let at = usize::try_from(sector).unwrap() * SECTOR;
            model[at..at + SECTOR].fill(byte);
            if then > 1 {
                bench.driver.kick(0);
            }
        }
        bench.move_to(&setup);
        bench.resume();
        for _ in 0..open.len() {
            bench.driver.wait_used(0);
        }
        prop_assert!(statuses.iter().all(|at| bench.status(*at) == OK));
        prop_assert_eq!(bench.submitted(), u64::try_from(statuses.len()).unwrap());
        prop_assert_eq!(bench.disk(), model);
    }
}
