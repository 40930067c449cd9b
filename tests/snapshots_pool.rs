//! Points of machines whose memory is of a HugePage pool, on nodes of the host.

mod common;

use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::PROBE;
use common::http::Connection;
use common::husk;
use common::pool::Pool;
use common::vm::Vm;
use serde_json::json;

#[test]
fn a_machine_on_huge_pages_of_a_node_goes_on_there_page_by_page_or_read_at_once_and_is_never_mapped() {
    let pool = Pool::of_2m(40);
    let free = pool.free();
    let start = |words: &[&str]| {
        let folder = Folder::new();
        let husk = husk(words).args(["--api-sock", &folder.at("s")]).start();
        let client = Connection::open(folder.at("s"));
        Vm { folder, husk, client }
    };
    let kept = Folder::new();
    let point = kept.at("point");
    let mut vm =
        start(&["run", "--kernel", PROBE, "--cmdline", "check=count end=poweroff", "--memory", "64M,pages=2M,nodes=0"]);
    vm.husk.wait_for("TICK 5 ");
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    let tick = vm.husk.last_tick();
    vm.stop();
    let mapped = husk(["restore", &point, "--memory", "map"]).end();
    assert_eq!(mapped.code(), Some(1), "{mapped}");
    assert!(mapped.stderr.contains("it is on 2M pages: use lazy or copy"), "{mapped}");
    for words in [&[][..], &["--memory", "copy"], &["--memory", "lazy"]] {
        let mut clone = start(&[&["restore", &point], words].concat());
        clone.husk.wait_for(&format!("TICK {} ", tick + 3));
        let report = clone.get("/husk/v1/placement");
        assert_eq!(report["memory"]["given"]["pages"], "2M", "{report}");
        assert!(report["memory"]["pool_bytes"].as_u64().unwrap() > 0, "{report}");
        // Who has brought it page by page keeps what was wanted first.
        let record = kept.path().join("point/memory.ws");
        let deadline = Instant::now() + Duration::from_secs(20);
        while words.contains(&"lazy") && !record.exists() {
            assert!(Instant::now() < deadline, "memory is not all there");
            std::thread::yield_now();
        }
        clone.stop();
        assert_eq!(record.exists(), words.contains(&"lazy"), "{words:?}: who has it prefaulted has it read at once");
        assert_eq!(pool.free(), free, "{words:?}: given back");
    }
}
