//! `husk snapshot` as a user and a program see it, on snapshots that vmm wrote.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use vmm::epoch::{Described, Digest, Encoded, LayerWriter, Point, PointFiles, Section, SectionKind, StateHeader};

const HUSK: &str = env!("CARGO_BIN_EXE_husk");
const PAGES: u64 = 600;

fn husk_snapshot<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(HUSK).arg("snapshot").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What is printed with `--json`, and the exit code.
fn told(verb: &str, path: &Path) -> (Value, i32) {
    let output = husk_snapshot([verb.as_ref(), "--json".as_ref(), path.as_os_str()]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    (value["points"].clone(), output.status.code().unwrap())
}

/// What is said of a path that is refused.
fn refused<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = husk_snapshot(args);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    let line = text(&output.stderr).to_owned();
    assert!(line.starts_with("husk: ") && line.lines().count() == 1, "{line}");
    line
}

/// Writes a snapshot of `pages`, filled with `fill`.
fn write(folder: &Path, parent: Option<&Path>, pages: &[u64], fill: u8) -> StateHeader {
    let parent = parent.map(|parent| {
        let (header, _) = StateHeader::read(&parent.join("state")).unwrap();
        Arc::new(Point::open(&parent.join("memory"), &header).unwrap())
    });
    let layer = LayerWriter::create(&PointFiles::in_folder(folder), PAGES * 4096, parent).unwrap();
    let mut pen = layer.pen();
    pages.iter().for_each(|&page| pen.write_bytes(page, &[fill; 4096]).unwrap());
    drop(pen);
    let cpu = Encoded::of(1, &"a CPU").unwrap();
    let machine = Described { created_ms: 1_795_693_333_000, cpu, config: Digest::of(b"") };
    let sections = [Section::of(SectionKind::Vcpu, "0", 1, &"registers").unwrap()];
    layer.finish().unwrap().publish(&machine, &sections).unwrap()
}

/// A full snapshot `a`, and `b` based on it, and `c` on that.
fn chain() -> (TempDir, [PathBuf; 3]) {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
    write(&a, None, &[0, 1, 2, 599], 1);
    write(&b, Some(&a), &[1, 7], 2);
    write(&c, Some(&b), &[2], 3);
    (folder, [a, b, c])
}

#[test]
fn a_folder_of_snapshots_is_listed_with_what_each_takes() {
    let (folder, [a, ..]) = chain();
    let output = husk_snapshot(["list".as_ref(), folder.path().as_os_str()]);
    assert_eq!(output.status.code(), Some(0));
    let table = text(&output.stdout);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("2026-11-26T") && table.contains("/c\n"), "{table}");
    let (points, status) = told("list", folder.path());
    assert_eq!((points.as_array().unwrap().len(), status), (3, 0));
    assert_eq!(points[1]["parent"], points[0]["id"]);
    assert_eq!((&points[0]["pages"], &points[2]["pages"], &points[2]["layers"]), (&4.into(), &1.into(), &3.into()));
    assert!(points[2]["disk_bytes"].as_u64().unwrap() < 64 << 10, "{points}");
    let (points, _) = told("list", &a);
    assert_eq!(points.as_array().unwrap().len(), 1, "its own folder names a snapshot too");
    let empty = tempfile::tempdir().unwrap();
    let output = husk_snapshot(["list".as_ref(), empty.path().as_os_str()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("there is no snapshot in"), "{output:?}");
}

#[test]
fn a_snapshot_is_inspected_by_its_folder_or_by_its_state_file_alone() {
    let (_folder, [_, _, c]) = chain();
    let (points, status) = told("inspect", &c);
    assert_eq!(status, 0);
    assert_eq!(points[0]["sections"][0]["kind"], "vcpu");
    assert_eq!(points[0]["layers"].as_array().unwrap().len(), 3);
    let (points, status) = told("inspect", &c.join("state"));
    assert_eq!((points[0]["layers"].as_array().unwrap().len(), status), (0, 0));
    let output = husk_snapshot(["inspect".as_ref(), c.as_os_str()]);
    for word in ["parent", "vcpu `0`", "2026-11-26T", "3 M", "runs"] {
        assert!(text(&output.stdout).contains(word), "{word}: {output:?}");
    }
}

#[test]
fn a_changed_byte_in_any_layer_is_found() {
    let (_folder, [a, _, c]) = chain();
    let output = husk_snapshot(["verify".as_ref(), c.as_os_str(), a.as_os_str()]);
    assert_eq!((output.status.code(), text(&output.stdout).lines().count()), (Some(0), 2), "{output:?}");
    let memory = fs::OpenOptions::new().write(true).open(a.join("memory")).unwrap();
    memory.write_all_at(&[9], 4096 + 17).unwrap();
    let line = refused(["verify".as_ref(), c.as_os_str()]);
    assert!(line.contains("memory.layers/") && line.contains("is not what was written"), "{line}");
    let (points, status) = told("verify", &a);
    assert_eq!(status, 1);
    assert!(points[0]["error"].as_str().unwrap().contains("a/memory"), "{points}");
    // The page is one of the sample, where nothing else is known.
    let line = refused(["verify".as_ref(), a.join("state").as_os_str()]);
    assert!(line.contains("--memory"), "{line}");
}

#[test]
fn dropped_snapshots_leave_those_based_on_them_whole() {
    let (folder, [a, b, c]) = chain();
    // What a machine restored from there has left for the next one goes too.
    fs::write(b.join("memory.ws"), b"HUSKWSET").unwrap();
    for (path, kept) in [(&b, false), (&a, false), (&c, true)] {
        let (points, status) = told("drop", path);
        assert_eq!(status, 0, "{points}");
        assert!(!path.exists());
        assert_eq!(points[0]["freed_bytes"].as_u64().unwrap() >= 16384, kept, "{points}");
        if c.exists() {
            assert_eq!(told("verify", &c).1, 0);
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_is_not_a_snapshots_folder_is_not_dropped() {
    let (folder, [a, b, _]) = chain();
    let at = |name: &str| folder.path().join(name);
    let refuse = |path: &Path, why: &str| {
        let line = refused(["drop".as_ref(), path.as_os_str()]);
        assert!(line.contains(why), "{why}: {line}");
    };
    refuse(folder.path(), "is not a point's folder");
    symlink(&a, at("link")).unwrap();
    refuse(&at("link"), "cannot open the folder");
    fs::create_dir(at("empty")).unwrap();
    refuse(&at("empty"), "is not a point's folder");
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other/state"), b"a state of something else").unwrap();
    refuse(&at("other"), "is not a point's folder");
    fs::write(a.join("notes"), b"").unwrap();
    refuse(&a, "`notes`");
    symlink("/etc", b.join("memory.layers").join("etc")).unwrap();
    refuse(&b, "etc");
    refuse(&at("nowhere"), "nowhere");
    assert_eq!([told("verify", &a).1, told("verify", &b).1], [0, 0]);
}

#[test]
fn each_verb_has_an_example_and_a_firecracker_snapshot_is_refused_by_name() {
    for verb in ["list", "inspect", "verify", "drop"] {
        let help = husk_snapshot([verb, "--help"]);
        assert!(text(&help.stdout).contains("\nExample: husk snapshot "), "{verb}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vmstate");
    fs::write(&path, [&0x0710_1984_8664_0000_u64.to_le_bytes()[..], &[7; 500]].concat()).unwrap();
    assert!(refused(["inspect".as_ref(), path.as_os_str()]).contains("Firecracker"));
}
