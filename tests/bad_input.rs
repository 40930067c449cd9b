//! What a user gets wrong and what a host lacks: one line that names the thing, the value and what would fix it, exit
//! code 1 (usage: 2), and nothing created or changed.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use common::folder::Folder;
use common::guest::{PROBE, PROBE_NO_NOTE, noise, probe};
use common::refusal::{as_nobody, refused, with};
use common::{HUSK, Launch, husk, through_shell};

/// Husk takes it for a mistake on the command line: code 2, and standard error has `parts`.
#[track_caller]
fn misused<'a>(args: impl IntoIterator<Item = &'a str>, parts: &[&str]) {
    let folder = Folder::new();
    let ended = husk(args).folder(folder.path()).end();
    assert_eq!(ended.code(), Some(2), "{ended}");
    assert_eq!(ended.text(), "", "{ended}");
    for part in parts {
        assert!(ended.stderr.contains(part), "`{part}` in: {}", ended.stderr);
    }
    assert_eq!(folder.snapshot(), Folder::new().snapshot(), "something was created");
}

fn kernel(path: &str) -> Launch {
    husk(["run", "--kernel", path])
}

/// The probe's ELF with some bytes replaced.
fn patched(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut elf = fs::read(PROBE).unwrap();
    elf[offset..offset + bytes.len()].copy_from_slice(bytes);
    elf
}

// Kernels.

#[test]
fn a_missing_kernel_is_named() {
    let folder = Folder::new();
    refused(&folder, kernel("no-such-kernel"), &["kernel no-such-kernel", "No such file"]);
}

#[test]
fn an_empty_kernel_is_named() {
    let folder = Folder::new();
    let path = folder.file("kernel", b"");
    refused(&folder, kernel(&path), &[&path, "empty"]);
    refused(&folder, kernel("/dev/null"), &["/dev/null"]);
}

#[test]
fn a_truncated_kernel_is_refused_wherever_it_ends() {
    let folder = Folder::new();
    let elf = fs::read(PROBE).unwrap();
    for end in [1, 3, 4, 16, 63, 64, 100, 300, 4096, elf.len() / 4, elf.len() / 2] {
        let path = folder.file("kernel", &elf[..end]);
        refused(&folder, kernel(&path), &[&path, if end < 4 { "ELF" } else { "truncated" }]);
    }
}

#[test]
fn random_bytes_are_no_kernel() {
    let folder = Folder::new();
    for seed in 1..=4 {
        let path = folder.file("kernel", &noise(seed, 100_000));
        refused(&folder, kernel(&path), &[&path, "neither an ELF file nor a bzImage"]);
    }
}

#[test]
fn a_random_body_behind_the_magic_number_is_no_kernel() {
    let folder = Folder::new();
    for seed in 1..=8 {
        let mut content = noise(seed, 100_000);
        content[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
        let path = folder.file("kernel", &content);
        refused(&folder, kernel(&path), &[&path]);
    }
}

#[test]
fn a_kernel_that_is_a_directory_is_named_as_one() {
    let folder = Folder::new();
    fs::create_dir(folder.path().join("boot")).unwrap();
    refused(&folder, kernel("boot"), &["kernel boot", "directory"]);
}

#[test]
fn a_kernel_that_is_a_pipe_is_refused_without_waiting_for_a_writer() {
    let folder = Folder::new();
    let path = folder.fifo("kernel");
    refused(&folder, kernel(&path), &[&path, "regular file"]);
}

#[test]
fn an_elf_for_another_machine_is_refused_with_what_it_is() {
    let folder = Folder::new();
    // e_machine: AArch64. e_ident: 32 bits; most significant byte first. e_type: relocatable.
    let others: [(usize, &[u8], &str); 4] =
        [(18, &[0xb7, 0], "183"), (4, &[1], "1"), (5, &[2], "2"), (16, &[1, 0], "1")];
    for (offset, bytes, value) in others {
        let path = folder.file("kernel", &patched(offset, bytes));
        refused(&folder, kernel(&path), &[&path, value, "x86-64"]);
    }
}

#[test]
fn a_bzimage_is_refused_with_the_way_to_its_vmlinux() {
    let folder = Folder::new();
    let mut image = vec![0; 64 << 10];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    let path = folder.file("bzImage", &image);
    refused(&folder, kernel(&path), &[&path, "bzImage", "vmlinux"]);
}

#[test]
fn a_program_of_the_host_is_no_kernel() {
    refused(&Folder::new(), kernel(HUSK), &[HUSK]);
}

#[test]
fn pvh_without_its_note_is_refused() {
    let launch = husk(["run", "--kernel", PROBE_NO_NOTE, "--boot-entry", "pvh"]);
    refused(&Folder::new(), launch, &[PROBE_NO_NOTE, "PVH", "linux64"]);
}

#[test]
fn a_kernel_that_does_not_fit_into_memory_is_told_how_much_would_do() {
    let folder = Folder::new();
    for size in ["1M", "2M"] {
        refused(&folder, with(["--memory", size]), &[PROBE, "MiB"]);
    }
}

#[test]
fn a_kernel_that_nobody_may_read_is_named() {
    let folder = Folder::new();
    let path = folder.file("kernel", &fs::read(PROBE).unwrap());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    refused(&folder, as_nobody(&folder, &kernel(&path)), &[&path, "ermission"]);
}

// The initrd.

#[test]
fn a_missing_or_empty_initrd_is_named() {
    let folder = Folder::new();
    refused(&folder, with(["--initrd", "no-such-initrd"]), &["initrd no-such-initrd", "No such file"]);
    let path = folder.file("initrd", b"");
    refused(&folder, with(["--initrd", &path]), &[&path, "empty"]);
}

#[test]
fn an_initrd_that_is_a_directory_or_a_pipe_is_named_as_one() {
    let folder = Folder::new();
    fs::create_dir(folder.path().join("boot")).unwrap();
    refused(&folder, with(["--initrd", "boot"]), &["initrd boot", "directory"]);
    let path = folder.fifo("pipe");
    refused(&folder, with(["--initrd", &path]), &[&path, "regular file"]);
}

#[test]
fn an_initrd_that_does_not_fit_is_told_how_much_is_free() {
    let folder = Folder::new();
    for bytes in [40 << 20, 1 << 40, i64::MAX as u64 & !0xfff] {
        let path = folder.at("initrd");
        let _ = fs::remove_file(&path);
        let file = File::create(&path).unwrap();
        // The largest is more than some file systems take.
        if file.set_len(bytes).is_ok() {
            refused(
                &folder,
                with(["--initrd", &path, "--memory", "32M"]),
                &[&path, &bytes.to_string(), "free", "MiB more"],
            );
        }
    }
}

// The command line.

#[test]
fn a_command_line_that_is_too_long_is_told_the_limit() {
    let folder = Folder::new();
    for length in [2048, 100_000] {
        refused(&folder, probe(&"x".repeat(length)), &["cmdline", &length.to_string(), "2047"]);
    }
}

// CPUs and memory.

#[test]
fn zero_cpus_or_more_than_the_limit_are_told_the_limit() {
    for count in ["0", "65", "256", "4294967297", "18446744073709551615"] {
        refused(&Folder::new(), with(["--cpus", count]), &["cpus", count, "1 to 64"]);
    }
}

#[test]
fn cpus_that_are_no_number_are_a_usage_error() {
    for count in ["", "x", "-1", "1.5", "99999999999999999999999"] {
        misused(["run", "--kernel", PROBE, "--cpus", count], &[count]);
    }
}

#[test]
fn no_memory_is_refused() {
    for size in ["0", "0M", "0G,shared"] {
        refused(&Folder::new(), with(["--memory", size]), &["memory", "0"]);
    }
}

#[test]
fn memory_that_is_not_whole_mib_is_told_what_would_be() {
    refused(&Folder::new(), with(["--memory", "33555455"]), &["memory", "33555455", "32M", "33M"]);
    refused(&Folder::new(), with(["--memory", "1537K"]), &["memory", "1573888", "1M", "2M"]);
    // There is no whole number of MiB below that husk would take.
    let folder = Folder::new();
    let ended = with(["--memory", "1000K"]).folder(folder.path()).end();
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert!(ended.message().contains("1M") && !ended.message().contains("0M "), "{ended}");
}

#[test]
fn memory_beyond_the_hosts_is_told_what_the_host_has() {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let total_mib = total.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024;
    let beyond = (total_mib + 1).to_string();
    for option in [format!("{beyond}M"), format!("{beyond}M,shared")] {
        refused(&Folder::new(), with(["--memory", &option]), &["memory", &beyond, &total_mib.to_string()]);
    }
    refused(&Folder::new(), with(["--memory", "16777215T"]), &["memory", &total_mib.to_string()]);
}

#[test]
fn a_memory_size_that_is_none_is_a_usage_error() {
    for size in ["", "M", "1.5M", "abc", "512MB", "0x10", "512M,shraed", "99999999T"] {
        misused(["run", "--kernel", PROBE, "--memory", size], &["--memory", size.trim_start_matches("512M,")]);
    }
}

// The host.

/// `launch` with something bound over /dev/kvm, in a mount namespace of its own.
fn with_kvm_being(what: &str, launch: &Launch) -> Launch {
    through_shell(&format!(r#"exec unshare -m sh -c 'mount --bind {what} /dev/kvm && exec "$@"' sh "$@""#), launch)
}

#[test]
fn a_host_without_kvm_is_told_what_to_load() {
    let launch = through_shell(r#"exec unshare -m sh -c 'mount -t tmpfs none /dev && exec "$@"' sh "$@""#, &with([]));
    refused(&Folder::new(), launch, &["/dev/kvm", "No such file", "load"]);
}

#[test]
fn a_user_who_may_not_use_kvm_is_told_the_group() {
    let folder = Folder::new();
    let kernel_path = folder.file("kernel", &fs::read(PROBE).unwrap());
    fs::set_permissions(&kernel_path, fs::Permissions::from_mode(0o644)).unwrap();
    let secret = folder.file("kvm", b"");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let launch = with_kvm_being(&secret, &as_nobody(&folder, &kernel(&kernel_path)));
    refused(&folder, launch, &["/dev/kvm", "ermission denied", "group"]);
}

#[test]
fn a_dev_kvm_that_is_something_else_is_said_to_be() {
    let folder = Folder::new();
    refused(&folder, with_kvm_being("/dev/null", &with([])), &["/dev/kvm", "not KVM"]);
}

#[test]
fn without_kvm_a_disk_stays_as_it_was() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(9, 1 << 20));
    let launch = probe("check=blk end=poweroff").args(["--disk", &path]);
    let launch = through_shell(r#"exec unshare -m sh -c 'mount -t tmpfs none /dev && exec "$@"' sh "$@""#, &launch);
    refused(&folder, launch, &["/dev/kvm"]);
}

#[test]
fn memory_that_the_host_does_not_give_is_told_once() {
    for option in ["1G", "1G,shared"] {
        let launch = through_shell(r#"ulimit -v 400000; exec "$@""#, &with(["--memory", option]));
        let ended = launch.end();
        assert_eq!(ended.code(), Some(1), "{ended}");
        let line = ended.message();
        assert!(line.contains("1024 MiB of guest memory"), "{line}");
        assert_eq!(line.matches("Cannot allocate memory").count(), 1, "{line}");
    }
}

#[test]
fn a_process_that_may_have_too_few_files_is_told_so_wherever_they_run_out() {
    let folder = Folder::new();
    let disk = folder.file("disk", &noise(1, 4096));
    let mut boots = 0;
    for files in 4..40 {
        let launch = probe("end=poweroff").args(["--disk", &disk, "--cpus", "2"]);
        let ended = through_shell(&format!(r#"ulimit -n {files}; exec "$@""#), &launch).end();
        match ended.code() {
            Some(0) => boots += 1,
            Some(1) => assert!(ended.message().contains("Too many open files"), "{files}: {ended}"),
            _ => panic!("with {files} files: {ended}"),
        }
        assert!(boots == 0 || ended.code() == Some(0), "{files} files do not do where fewer did: {ended}");
    }
    assert!(boots > 0, "40 files are not enough");
}

// Usage.

#[test]
fn an_unknown_word_is_a_usage_error_that_names_it() {
    misused(["run", "--kernel", PROBE, "--frobnicate"], &["--frobnicate"]);
    misused(["run", "--kernel", PROBE, "stray"], &["stray"]);
    misused(["frobnicate"], &["frobnicate"]);
    misused(["run", "--kernel", PROBE, "--boot-entry", "bios"], &["bios", "auto", "pvh", "linux64"]);
    misused(["run", "--kernel", PROBE, "--rng", "perhaps"], &["perhaps", "on", "off", "auto"]);
    for disk in ["x,rw", "x,ro,ro", "x,id=a,id=b", "x,", ",ro", ""] {
        misused(["run", "--kernel", PROBE, "--disk", disk], &["--disk", disk]);
    }
}

#[test]
fn a_missing_or_doubled_option_is_a_usage_error_that_names_it() {
    misused(["run"], &["--kernel"]);
    misused(["run", "--kernel"], &["--kernel"]);
    misused(["run", "--kernel", "a", "--kernel", "b"], &["--kernel"]);
    misused(["run", "--kernel", PROBE, "--memory", "1G", "--memory", "2G"], &["--memory"]);
}

#[test]
fn help_has_an_example_of_each_command() {
    let shown = |args: &[&str]| husk(args).end().went_well();
    for args in [&["--help"][..], &["run", "--help"], &["demo", "--help"]] {
        assert!(shown(args).text().contains("\nExample: husk "), "{args:?}");
    }
    assert!(shown(&["--version"]).text().starts_with("husk "));
}
