//! A terminal as the console: raw while the guest runs, its keys the guest's but Ctrl-A, and as it was afterwards,
//! whatever ends husk.

mod common;

use std::fs::File;
use std::io::{Read, Write};

use common::ended::Ended;
use common::folder::Folder;
use common::guest::{LISTENING, READY, echoing, flood, long_lines, probe, stops_only_when_told};
use common::sys::Terminal;
use common::{Husk, husk};

const CTRL_A: u8 = 1;

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

/// A signal from outside that kills; the terminal must be as it was, and the death be the signal's.
fn is_killed_and_restores(signal: i32) {
    let folder = Folder::new();
    let terminal = Terminal::open();
    let before = terminal.settings();
    let launch = probe("end=halt").args(["--memory", "32M"]).folder(folder.path());
    let husk = launch.on_terminal(&terminal);
    husk.wait_for("END halt");
    assert!(terminal.settings().is_raw());
    husk.signal(signal);
    let ended = husk.end();
    assert_eq!((ended.signal(), ended.code()), (Some(signal), None), "signal {signal}: {ended}");
    assert_eq!(terminal.settings(), before, "after signal {signal}");
}

#[test]
fn a_fault_of_husks_own_restores_the_terminal_first() {
    // SIGABRT is how a panic ends it (panic = "abort").
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS]
    {
        is_killed_and_restores(signal);
    }
}

#[test]
fn a_signal_from_outside_that_kills_restores_the_terminal_first() {
    for signal in [libc::SIGQUIT, libc::SIGALRM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGXCPU] {
        is_killed_and_restores(signal);
    }
}

#[test]
fn the_rarer_signals_that_kill_restore_the_terminal_too() {
    for signal in [libc::SIGVTALRM, libc::SIGPROF, libc::SIGIO, libc::SIGPWR, libc::SIGSTKFLT] {
        is_killed_and_restores(signal);
    }
}

#[test]
fn each_line_of_the_demo_begins_at_the_margin_of_a_terminal() {
    let terminal = Terminal::open();
    let before = terminal.settings();
    let husk = husk(["demo"]).on_terminal(&terminal);
    husk.wait_for("exits to husk");
    let ended = husk.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert_eq!(terminal.settings(), before);
    // A raw terminal does not return the carriage by itself, and the demo is a newcomer's first sight of husk.
    let text = ended.text();
    let stairs = text.split_inclusive('\n').find(|line| line.ends_with('\n') && !line.ends_with("\r\n"));
    assert_eq!(stairs, None);
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
