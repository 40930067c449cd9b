//! Every flag that Firecracker takes, under Firecracker's name: none is a mistake, and those that husk honours do what they say.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use common::folder::Folder;
use common::guest::{LISTENING, PROBE};
use common::http::Connection;
use common::{HUSK, Launch};
use serde_json::{Value, json};

/// Flags with their values that change nothing yet, which is said.
const WITHOUT_EFFECT: [&[&str]; 9] = [
    &["--seccomp-filter", "/nowhere"],
    &["--no-seccomp"],
    &["--start-time-us", "1764000000000000"],
    &["--start-time-cpu-us", "1500"],
    &["--parent-cpu-time-us", "2500"],
    &["--metadata", "/nowhere"],
    &["--boot-timer"],
    &["--mmds-size-limit", "51200"],
    &["--enable-pci"],
];

/// A folder with husk in it under Firecracker's name, and a machine's description.
struct Scene {
    folder: Folder,
}

impl Scene {
    fn new() -> Self {
        let folder = Folder::new();
        std::os::unix::fs::symlink(HUSK, folder.at("firecracker")).unwrap();
        let config = json!({
            "boot-source": { "kernel_image_path": PROBE, "boot_args": "check=serial end=poweroff" },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
        });
        folder.file("vm.json", config.to_string().as_bytes());
        Self { folder }
    }

    fn firecracker(&self) -> Launch {
        Launch::new(self.folder.at("firecracker"), [""; 0])
    }

    /// Flags that husk honours while it runs a machine.
    fn honoured(&self) -> Vec<Vec<String>> {
        let at = |name: &str| self.folder.at(name);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        vec![
            words(&["--id", "seven"]),
            words(&["--config-file", &at("vm.json")]),
            words(&["--log-path", &at("log")]),
            words(&["--level", "DEBUG"]),
            words(&["--module", "husk"]),
            words(&["--show-level"]),
            words(&["--show-log-origin"]),
            words(&["--metrics-path", &at("metrics")]),
            words(&["--http-api-max-payload-size", "20000"]),
        ]
    }
}

#[test]
fn each_flag_alone_is_taken_and_one_without_effect_is_told_once() {
    let scene = Scene::new();
    let alone = |words: &[String]| {
        let launch = scene.firecracker().args(["--api-sock", &scene.folder.at("s")]).args(words);
        let husk = launch.start();
        assert_eq!(Connection::open(scene.folder.at("s")).ask("GET", "/", "").status, 200, "{words:?}");
        husk.signal(libc::SIGTERM);
        let ended = husk.end();
        assert_eq!(ended.code(), Some(0), "{words:?}: {ended}");
        ended
    };
    for words in scene.honoured() {
        assert_eq!(alone(&words).stderr, "", "{words:?}");
    }
    for words in WITHOUT_EFFECT {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let ended = alone(&words);
        assert!(
            ended.message().ends_with(&format!("accepted without effect in this version: {}", words[0])),
            "{ended}"
        );
    }
}

#[test]
fn all_flags_together_are_taken_and_those_that_are_honoured_are() {
    let scene = Scene::new();
    let launch = scene.firecracker().args(["--api-sock", &scene.folder.at("s")]);
    let husk = launch.args(scene.honoured().concat()).args(WITHOUT_EFFECT.concat()).start();
    husk.wait_for(LISTENING);
    let mut client = Connection::open(scene.folder.at("s"));
    let instance = client.ask("GET", "/", "").json();
    assert_eq!((instance["id"].as_str(), instance["state"].as_str()), (Some("seven"), Some("Running")));
    let mut long = |bytes: usize| client.ask("PUT", "/actions", &" ".repeat(bytes)).json()["fault_message"].to_string();
    assert!(long(19_000).contains("the body is empty"));
    assert!(long(20_001).contains("larger than 20000 bytes"));
    husk.signal(libc::SIGTERM);
    let ended = husk.end();
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""), "{ended}");

    let log = String::from_utf8(scene.folder.read("log")).unwrap();
    let (warnings, others): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| line.contains("without effect"));
    let [warning] = warnings[..] else { panic!("one warning in: {log}") };
    for words in WITHOUT_EFFECT {
        assert!(warning.contains(words[0]), "{warning}");
    }
    assert!(warning.contains(" [seven:main:WARN:src/cli/firecracker.rs:"), "{warning}");
    assert!(others.iter().any(|line| line.contains(":DEBUG:src/api/connection.rs:")), "{log}");
    assert!(others.iter().all(|line| line.contains(":src/")), "no module but husk has a line: {log}");

    let figures = String::from_utf8(scene.folder.read("metrics")).unwrap();
    let figures: Value = serde_json::from_str(figures.lines().next().unwrap()).unwrap();
    assert!(figures["vcpu"]["exit_io_out"].as_u64() > Some(0), "{figures}");
}

#[test]
fn a_machine_without_a_socket_is_booted_with_all_other_flags() {
    let scene = Scene::new();
    let launch = scene.firecracker().args(["--api-sock", &scene.folder.at("s"), "--no-api"]);
    let mut husk = launch.args(scene.honoured().concat()).args(WITHOUT_EFFECT.concat()).typed();
    husk.wait_for(LISTENING);
    assert!(!scene.folder.path().join("s").exists());
    husk.type_in(b"end\n");
    husk.end().went_well();
}

#[test]
fn what_is_printed_is_printed_whatever_else_is_asked() {
    let scene = Scene::new();
    let state = scene.folder.file("state", b"no state");
    for (words, printed) in [(&["--version"][..], "Firecracker v1.17.0"), (&["--snapshot-version"], "v1.0.0")] {
        for all in [false, true] {
            let mut launch = scene.firecracker().args(words);
            if all {
                launch = launch.args(scene.honoured().concat()).args(WITHOUT_EFFECT.concat());
            }
            assert_eq!(launch.end().went_well().text().trim(), printed);
        }
    }
    let ended = scene.firecracker().args(["--describe-snapshot", &state]).end();
    assert_eq!((ended.code(), ended.text().as_str()), (Some(1), ""), "{ended}");
    assert!(ended.message().contains(&state), "{ended}");
    for name in ["log", "metrics"] {
        assert!(!scene.folder.path().join(name).exists(), "{name} was made");
    }
}
