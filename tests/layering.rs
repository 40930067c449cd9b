//! Holds the tree to its architecture: dependencies point one way (`src -> vmm -> devices -> arch`), `devices` never
//! names KVM, and the files that may hold `unsafe` are listed here.
#![expect(clippy::unwrap_used, reason = "a test that cannot read the tree fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that opt out of `unsafe_code = "deny"`. A new one needs a reason that a reviewer accepts.
const UNSAFE_FILES: &[&str] = &[
    "arch/src/x86_64/cache.rs",
    "arch/src/x86_64/vcpu/tests.rs",
    "arch/src/x86_64/vcpu/tsc.rs",
    "arch/src/x86_64/vcpu/xsave.rs",
    "devices/src/backend/block/cached.rs",
    "devices/src/backend/block/file.rs",
    "devices/src/backend/block/image.rs",
    "devices/src/backend/block/probe.rs",
    "devices/src/backend/block/uring.rs",
    "devices/src/backend/burst.rs",
    "devices/src/backend/memory.rs",
    "devices/src/backend/net/tap.rs",
    "devices/src/legacy/console.rs",
    "devices/src/testing/namespace.rs",
    "devices/src/virtio/buffers.rs",
    "devices/src/virtio/net/frames.rs",
    "devices/src/virtio/rng.rs",
    "devices/tests/allocations.rs",
    "src/fatal.rs",
    "src/process.rs",
    "src/pty.rs",
    "src/terminal.rs",
    "tests/common/sys.rs",
    "tools/bench/src/bin/floor.rs",
    "tools/bench/src/io/floor.rs",
    "tools/bench/src/io/host.rs",
    "tools/bench/src/snapshot/lazy.rs",
    "vmm/src/config/host.rs",
    "vmm/src/control/signals.rs",
    "vmm/src/epoch/barrier.rs",
    "vmm/src/epoch/folder.rs",
    "vmm/src/epoch/residency.rs",
    "vmm/src/host/measure/memory.rs",
    "vmm/src/host/probe.rs",
    "vmm/src/machine/cpus/tests/guest.rs",
    "vmm/src/machine/hotplug.rs",
    "vmm/src/machine/irqchip.rs",
    "vmm/src/machine/restored.rs",
    "vmm/src/machine/slots.rs",
    "vmm/src/machine/slots/log.rs",
    "vmm/src/memfd.rs",
    "vmm/src/pager/userfault.rs",
    "vmm/src/placement/apply.rs",
    "vmm/src/placement/residency.rs",
    "vmm/src/placement/threads.rs",
    "vmm/src/random.rs",
    "vmm/src/vcpu/crash.rs",
    "vmm/src/vcpu/kick.rs",
];

/// A folder and the words that no source file below it may name.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("arch/src", &["devices::", "vmm::"]),
    ("devices/src", &["vmm::", "kvm_ioctls", "kvm_bindings", "/dev/kvm"]),
    ("vmm/src", &["clap::", "std::process::exit"]),
    ("src", &["kvm_ioctls", "kvm_bindings", "devices::", "vm_memory::"]),
];

/// A crate's manifest and the workspace crates that it may not depend on.
const FORBIDDEN_DEPENDENCIES: &[(&str, &[&str])] = &[
    ("arch/Cargo.toml", &["devices", "vmm"]),
    ("devices/Cargo.toml", &["vmm", "kvm-ioctls", "kvm-bindings"]),
    ("vmm/Cargo.toml", &["clap"]),
    ("Cargo.toml", &["kvm-ioctls", "kvm-bindings"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The file's lines without its comments, numbered from 1.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let bare = text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned());
    bare.enumerate().map(|(index, line)| (index + 1, line)).collect()
}

#[test]
fn no_file_names_what_its_crate_must_not_know() {
    for (folder, words) in FORBIDDEN {
        for path in sources(&root().join(folder)) {
            for (number, line) in code(&path) {
                let named = words.iter().find(|word| line.contains(**word));
                assert!(named.is_none(), "{}:{number} names {}", path.display(), named.unwrap());
            }
        }
    }
}

#[test]
fn no_crate_depends_on_one_above_it() {
    for (manifest, names) in FORBIDDEN_DEPENDENCIES {
        let text = fs::read_to_string(root().join(manifest)).unwrap();
        let package = text.split_once("[package]").unwrap().1;
        for name in *names {
            let direct = package
                .lines()
                .any(|line| line.starts_with(&format!("{name}.")) || line.starts_with(&format!("{name} ")));
            assert!(!direct, "{manifest} depends on {name}");
        }
    }
}

#[test]
fn unsafe_code_stands_only_in_the_listed_files() {
    let folders = ["arch/src", "devices/src", "devices/tests", "vmm/src", "src", "tests", "tools"];
    let found: BTreeSet<String> = folders
        .iter()
        .flat_map(|folder| sources(&root().join(folder)))
        .filter(|path| !path.ends_with("tests/layering.rs"))
        .filter(|path| code(path).iter().any(|(_, line)| line.contains("unsafe_code")))
        .map(|path| path.strip_prefix(root()).unwrap().display().to_string())
        .collect();
    let listed: BTreeSet<String> = UNSAFE_FILES.iter().map(|&path| path.to_owned()).collect();
    assert_eq!(found, listed, "files that opt out of the unsafe lint against the list in this test");
}
