//! HugePages of 2 MiB for the benchmark: the host's pool is raised by a delta, and gets back what it was raised by, also if
//! the benchmark is killed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FOLDER: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// Of the tests that change the pool too (tests/common/pool.rs).
const LOCK: &str = "/run/husk-test-pool.lock";
/// The kernel goes on taking a VM apart after its process has been reaped, and its pages come back then.
const FREE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Adds the delta as far as the host has room, says what came of it, waits for its input's end, and takes that away again.
/// The kernel gives up at the first page that it does not find whole; memory that was compacted has more of them. Pages that are in use when they are taken away are surplus until they are
/// free, and `nr_hugepages` counts those too.
const KEEPER: &str = r#"
    own() { echo $(($(cat "$1/nr_hugepages") - $(cat "$1/surplus_hugepages"))); }
    before=$(own "$1") delta=0
    for attempt in 1 2 3 4; do
        echo $((before + $2)) > "$1/nr_hugepages" || break
        delta=$(($(own "$1") - before))
        [ $delta -lt $2 ] || break
        echo 1 > /proc/sys/vm/compact_memory
    done
    echo $delta
    read -r _
    echo $(($(own "$1") - delta)) > "$1/nr_hugepages"
"#;

/// So many free HugePages more than there were.
pub(super) struct Pool {
    /// Ends, and puts the pool back, when its input does: by our drop, or by our end.
    keeper: Child,
    pages: u64,
    _lock: File,
}

impl Pool {
    /// `None` where the host does not give them all: no root, or no room.
    pub(super) fn of_2m(pages: u64) -> Option<Self> {
        let lock = File::create(LOCK).ok()?;
        lock.lock().ok()?;
        Self::under(lock, pages)
    }

    fn under(lock: File, pages: u64) -> Option<Self> {
        // A session of its own: what ends the benchmark's group leaves it alone.
        let mut keeper = Command::new("setsid")
            .args(["sh", "-c", KEEPER, "sh", FOLDER, &pages.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let output = keeper.stdout.take();
        let pool = Self { keeper, pages, _lock: lock };
        BufReader::new(output?).read_line(&mut line).ok()?;
        (is_whole(&line, pages) && pool.is_free()).then_some(pool)
    }

    /// Waits until nothing holds any of the pages; false if that does not come.
    pub(super) fn is_free(&self) -> bool {
        let begun = Instant::now();
        while free().is_none_or(|free| free < self.pages) {
            if begun.elapsed() > FREE_WITHIN {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // It can only have ended already, and then it has put the pool back.
        let _ = self.keeper.wait();
    }
}

/// Whether the keeper has said that it added all of the pages.
fn is_whole(line: &str, pages: u64) -> bool {
    line.trim().parse() == Ok(pages)
}

/// Pages that hold nothing.
fn free() -> Option<u64> {
    count("free_hugepages")
}

fn count(name: &str) -> Option<u64> {
    fs::read_to_string(format!("{FOLDER}/{name}")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_of_hugepages_comes_and_is_given_back() {
        let lock = File::create(LOCK).unwrap();
        lock.lock().unwrap();
        // Held until the end of the test, whatever the pool does with its own handle.
        let held = lock.try_clone().unwrap();
        let before = count("nr_hugepages").unwrap();
        let pool = Pool::under(lock, 4).unwrap();
        assert_eq!(count("nr_hugepages"), Some(before + 4));
        drop(pool);
        assert_eq!(count("nr_hugepages"), Some(before));
        drop(held);
    }

    #[test]
    fn a_pool_is_whole_only_if_all_of_it_was_added() {
        assert!(is_whole("64\n", 64));
        for line in ["", "63\n", "-1\n", "sh: cannot create\n"] {
            assert!(!is_whole(line, 64), "{line}");
        }
    }
}
