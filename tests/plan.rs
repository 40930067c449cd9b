//! `husk plan` as a user and a program see it.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const HUSK: &str = env!("CARGO_BIN_EXE_husk");

struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn vm(&self, name: &str, vcpus: u32, mib: u32) -> PathBuf {
        let file = json!({
            "zz-unknown": [1, 2],
            "boot-source": { "kernel_image_path": "/nowhere" },
            "machine-config": { "vcpu_count": vcpus, "mem_size_mib": mib },
        });
        self.file(name, &format!("{file:#}\n"))
    }

    /// A host of two nodes of four CPUs and 8 GiB.
    fn host(&self) -> PathBuf {
        let node = |id: u16, cpus: &str| {
            json!({
                "id": id, "cpus": cpus, "total_bytes": 8u64 << 30, "free_bytes": 8u64 << 30, "file_cache_bytes": 0,
                "distances": { "0": 10 + 10 * id, "1": 20 - 10 * id },
                "pools": [{
                    "page_bytes": 2 << 20, "total": 512, "free": 512, "reserved": null, "surplus": 0, "overcommit": null
                }],
            })
        };
        let pool = json!({
            "page_bytes": 2 << 20, "total": 1024, "free": 1024, "reserved": 0, "surplus": 0, "overcommit": 0
        });
        let facts = json!({
            "cpu": {
                "online": "0-7", "isolated": "", "cores": [], "l3": ["0-3", "4-7"],
                "nodes": [node(0, "0-3"), node(1, "4-7")],
            },
            "memory": { "available_bytes": 16u64 << 30, "pools": [pool] },
            "limits": { "cpuset_cpus": null, "cpuset_mems": null },
        });
        self.file("host.json", &json!({ "facts": facts, "verdicts": [] }).to_string())
    }
}

fn husk_plan<'a>(args: impl IntoIterator<Item = &'a str>) -> Output {
    Command::new(HUSK).arg("plan").args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn refusal(output: &Output) -> String {
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"".as_slice()));
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn vms_that_fit_are_told_their_node_and_cpus_and_their_files_get_them() {
    let scene = Scene::new();
    let (a, b, host) = (scene.vm("a.json", 4, 4096), scene.vm("b.json", 2, 1024), scene.host());
    fs::set_permissions(&a, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::read_to_string(&b).unwrap();
    let args = ["--vm", text(&a), "--vm", text(&b), "--host", text(&host), "--json"];
    let output = husk_plan(args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["vms"][0]["parts"][0]["cpus"], json!([0, 1, 2, 3]));
    assert_eq!(plan["vms"][1]["parts"][0]["node"], 1);
    assert_eq!(plan["vms"][1]["io_cpus"], "6-7");
    assert_eq!(plan["nodes"][0]["overcommit"], 1.0);
    assert_eq!(plan["mend"], json!([]));
    assert_eq!(fs::read_to_string(&b).unwrap(), before, "nothing is written unasked");

    let written = husk_plan(args.into_iter().chain(["--write"]));
    assert_eq!(written.status.code(), Some(0), "{written:?}");
    assert_eq!(written.stdout, output.stdout);
    let now = fs::read_to_string(&b).unwrap();
    // What was there stays as it was written.
    assert!(now.starts_with(before.trim_end().strip_suffix('}').unwrap().trim_end()), "{now}");
    let placement = &serde_json::from_str::<Value>(&now).unwrap()["husk"]["placement"];
    assert_eq!(placement["memory"], json!({ "nodes": "1", "policy": "bind" }));
    assert_eq!(placement["threads"]["vcpu1"], json!({ "cpus": "5" }));
    assert_eq!(placement["threads"]["io"], json!({ "cpus": "6-7" }));
    assert_eq!(fs::metadata(&a).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(scene.folder.path()).unwrap().count(), 3, "no other file is left");

    // The files that were written are read again, and say the same.
    let again = husk_plan(args.into_iter().chain(["--write"]));
    assert_eq!((again.status.code(), again.stdout), (Some(0), output.stdout));
    assert_eq!(fs::read_to_string(&b).unwrap(), now);
}

#[test]
fn vms_that_do_not_fit_are_told_what_is_lacking_and_nothing_is_written() {
    let scene = Scene::new();
    let (a, b, host) = (scene.vm("a.json", 4, 4096), scene.vm("b.json", 6, 1024), scene.host());
    let before = fs::read_to_string(&a).unwrap();
    let args = ["--vm", text(&a), "--vm", text(&b), "--host", text(&host), "--write"];
    let output = husk_plan(args);
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    let expected =
        "husk: 1 of 2 VMs do not fit, nothing is written: lacks CPUs for 2 vCPUs: husk plan --overcommit 1.5\n";
    assert_eq!(line, expected);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("does not fit: node 0 lacks 6 CPUs; node 1 lacks 2 CPUs"), "{table}");
    assert_eq!(fs::read_to_string(&a).unwrap(), before);

    let output = husk_plan(args.into_iter().chain(["--overcommit", "1.5"]));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn input_that_is_wrong_is_named_in_one_line() {
    let scene = Scene::new();
    let (good, host) = (scene.vm("a.json", 1, 128), scene.host());
    let missing = scene.folder.path().join("no.json");
    let zero = scene.vm("zero.json", 0, 128);
    let huge = scene.file("huge.json", &" ".repeat((1 << 20) + 1));
    let torn = scene.file("torn.json", "{\"facts\": {\"cpu\": {\"online\": 3");
    let same = scene.folder.path().join("./a.json");
    let table = [
        (vec![text(&missing)], "No such file or directory"),
        (vec![text(&zero)], "vcpu_count: cpus: 0 vCPUs are not possible: ask for 1 to 64"),
        (vec![text(&huge)], "it is larger than 1 MiB"),
        (vec![text(&good), text(&same)], "named twice: give each VM its own file"),
        (vec![text(&good), "--host", text(&torn)], "facts.cpu.online: invalid type"),
        (vec![text(&good), "--host", text(&missing)], "No such file or directory"),
        (vec!["/dev/null"], "it is not a regular file"),
    ];
    for (args, expected) in table {
        let options = args.iter().take_while(|arg| !arg.starts_with("--")).flat_map(|file| ["--vm", file]);
        let rest = args.iter().skip_while(|arg| !arg.starts_with("--")).copied();
        let line = refusal(&husk_plan(options.chain(rest)));
        assert!(line.contains(expected), "{line}");
    }
    for ratio in ["0", "-1", "NaN", "0.5", "65"] {
        let ratio = format!("--overcommit={ratio}");
        let output = husk_plan(["--vm", text(&good), "--host", text(&host), &ratio]);
        assert_eq!(output.status.code(), Some(2));
        let lines = String::from_utf8(output.stderr).unwrap();
        assert!(lines.contains("is no overcommit ratio: use 1 to 64"), "{lines}");
    }
}

#[test]
fn a_vm_is_planned_on_this_host_too() {
    let scene = Scene::new();
    let output = husk_plan(["--vm", text(&scene.vm("a.json", 1, 16)), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let host = Command::new(HUSK).args(["host", "--json"]).output().unwrap();
    let facts = scene.file("this.json", &String::from_utf8(host.stdout).unwrap());
    let recorded = husk_plan(["--vm", text(&scene.vm("a.json", 1, 16)), "--json", "--host", text(&facts)]);
    let recorded: Value = serde_json::from_slice(&recorded.stdout).unwrap();
    assert_eq!(recorded["vms"], plan["vms"]);
}
