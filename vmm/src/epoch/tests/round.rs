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

/// Writes of a memory that goes on changing, as a running guest's does: pages again, backwards, to zeroes, by two pens.
#[test]
fn a_layer_holds_what_was_written_last() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine();
    let base = machine.snapshot(&folder.path().join("base"), None).unwrap();
    for parent in [None, Some(&base)] {
        let files = PointFiles::in_folder(&folder.path().join(if parent.is_some() { "incremental" } else { "full" }));
        let on = parent.map(|parent| std::sync::Arc::new(parent.open().unwrap()));
        let layer = LayerWriter::create(&files, PAGES * PAGE_BYTES, on).unwrap();
        let mut pens = [layer.pen(), layer.pen()];
        let mut copy = |machine: &Machine, pages: std::ops::Range<u64>, pen: usize| {
            let at = |page: u64| usize::try_from(page * PAGE_BYTES).unwrap();
            pens[pen].write_bytes(pages.start, &machine.memory[at(pages.start)..at(pages.end)]).unwrap();
        };
        copy(&machine, 0..PAGES, 0);
        // Behind what the pen passed, in chunks it has left and in the one it is at.
        machine.scribble(3);
        machine.clear(0);
        machine.scribble(PAGES - 2);
        copy(&machine, PAGES - 3..PAGES, 0);
        copy(&machine, 0..4, 1);
        machine.clear(3);
        machine.scribble(700);
        copy(&machine, 3..4, 1);
        copy(&machine, 600..800, 0);
        // A whole chunk anew, and then to zeroes.
        (CHUNK_PAGES..2 * CHUNK_PAGES).for_each(|page| machine.scribble(page));
        copy(&machine, CHUNK_PAGES..2 * CHUNK_PAGES, 1);
        (CHUNK_PAGES..2 * CHUNK_PAGES).for_each(|page| machine.clear(page));
        copy(&machine, CHUNK_PAGES..2 * CHUNK_PAGES, 1);
        drop(pens);
        let header = layer.finish().unwrap().publish(&super::model::described(), &super::model::sections()).unwrap();
        let PointFiles { state, memory, .. } = files;
        let saved = super::model::Saved { state, memory, header, holds: machine.memory.clone() };
        saved.check();
        // A full point's index is what its memory says, so that a plain copy can be held against it.
        if parent.is_none() {
            let copy = folder.path().join("copy");
            std::fs::write(&copy, std::fs::read(&saved.memory).unwrap()).unwrap();
            Point::open(&copy, &saved.header).unwrap().verify_all().unwrap();
        }
    }
}

#[test]
fn runs_meet_across_chunks_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(PAGES, 4);
    (500..520).for_each(|page| machine.scribble(page));
    let base = machine.snapshot(&folder.path().join("base"), None).unwrap();
    let run = |first, pages, layer| LayerRun { first, pages, layer };
    assert_eq!(base.open().unwrap().runs().collect::<Vec<_>>(), [run(500, 20, 0)]);
    machine.scribble(510);
    machine.scribble(2);
    let point = machine.snapshot(&folder.path().join("p"), Some(&base)).unwrap().open().unwrap();
    let want = [run(2, 1, 0), run(500, 10, 1), run(510, 1, 0), run(511, 9, 1)];
    assert_eq!((point.runs().collect::<Vec<_>>(), point.run_count()), (want.to_vec(), 4));
}
