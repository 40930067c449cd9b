//! On real taps, each test in a network namespace of its own.

use super::*;
use crate::testing::{in_network_namespace, ip};

fn name(name: &str) -> InterfaceName {
    InterfaceName::new(name).unwrap()
}

fn refusal(tap: &str) -> TapError {
    Tap::open(&name(tap)).unwrap_err()
}

/// A descriptor attached to an interface with `flags`.
fn attached(tap: &str, flags: c_int) -> File {
    let file = File::options().read(true).write(true).open(TUN_PATH).unwrap();
    let mut request = request(name(tap).field());
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    // SAFETY: TUNSETIFF reads and writes an ifreq = `request`, which is one and lives across the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).unwrap();
    file
}

#[test]
fn what_is_no_tap_is_refused_by_its_name_and_nothing_is_made() {
    in_network_namespace(|| {
        ip("tuntap add tun7 mode tun");
        assert!(matches!(refusal("absent"), TapError::Absent(_)));
        let absent = "tap absent does not exist: create it with `ip tuntap add absent mode tap`";
        assert_eq!(refusal("absent").to_string(), absent);
        assert!(matches!(refusal("lo"), TapError::OtherKind(_)));
        assert!(matches!(refusal("tun7"), TapError::Tun(_)));
        ip("link show tun7");
        let interfaces = Interfaces::new().unwrap();
        assert!(matches!(interfaces.index(&name("absent")), Err(TapError::Absent(_))));
    });
}

#[test]
fn a_tap_has_one_user_and_is_still_there_when_that_has_gone() {
    in_network_namespace(|| {
        ip("tuntap add tap7 mode tap");
        let tap = Tap::open(&name("tap7")).unwrap();
        assert!(matches!(refusal("tap7"), TapError::Busy(_)));
        drop(tap);
        ip("link show tap7");
        Tap::open(&name("tap7")).unwrap();
    });
}

#[test]
fn a_taps_mtu_is_its_interfaces() {
    in_network_namespace(|| {
        ip("tuntap add tap7 mode tap");
        ip("link set tap7 mtu 1300");
        assert_eq!(Tap::open(&name("tap7")).unwrap().mtu(), Some(1300));
    });
}

#[test]
fn a_tap_of_several_queues_gives_one() {
    in_network_namespace(|| {
        ip("tuntap add tap7 mode tap multi_queue");
        let tap = Tap::open(&name("tap7")).unwrap();
        assert_eq!(tap.offloads(), Offloads::ALL);
    });
}

#[test]
fn somebody_elses_tap_is_refused_without_the_capability() {
    in_network_namespace(|| {
        ip("tuntap add tap7 mode tap user 12345");
        Tap::open(&name("tap7")).unwrap();
        // Version 3 (linux/capability.h), this thread; and effective, permitted and inheritable sets, low halves first.
        let (header, sets) = ([0x2008_0522_u32, 0], [0_u32; 6]);
        // SAFETY: capset reads a header of two words and sets of six = the arrays, which live across the call.
        let dropped = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
        assert_eq!(dropped, 0);
        let refused = refusal("tap7");
        assert!(matches!(refused, TapError::Foreign(_)), "{refused:?}");
    });
}

#[test]
fn errors_of_opening_the_driver_say_what_would_help() {
    let error = |number| open_error(&name("t"), io::Error::from_raw_os_error(number));
    assert!(matches!(error(libc::ENOENT), TapError::NoDriver));
    assert!(matches!(error(libc::EACCES), TapError::Permission(_)));
    assert!(matches!(error(libc::EMFILE), TapError::Host { .. }));
}

#[test]
fn a_passed_descriptor_must_be_a_tap_of_frames_with_headers() {
    in_network_namespace(|| {
        assert!(matches!(Tap::from_fd(1 << 20).unwrap_err(), TapError::NotOpen(_)));
        assert!(matches!(Tap::from_fd(-1).unwrap_err(), TapError::NotOpen(_)));
        let plain = File::open("/dev/null").unwrap();
        assert!(matches!(Tap::from_fd(plain.as_raw_fd()).unwrap_err(), TapError::OtherDescriptor(_)));
        let unattached = File::options().read(true).write(true).open(TUN_PATH).unwrap();
        assert!(matches!(Tap::from_fd(unattached.as_raw_fd()).unwrap_err(), TapError::OtherDescriptor(_)));
        let tun = attached("t0", libc::IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
        assert!(matches!(Tap::from_fd(tun.as_raw_fd()).unwrap_err(), TapError::OtherDescriptor(_)));
        let bare = attached("t1", IFF_TAP | IFF_NO_PI);
        assert!(matches!(Tap::from_fd(bare.as_raw_fd()).unwrap_err(), TapError::OtherFrames(_)));
        let tap = attached("t2", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
        // Again and again, as a machine that starts again does.
        for _ in 0..3 {
            let copy = Tap::from_fd(tap.as_raw_fd()).unwrap();
            assert_eq!(copy.offloads(), Offloads::ALL);
            // SAFETY: F_GETFL and F_GETFD take an open descriptor, and no memory.
            let flags = |command| unsafe { libc::fcntl(copy.receive_fd(), command) };
            assert_eq!(flags(libc::F_GETFL) & libc::O_NONBLOCK, libc::O_NONBLOCK);
            assert_eq!(flags(libc::F_GETFD) & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
        ip("link show t2");
    });
}

#[test]
fn every_choice_of_offloads_is_taken() {
    in_network_namespace(|| {
        ip("tuntap add tap7 mode tap");
        let tap = Tap::open(&name("tap7")).unwrap();
        for bits in 0..32_u32 {
            let bit = |number: u32| bits & (1 << number) != 0;
            let offloads = Offloads { csum: bit(0), tso4: bit(1), tso6: bit(2), tso_ecn: bit(3), uso: bit(4) };
            tap.set_offloads(offloads).unwrap();
        }
    });
}
