//! Full disks and dying processes, at every step that changes a file.

use std::path::Path;

use super::super::*;
use super::model::{Machine, Saved, memory_folder};
use crate::faults::{self, Fault};

const PAGES: u64 = 90;

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).map(|entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()));
    let mut names: Vec<_> = names.map(Iterator::collect).unwrap_or_default();
    names.sort();
    names
}

fn machine() -> Machine {
    let mut machine = Machine::new(PAGES, 2);
    (0..9).for_each(|page| machine.scribble(page * 10));
    machine
}

/// The ways to write a point: onto nothing, over a full one, over its own parent, over another's child.
struct Scene {
    folder: tempfile::TempDir,
    machine: Machine,
    old: Option<Saved>,
    parent: Option<Saved>,
}

const SCENES: [fn() -> Scene; 4] = [
    || Scene { folder: memory_folder(), machine: machine(), old: None, parent: None },
    || {
        let (folder, mut machine) = (memory_folder(), machine());
        let old = machine.snapshot(&folder.path().join("p"), None).unwrap();
        machine.scribble(77);
        Scene { folder, machine, old: Some(old), parent: None }
    },
    || {
        let (folder, mut machine) = (memory_folder(), machine());
        let base = machine.snapshot(&folder.path().join("base"), None).unwrap();
        machine.scribble(78);
        let old = machine.snapshot(&folder.path().join("p"), Some(&base)).unwrap();
        machine.scribble(79);
        machine.clear(60);
        Scene { folder, machine, old: Some(old.clone()), parent: Some(old) }
    },
    || {
        let (folder, mut machine) = (memory_folder(), machine());
        let base = machine.snapshot(&folder.path().join("base"), None).unwrap();
        machine.scribble(80);
        let old = machine.snapshot(&folder.path().join("p"), Some(&base)).unwrap();
        machine.scribble(81);
        Scene { folder, machine, old: Some(old), parent: None }
    },
];

/// What the state file at the target says: the old point or the new one, which then holds all it should.
fn check_either(scene: &Scene, new: &[u8], step: u64) -> bool {
    let target = scene.folder.path().join("p");
    let state = target.join("state");
    if !state.exists() {
        assert!(scene.old.is_none(), "step {step}: the old state is gone");
        return false;
    }
    let (header, _) = StateHeader::read(&state).unwrap();
    let old = scene.old.as_ref().filter(|old| old.header.id == header.id);
    let holds = old.map_or(new, |old| &old.holds).to_vec();
    Saved { state, memory: target.join("memory"), header, holds }.check();
    old.is_none()
}

#[test]
fn a_process_that_dies_at_any_step_leaves_the_old_point_or_the_new_one() {
    for make in SCENES {
        let (mut before, mut after) = (0, 0);
        for step in 0.. {
            let mut scene = make();
            let target = scene.folder.path().join("p");
            let Scene { machine, parent, .. } = &mut scene;
            let dies = Fault::From(step);
            let (_, steps) = faults::with(dies, || machine.snapshot(&target, parent.as_ref()));
            let holds = machine.memory.clone();
            let new = check_either(&scene, &holds, step);
            assert!(new || after == 0, "step {step}: what was there is gone");
            *if new { &mut after } else { &mut before } += 1;
            // Whatever the crash left, the next point takes the place of it.
            let saved = scene.machine.snapshot(&target, None).unwrap();
            saved.check();
            assert_eq!(names(&target), ["memory", "memory.idx", "state"], "step {step}");
            if steps <= step {
                break;
            }
        }
        assert!(before > 5 && after > 1, "{before} steps before the commit, {after} after it");
    }
}

#[test]
fn a_disk_that_is_full_at_any_step_leaves_the_old_point_and_nothing_of_the_new_one() {
    for make in SCENES {
        for step in 0.. {
            let mut scene = make();
            let target = scene.folder.path().join("p");
            let before = names(&target);
            let Scene { machine, parent, .. } = &mut scene;
            let (saved, steps) = faults::with(Fault::At(step), || machine.snapshot(&target, parent.as_ref()));
            let failed = saved.is_err();
            let holds = machine.memory.clone();
            assert!(!failed || scene.old.is_some() || !target.exists() || target.join("state").exists(), "step {step}");
            let new = check_either(&scene, &holds, step);
            let left: Vec<_> = names(&target).into_iter().filter(|name| name.starts_with('.')).collect();
            assert_eq!(left, [""; 0], "step {step}");
            if failed && !new {
                let aside = names(&target).into_iter().filter(|name| name != "memory.layers");
                assert!(aside.eq(before.into_iter().filter(|name| name != "memory.layers")), "step {step}");
            }
            if steps <= step {
                break;
            }
        }
    }
}

/// A filesystem of 512 KiB, in a mount namespace of a process that runs this test again.
#[test]
fn a_filesystem_that_is_full_leaves_the_old_point_and_nothing_of_the_new_one() {
    const INSIDE: &str = "HUSK_TEST_SMALL_FOLDER";
    if let Some(folder) = std::env::var_os(INSIDE) {
        return fill(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=512k none "$HUSK_TEST_SMALL_FOLDER" && exec "$@""#;
    let name = "epoch::tests::crash::a_filesystem_that_is_full_leaves_the_old_point_and_nothing_of_the_new_one";
    let mut again = std::process::Command::new("unshare");
    again.args(["--mount", "sh", "-c", script, "sh"]).arg(std::env::current_exe().unwrap()).args(["--exact", name]);
    let ended = again.env(INSIDE, folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ended.stderr));
}

fn fill(folder: &Path) {
    let mut machine = machine();
    let target = folder.join("p");
    let old = machine.snapshot(&target, None).unwrap();
    // With the nine pages that are there, more than there is room for.
    let mut large = Machine::new(2 * PAGES, 1);
    (0..2 * PAGES).for_each(|page| large.scribble(page));
    for at in [&target, &folder.join("q")] {
        let Err(PointError::File(error)) = large.snapshot(at, None) else { panic!("there is no room") };
        assert_eq!(error.source.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(names(folder), ["p"]);
        assert_eq!(names(&target), ["memory", "memory.idx", "state"]);
        old.check();
    }
}
