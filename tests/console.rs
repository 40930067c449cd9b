//! The serial console on every kind of standard stream, and a terminal that is found again as it was.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::File;
use std::io::{Read, Write};

use common::folder::Folder;
use common::sys::{self, Terminal};
use common::{Ended, Husk, Launch, READY, husk, noise, probe, through_shell};

const CTRL_A: u8 = 1;
/// What the check `serial` prints when it listens.
const LISTENING: &str = "SERIAL WAIT\n";

/// What the check `flood` prints, so many KiB of it.
fn flood(kib: usize) -> String {
    (0..kib * 1024 / 64)
        .map(|number| format!("FLOOD {number:08}{}\n", ".".repeat(49)))
        .collect()
}

/// More than a small pipe and husk's buffer of 64 KiB hold.
const FLOOD_KIB: usize = 80;

fn flooding() -> Launch {
    probe(&format!("check=flood flood_kib={FLOOD_KIB} end=poweroff"))
}

fn echoing() -> Launch {
    probe("check=serial end=poweroff")
}

// Output.

#[test]
fn output_arrives_byte_for_byte() {
    let ended = probe("check=flood flood_kib=32 end=poweroff").end().went_well();
    let text = ended.text();
    let start = text.find("FLOOD").unwrap();
    let end = text.find("CHECK flood").unwrap();
    assert!(text[start..end] == flood(32), "{ended}");
    assert!(text.ends_with("END poweroff\n"));
}

#[test]
fn every_byte_value_passes_in_both_directions_through_a_pipe() {
    let mut husk = echoing().typed();
    husk.wait_for(LISTENING);
    let bytes: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    husk.type_in(&bytes);
    husk.type_in(b"\nend\n");
    let ended = husk.end().went_well();
    let echo = [b"ECHO ", &bytes[..], b"\n"].concat();
    assert!(ended.stdout.windows(echo.len()).any(|window| window == echo), "{ended}");
}

#[test]
fn output_into_a_file_is_all_there_when_husk_ends() {
    let folder = Folder::new();
    let file = File::create(folder.path().join("log")).unwrap();
    probe("check=flood flood_kib=8 end=poweroff")
        .stdout(file)
        .end()
        .went_well();
    let log = String::from_utf8(folder.read("log")).unwrap();
    assert!(log.contains(&flood(8)), "{log}");
    assert!(log.ends_with("END poweroff\n"), "{log}");
}

#[test]
fn output_of_a_guest_that_crashes_is_all_there() {
    let ended = probe("check=flood flood_kib=8 end=triple").end();
    assert_eq!(ended.code(), Some(3), "{ended}");
    assert!(
        ended.text().contains(&flood(8)) && ended.text().ends_with("END triple\n"),
        "{ended}"
    );
}

#[test]
fn an_output_that_nobody_reads_does_not_stop_the_guest() {
    let (mut reader, writer) = sys::small_pipe();
    let ended = flooding().stdout(writer).end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    // What went out went out in order, from the first byte on.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let start = text.find("FLOOD").unwrap_or_else(|| panic!("{text}"));
    assert!(text.starts_with(READY));
    assert!(
        flood(FLOOD_KIB).starts_with(&text[start..]) && text.len() >= sys::SMALL_PIPE_BYTES / 2,
        "{text}"
    );
}

#[test]
fn a_guest_behind_an_output_that_blocks_can_still_be_stopped() {
    let (_reader, writer) = sys::small_pipe();
    let mut full = writer.try_clone().unwrap();
    full.write_all(&[b'x'; sys::SMALL_PIPE_BYTES]).unwrap();
    let folder = Folder::new();
    let disk = folder.sparse("disk", 1 << 20);
    let husk = probe("check=blk,count end=poweroff")
        .args(["--disk", &disk])
        .stdout(writer)
        .start();
    // Nothing comes out: that the guest runs shows in what it writes to its disk, of which husk warns.
    husk.wait_for_error("beyond the end");
    husk.signal(libc::SIGTERM);
    let ended = husk.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn an_output_that_is_broken_does_not_stop_the_guest() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = flooding().stdout(writer).end();
    assert_eq!((ended.code(), ended.signal()), (Some(0), None), "{ended}");
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(probe("end=poweroff").stdout(full).end().code(), Some(0));
}

#[test]
fn an_output_that_breaks_in_the_middle_does_not_stop_the_guest() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let husk = flooding().stdout(writer).start();
    reader.read_exact(&mut [0; 100]).unwrap();
    drop(reader);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_standard_output_or_error_that_is_closed_changes_no_exit_code() {
    for (redirection, how, code) in [
        (">&-", "poweroff", 0),
        ("2>&-", "poweroff", 0),
        (">&- 2>&- <&-", "poweroff", 0),
        ("2>&-", "triple", 3),
    ] {
        let script = format!(r#""$@" {redirection}; echo "code $?""#);
        let ended = through_shell(&script, &probe(&format!("end={how}"))).end();
        assert_eq!(ended.line("code "), code.to_string(), "{redirection}: {ended}");
    }
}

#[test]
fn a_standard_error_that_nobody_reads_changes_no_exit_code() {
    for (words, code) in [("end=triple", 3), ("end=poweroff", 0)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = probe(words).stderr(writer).end();
        assert_eq!((ended.code(), ended.signal()), (Some(code), None), "{ended}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = husk(["run", "--kernel", "no-such-kernel"]).stderr(writer).end();
    assert_eq!((ended.code(), ended.signal()), (Some(1), None), "{ended}");
}

#[test]
fn a_demo_whose_output_is_broken_runs_to_its_end() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = husk(["demo"]).stdout(writer).end();
    // Its summary is lost, which it may say.
    assert!(matches!(ended.code(), Some(0 | 1)), "{ended}");
}

// Input that is no terminal.

#[test]
fn input_from_dev_null_ends_nothing() {
    let husk = echoing().start();
    husk.wait_for(LISTENING);
    stops_only_when_told(husk);
}

#[test]
fn a_closed_input_ends_nothing() {
    let husk = through_shell(r#"exec "$@" <&-"#, &echoing()).start();
    husk.wait_for(LISTENING);
    stops_only_when_told(husk);
}

#[test]
fn a_pipe_at_its_end_ends_nothing() {
    let mut husk = echoing().typed();
    husk.wait_for(LISTENING);
    husk.type_in(b"before the end\n");
    husk.close_stdin();
    husk.wait_for("ECHO before the end\n");
    stops_only_when_told(husk);
}

#[test]
fn an_input_that_is_a_directory_ends_nothing() {
    let husk = echoing().stdin(File::open("/").unwrap()).start();
    husk.wait_for(LISTENING);
    stops_only_when_told(husk);
}

/// The guest lives although its input has ended: it goes on until a signal comes.
fn stops_only_when_told(husk: Husk) {
    husk.signal(libc::SIGTERM);
    let ended = husk.end().went_well();
    assert!(
        ended.lines("CHECK serial").is_empty() && ended.lines("END").is_empty(),
        "{ended}"
    );
}

#[test]
fn the_content_of_a_plain_file_is_typed_in() {
    let folder = Folder::new();
    let path = folder.file("typed", b"first line\nsecond line\nend\n");
    let ended = echoing().stdin(File::open(path).unwrap()).end().went_well();
    assert_eq!(ended.lines("ECHO "), ["first line", "second line"]);
    assert_eq!(ended.check("serial").number("bytes"), 27);
}

/// Lines that together are far longer than the FIFO of 64 bytes.
fn long_lines() -> (Vec<u8>, Vec<String>) {
    let letters = |seed| {
        noise(seed, 1500)
            .iter()
            .map(|byte| char::from(b'a' + byte % 26))
            .collect::<String>()
    };
    let lines: Vec<String> = (1..=8).map(letters).collect();
    ((lines.join("\n") + "\nend\n").into_bytes(), lines)
}

#[test]
fn input_longer_than_the_fifo_arrives_complete_from_a_file() {
    let folder = Folder::new();
    let (bytes, lines) = long_lines();
    let path = folder.file("typed", &bytes);
    let ended = echoing().stdin(File::open(path).unwrap()).end().went_well();
    assert_eq!(ended.lines("ECHO "), lines);
}

#[test]
fn input_longer_than_the_fifo_arrives_complete_from_a_pipe() {
    let (bytes, lines) = long_lines();
    let mut husk = echoing().typed();
    husk.type_in(&bytes);
    assert_eq!(husk.end().went_well().lines("ECHO "), lines);
}

#[test]
fn input_that_the_guest_never_reads_keeps_nobody_from_anything() {
    let folder = Folder::new();
    let path = folder.file("typed", &noise(1, 1 << 20));
    probe("end=poweroff")
        .stdin(File::open(&path).unwrap())
        .end()
        .went_well();
    let husk = probe("end=halt").stdin(File::open(&path).unwrap()).start();
    husk.wait_for("END halt\n");
    husk.signal(libc::SIGTERM);
    husk.end().went_well();

    let mut husk = probe("check=flood flood_kib=16 end=halt").typed();
    husk.type_in(&noise(1, 32 << 10));
    husk.wait_for("END halt\n");
    husk.signal(libc::SIGTERM);
    husk.end().went_well();
}

#[test]
fn ctrl_a_x_means_nothing_to_husk_where_there_is_no_terminal() {
    let mut husk = echoing().typed();
    husk.type_in(b"a\x01xb\nend\n");
    assert_eq!(husk.end().went_well().lines("ECHO "), ["a\x01xb"]);
}

// A terminal.

/// The probe on a terminal, running.
fn on_terminal(terminal: &Terminal, words: &str) -> Husk {
    let husk = probe(words).on_terminal(terminal);
    husk.wait_for(READY);
    assert!(terminal.settings().is_raw(), "{:?}", terminal.settings());
    husk
}

/// Lets a husk on a terminal end by `end`; the terminal must then be as it was before.
#[track_caller]
fn restores(words: &str, end: impl FnOnce(&Husk, &mut File)) -> Ended {
    let terminal = Terminal::open();
    let before = terminal.settings();
    assert!(!before.is_raw());
    let husk = on_terminal(&terminal, words);
    end(&husk, &mut terminal.master());
    let ended = husk.end();
    assert_eq!(terminal.settings(), before, "{ended}");
    ended
}

#[test]
fn the_terminal_is_restored_after_power_off_and_reset() {
    for how in ["poweroff", "i8042", "acpi-reset"] {
        // The guest waits to be told, so that the test sees the terminal while it runs.
        let ended = restores(&format!("check=serial end={how}"), |husk, keys| {
            husk.wait_for(LISTENING);
            keys.write_all(b"end\n").unwrap();
        });
        ended.went_well();
    }
}

#[test]
fn ctrl_a_x_quits_with_0_and_restores_the_terminal() {
    for (how, keys) in [("halt", b"\x01x"), ("spin", b"\x01X"), ("hang", b"\x01x")] {
        let ended = restores(&format!("end={how}"), |husk, terminal| {
            husk.wait_for(&format!("END {how}"));
            terminal.write_all(keys).unwrap();
        });
        ended.went_well();
    }
}

#[test]
fn ctrl_a_x_in_two_writes_and_behind_other_keys_quits() {
    let ended = restores("check=serial end=poweroff", |husk, keys| {
        husk.wait_for(LISTENING);
        keys.write_all(b"some keys\n\x01").unwrap();
        husk.wait_for("ECHO some keys\n");
        keys.write_all(b"x").unwrap();
    });
    ended.went_well();
}

#[test]
fn ctrl_a_x_quits_a_guest_that_does_not_read_its_keys() {
    restores("end=halt", |husk, keys| {
        husk.wait_for("END halt");
        // More than its FIFO of 64 bytes takes.
        keys.write_all(&[b'k'; 200]).unwrap();
        keys.write_all(b"\x01x").unwrap();
    })
    .went_well();
}

#[test]
fn a_signal_that_asks_for_the_end_restores_the_terminal() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let ended = restores("end=halt", |husk, _| {
            husk.wait_for("END halt");
            husk.signal(signal);
        });
        ended.went_well();
    }
}

#[test]
fn a_crash_of_the_guest_restores_the_terminal_and_its_line_is_whole() {
    for how in ["triple", "internal"] {
        let ended = restores(&format!("check=serial end={how}"), |husk, keys| {
            husk.wait_for(LISTENING);
            keys.write_all(b"end\n").unwrap();
        });
        assert_eq!(ended.code(), Some(3), "{ended}");
        assert!(ended.message().contains("vcpu 0"), "{ended}");
    }
}

#[test]
fn a_signal_that_kills_restores_the_terminal_first() {
    // SIGABRT is how a panic of husk's own ends it (panic = "abort").
    let signals = [
        libc::SIGQUIT,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
        libc::SIGALRM,
        libc::SIGUSR1,
        libc::SIGSYS,
        libc::SIGTRAP,
        libc::SIGXCPU,
    ];
    for signal in signals {
        let folder = Folder::new();
        let terminal = Terminal::open();
        let before = terminal.settings();
        let husk = probe("end=halt")
            .args(["--memory", "32M"])
            .folder(folder.path())
            .on_terminal(&terminal);
        husk.wait_for("END halt");
        assert!(terminal.settings().is_raw());
        husk.signal(signal);
        let ended = husk.end();
        assert_eq!(
            (ended.signal(), ended.code()),
            (Some(signal), None),
            "signal {signal}: {ended}"
        );
        assert_eq!(terminal.settings(), before, "after signal {signal}");
    }
}

#[test]
fn a_mistake_leaves_the_terminal_alone() {
    let terminal = Terminal::open();
    let before = terminal.settings();
    let ended = husk(["run", "--kernel", "no-such-kernel"]).on_terminal(&terminal).end();
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert_eq!(terminal.settings(), before);
}

#[test]
fn ctrl_a_twice_is_one_for_the_guest_and_other_keys_are_the_guests() {
    let terminal = Terminal::open();
    let husk = on_terminal(&terminal, "check=serial end=poweroff");
    husk.wait_for(LISTENING);
    // Ctrl-C, Ctrl-Z, Ctrl-D, Ctrl-S, Ctrl-\ and a carriage return mean nothing to a raw terminal.
    let keys = [b"a", &[CTRL_A, CTRL_A][..], b"b\x03\x1a\x04\x13\x11\x1c\rz\nend\n"].concat();
    terminal.master().write_all(&keys).unwrap();
    husk.wait_for("ECHO a\x01b\x03\x1a\x04\x13\x11\x1c\rz\n");
    husk.end().went_well();
}

#[test]
fn input_longer_than_the_fifo_arrives_complete_from_a_terminal() {
    let (bytes, lines) = long_lines();
    let terminal = Terminal::open();
    let husk = on_terminal(&terminal, "check=serial end=poweroff");
    terminal.master().write_all(&bytes).unwrap();
    for line in lines {
        husk.wait_for(&format!("ECHO {line}\n"));
    }
    husk.wait_for("END poweroff");
    husk.end().went_well();
}

#[test]
fn the_guest_writes_to_a_terminal_byte_for_byte() {
    let terminal = Terminal::open();
    let husk = on_terminal(&terminal, "check=flood flood_kib=16 end=halt");
    // A cooked terminal would make two bytes of each line's end.
    husk.wait_for(&flood(16));
    husk.wait_for("END halt");
    husk.signal(libc::SIGTERM);
    husk.end().went_well();
}

#[test]
fn a_guest_that_is_stopped_and_continued_from_outside_goes_on() {
    let terminal = Terminal::open();
    let husk = on_terminal(&terminal, "check=serial end=poweroff");
    husk.wait_for(LISTENING);
    husk.signal(libc::SIGSTOP);
    terminal.master().write_all(b"typed meanwhile\nend\n").unwrap();
    husk.signal(libc::SIGCONT);
    husk.wait_for("ECHO typed meanwhile\n");
    husk.end().went_well();
}

#[test]
fn a_terminal_that_goes_away_ends_nothing() {
    let terminal = Terminal::open();
    let husk = echoing().stdin(terminal.slave()).start();
    husk.wait_for(LISTENING);
    drop(terminal);
    stops_only_when_told(husk);
}

#[test]
fn only_its_input_makes_a_terminal_the_console() {
    // Output on a terminal and input from elsewhere: nothing is typed there, so its settings are its own.
    let terminal = Terminal::open();
    let before = terminal.settings();
    let husk = probe("end=halt").stdout(terminal.slave()).start();
    let mut seen = [0; 11];
    terminal.master().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, READY.as_bytes());
    assert_eq!(terminal.settings(), before);
    husk.signal(libc::SIGTERM);
    assert_eq!(husk.end().code(), Some(0));
}
