//! Points on points, written, overwritten, restored from and dropped in any order.

use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;

use super::super::*;
use super::model::{Machine, Saved, memory_folder};

const PAGES: u64 = 2 * CHUNK_PAGES + 30;

#[test]
fn fifty_points_on_one_another_each_hold_the_memory_of_their_time_and_are_dropped_in_any_order() {
    let folder = memory_folder();
    let mut machine = Machine::new(PAGES, 50);
    (0..60).for_each(|page| machine.scribble(page * 17));
    let mut points: Vec<Saved> = Vec::new();
    for number in 0..50 {
        points.push(machine.snapshot(&folder.path().join(number.to_string()), points.last()).unwrap());
        for _ in 0..4 {
            let (written, cleared) = (machine.below(PAGES), machine.below(PAGES));
            machine.scribble(written);
            machine.clear(cleared);
        }
    }
    points.iter().for_each(Saved::check_memory);
    points[49].check();
    while !points.is_empty() {
        let dropped = usize::try_from(machine.below(points.len() as u64)).unwrap();
        shelf::drop_point(points.remove(dropped).state.parent().unwrap()).unwrap();
        // The last of what is left has the longest chain, any other one of its own.
        if let Some(last) = points.last() {
            last.check_memory();
            points[usize::try_from(machine.below(points.len() as u64)).unwrap()].check_memory();
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What a user does with points.
#[derive(Debug, Clone)]
enum Act {
    Write(u64),
    Clear(u64),
    /// A full point in this folder, over what is there.
    Full(u8),
    /// One that is based on the point the machine is at, in this folder, over what is there: be it that point.
    Incremental(u8),
    Restore(u8),
    Drop(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..PAGES).prop_map(Act::Write),
        2 => (0..PAGES).prop_map(Act::Clear),
        1 => (0..6_u8).prop_map(Act::Full),
        4 => (0..6_u8).prop_map(Act::Incremental),
        2 => (0..6_u8).prop_map(Act::Restore),
        1 => (0..6_u8).prop_map(Act::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_every_point_that_is_there_holds_its_memory(acts in prop::collection::vec(act(), 1..60)) {
        let folder = memory_folder();
        let mut machine = Machine::new(PAGES, 7);
        let mut points: BTreeMap<u8, Saved> = BTreeMap::new();
        let mut at: Option<Saved> = None;
        for act in acts {
            match act {
                Act::Write(page) => machine.scribble(page),
                Act::Clear(page) => machine.clear(page),
                Act::Full(slot) => {
                    let saved = machine.snapshot(&folder.path().join(slot.to_string()), None).unwrap();
                    at = Some(saved.clone());
                    points.insert(slot, saved);
                }
                Act::Incremental(slot) => {
                    // The point that the machine is at may have been dropped or overwritten since.
                    let there = at.as_ref().filter(|at| points.values().any(|point| point.header == at.header));
                    let saved = machine.snapshot(&folder.path().join(slot.to_string()), there).unwrap();
                    at = Some(saved.clone());
                    points.insert(slot, saved);
                }
                Act::Restore(slot) => if let Some(point) = points.get(&slot) {
                    machine.restore(&point.holds);
                    at = Some(point.clone());
                },
                Act::Drop(slot) => if let Some(point) = points.remove(&slot) {
                    shelf::drop_point(point.state.parent().unwrap()).unwrap();
                },
            }
        }
        points.values().for_each(Saved::check);
    }
}
