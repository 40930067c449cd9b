//! What is written is what is read.

use super::super::*;
use super::model::Machine;

const PAGES: u64 = 3 * CHUNK_PAGES + 100;

fn machine() -> Machine {
    let mut machine = Machine::new(PAGES, 1);
    for page in [0, 1, 2, 9, 511, 512, 700, 2 * CHUNK_PAGES + 5, PAGES - 1] {
        machine.scribble(page);
    }
    machine
}

#[test]
fn a_full_point_holds_the_memory_and_its_files_hold_no_zeroes() {
    let folder = tempfile::tempdir().unwrap();
    let saved = machine().snapshot(&folder.path().join("p"), None).unwrap();
    saved.check();
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path().join("p")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["memory", "memory.idx", "state"]);
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(&saved.memory).unwrap();
    assert_eq!(metadata.len(), PAGES * PAGE_BYTES);
    assert!(metadata.blocks() * 512 <= 10 * PAGE_BYTES, "nine pages are on disk, and where they are");
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert_eq!(saved.header.sample.len(), 9);
}

#[test]
fn pages_come_from_slices_that_are_longer_than_a_pen_writes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(PAGES, 2);
    // The first page is zero and on its own, so that the others are one run from an odd page on.
    let first = machine.snapshot(&folder.path().join("0"), None).unwrap();
    (1..PAGES).for_each(|page| machine.scribble(page));
    machine.snapshot(&folder.path().join("1"), Some(&first)).unwrap().check();
}

#[test]
fn points_on_a_chain_each_hold_the_memory_of_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine();
    let mut saved: Vec<super::model::Saved> = Vec::new();
    for number in 0..5 {
        let at = folder.path().join(number.to_string());
        saved.push(machine.snapshot(&at, saved.last()).unwrap());
        machine.scribble(9);
        machine.scribble(1024 + number);
        machine.clear(number);
    }
    saved.iter().for_each(super::model::Saved::check);
    std::fs::remove_dir_all(folder.path().join("2")).unwrap();
    std::fs::remove_dir_all(folder.path().join("0")).unwrap();
    [1, 3, 4].iter().for_each(|&left| saved[left].check());
}
