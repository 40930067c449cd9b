//! Memory files that are not the point's, and folders that somebody prepared.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::index::Parent;
use super::super::*;
use super::model::{Machine, Saved, memory_folder, through_chunks};

const PAGES: u64 = CHUNK_PAGES + 88;

fn machine() -> Machine {
    let mut machine = Machine::new(PAGES, 3);
    (0..40).for_each(|page| machine.scribble(page * 15));
    machine
}

/// A point on another.
struct Scene {
    folder: tempfile::TempDir,
    machine: Machine,
    base: Saved,
    point: Saved,
}

impl Scene {
    fn new() -> Self {
        let (folder, mut machine) = (memory_folder(), machine());
        let base = machine.snapshot(&folder.path().join("base"), None).unwrap();
        machine.scribble(7);
        machine.clear(15);
        let point = machine.snapshot(&folder.path().join("p"), Some(&base)).unwrap();
        Self { folder, machine, base, point }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Why the point cannot be opened, or else what is wrong with it.
    fn refusal(&self) -> String {
        describe(&self.point.open().and_then(|point| point.verify_all()).unwrap_err())
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What `cp` makes of a file: the bytes, no attribute, no hole.
fn copy_plainly(from: &Path, to: &Path) {
    fs::write(to, fs::read(from).unwrap()).unwrap();
}

fn replace(path: &Path, with: impl FnOnce(&Path)) {
    fs::remove_file(path).unwrap();
    with(path);
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_plain_copy_of_a_full_points_memory_is_taken_and_verified() {
    let scene = Scene::new();
    let copy = scene.at("copy");
    copy_plainly(&scene.base.memory, &copy);
    let point = Point::open(&copy, &scene.base.header).unwrap();
    assert!(!point.has_index());
    point.check_sample().unwrap();
    point.verify_all().unwrap();
    assert_eq!(point.runs().collect::<Vec<_>>(), [LayerRun { first: 0, pages: PAGES, layer: 0 }]);
    // Without hashes there is nothing to hold a chunk against.
    assert!(matches!(through_chunks(&point), Err(PointError::NoIndex { .. })));
    // One byte that is not in the sample is enough to tell.
    let page = (0..PAGES).find(|page| !scene.base.header.sample.iter().any(|sample| sample.page == *page)).unwrap();
    OpenOptions::new().write(true).open(&copy).unwrap().write_all_at(&[1], page * PAGE_BYTES + 4000).unwrap();
    point.check_sample().unwrap();
    assert!(matches!(point.verify_all(), Err(PointError::OtherMemory { .. })));
}

#[test]
fn a_point_can_be_based_on_a_plain_copy_whose_index_is_made_anew() {
    let mut scene = Scene::new();
    let copy = scene.at("copy");
    copy_plainly(&scene.base.memory, &copy);
    let parent = Saved { memory: copy.clone(), ..scene.base.clone() };
    scene.machine.restore(&parent.holds);
    scene.machine.scribble(100);
    scene.machine.snapshot(&scene.at("child"), Some(&parent)).unwrap().check();
    // A copy of something else is found out, at the latest now.
    OpenOptions::new().write(true).open(&copy).unwrap().write_all_at(&[1], 31 * PAGE_BYTES).unwrap();
    let refused = scene.machine.snapshot(&scene.at("other"), Some(&parent));
    assert!(matches!(refused, Err(PointError::OtherMemory { .. })));
    assert!(!scene.at("other").exists());
}

#[test]
fn a_memory_file_of_another_length_or_another_point_is_refused() {
    let scene = Scene::new();
    let header = &scene.base.header;
    let copy = scene.at("copy");
    copy_plainly(&scene.base.memory, &copy);
    let file = OpenOptions::new().write(true).open(&copy).unwrap();
    for pages in [0, PAGES - 1, PAGES + 1, 1 << 30] {
        file.set_len(pages * PAGE_BYTES).unwrap();
        assert!(matches!(Point::open(&copy, header), Err(PointError::Length { .. })), "{pages} pages");
    }
    // Another machine's, without index and attribute: the sample tells.
    let mut other = Machine::new(PAGES, 99);
    (0..40).for_each(|page| other.scribble(page * 15));
    let other = other.snapshot(&scene.at("other"), None).unwrap();
    copy_plainly(&other.memory, &copy);
    let point = Point::open(&copy, header).unwrap();
    assert!(matches!(point.check_sample(), Err(PointError::Damaged { what: "the page", .. })));
    // With its index.
    fs::copy(scene.at("other/memory.idx"), scene.at("copy.idx")).unwrap();
    assert!(matches!(Point::open(&copy, header), Err(PointError::OtherPoint { .. })));
    // With its attribute alone.
    fs::remove_file(scene.at("copy.idx")).unwrap();
    fs::rename(&other.memory, &copy).unwrap();
    assert!(
        matches!(Point::open(&copy, header), Err(PointError::OtherPoint { found, .. }) if found == other.header.id)
    );
    // The right index, and the wrong memory behind it.
    let wrong = fs::read(&copy).unwrap();
    replace(&copy, |path| fs::write(path, wrong).unwrap());
    fs::copy(scene.at("base/memory.idx"), scene.at("copy.idx")).unwrap();
    let point = Point::open(&copy, header).unwrap();
    assert!(point.check_sample().is_err() && point.verify_all().is_err() && through_chunks(&point).is_err());
}

#[test]
fn data_where_the_index_has_none_is_found() {
    let scene = Scene::new();
    let file = OpenOptions::new().write(true).open(&scene.base.memory).unwrap();
    file.write_all_at(&[1], 3 * PAGE_BYTES + 5).unwrap();
    let point = scene.base.open().unwrap();
    point.check_sample().unwrap();
    assert!(matches!(point.verify_all(), Err(PointError::Stray { offset, .. }) if offset == 3 * PAGE_BYTES));
}

#[test]
fn a_parent_that_is_missing_or_changed_is_refused() {
    type Change = fn(&Scene, PathBuf, PathBuf);
    let changes: [(Change, &str); 7] = [
        (|_, memory, _| fs::remove_file(memory).unwrap(), "is missing"),
        (|_, _, index| fs::remove_file(index).unwrap(), "only a full one is known without"),
        (|s, _, _| fs::remove_dir_all(s.at("p/memory.layers")).unwrap(), "is missing"),
        (|s, _, index| replace(&index, |path| fs::hard_link(s.at("p/memory.idx"), path).unwrap()), "is of point"),
        (
            |_, _, index| OpenOptions::new().write(true).open(index).unwrap().write_all_at(&[0xaa], 120).unwrap(),
            "checksum does not match",
        ),
        (
            |_, memory, _| {
                OpenOptions::new().write(true).open(memory).unwrap().write_all_at(&[0xaa], 30 * PAGE_BYTES).unwrap();
            },
            "is not what was written",
        ),
        (
            // An index of the parent's name that is whole, and says that other pages are there.
            |s, _, index| {
                let bytes = fs::read(&index).unwrap();
                let (read, _) = Index::decode(&bytes).unwrap();
                let records = read.records()[1..].to_vec();
                let other = Index::new(read.id(), read.parent(), read.memory_bytes(), records).unwrap();
                assert_eq!(other.id(), s.base.header.id);
                replace(&index, |path| fs::write(path, other.encode().0).unwrap());
            },
            "is not the one that belongs to point",
        ),
    ];
    for (change, why) in changes {
        let scene = Scene::new();
        let id = scene.base.header.id;
        let layers = scene.at("p/memory.layers");
        change(&scene, layers.join(id.to_string()), layers.join(format!("{id}.idx")));
        let said = scene.refusal();
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn links_pipes_and_folders_in_place_of_files_are_refused_and_nobody_waits() {
    let id = |scene: &Scene| scene.base.header.id.to_string();
    let places: [fn(&Scene, &str) -> PathBuf; 4] = [
        |s, _| s.at("p/memory"),
        |s, _| s.at("p/memory.idx"),
        |s, id| s.at("p/memory.layers").join(id),
        |s, id| s.at("p/memory.layers").join(format!("{id}.idx")),
    ];
    type Trap = fn(&Path);
    let traps: [(Trap, &str); 3] = [
        (|path| symlink("/etc/passwd", path).unwrap(), "symbolic link"),
        (fifo, "no plain file"),
        (|path| fs::create_dir(path).unwrap(), "no plain file"),
    ];
    for place in places {
        for (trap, why) in traps {
            let scene = Scene::new();
            replace(&place(&scene, &id(&scene)), trap);
            let said = scene.refusal();
            assert!(said.contains(why), "{why}: {said}");
        }
    }
    let scene = Scene::new();
    fs::rename(scene.at("p/memory.layers"), scene.at("elsewhere")).unwrap();
    symlink(scene.at("elsewhere"), scene.at("p/memory.layers")).unwrap();
    assert!(scene.refusal().contains("cannot open the folder"), "{}", scene.refusal());
    for (trap, why) in traps {
        let state = scene.at("trap");
        trap(&state);
        let said = describe(&StateFile::read(&state).unwrap_err());
        assert!(said.contains(why), "{why}: {said}");
        let said = describe(&StateHeader::read(&state).unwrap_err());
        assert!(said.contains(why), "{why}: {said}");
        fs::remove_file(&state).or_else(|_| fs::remove_dir(&state)).unwrap();
    }
}

#[test]
fn files_that_are_huge_are_not_read() {
    let scene = Scene::new();
    for (name, why) in [("p/memory.idx", "more than"), ("p/state", "more than 67108864")] {
        let path = scene.at(name);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        let said = match name {
            "p/state" => describe(&StateFile::read(&path).unwrap_err()),
            _ => scene.refusal(),
        };
        assert!(said.contains(why), "{said}");
    }
    assert!(StateHeader::read(&scene.at("p/state")).is_err());
}

#[test]
fn a_chain_that_leads_back_to_itself_is_refused() {
    let scene = Scene::new();
    let (id, base) = (scene.point.header.id, scene.base.header.id);
    // The base's index says that the base is based on the point. No digest can be right all the way round.
    let path = scene.at("p/memory.layers").join(format!("{base}.idx"));
    let (read, _) = Index::decode(&fs::read(&path).unwrap()).unwrap();
    let back = Parent { id, index: scene.point.header.index };
    let round = Index::new(base, Some(back), read.memory_bytes(), read.records().to_vec()).unwrap();
    let (bytes, digest) = round.encode();
    replace(&path, |path| fs::write(path, bytes).unwrap());
    assert!(scene.refusal().contains("is not the one that belongs to point"));
    // And with the point's index and header made to fit.
    let own = scene.at("p/memory.idx");
    let (read, _) = Index::decode(&fs::read(&own).unwrap()).unwrap();
    let on = Some(Parent { id: base, index: digest });
    let (bytes, index) = Index::new(id, on, read.memory_bytes(), read.records().to_vec()).unwrap().encode();
    replace(&own, |path| fs::write(path, bytes).unwrap());
    let header = StateHeader { index, ..scene.point.header.clone() };
    assert!(matches!(Point::open(&scene.point.memory, &header), Err(PointError::TooDeep)));
}

#[test]
fn a_point_has_so_many_layers_and_no_more() {
    let folder = memory_folder();
    let base = Machine::new(8, 5).snapshot(&folder.path().join("p"), None).unwrap();
    let layers = folder.path().join("p/memory.layers");
    fs::create_dir(&layers).unwrap();
    let id = |number: usize| PointId::from_bytes(u128::try_from(number).unwrap().to_le_bytes());
    let mut parent = None;
    let mut open = |number: usize| {
        let index = Index::new(id(number), parent, 8 * PAGE_BYTES, Vec::new()).unwrap();
        let (bytes, digest) = index.encode();
        fs::write(layers.join(format!("{}.idx", id(number))), bytes).unwrap();
        File::create(layers.join(id(number).to_string())).unwrap().set_len(8 * PAGE_BYTES).unwrap();
        let on = parent.map(|parent| parent.id);
        parent = Some(Parent { id: id(number), index: digest });
        Point::open(
            &base.memory,
            &StateHeader { id: id(number), parent: on, index: digest, sample: Vec::new(), ..base.header.clone() },
        )
    };
    (1..LAYERS_MAX).for_each(|number| assert!(open(number).is_ok(), "{number} layers"));
    let deepest = open(LAYERS_MAX).unwrap();
    assert!(matches!(deepest.check_child(8 * PAGE_BYTES), Err(PointError::TooDeep)));
    assert!(matches!(open(LAYERS_MAX + 1), Err(PointError::TooDeep)));
}

#[test]
fn a_target_that_cannot_be_one_is_refused_and_nothing_is_left() {
    let mut scene = Scene::new();
    // A parent on another filesystem.
    let elsewhere = tempfile::tempdir().unwrap();
    let (machine, base) = (&mut scene.machine, &scene.base);
    let refused = machine.snapshot(&elsewhere.path().join("x"), Some(base));
    assert!(matches!(refused, Err(PointError::OtherFilesystem { .. })));
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    // A parent of another size.
    let mut small = Machine::new(9, 1);
    assert!(matches!(small.snapshot(&scene.at("x"), Some(&scene.base)), Err(PointError::ParentLength { .. })));
    // Layers that lead elsewhere, and folders where files go.
    let before = fs::read(scene.at("base/state")).unwrap();
    fs::create_dir(scene.at("q")).unwrap();
    symlink(elsewhere.path(), scene.at("q/memory.layers")).unwrap();
    assert!(scene.machine.snapshot(&scene.at("q"), Some(&scene.base)).is_err());
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(scene.at("q")).unwrap().count(), 1);
    for name in ["memory", "state", "memory.idx"] {
        let folder = scene.at("r");
        fs::create_dir_all(folder.join(name)).unwrap();
        assert!(scene.machine.snapshot(&folder, None).is_err(), "{name}");
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [name]);
        fs::remove_dir_all(&folder).unwrap();
    }
    let same = PointFiles::new(scene.at("one"), scene.at("one"));
    assert!(matches!(scene.machine.snapshot_at(&same, None), Err(PointError::SamePath { .. })));
    assert_eq!(fs::read(scene.at("base/state")).unwrap(), before);
}

#[test]
fn firecrackers_two_paths_may_be_in_two_folders_and_are_replaced() {
    let scene = Scene::new();
    fs::create_dir(scene.at("s")).unwrap();
    fs::create_dir(scene.at("m")).unwrap();
    let files = PointFiles::new(scene.at("s/vm.state"), scene.at("m/vm.mem"));
    // What was there is somebody else's.
    fs::write(&files.state, b"old").unwrap();
    fs::write(&files.memory, b"old").unwrap();
    let mut machine = machine();
    machine.snapshot_at(&files, None).unwrap().check();
    machine.scribble(5);
    let second = machine.snapshot_at(&files, None).unwrap();
    second.check();
    machine.scribble(6);
    machine.snapshot_at(&files, Some(&second)).unwrap().check();
    assert_eq!(fs::read_dir(scene.at("s")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(scene.at("m")).unwrap().count(), 3, "memory, index, and the layers it is based on");
}

#[test]
fn a_layer_whose_write_failed_is_not_finished() {
    use crate::faults::{self, Fault};
    let folder = memory_folder();
    let layer = LayerWriter::create(&PointFiles::in_folder(&folder.path().join("p")), 64 << 12, None).unwrap();
    let (failed, _) = faults::with(Fault::At(0), || layer.pen().write_bytes(3, &[1; PAGE]));
    assert!(matches!(failed, Err(PointError::File(_))));
    assert!(matches!(layer.finish(), Err(PointError::Unfinished)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
