//! The OpenAPI document that husk serves is true. schemathesis, which tools/dev.d/clients installs, makes requests of it,
//! right ones and wrong ones, over a bridge from TCP (tests/clients/schemathesis): husk never fails, answers nothing that
//! the document does not have, and refuses what the document does not allow. `/husk/v1/events`, which has no end, is left
//! out; tests/api_husk.rs follows it.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::folder::Folder;
use common::guest::PROBE;
use common::{HUSK, Launch};
use serde_json::json;

/// Requests of each operation and state, beside those for each bound of the document.
const EXAMPLES: &str = "200";
/// How long they may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(1100);

/// Asks husk with these arguments, started anew whenever a request has ended it.
fn is_true_of_husk(arguments: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schemathesis = root.join("target/clients/python/bin/schemathesis");
    assert!(schemathesis.exists(), "{} is missing: run tools/dev.d/clients", schemathesis.display());
    let folder = Folder::new();
    let run = root.join("tests/clients/schemathesis/run");
    // What ends the first process ends all of them, and their mounts and network are gone.
    let words = ["--mount", "--net", "--pid", "--fork", "--kill-child", run.to_str().unwrap(), &folder.at("")];
    let launch = Launch::new("unshare", words).args([schemathesis.to_str().unwrap(), EXAMPLES, HUSK]).args(arguments);
    let ended = launch.start().end_within(LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert!(ended.text().contains("No issues found"), "{ended}");
}

#[test]
fn the_document_is_true_of_a_machine_that_is_being_described() {
    is_true_of_husk(&[]);
}

#[test]
fn the_document_is_true_of_a_machine_that_runs() {
    let folder = Folder::new();
    // Files and the tap are those that the harness makes.
    let config = json!({
        "boot-source": { "kernel_image_path": PROBE, "boot_args": "check=serial end=poweroff" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
        "drives": [{ "drive_id": "data", "is_root_device": false, "is_read_only": false, "path_on_host": "disk" }],
        "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": "tap0" }],
    });
    is_true_of_husk(&["--config-file", &folder.file("vm.json", config.to_string().as_bytes())]);
}
