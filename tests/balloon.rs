//! The balloon over the control socket, and on the pages of a HugePage pool.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arch::GuestMemory;
use common::pool::Pool;
use common::vm::Vm;
use devices::backend::memory::Reclaim;
use devices::testing::{Buffer, DEADLINE, FakeDriver};
use devices::virtio::balloon::{Balloon, BalloonOptions};
use devices::virtio::transport::MmioTransport;
use devices::virtio::worker::IoThread;
use serde_json::json;
use vm_memory::{Bytes, FileOffset, GuestAddress};

const HUGE: u64 = 2 << 20;

#[test]
fn a_balloon_is_described_changed_and_told_of_as_firecracker_does() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    let balloon = json!({ "amount_mib": 8, "deflate_on_oom": true, "stats_polling_interval_s": 1,
        "free_page_hinting": true, "free_page_reporting": true });
    vm.put("/balloon", &balloon).done();
    assert_eq!(vm.get("/balloon"), balloon);
    assert_eq!(vm.get("/vm/config")["balloon"], balloon);
    vm.put("/balloon", &json!({ "amount_mib": 65, "deflate_on_oom": true })).refused(&["65 MiB", "guest's 64"]);
    vm.patch("/balloon", &json!({ "amount_mib": 4 })).refused(&["has not been started"]);
    vm.client.ask("GET", "/balloon/statistics", "").refused(&["has not been started"]);
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    vm.patch("/balloon", &json!({ "amount_mib": 4 })).done();
    vm.patch("/balloon", &json!({ "amount_mib": 65 })).refused(&["16640 pages", "16384"]);
    assert_eq!(vm.get("/balloon")["amount_mib"], 4);
    let statistics = json!({ "target_pages": 1024, "actual_pages": 0, "target_mib": 4, "actual_mib": 0 });
    assert_eq!(vm.get("/balloon/statistics"), statistics);
    vm.patch("/balloon/statistics", &json!({ "stats_polling_interval_s": 5 })).done();
    assert_eq!(vm.get("/balloon")["stats_polling_interval_s"], 5);
    vm.client.ask("PATCH", "/balloon/hinting/start", "").done();
    assert_eq!(vm.get("/balloon/hinting/status"), json!({ "host_cmd": 2 }));
    vm.client.ask("PATCH", "/balloon/hinting/stop", "{}").done();
    assert_eq!(vm.get("/balloon/hinting/status"), json!({ "host_cmd": 1 }));
    let devices = vm.get("/husk/v1/devices");
    assert_eq!(devices[0]["kind"], "balloon", "{devices}");
    vm.put("/balloon", &balloon).refused(&["is running"]);
    vm.stop();
}

#[test]
fn what_a_balloon_was_made_without_it_has_not() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    vm.put("/balloon", &json!({ "amount_mib": 0, "deflate_on_oom": false })).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    vm.client.ask("GET", "/balloon/statistics", "").refused(&["without statistics"]);
    vm.patch("/balloon/statistics", &json!({ "stats_polling_interval_s": 5 })).refused(&["without statistics"]);
    vm.client.ask("PATCH", "/balloon/hinting/start", "").refused(&["without free page hinting"]);
    vm.client.ask("GET", "/balloon/hinting/status", "").refused(&["without free page hinting"]);
    vm.stop();
}

/// Guest memory of so many huge pages, all of them there.
fn huge_memory(pages: u64) -> Arc<GuestMemory> {
    let file = vmm::memfd::create_huge("husk-test", pages * HUGE, HUGE).expect("the host has huge pages");
    let bytes = usize::try_from(pages * HUGE).expect("small");
    let range = (GuestAddress(0), bytes, Some(FileOffset::new(file, 0)));
    let memory = GuestMemory::from_ranges_with_files([range]).expect("the host maps it");
    for page in 0..pages {
        memory.write_obj(1_u8, GuestAddress(page * HUGE)).expect("it is memory");
    }
    Arc::new(memory)
}

#[test]
fn a_huge_page_goes_whole_and_a_driver_waits_for_one_that_an_empty_pool_cannot_give_back() {
    let pool = Pool::of_2m(4);
    let before = pool.free();
    let memory = huge_memory(4);
    let thread = IoThread::spawn("husk-io-test").expect("a thread");
    let exhausted = Arc::new(AtomicU64::new(0));
    let on_exhausted = {
        let exhausted = Arc::clone(&exhausted);
        Arc::new(move || {
            exhausted.fetch_add(1, Ordering::Relaxed);
        })
    };
    let reclaim = Reclaim::new(Arc::clone(&memory), Some(HUGE));
    let options = BalloonOptions { hinting: true, reporting: true, ..BalloonOptions::default() };
    let balloon = Balloon::new("balloon", &options, reclaim, on_exhausted, thread.handle()).expect("a balloon");
    let control = balloon.control();
    let transport = MmioTransport::new("balloon", Box::new(balloon), Arc::clone(&memory)).expect("a transport");
    let mut driver = FakeDriver::new(transport, Arc::clone(&memory));
    // MUST_TELL_HOST, and neither hinting nor reporting.
    assert_eq!(driver.offered_features() & 0b11_1111, 1);
    driver.initialize(u64::MAX, &[16, 16]);
    let chain = |driver: &mut FakeDriver, pages: std::ops::Range<u32>| {
        let numbers: Vec<u8> = pages.flat_map(|page| (3 * 512 + page).to_le_bytes()).collect();
        let length = u32::try_from(numbers.len()).expect("small");
        Buffer::Readable(driver.place(&numbers), length)
    };
    // All of the last huge page but one small page.
    let most = chain(&mut driver, 0..511);
    driver.run(0, &[most]);
    assert_eq!(pool.free(), before - 4);
    let last = chain(&mut driver, 511..512);
    driver.run(0, &[last]);
    assert_eq!(pool.free(), before - 3, "the host has it");
    // Somebody else takes what is free.
    let other = huge_memory(pool.free());
    let some = chain(&mut driver, 7..9);
    driver.queues[1].want_interrupt();
    driver.queues[1].add(&[some]);
    driver.kick(1);
    let deadline = Instant::now() + DEADLINE;
    while control.counters().exhausted.load(Ordering::Relaxed) < 100 {
        assert!(Instant::now() < deadline, "the pool is not found empty");
        driver.kick(1);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(exhausted.load(Ordering::Relaxed), 1, "its owner hears of it once");
    assert_eq!(driver.queues[1].device_used_index(), 0, "the driver waits");
    drop(other);
    driver.wait_used(1);
    assert_eq!(pool.free(), before - 4, "it is there before the driver uses it");
    memory.write_obj(9_u8, GuestAddress(3 * HUGE + 7 * 4096)).expect("it is memory");
    let both = chain(&mut driver, 7..9);
    driver.run(0, &[both]);
    assert_eq!(pool.free(), before - 3, "the host has it again");
    driver.reset();
    assert_eq!(pool.free(), before - 3, "a vCPU that resets waits for no huge page");
    let other = huge_memory(pool.free());
    driver.initialize(u64::MAX, &[16, 16]);
    let wait_for = |wanted: &str, holds: &dyn Fn() -> bool| {
        let deadline = Instant::now() + DEADLINE;
        while !holds() {
            assert!(Instant::now() < deadline, "{wanted}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    wait_for("its owner hears that it lacks one", &|| exhausted.load(Ordering::Relaxed) == 2);
    assert_eq!(pool.free(), 0);
    drop(other);
    wait_for("the next driver may use all of memory", &|| pool.free() == before - 4);
    drop(driver);
}
