//! What a disk promises with every engine, every way of caching and on every kind of backing.

use super::*;
use crate::backend::block::BlockSize;
use std::os::unix::fs::MetadataExt;

const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
const DISCARD_REQUEST: u32 = 11;
const WRITE_ZEROES_REQUEST: u32 = 13;
const UNMAP: u32 = 1;

/// Every combination that there is.
fn all_setups() -> Vec<Setup> {
    let caches = [CacheMode::Writeback, CacheMode::Writethrough, CacheMode::Direct, CacheMode::Unsafe];
    let mut setups = Vec::new();
    for engine in [Engine::Sync, Engine::Uring] {
        for cache in caches {
            for folder in ["/tmp", "/dev/shm"] {
                let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
                let features = FLUSH | EVENT_IDX | INDIRECT | DISCARD | WRITE_ZEROES;
                setups.push(Setup { engine, options, folder, features, ..Setup::default() });
            }
        }
    }
    setups
}

impl Bench {
    /// The unit in which the disk takes transfers, in sectors.
    fn unit(&self) -> u64 {
        self.image.geometry().transfer_align() / SECTOR_BYTES
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let bytes = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
        let data = self.driver.place(&bytes);
        self.request(kind, 0, &[Buffer::Readable(data, 16)]).0
    }

    fn sectors(&self, from: u64, count: u64) -> Vec<u8> {
        self.disk()[usize::try_from(from).unwrap() * SECTOR..][..usize::try_from(count).unwrap() * SECTOR].to_vec()
    }
}

fn sector_count(sectors: u64) -> usize {
    usize::try_from(sectors).unwrap() * SECTOR
}

fn patterns(from: u64, count: u64) -> Vec<u8> {
    (from..from + count).flat_map(pattern).collect()
}

#[test]
fn reads_writes_and_flushes_reach_the_disk() {
    for setup in all_setups() {
        let mut bench = Bench::build(&setup);
        let unit = bench.unit();
        assert!(unit == 1 || setup.options.cache == CacheMode::Direct);
        for step in 0..SECTORS / unit {
            let at = step * unit;
            let read = bench.read(at, sector_count(unit));
            let expected = patterns(at, unit);
            assert_eq!(read, (OK, u32::try_from(expected.len()).unwrap() + 1, expected), "{setup:?}");
        }
        let new: Vec<u8> = (0..sector_count(2 * unit)).map(|at| u8::try_from(at % 241).unwrap()).collect();
        assert_eq!(bench.write(2 * unit, &new).0, OK, "{setup:?}");
        assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
        assert_eq!(bench.sectors(2 * unit, 2 * unit), new);
        assert_eq!(bench.sectors(0, 2 * unit), patterns(0, 2 * unit), "nothing before it");
        assert_eq!(bench.sectors(4 * unit, 4), patterns(4 * unit, 4), "nothing behind it");
        assert_eq!(bench.count(|all| &all.errors), 0);
    }
}

#[test]
fn pieces_at_odd_addresses_are_moved_whole() {
    for setup in all_setups() {
        let mut bench = Bench::build(&setup);
        let len = sector_count(2 * bench.unit());
        let bytes: Vec<u8> = (0..len).map(|at| u8::try_from(at % 239).unwrap()).collect();
        // Cut at odd places, and each piece at an odd address.
        let cuts = [0, 1, 100, 511, 700, len];
        let place =
            |bench: &mut Bench, bytes: &[u8]| GuestAddress(bench.driver.place(&[&[0][..], bytes].concat()).0 + 1);
        let parts: Vec<(GuestAddress, usize)> =
            cuts.windows(2).map(|cut| (place(&mut bench, &bytes[cut[0]..cut[1]]), cut[1] - cut[0])).collect();
        let write: Vec<_> = parts.iter().map(|(at, len)| Buffer::Readable(*at, u32::try_from(*len).unwrap())).collect();
        assert_eq!(bench.request(OUT, 0, &write).0, OK, "{setup:?}");
        assert_eq!(bench.disk()[..len], bytes, "{setup:?}");
        let read: Vec<_> = parts.iter().map(|(at, len)| Buffer::Writable(*at, u32::try_from(*len).unwrap())).collect();
        let sector = 4 * bench.unit();
        assert_eq!(bench.request(IN, sector, &read).0, OK);
        let found: Vec<u8> = parts.iter().flat_map(|(at, len)| bench.driver.bytes_at(*at, *len)).collect();
        assert_eq!(found, patterns(sector, 2 * bench.unit()), "{setup:?}");
    }
}

#[test]
fn a_transfer_larger_than_a_bounce_buffer_goes_in_steps() {
    for setup in all_setups() {
        let file = tempfile::tempfile_in(setup.folder).unwrap();
        file.set_len(1 << 20).unwrap();
        let mut bench = Bench::over(&setup, file);
        let bytes: Vec<u8> = (0..600 << 10).map(|at: u32| u8::try_from(at % 251).unwrap()).collect();
        let len = u32::try_from(bytes.len()).unwrap();
        let odd = GuestAddress(bench.driver.place(&[&[0][..], &bytes].concat()).0 + 1);
        assert_eq!(bench.request(OUT, 8, &[Buffer::Readable(odd, len)]).0, OK, "{setup:?}");
        let back = GuestAddress(bench.driver.allocate(1 << 20).0 + 3);
        assert_eq!(bench.request(IN, 8, &[Buffer::Writable(back, len)]).0, OK);
        assert!(bench.driver.bytes_at(back, bytes.len()) == bytes, "{setup:?}");
    }
}

#[test]
fn many_requests_at_once_complete_in_any_order_and_each_once() {
    for setup in all_setups() {
        let mut bench = Bench::build(&setup);
        let unit = bench.unit();
        let len = u32::try_from(sector_count(unit)).unwrap();
        for round in 0..20 {
            let mut requests = Vec::new();
            for at in 0..21 {
                let sector = (at * unit) % SECTORS;
                let (header, status) = (bench.header(IN, sector), bench.status_byte());
                // Odd ones need a bounce buffer, of which there are fewer than requests.
                let data = GuestAddress(bench.driver.allocate(8192).0.next_multiple_of(4096) + at % 2);
                bench.driver.queues[0].add(&[header, Buffer::Writable(data, len), Buffer::Writable(status, 1)]);
                requests.push((sector, data, status));
            }
            bench.driver.kick(0);
            for _ in 0..21 {
                assert_eq!(bench.driver.wait_used(0).written, len + 1);
            }
            for (sector, data, status) in requests {
                assert_eq!(bench.status(status), OK);
                assert_eq!(bench.driver.bytes_at(data, sector_count(unit)), patterns(sector, unit), "{setup:?}");
            }
            assert_eq!(bench.count(|all| &all.requests), 21 * (round + 1));
            bench.driver.initialize(setup.features, &[64]);
            if round % 5 == 4 {
                bench.driver.rewind_heap();
                bench.driver.initialize(setup.features, &[64]);
            }
        }
    }
}

#[test]
fn a_reset_or_a_pause_in_the_middle_of_everything_loses_and_repeats_nothing() {
    for setup in all_setups() {
        for round in 0..4 {
            let mut bench = Bench::build(&setup);
            let unit = bench.unit();
            let transport = bench.driver.transport().clone();
            let data = bench.driver.place(&vec![0x77; sector_count(unit)]);
            for at in 0..20 {
                let kind = [IN, OUT, FLUSH_REQUEST][at % 3];
                let (header, status) = (bench.header(kind, 0), bench.status_byte());
                let len = u32::try_from(sector_count(unit)).unwrap();
                let middle = match kind {
                    IN => vec![Buffer::Writable(data, len)],
                    OUT => vec![Buffer::Readable(data, len)],
                    _ => Vec::new(),
                };
                let chain = [vec![header], middle, vec![Buffer::Writable(status, 1)]].concat();
                bench.driver.queues[0].add(&chain);
            }
            bench.driver.kick(0);
            if round % 2 == 0 {
                bench.driver.reset();
                bench.driver.initialize(setup.features, &[64]);
            } else {
                transport.lock().unwrap().core().pause();
                let used = u64::from(bench.driver.queues[0].device_used_index());
                assert_eq!(used, bench.count(|all| &all.requests), "all that was taken is complete");
                transport.lock().unwrap().core().resume();
                for _ in 0..20 {
                    bench.driver.wait_used(0);
                }
            }
            assert_eq!(bench.read(unit, sector_count(unit)).2, patterns(unit, unit), "{setup:?}");
            assert_eq!(bench.count(|all| &all.errors), 0, "{setup:?}");
        }
    }
}

#[test]
fn what_the_file_has_lost_is_an_io_error_and_the_rest_is_not() {
    for setup in all_setups() {
        let mut bench = Bench::build(&setup);
        let unit = bench.unit();
        bench.file.set_len(4 * unit * SECTOR_BYTES).unwrap();
        assert_eq!(bench.read(3 * unit, sector_count(unit)).0, OK);
        assert_eq!(bench.read(3 * unit, sector_count(2 * unit)).0, IOERR, "{setup:?}");
        assert_eq!(bench.read(5 * unit, sector_count(unit)).0, IOERR, "{setup:?}");
        assert_eq!(bench.count(|all| &all.errors), 2);
        assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
    }
}

#[test]
fn the_nth_failure_is_one_error_status_with_every_engine() {
    for setup in all_setups() {
        for failing in 0..6 {
            let fault = Fault { fail_nth: Some(failing), ..Fault::default() };
            let mut bench = Bench::build(&Setup { fault, ..setup.clone() });
            let unit = bench.unit();
            let bytes = vec![0x99; sector_count(unit)];
            let sectors = u32::try_from(unit).unwrap();
            let statuses = [
                bench.write(0, &bytes).0,
                bench.read(unit, sector_count(unit)).0,
                bench.range(WRITE_ZEROES_REQUEST, 2 * unit, sectors, 0),
                bench.range(DISCARD_REQUEST, 3 * unit, sectors, 0),
                bench.write(unit, &bytes).0,
                bench.read(0, sector_count(unit)).0,
            ];
            let expected: Vec<u8> = (0..6).map(|step| if step == failing { IOERR } else { OK }).collect();
            assert_eq!(statuses, expected[..], "{setup:?}");
            assert_eq!(bench.count(|all| &all.errors), 1);
        }
    }
}

#[test]
fn a_full_file_system_is_an_io_error() {
    for engine in [Engine::Sync, Engine::Uring] {
        for cache in [CacheMode::Writeback, CacheMode::Direct] {
            let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
            let small = SmallFileSystem::mount();
            let mut bench = Bench::over(&Setup { engine, options, ..Setup::default() }, small.sparse_file());
            let chunk = vec![0x42; 1 << 20];
            let statuses: Vec<u8> = (0..3)
                .map(|at| {
                    bench.driver.rewind_heap();
                    bench.driver.initialize(FLUSH, &[64]);
                    bench.write(at * 2048, &chunk).0
                })
                .collect();
            let flushed = bench.request(FLUSH_REQUEST, 0, &[]).0;
            assert_eq!((statuses, flushed), (vec![OK, OK, IOERR], OK), "{engine:?} {cache:?}");
        }
    }
}

/// A file system of 2 MiB, gone at the end.
struct SmallFileSystem {
    folder: tempfile::TempDir,
}

impl SmallFileSystem {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=2M", "none"]).arg(folder.path()).status().unwrap();
        assert!(mounted.success(), "a tmpfs can be mounted");
        Self { folder }
    }

    /// A file that is larger than all there is.
    fn sparse_file(&self) -> File {
        let path = self.folder.path().join("disk");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(8 << 20).unwrap();
        file
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let gone = std::process::Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
        assert!(gone.is_ok_and(|status| status.success()), "umount {}", self.folder.path().display());
    }
}

#[test]
fn discarded_space_is_given_back_and_zeroes_read_as_zero() {
    for setup in all_setups() {
        let file = tempfile::tempfile_in(setup.folder).unwrap();
        file.write_all_at(&vec![0xaa; 1 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let mut bench = Bench::over(&setup, file);
        let offered = bench.driver.offered_features();
        assert_eq!(offered & (DISCARD | WRITE_ZEROES), DISCARD | WRITE_ZEROES);
        assert_eq!(u32::from_le_bytes(bench.driver.config(36)), DISCARD_SECTORS_MAX);
        assert_eq!(u32::from_le_bytes(bench.driver.config(40)), 1);
        assert_eq!(u32::from_le_bytes(bench.driver.config(48)), WRITE_ZEROES_SECTORS_MAX);
        assert_eq!(u32::from_le_bytes(bench.driver.config(52)), 1);
        assert_eq!(bench.driver.config(56), [1]);
        let blocks = bench.file.metadata().unwrap().blocks();
        assert_eq!(bench.range(DISCARD_REQUEST, 0, 1024, 0), OK, "{setup:?}");
        bench.file.sync_all().unwrap();
        let after = bench.file.metadata().unwrap().blocks();
        assert!(after + 1000 <= blocks, "{setup:?}: {after} of {blocks} blocks are left");
        for (sector, flags) in [(1024, 0), (1088, UNMAP)] {
            assert_eq!(bench.range(WRITE_ZEROES_REQUEST, sector, 64, flags), OK, "{setup:?}");
            let (status, _, read) = bench.read(sector, 64 * SECTOR);
            assert!(status == OK && read.iter().all(|byte| *byte == 0), "{setup:?}");
        }
        let mut rest = vec![0; (1 << 20) - 1152 * SECTOR];
        bench.file.read_exact_at(&mut rest, 1152 * SECTOR_BYTES).unwrap();
        assert!(rest.iter().all(|byte| *byte == 0xaa), "nothing else is gone");
        assert_eq!(bench.file.metadata().unwrap().len(), 1 << 20, "a disk does not shrink");
    }
}

#[test]
fn a_range_that_is_wrong_in_any_way_is_refused_and_changes_nothing() {
    for engine in [Engine::Sync, Engine::Uring] {
        let features = FLUSH | DISCARD | WRITE_ZEROES;
        let mut bench = Bench::build(&Setup { engine, features, ..Setup::default() });
        let before = bench.disk();
        for kind in [DISCARD_REQUEST, WRITE_ZEROES_REQUEST] {
            for (sector, sectors) in [
                (0, 0),
                (SECTORS, 1),
                (SECTORS - 1, 2),
                (u64::MAX, 1),
                (u64::MAX, u32::MAX),
                (u64::MAX / 512, 1),
                (1 << 55, 1),
                (0, u32::MAX),
                (0, DISCARD_SECTORS_MAX + 1),
            ] {
                assert_eq!(bench.range(kind, sector, sectors, 0), IOERR, "{kind} {sector:#x} {sectors:#x}");
            }
            for flags in [2, 3, 1 << 31, u32::MAX] {
                assert_eq!(bench.range(kind, 0, 1, flags), UNSUPP);
            }
            for len in [0_usize, 1, 15, 17, 31, 32, 48] {
                let data = bench.driver.place(&[0; 48]);
                let buffers: Vec<_> =
                    (len > 0).then(|| Buffer::Readable(data, u32::try_from(len).unwrap())).into_iter().collect();
                assert_eq!(bench.request(kind, 0, &buffers).0, IOERR, "{len} bytes of ranges");
            }
        }
        assert_eq!(bench.range(DISCARD_REQUEST, 0, 1, UNMAP), UNSUPP, "virtio 1.3 §5.2.6.2");
        assert_eq!(bench.disk(), before);
        let not_asked_for = Bench::build(&Setup { engine, features: FLUSH, ..Setup::default() });
        let mut bench = not_asked_for;
        assert_eq!(bench.range(DISCARD_REQUEST, 0, 1, 0), UNSUPP, "not negotiated");
        assert_eq!(bench.range(WRITE_ZEROES_REQUEST, 0, 1, 0), UNSUPP, "not negotiated");
        let access = DiskAccess::ReadOnly;
        let read_only = Bench::build(&Setup { engine, access, features, ..Setup::default() });
        assert_eq!(read_only.driver.offered_features() & (DISCARD | WRITE_ZEROES), 0);
    }
}

#[test]
fn a_range_may_be_in_any_number_of_pieces() {
    let features = FLUSH | DISCARD | WRITE_ZEROES;
    let mut bench = Bench::build(&Setup { features, ..Setup::default() });
    let range = [&3_u64.to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 4]].concat();
    let data = bench.driver.place(&range);
    let pieces: Vec<_> = (0..16).map(|at| Buffer::Readable(GuestAddress(data.0 + at), 1)).collect();
    assert_eq!(bench.request(WRITE_ZEROES_REQUEST, 0, &pieces).0, OK);
    assert_eq!(bench.sectors(3, 2), vec![0; 2 * SECTOR]);
    assert_eq!(bench.sectors(5, 1), pattern(5));
    assert_eq!(bench.sectors(2, 1), pattern(2));
}

#[test]
fn each_cache_mode_promises_what_its_name_says() {
    let actions = |cache, features| {
        let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
        let mut bench = Bench::build(&Setup { options, features, ..Setup::default() });
        bench.write(0, &[1; 4096]);
        assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
        let writeback = bench.driver.config(32);
        let flush = bench.driver.offered_features() & FLUSH != 0;
        let actions = bench.taken.lock().unwrap().clone();
        (actions, flush, writeback)
    };
    let write = BlockAction::Write;
    let (cached, durable, flush) = (write(Durability::Cached), write(Durability::Durable), BlockAction::Flush);
    assert_eq!(actions(CacheMode::Writeback, FLUSH), (vec![cached, flush], true, [1]));
    assert_eq!(actions(CacheMode::Writeback, 0), (vec![durable, flush], true, [1]));
    assert_eq!(actions(CacheMode::Writethrough, FLUSH), (vec![durable, flush], false, [0]));
    assert_eq!(actions(CacheMode::Direct, FLUSH), (vec![cached, flush], true, [1]));
    assert_eq!(actions(CacheMode::Unsafe, FLUSH), (vec![cached], true, [1]));
    assert_eq!(actions(CacheMode::Unsafe, 0), (vec![cached], true, [1]));
}

#[test]
fn a_guest_is_told_the_block_sizes_and_past_the_cache_held_to_them() {
    for engine in [Engine::Sync, Engine::Uring] {
        let options = DiskOptions { cache: CacheMode::Direct, block: Some(BlockSize::B4096), ..DiskOptions::default() };
        let mut bench = Bench::build(&Setup { engine, options, ..Setup::default() });
        assert_eq!(u32::from_le_bytes(bench.driver.config(20)), 4096);
        assert_eq!(bench.driver.config(24), [0]);
        let before = bench.disk();
        assert_eq!(bench.write(1, &[1; 4096]).0, IOERR);
        assert_eq!(bench.write(0, &[1; SECTOR]).0, IOERR);
        assert_eq!(bench.read(0, 5 * SECTOR).0, IOERR);
        assert_eq!(bench.disk(), before);
        assert_eq!(bench.read(8, 4096), (OK, 4097, patterns(8, 8)));
        // Through the cache larger blocks are a wish.
        let options =
            DiskOptions { cache: CacheMode::Writeback, block: Some(BlockSize::B4096), ..DiskOptions::default() };
        let mut bench = Bench::build(&Setup { engine, options, ..Setup::default() });
        assert_eq!(bench.read(1, SECTOR), (OK, 513, pattern(1)));
    }
}

#[test]
fn a_guest_is_told_the_physical_block_that_was_given_if_it_is_a_block() {
    const EXPONENT: u64 = 24;
    for (block, physical, told) in
        [(BlockSize::B512, 512, 0), (BlockSize::B512, 2 << 20, 12), (BlockSize::B4096, 65536, 4)]
    {
        let options = DiskOptions { block: Some(block), physical_block: Some(physical), ..DiskOptions::default() };
        let bench = Bench::build(&Setup { options, ..Setup::default() });
        let exponent_and_min_io: [u8; 4] = bench.driver.config(EXPONENT);
        assert_eq!((exponent_and_min_io[0], &exponent_and_min_io[2..]), (told, &(1_u16 << told).to_le_bytes()[..]));
    }
    let file = tempfile::tempfile_in("/tmp").unwrap();
    file.set_len(8192).unwrap();
    let options = DiskOptions { block: Some(BlockSize::B4096), physical_block: Some(2048), ..DiskOptions::default() };
    let refused = DiskImage::from_file(file, Path::new("scratch"), DiskAccess::ReadWrite, options).unwrap_err();
    let expected = "disk scratch has logical blocks of 4096 bytes: use physical_block=4096 or more, not 2048";
    assert_eq!(refused.to_string(), expected);
}

#[test]
fn a_disk_of_no_whole_blocks_is_refused_before_it_is_one() {
    let file = tempfile::tempfile_in("/tmp").unwrap();
    file.set_len(4096 + 512).unwrap();
    let options = DiskOptions { cache: CacheMode::Writeback, block: Some(BlockSize::B4096), ..DiskOptions::default() };
    let refused = DiskImage::from_file(file, Path::new("scratch"), DiskAccess::ReadWrite, options).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "disk scratch has 4608 bytes, not a multiple of 4096: extend it, as by truncate -s %4096"
    );
}

#[test]
fn a_block_device_takes_discards_and_zeroes() {
    for engine in [Engine::Sync, Engine::Uring] {
        for cache in [CacheMode::Writeback, CacheMode::Direct] {
            let folder = tempfile::tempdir_in("/tmp").unwrap();
            let path = folder.path().join("backing");
            std::fs::write(&path, vec![0xaa; 4 << 20]).unwrap();
            File::open(&path).unwrap().sync_all().unwrap();
            let loop_device = LoopDevice::over(&path);
            let device = File::options().read(true).write(true).open(&loop_device.0).unwrap();
            let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
            let features = FLUSH | DISCARD | WRITE_ZEROES;
            let mut bench = Bench::over(&Setup { engine, options, features, ..Setup::default() }, device);
            let before = std::fs::metadata(&path).unwrap().blocks();
            assert_eq!(bench.range(DISCARD_REQUEST, 2048, 2048, 0), OK);
            assert_eq!(bench.range(WRITE_ZEROES_REQUEST, 4096, 64, 0), OK);
            assert_eq!(bench.range(WRITE_ZEROES_REQUEST, 4160, 64, UNMAP), OK);
            assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
            assert_eq!(bench.read(4096, 128 * SECTOR).2, vec![0; 128 * SECTOR]);
            assert_eq!(bench.read(4224, 8 * SECTOR).2, vec![0xaa; 8 * SECTOR]);
            let after = std::fs::metadata(&path).unwrap().blocks();
            assert!(after + 2000 <= before, "{engine:?} {cache:?}: {after} of {before} blocks are left");
        }
    }
}

/// What the kernel counts of a block device: sectors written, and flushes (Documentation/block/stat.rst).
fn device_counts(device: &Path) -> (u64, u64) {
    let name = device.file_name().unwrap().to_str().unwrap();
    let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    let fields: Vec<u64> = text.split_ascii_whitespace().map(|field| field.parse().unwrap()).collect();
    (fields[6], fields[15])
}

#[test]
fn a_device_has_the_writes_and_then_a_flush_before_the_driver_is_told() {
    for setup in all_setups().into_iter().filter(|setup| setup.folder == "/tmp") {
        let file = tempfile::NamedTempFile::new_in("/tmp").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let device = LoopDevice::over(file.path());
        let image = File::options().read(true).write(true).open(&device.0).unwrap();
        let mut bench = Bench::over(&setup, image);
        let before = device_counts(&device.0);
        assert_eq!(bench.write(0, &[0x5a; 8 * SECTOR]).0, OK);
        let written = device_counts(&device.0);
        assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
        let flushed = device_counts(&device.0);
        let cache = setup.options.cache;
        // Without a flush to offer, each write is durable by itself.
        assert_eq!(written.1 > before.1, cache == CacheMode::Writethrough, "{setup:?}");
        assert_eq!(flushed.1 > written.1, cache != CacheMode::Unsafe, "{setup:?}");
        if cache != CacheMode::Unsafe {
            assert!(flushed.0 >= before.0 + 8, "the data went first: {setup:?}");
        }
    }
}
