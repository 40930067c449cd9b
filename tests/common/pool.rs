//! HugePages for a test: the pool is raised by a delta and gets that delta back, also if the test is killed.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// The pool of the host's node 0, by the size of a page in KiB.
fn folder(page_kib: u64) -> String {
    format!("/sys/devices/system/node/node0/hugepages/hugepages-{page_kib}kB")
}

/// So many free HugePages more than there were. Tests that make one run one at a time (`.config/nextest.toml`), and a lock
/// keeps other runs of them away.
pub(crate) struct Pool {
    /// Ends, and puts the pool back, when its input does: by our drop, or by our end.
    keeper: Child,
    page_kib: u64,
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
        let before = free(page_kib);
        // A session of its own: what ends the test's group leaves it alone.
        let mut keeper = Command::new("setsid")
            .args(["sh", "-c", KEEPER, "sh", &folder(page_kib), &pages.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let pool = Self { keeper, page_kib, _lock: lock };
        assert_eq!(pool.free(), before + pages, "the host has no room for {pages} HugePages more");
        pool
    }

    /// Pages that hold nothing.
    pub(crate) fn free(&self) -> u64 {
        free(self.page_kib)
    }
}

fn free(page_kib: u64) -> u64 {
    fs::read_to_string(folder(page_kib) + "/free_hugepages").unwrap().trim().parse().unwrap()
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
