//! The README's recipes, run as they stand there, each in a network namespace or a folder of its own. Only the guest is
//! another: the probe, which pings its neighbour, or writes to its disk and reads it again.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::File;
use std::io::Read;
use std::process::Command;

use common::ended::Facts;
use common::folder::Folder;
use common::guest::{PROBE, fnv1a};
use common::network::in_network_namespace;
use common::{HUSK, Launch};

const README: &str = include_str!("../README.md");
const CHAPTER: &str = "\n## Disks and networks\n";
/// What starts husk in a recipe.
const AS_WRITTEN: &str = "target/release/husk run --kernel target/guest/vmlinux --initrd target/guest/initramfs.cpio";

/// The blocks of the chapter that are marked as recipes, by name.
fn recipes() -> Vec<(&'static str, &'static str)> {
    let chapter = README.split_once(CHAPTER).unwrap().1;
    let chapter = chapter.split_once("\n## ").unwrap().0;
    let blocks = chapter.split("```sh recipe=").skip(1);
    blocks
        .map(|block| {
            let (name, rest) = block.split_once('\n').unwrap();
            (name, rest.split_once("```").unwrap().0)
        })
        .collect()
}

/// A recipe with the husk under test, and the probe, which does one check.
fn with_the_probe(recipe: &str, check: &str) -> String {
    let probing = format!("'{HUSK}' run --kernel '{PROBE}' --cmdline 'check={check} end=poweroff'");
    recipe.replace(AS_WRITTEN, &probing)
}

#[test]
fn the_chapter_has_a_recipe_for_each_kind_of_network_and_disk() {
    let names: Vec<_> = recipes().into_iter().map(|(name, _)| name).collect();
    for name in ["tap", "bridge", "multi-queue", "disk", "loop"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
}

#[test]
fn every_network_of_a_recipe_connects_its_guest() {
    for (name, recipe) in recipes().into_iter().filter(|(_, recipe)| recipe.contains("--net ")) {
        assert_eq!(recipe.matches(AS_WRITTEN).count(), 1, "{name} starts husk once");
        let script = with_the_probe(recipe, "net");
        in_network_namespace(|| {
            let ended = Launch::new("sh", ["-euc", &script]).end();
            assert_eq!(ended.code(), Some(0), "{name}: {ended}");
            assert_eq!(ended.check("net").number("pings"), 100, "{name}");
        });
    }
}

/// The loop devices over a file, detached at the end if the recipe did not come that far.
struct Loops(String);

impl Loops {
    fn devices(&self) -> Vec<String> {
        let output =
            Command::new("losetup").args(["--noheadings", "--output", "NAME", "--associated", &self.0]).output();
        String::from_utf8(output.unwrap().stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in self.devices() {
            // A test that has failed has nothing to add.
            let _ = Command::new("losetup").args(["--detach", &device]).status();
        }
    }
}

#[test]
fn every_disk_of_a_recipe_keeps_what_its_guest_writes() {
    for (name, file, bytes, block) in [("disk", "data.img", 1 << 30, 512), ("loop", "loop.img", 64 << 20, 4096)] {
        let (_, recipe) = recipes().into_iter().find(|(found, _)| *found == name).unwrap();
        assert_eq!(recipe.matches(AS_WRITTEN).count(), 1, "{name} starts husk once");
        let folder = Folder::new();
        let loops = Loops(folder.at(file));
        let ended = Launch::new("sh", ["-euc", &with_the_probe(recipe, "blk")]).folder(folder.path()).end();
        assert_eq!(ended.code(), Some(0), "{name}: {ended}");
        ended.check("blk");
        let disk = Facts::of(&ended.line("BLK 0 "));
        assert_eq!((disk.number("capacity"), disk.number("blk_size")), (bytes / 512, block), "{name}: {ended}");
        let mut written = vec![0; 1 << 20];
        File::open(folder.at(file)).unwrap().read_exact(&mut written).unwrap();
        assert_eq!(disk.number("fnv"), fnv1a(&written), "{name}: {ended}");
        assert_eq!(loops.devices(), Vec::<String>::new(), "{name}");
    }
}
