//! The README's recipes, run as they stand there, each in a network namespace of its own. Only the guest is another: the
//! probe, which pings its neighbour.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use common::guest::PROBE;
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

#[test]
fn the_chapter_has_a_recipe_for_each_kind_of_network() {
    let names: Vec<_> = recipes().into_iter().map(|(name, _)| name).collect();
    for name in ["tap", "bridge", "multi-queue"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
}

#[test]
fn every_network_of_a_recipe_connects_its_guest() {
    for (name, recipe) in recipes().into_iter().filter(|(_, recipe)| recipe.contains("--net ")) {
        assert_eq!(recipe.matches(AS_WRITTEN).count(), 1, "{name} starts husk once");
        let probing = format!("'{HUSK}' run --kernel '{PROBE}' --cmdline 'check=net end=poweroff'");
        let script = recipe.replace(AS_WRITTEN, &probing);
        in_network_namespace(|| {
            let ended = Launch::new("sh", ["-euc", &script]).end();
            assert_eq!(ended.code(), Some(0), "{name}: {ended}");
            assert_eq!(ended.check("net").number("pings"), 100, "{name}");
        });
    }
}
