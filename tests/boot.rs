//! A machine from its start to its end: every way in, every size, every way out.

mod common;

use std::process::Command;

use common::ended::{Ended, Facts};
use common::folder::Folder;
use common::guest::{PROBE, PROBE_NO_NOTE, READY, fnv1a, noise, probe};
use common::{husk, through_shell};

const MIB: u64 = 1 << 20;
/// Where memory ends below the MMIO hole, and goes on above it (arch/src/x86_64/layout.rs).
const HOLE_START: u64 = 0xc000_0000;
const HOLE_END: u64 = 0x1_0000_0000;
const CMDLINE_MAX: usize = 2047;

/// How the probe says it was entered.
fn entry(ended: &Ended) -> String {
    Facts::of(&ended.line(READY)).get("entry").to_owned()
}

#[test]
fn a_kernel_with_the_pvh_note_is_entered_by_pvh() {
    assert_eq!(entry(&probe("end=poweroff").end().went_well()), "pvh");
}

#[test]
fn a_kernel_without_the_note_boots_and_is_entered_by_the_linux_protocol() {
    let ended =
        husk(["run", "--kernel", PROBE_NO_NOTE, "--cmdline", "check=map,cmdline end=poweroff"]).end().went_well();
    assert_eq!(entry(&ended), "linux64");
    ended.check("map");
    assert_eq!(ended.line("CMDLINE "), "check=map,cmdline end=poweroff");
}

#[test]
fn the_user_chooses_how_the_kernel_is_entered() {
    for name in ["auto", "pvh", "linux64"] {
        let ended = probe("end=poweroff").args(["--boot-entry", name]).end().went_well();
        assert_eq!(entry(&ended), if name == "auto" { "pvh" } else { name });
    }
}

/// Boots with so many CPUs and lets each say who it is.
fn boots_with_cpus(count: usize) {
    let ended = probe("check=cpus end=poweroff").args(["--cpus", &count.to_string()]).end().went_well();
    let facts = ended.check("cpus");
    assert_eq!((facts.number("listed"), facts.number("running")), (count as u64, count as u64), "{ended}");
    let mut ids: Vec<u64> = ended.lines("CPU ").iter().map(|line| Facts::of(line).number("apic")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "each has an APIC id of its own:\n{ended}");
}

#[test]
fn one_cpu_boots() {
    boots_with_cpus(1);
}

#[test]
fn two_cpus_boot_and_each_runs() {
    boots_with_cpus(2);
}

#[test]
fn eight_cpus_boot_and_each_runs() {
    boots_with_cpus(8);
}

#[test]
fn sixty_four_cpus_boot_and_each_runs() {
    boots_with_cpus(64);
}

#[test]
fn one_cpu_and_512_mib_is_what_a_user_gets_who_asks_for_nothing() {
    let ended = probe("check=map,cpus end=poweroff").end().went_well();
    assert_eq!(ended.check("cpus").number("running"), 1);
    assert!(ended.lines("MAP ").contains(&format!("0x100000-{:#x} usable", 512 * MIB)), "{ended}");
}

/// Boots with so much memory, by each way in; asserts the map line by line and that the guest can use what it says.
fn boots_with_memory(argument: &str, bytes: u64) {
    let mut usable = vec![format!("0x100000-{:#x} usable", bytes.min(HOLE_START))];
    if bytes > HOLE_START {
        usable.push(format!("{HOLE_END:#x}-{:#x} usable", HOLE_END + bytes - HOLE_START));
    }
    for boot_entry in ["pvh", "linux64"] {
        let launch = probe("check=map,mem end=poweroff").args(["--memory", argument, "--boot-entry", boot_entry]);
        let ended = launch.end().went_well();
        let map = ended.lines("MAP ");
        let found: Vec<&String> = map.iter().filter(|line| line.ends_with(" usable")).collect();
        assert_eq!(found[0], "0x0-0x9fc00 usable", "{ended}");
        assert_eq!(found[1..], usable.iter().collect::<Vec<_>>(), "{ended}");
        assert_eq!(map.len() as u64, ended.check("map").number("ranges"));
        let top = if bytes > HOLE_START { HOLE_END + bytes - HOLE_START } else { bytes };
        assert_eq!(ended.check("mem").number("top"), top, "{ended}");
    }
}

#[test]
fn memory_of_32_mib_is_all_there() {
    boots_with_memory("32M", 32 * MIB);
    boots_with_memory("32M,shared", 32 * MIB);
}

#[test]
fn memory_of_128_mib_is_all_there() {
    boots_with_memory("128M", 128 * MIB);
    boots_with_memory("131072K,shared", 128 * MIB);
}

#[test]
fn memory_up_to_the_mmio_hole_is_all_there() {
    boots_with_memory("3G", 3072 * MIB);
    boots_with_memory("3G,shared", 3072 * MIB);
}

#[test]
fn one_mib_beyond_the_mmio_hole_is_all_there() {
    boots_with_memory("3073M", 3073 * MIB);
    boots_with_memory("3073m,shared", 3073 * MIB);
}

#[test]
fn memory_of_6_gib_across_the_mmio_hole_is_all_there() {
    boots_with_memory("6G", 6144 * MIB);
    boots_with_memory("6G,shared", 6144 * MIB);
    boots_with_memory("16G", 16384 * MIB);
}

#[test]
fn a_command_line_of_the_longest_length_arrives_whole() {
    let words = "check=cmdline end=poweroff pad=";
    let cmdline = words.to_owned() + &"x".repeat(CMDLINE_MAX - words.len());
    for boot_entry in ["pvh", "linux64"] {
        let ended = probe(&cmdline).args(["--boot-entry", boot_entry]).end().went_well();
        assert_eq!(ended.line("CMDLINE "), cmdline);
        let facts = ended.check("cmdline");
        assert_eq!(facts.number("len"), CMDLINE_MAX as u64);
        assert_eq!(facts.number("fnv"), fnv1a(cmdline.as_bytes()));
    }
}

#[test]
fn without_a_command_line_the_kernel_gets_the_default_one() {
    let ended = husk(["run", "--kernel", PROBE]).end().went_well();
    assert_eq!(ended.line("CMDLINE "), "console=ttyS0 reboot=k panic=-1");
}

#[test]
fn an_initrd_arrives_whole_by_either_way_in() {
    let folder = Folder::new();
    let content = noise(1, 3_333_333);
    let initrd = folder.file("initrd", &content);
    for (boot_entry, memory) in [("pvh", "32M"), ("linux64", "32M"), ("pvh", "6G"), ("linux64", "6G")] {
        let options = ["--initrd", &initrd, "--boot-entry", boot_entry, "--memory", memory];
        let ended = probe("check=initrd,mem end=poweroff").args(options).end().went_well();
        let facts = ended.check("initrd");
        assert_eq!(facts.number("len"), content.len() as u64);
        assert_eq!(facts.number("fnv"), fnv1a(&content), "{ended}");
    }
}

#[test]
fn an_initrd_that_just_fits_boots() {
    let folder = Folder::new();
    let initrd = folder.sparse("initrd", 64 * MIB);
    let options = ["--initrd", &initrd, "--memory", "64M"];
    // How much is free is in the refusal of what is too large.
    let refused = probe("end=poweroff").args(options).end();
    let before = refused.message().split(" are free").next().unwrap();
    let free: u64 = before.rsplit(' ').next().unwrap().parse().unwrap();
    let file = std::fs::File::options().write(true).open(&initrd).unwrap();
    file.set_len(free).unwrap();
    let ended = probe("check=initrd end=poweroff").args(options).end().went_well();
    assert_eq!(ended.check("initrd").number("len"), free);
}

#[test]
fn power_off_and_both_resets_end_with_0() {
    for how in ["poweroff", "acpi-reset", "i8042"] {
        let ended = probe(&format!("end={how}")).args(["--cpus", "2"]).end().went_well();
        assert_eq!(ended.line("END "), how);
    }
}

/// Boots a guest that crashes; the line that husk says of it.
fn crash(how: &str) -> String {
    let ended = probe(&format!("end={how}")).end();
    assert_eq!(ended.code(), Some(3), "{ended}");
    assert_eq!(ended.line("END "), how);
    ended.message().to_owned()
}

#[test]
fn a_triple_fault_ends_with_3_and_names_cpu_place_and_mode() {
    let line = crash("triple");
    for part in ["vcpu 0", "triple fault", "KVM_EXIT_SHUTDOWN", "rip 0x1", "64-bit ring 0", "paging"] {
        assert!(line.contains(part), "`{part}` in {line}");
    }
}

#[test]
fn an_instruction_that_kvm_does_not_know_ends_with_3_and_is_shown() {
    let line = crash("internal");
    for part in ["vcpu 0", "KVM_EXIT_INTERNAL_ERROR", "suberror 1", "rip 0x1", "64-bit ring 0", "paging"] {
        assert!(line.contains(part), "`{part}` in {line}");
    }
    let bytes = line.split_once("instruction bytes ").unwrap_or_else(|| panic!("{line}")).1;
    // int3, by which the probe provokes it.
    assert!(bytes.starts_with("cc"), "{line}");
    assert!(bytes.split(' ').all(|byte| byte.len() == 2 && u8::from_str_radix(byte, 16).is_ok()), "{line}");
}

#[test]
fn a_signal_that_asks_for_the_end_ends_with_0_whatever_the_guest_does() {
    for how in ["halt", "spin", "hang"] {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            let husk = probe(&format!("end={how}")).args(["--cpus", "2"]).start();
            husk.wait_for(&format!("END {how}\n"));
            husk.signal(signal);
            husk.end().went_well();
        }
    }
}

#[test]
fn the_clock_tells_the_hosts_date() {
    let today = || {
        let date = Command::new("date").args(["-u", "+%F"]).output().unwrap();
        String::from_utf8(date.stdout).unwrap().trim().to_owned()
    };
    let before = today();
    let ended = probe("check=rtc end=poweroff").end().went_well();
    let facts = ended.check("rtc");
    assert!([before, today()].iter().any(|date| date == facts.get("date")), "{ended}");
}

#[test]
fn the_entropy_device_gives_other_bytes_each_time_and_can_be_left_out() {
    let sum = || Facts::of(&probe("check=rng end=poweroff").end().went_well().line("RNG 0 ")).number("fnv");
    assert_ne!(sum(), sum());
    let ended = probe("check=rng end=poweroff").args(["--rng", "off"]).end();
    assert!(ended.text().contains("CHECK rng FAIL there is no virtio-rng device"), "{ended}");
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn the_demo_shows_the_machine_working_and_sums_up() {
    let ended = husk(["demo"]).end().went_well();
    let text = ended.text().replace('\r', "");
    let shown = [
        "Hello from inside. I was entered by PVH",
        "\nMemory\n",
        "  usable\n",
        "\nCPUs\n  2 running",
        "\nTimer\n",
        " interrupts in ",
        "\nDisk\n  virtio-blk at ",
        "  wrote ",
        "  flushed ",
        ", and it is what was written\n",
        "\nEntropy\n  virtio-rng at ",
        "\nWhat I measured\n",
        "Powering off through ACPI.\n",
        "husk: the guest powered off\n",
        "start to first guest instruction ",
        "run time ",
        "exits to husk ",
        "io-out ",
        "mmio-read ",
    ];
    let mut rest = text.as_str();
    for part in shown {
        rest = rest.split_once(part).unwrap_or_else(|| panic!("`{part}` in its order in:\n{text}")).1;
    }
}

#[test]
fn the_demo_needs_nothing_of_its_surroundings() {
    let folder = Folder::new();
    let bare = through_shell(r#"exec env -i "$@""#, &husk(["demo"]).folder(folder.path()));
    bare.end().went_well();
    assert_eq!(folder.snapshot(), Folder::new().snapshot(), "nothing is left behind");
}
