//! The serial console on every kind of standard stream but a terminal.

mod common;

use std::fs::File;
use std::io::{Read, Write};

use common::folder::Folder;
use common::guest::{LISTENING, READY, echoing, flood, long_lines, noise, probe, stops_only_when_told};
use common::{Launch, husk, sys, through_shell};

/// More than a small pipe and husk's buffer of 64 KiB hold.
const FLOOD_KIB: usize = 80;

fn flooding() -> Launch {
    probe(&format!("check=flood flood_kib={FLOOD_KIB} end=poweroff"))
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
    probe("check=flood flood_kib=8 end=poweroff").stdout(file).end().went_well();
    let log = String::from_utf8(folder.read("log")).unwrap();
    assert!(log.contains(&flood(8)), "{log}");
    assert!(log.ends_with("END poweroff\n"), "{log}");
}

#[test]
fn output_of_a_guest_that_crashes_is_all_there() {
    let ended = probe("check=flood flood_kib=8 end=triple").end();
    assert_eq!(ended.code(), Some(3), "{ended}");
    assert!(ended.text().contains(&flood(8)) && ended.text().ends_with("END triple\n"), "{ended}");
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
    assert!(flood(FLOOD_KIB).starts_with(&text[start..]) && text.len() >= sys::SMALL_PIPE_BYTES / 2, "{text}");
}

#[test]
fn a_guest_behind_an_output_that_blocks_can_still_be_stopped() {
    let (_reader, writer) = sys::small_pipe();
    let mut full = writer.try_clone().unwrap();
    full.write_all(&[b'x'; sys::SMALL_PIPE_BYTES]).unwrap();
    let folder = Folder::new();
    let disk = folder.sparse("disk", 1 << 20);
    let husk = probe("check=blk,count end=poweroff").args(["--disk", &disk]).stdout(writer).start();
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
    for (redirection, how, code) in
        [(">&-", "poweroff", 0), ("2>&-", "poweroff", 0), (">&- 2>&- <&-", "poweroff", 0), ("2>&-", "triple", 3)]
    {
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

#[test]
fn the_content_of_a_plain_file_is_typed_in() {
    let folder = Folder::new();
    let path = folder.file("typed", b"first line\nsecond line\nend\n");
    let ended = echoing().stdin(File::open(path).unwrap()).end().went_well();
    assert_eq!(ended.lines("ECHO "), ["first line", "second line"]);
    assert_eq!(ended.check("serial").number("bytes"), 27);
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
    probe("end=poweroff").stdin(File::open(&path).unwrap()).end().went_well();
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

#[test]
fn a_standard_error_that_blocks_holds_neither_the_guest_nor_the_end() {
    let folder = Folder::new();
    let disk = folder.sparse("disk", 1 << 20);
    let (_reader, writer) = sys::small_pipe();
    writer.try_clone().unwrap().write_all(&[b'x'; sys::SMALL_PIPE_BYTES]).unwrap();
    let husk = probe("check=broken end=halt").args(["--disk", &disk]).stderr(writer).start();
    husk.wait_for("CHECK broken ok");
    husk.signal(15);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_parent_that_blocked_every_signal_keeps_husk_from_nothing() {
    let launch = probe("end=spin");
    let script = r#"exec python3 -c 'import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); os.execv(sys.argv[1], sys.argv[1:])' "$@""#;
    let husk = through_shell(script, &launch).start();
    husk.wait_for(READY);
    husk.signal(15);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_hangup_that_the_parent_ignores_is_ignored() {
    let mut husk = through_shell(r#"trap "" HUP; exec "$@""#, &probe("check=serial end=poweroff")).typed();
    husk.wait_for("SERIAL WAIT");
    husk.signal(1);
    husk.type_in(b"still here\nend\n");
    husk.wait_for("ECHO still here");
    assert_eq!(husk.end().code(), Some(0));
}
