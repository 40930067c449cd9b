//! HugePages for a test: the pool is raised by a delta and gets that delta back, also if the test is killed.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use vm_memory::mmap::MmapRegion;

/// The pool of the host's node 0, by the size of a page in KiB.
fn folder(page_kib: u64) -> String {
    format!("/sys/devices/system/node/node0/hugepages/hugepages-{page_kib}kB")
}

/// That of the whole host.
fn whole(page_kib: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{page_kib}kB")
}

/// So many free HugePages and no others that can be had: who needs one more finds none. Tests that make one run one at a time (`.config/nextest.toml`), and a lock
/// keeps other runs of them away.
pub(crate) struct Pool {
    /// Ends, and puts the pool back, when its input does: by our drop, or by our end.
    keeper: Child,
    page_kib: u64,
    /// What was free before.
    _held: Option<MmapRegion>,
    _lock: File,
}

/// Adds the delta, says so, waits for its input's end, and takes the delta away again. Pages that are in use when they are
/// taken away are surplus until they are free, and `nr_hugepages` counts those too.
const KEEPER: &str = r#"
    own() { echo $(($(cat "$1/nr_hugepages") - $(cat "$1/surplus_hugepages"))); }
    echo $(($(own "$1") + $2)) > "$1/nr_hugepages"
    echo ready
    read -r _
    echo $(($(own "$1") - $2)) > "$1/nr_hugepages"
"#;

impl Pool {
    pub(crate) fn of_2m(pages: u64) -> Self {
        Self::new(2048, pages)
    }

    fn new(page_kib: u64, pages: u64) -> Self {
        let lock = File::create("/run/husk-test-pool.lock").unwrap();
        lock.lock().unwrap();
        let held = hold_free(page_kib);
        let before = free(page_kib);
        // A session of its own: what ends the test's group leaves it alone.
        let mut keeper = Command::new("setsid")
            .args(["sh", "-c", KEEPER, "sh", &folder(page_kib), &pages.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let pool = Self { keeper, page_kib, _held: held, _lock: lock };
        assert_eq!(pool.free(), before + pages, "the host has no room for {pages} HugePages more");
        pool
    }

    /// Pages that hold nothing.
    pub(crate) fn free(&self) -> u64 {
        free(self.page_kib)
    }
}

fn free(page_kib: u64) -> u64 {
    number(&(folder(page_kib) + "/free_hugepages"))
}

fn number(file: &str) -> u64 {
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

/// Takes what is free on the host and promised to nobody.
fn hold_free(page_kib: u64) -> Option<MmapRegion> {
    let whole = whole(page_kib);
    let pages = number(&format!("{whole}/free_hugepages")) - number(&format!("{whole}/resv_hugepages"));
    if pages == 0 {
        return None;
    }
    let page_bytes = page_kib << 10;
    let size = i32::try_from(page_bytes.trailing_zeros()).unwrap() << libc::MAP_HUGE_SHIFT;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_POPULATE | size;
    let bytes = usize::try_from(pages * page_bytes).unwrap();
    let held = MmapRegion::build(None, bytes, libc::PROT_READ | libc::PROT_WRITE, flags);
    Some(held.unwrap_or_else(|error| panic!("{pages} free HugePages cannot be held: {error}")))
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
