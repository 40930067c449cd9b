//! `husk host` as a user and a program see it.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const HUSK: &str = env!("CARGO_BIN_EXE_husk");
const LEVELS: [&str; 4] = ["ok", "missing", "degraded", "info"];
const GROUPS: [&str; 6] = ["kvm", "cpu", "memory", "io", "isolation", "limits"];

fn husk_host(args: &[&str]) -> Output {
    Command::new(HUSK).arg("host").args(args).output().unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn verdicts(report: &Value) -> &[Value] {
    report["verdicts"].as_array().unwrap()
}

#[test]
fn the_table_has_a_verdict_on_every_line_and_says_that_husk_runs_here() {
    let output = husk_host(&[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut groups = Vec::new();
    let mut lines: Vec<&str> = text.lines().collect();
    let summary = lines.pop().unwrap();
    assert!(summary.ends_with("husk runs here"), "{summary}");
    let mut previous = "";
    for line in lines {
        let first = line.split_whitespace().next().unwrap();
        if !line.starts_with(' ') {
            groups.push(line);
        } else if first == "fix:" {
            assert_ne!(previous, "ok", "{line}");
        } else {
            assert!(LEVELS.contains(&first), "{line}");
        }
        previous = first;
    }
    assert_eq!(groups, GROUPS);
}

#[test]
fn the_json_has_the_same_lines_and_the_facts_behind_them() {
    let output = husk_host(&["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let report = report(&output);
    let keys: Vec<&String> = report.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["facts", "verdicts"]);
    let table = String::from_utf8(husk_host(&[]).stdout).unwrap();
    for verdict in verdicts(&report) {
        let mut fields: Vec<&str> = verdict.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["fix", "found", "group", "name", "use", "verdict"]);
        let text = |field: &str| verdict[field].as_str().unwrap();
        assert!(GROUPS.contains(&text("group")) && LEVELS.contains(&text("verdict")), "{verdict}");
        assert!(!text("found").is_empty() && !text("use").is_empty(), "{verdict}");
        assert_eq!(verdict["fix"].is_null(), verdict["fix"].as_str().is_none());
        let (name, level) = (text("name"), text("verdict"));
        assert!(table.contains(&format!("  {level:8}  {name} ")), "no line for {verdict}");
    }
    assert_eq!(report["facts"]["kvm"]["device"], "works");
    assert_eq!(report["facts"]["kvm"]["api_version"], 12);
    assert_eq!(report["facts"]["cpu"]["online"], fs::read_to_string("/sys/devices/system/cpu/online").unwrap().trim());
}

#[test]
fn disks_and_networks_asked_about_have_lines_and_those_that_are_not_there_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("a.img");
    fs::write(&disk, "").unwrap();
    let disk = disk.to_str().unwrap();
    let output = husk_host(&["--json", "--net", "lo", "--disk", disk, "--disk", disk]);
    assert_eq!(output.status.code(), Some(0));
    let report = report(&output);
    assert_eq!(report["facts"]["io"]["disks"].as_array().unwrap().len(), 1);
    assert_eq!(report["facts"]["io"]["nets"][0]["name"], "lo");
    let about =
        |name: &str| verdicts(&report).iter().filter(|line| line["name"].as_str().unwrap().starts_with(name)).count();
    assert!(about(&format!("disk {disk}")) > 0 && about("net lo ") == 2);

    for (args, expected) in [
        (["--disk", "/no/such"], "husk: disk `/no/such`: No such file or directory (os error 2)\n"),
        (["--net", "no0"], "husk: net `no0`: this host has no such interface: use one of "),
    ] {
        let output = husk_host(&args);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"".as_slice()));
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.starts_with(expected) && line.lines().count() == 1, "{line}");
    }
}

#[test]
fn without_a_usable_kvm_the_table_is_printed_and_the_exit_code_is_1() {
    // The program itself, as root or not, must be in reach of the user that has no right to /dev/kvm.
    let kvm = fs::metadata("/dev/kvm").unwrap();
    if kvm.permissions().mode() & 0o006 == 0o006 {
        println!("skipped: anybody may open /dev/kvm here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("husk");
    fs::copy(HUSK, &program).unwrap();
    const NOBODY: u32 = 65534;
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("host").args(args).current_dir("/").uid(NOBODY).gid(NOBODY);
        command.output()
    };
    let output = match run(&[]) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            println!("skipped: only root can become somebody else: {error}");
            return;
        }
        output => output.unwrap(),
    };
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    let expected = "husk: no VM can run here: /dev/kvm: permission denied: setfacl -m u:$USER:rw /dev/kvm\n";
    assert_eq!(line, expected);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("isolation\n") && table.ends_with("husk cannot run here\n"), "{table}");

    let output = run(&["--json"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = report(&output);
    let device = verdicts(&report).iter().find(|verdict| verdict["name"] == "/dev/kvm").unwrap();
    assert_eq!(device["verdict"], "missing");
    assert_eq!(report["facts"]["kvm"]["device"]["fails"]["errno"], libc::EACCES);
    assert_eq!(report["facts"]["kvm"]["capabilities"], serde_json::json!({}));
}

#[test]
fn a_reader_that_leaves_early_is_no_error_and_a_full_disk_is_one() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(HUSK).arg("host").stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));

    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(HUSK).arg("host").stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.starts_with("husk: cannot print what this host can do: No space left"), "{line}");
}
