//! Networks: the probe over taps in namespaces of their own, whose other ends are this host's network stack.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::{self, File};

use common::folder::Folder;
use common::guest::{PROBE, READY, noise, probe};
use common::network::{Echo, in_network_namespace, ip, tap};
use common::refusal::{refused, with};
use common::vm::Vm;
use common::{Husk, Launch, husk, sys, through_shell};
use serde_json::json;

const MAC: &str = "02:00:00:00:00:07";
/// VIRTIO_NET_F_MQ, virtio 1.3 §5.1.3.
const MULTI_QUEUE: u64 = 1 << 22;

/// `launch` with `file` as descriptor 5.
fn passing(launch: &Launch, file: File) -> Launch {
    through_shell(r#"exec "$@" 5<&0 </dev/null"#, launch).stdin(file)
}

#[test]
fn a_guest_finds_its_neighbour_and_gets_its_echoes_by_either_table() {
    for (tables, end) in [("on", "poweroff"), ("off", "i8042")] {
        in_network_namespace(|| {
            tap("tap7");
            ip("link set tap7 address 02:00:00:00:00:01");
            let net = format!("tap=tap7,mac={MAC}");
            let words = format!("check=net,netreset,net end={end}");
            let ended = probe(&words).args(["--net", &net, "--acpi", tables]).end();
            let facts = ended.went_well().check("net");
            assert_eq!((facts.get("mac"), facts.get("peer")), (MAC, "02:00:00:00:00:01"));
            assert_eq!((facts.number("pings"), facts.number("up")), (100, 1));
            ip("link show tap7");
        });
    }
}

#[test]
fn a_tap_is_attached_to_when_a_client_names_it_and_when_the_machine_starts() {
    in_network_namespace(|| {
        let mut vm = Vm::new();
        vm.describe("check=net end=poweroff");
        let net = json!({ "iface_id": "net0", "host_dev_name": "tap7", "guest_mac": MAC });
        vm.put("/network-interfaces/net0", &net).refused(&["host_dev_name: tap tap7 does not exist", "ip tuntap add"]);
        assert_eq!(vm.get("/vm/config")["network-interfaces"], json!([]));
        tap("tap7");
        for _ in 0..2 {
            vm.put("/network-interfaces/net0", &net).done();
        }
        vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
        vm.husk.end().went_well().check("net");
    });
}

#[test]
fn a_card_without_an_address_leaves_it_to_the_guest() {
    in_network_namespace(|| {
        tap("tap7");
        let ended = probe("check=net end=poweroff").args(["--net", "tap=tap7,id=lan", "--cpus", "2"]).end();
        let facts = ended.went_well().check("net");
        assert_eq!((facts.number("features") & (1 << 5), facts.get("mac")), (0, "02:00:00:00:00:02"));
    });
}

#[test]
fn frames_of_all_sizes_come_back_as_they_were_sent() {
    in_network_namespace(|| {
        tap("tap7");
        let net = format!("tap=tap7,mac={MAC}");
        let husk = probe("check=netecho end=poweroff").args(["--net", &net]).start();
        husk.wait_for("NETECHO WAIT");
        let echo = Echo::new();
        let sizes = (0..=1500).step_by(77).chain([1472, 1473, 4000, 9000, 30_000, 64_000]);
        for (seed, len) in (1..).zip(sizes.clone()) {
            let sent = noise(seed, len);
            echo.send(&sent);
            assert!(echo.receive() == sent, "{len} bytes");
        }
        // Many at once, in order: as many as the test's own socket holds for certain.
        for round in 0..4 {
            let burst: Vec<_> = (0..50).map(|number| noise(50 * round + number, 500)).collect();
            burst.iter().for_each(|sent| echo.send(sent));
            assert!(burst.iter().all(|sent| echo.receive() == *sent));
        }
        echo.send(b"end");
        assert_eq!(echo.receive(), b"end");
        let facts = husk.end().went_well().check("netecho");
        assert_eq!(facts.number("frames"), u64::try_from(sizes.count()).unwrap() + 201);
    });
}

#[test]
fn several_cards_keep_their_order() {
    in_network_namespace(|| {
        for number in 0..3 {
            ip(&format!("tuntap add tap{number} mode tap"));
            ip(&format!("address add 198.51.{number}.1/24 dev tap{number}"));
            ip(&format!("link set tap{number} up"));
        }
        let cards = [0, 1, 2].map(|number| format!("tap=tap{number},mac=02:00:00:00:00:1{number}"));
        for number in 0..3 {
            let words =
                format!("check=net net.n={number} net.ip=198.51.{number}.2 net.peer=198.51.{number}.1 end=poweroff");
            let ended = probe(&words).args(["--net", &cards[0], "--net", &cards[1], "--net", &cards[2]]).end();
            assert_eq!(ended.went_well().check("net").get("mac"), format!("02:00:00:00:00:1{number}"));
        }
    });
}

#[test]
fn a_tap_comes_as_a_descriptor_too() {
    in_network_namespace(|| {
        let file = sys::attach("tap7", libc::IFF_VNET_HDR);
        ip("address add 192.0.2.1/24 dev tap7");
        ip("link set tap7 up");
        let net = format!("fd=5,mac={MAC}");
        let launch = probe("check=net end=poweroff").args(["--net", &net]);
        let ended = passing(&launch, file.try_clone().unwrap()).end();
        assert_eq!(ended.went_well().check("net").get("mac"), MAC);
        ip("link show tap7");
    });
}

#[test]
fn a_card_of_several_queues_is_served_over_a_tap_of_several_by_name_and_by_descriptors() {
    in_network_namespace(|| {
        ip("tuntap add tap7 mode tap multi_queue");
        ip("address add 192.0.2.1/24 dev tap7");
        ip("link set tap7 up");
        for words in ["queues=4", "queues=16,iothreads=3,poll_us=20", "queues=2,iothread=shared"] {
            let net = format!("tap=tap7,mac={MAC},{words}");
            let ended = probe("check=net,netreset,net end=poweroff").args(["--net", &net]).end();
            assert_eq!(ended.went_well().check("net").number("features") & MULTI_QUEUE, 0, "it uses one pair");
        }
        ip("link delete tap7");
        let files = [(); 3].map(|()| sys::attach("tap8", libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE));
        let [one, two, three] = files.each_ref().map(sys::pass_on);
        ip("address add 192.0.2.1/24 dev tap8");
        ip("link set tap8 up");
        // Each machine detaches the queues that its guest does not use, and leaves them so to the next.
        let net = format!("fd={one},,{two},,{three}");
        works_again_and_again(probe("check=net end=i8042").args(["--on-reboot", "restart", "--net", &net]));
    });
}

#[test]
fn queues_that_a_tap_does_not_have_are_refused() {
    in_network_namespace(|| {
        let folder = Folder::new();
        tap("tap7");
        refused(&folder, with(["--net", "tap=tap7,queues=2"]), &["tap tap7 has one queue", "multi_queue"]);
        refused(&folder, with(["--net", "tap=lo,queues=2"]), &["lo is a network interface, but no tap"]);
        refused(&folder, with(["--net", "tap=tap7,queues=17"]), &["queues=17: use 1 to 16"]);
        refused(&folder, with(["--net", "tap=tap7,iothreads=2"]), &["iothreads=2: use 1 to 1"]);
        refused(&folder, with(["--net", "fd=5,,6,queues=3"]), &["queues=3: there are 2 descriptors"]);
        refused(&folder, with(["--net", "fd=5,,5"]), &["both use descriptors 5, 5"]);
        let flags = libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        let files = ["tap8", "tap9"].map(|name| sys::attach(name, flags));
        let [one, other] = files.each_ref().map(sys::pass_on);
        let net = format!("fd={one},,{other}");
        refused(&folder, with(["--net", &net]), &["are not queues of one tap"]);
    });
}

#[test]
fn firecrackers_network_interfaces_boot_unchanged() {
    in_network_namespace(|| {
        tap("tap7");
        let folder = Folder::new();
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": "{PROBE}", "boot_args": "check=net end=poweroff"}},
                "network-interfaces": [{{"iface_id": "eth0", "guest_mac": "06:00:AC:10:00:02",
                                         "host_dev_name": "tap7", "rx_rate_limiter": null}}]}}"#
        );
        let ended = husk(["--no-api", "--config-file", &folder.file("vm.json", text.as_bytes())]).end();
        assert_eq!(ended.went_well().check("net").get("mac"), "06:00:ac:10:00:02");
    });
}

/// The probe, started again at each reset, finds its neighbour each time.
#[track_caller]
fn works_again_and_again(launch: Launch) {
    let husk = launch.start();
    husk.wait_for_times("CHECK net ok", 3);
    husk.signal(libc::SIGTERM);
    assert!(husk.end().went_well().lines(READY).len() >= 3);
}

#[test]
fn a_guest_that_resets_itself_has_its_tap_again_by_name_and_by_descriptor() {
    in_network_namespace(|| {
        let restarting = |net: &str| probe("check=net end=i8042").args(["--on-reboot", "restart", "--net", net]);
        tap("tap7");
        works_again_and_again(restarting("tap=tap7"));
        ip("link delete tap7");
        let file = sys::attach("tap8", libc::IFF_VNET_HDR);
        ip("address add 192.0.2.1/24 dev tap8");
        ip("link set tap8 up");
        works_again_and_again(passing(&restarting("fd=5"), file.try_clone().unwrap()));
        ip("link show tap8");
    });
}

#[test]
fn a_killed_machine_leaves_its_tap_to_the_next() {
    in_network_namespace(|| {
        tap("tap7");
        let husk = probe("check=netecho end=poweroff").args(["--net", "tap=tap7"]).start();
        husk.wait_for("NETECHO WAIT");
        husk.signal(libc::SIGKILL);
        assert_eq!(husk.end().signal(), Some(libc::SIGKILL));
        ip("link show tap7");
        probe("check=net end=poweroff").args(["--net", "tap=tap7"]).end().went_well();
    });
}

/// What the I/O thread of the first card has used of a CPU.
fn io_thread_ns(husk: &Husk) -> u64 {
    let thread = husk.threads("husk-io-net0")[0];
    let stat = fs::read_to_string(format!("/proc/{}/task/{thread}/schedstat", husk.pid())).unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_tap_that_is_deleted_takes_the_link_and_not_the_machine() {
    in_network_namespace(|| {
        tap("tap7");
        let husk = probe("check=netecho end=poweroff").args(["--net", "tap=tap7"]).start();
        husk.wait_for("NETECHO WAIT");
        ip("link delete tap7");
        husk.wait_for_error("net0: cannot receive");
        // A descriptor with an error is always ready: nobody may be woken by it over and over.
        let before = io_thread_ns(&husk);
        probe("end=poweroff").end().went_well();
        let busy = io_thread_ns(&husk) - before;
        assert!(busy < 5_000_000, "{busy} ns of work for a tap that is gone");
        husk.signal(libc::SIGTERM);
        assert_eq!(husk.end().code(), Some(0));
    });
}

#[test]
fn a_tap_that_is_none_of_ours_is_refused_and_stays_as_it_is() {
    in_network_namespace(|| {
        let folder = Folder::new();
        refused(&folder, with(["--net", "tap=absent"]), &["network `net0`", "tap absent does not exist", "create it"]);
        ip("tuntap add tun7 mode tun");
        refused(&folder, with(["--net", "tap=tun7"]), &["tun7 is a tun, not a tap"]);
        refused(&folder, with(["--net", "tap=lo"]), &["lo is a network interface, but no tap"]);
        let busy = sys::attach("tap7", libc::IFF_VNET_HDR);
        refused(&folder, with(["--net", "tap=tap7"]), &["tap tap7 is in use by another process"]);
        drop(busy);
        ip("tuntap add tap8 mode tap user 12345");
        let powerless = r#"exec setpriv --bounding-set -net_admin --inh-caps -net_admin "$@""#;
        let launch = through_shell(powerless, &with(["--net", "tap=tap8,id=lan"]));
        refused(&folder, launch, &["network `lan`", "tap tap8 belongs to another user", "user $USER"]);
        ip("link show tun7");
        ip("link show tap8");
        // Neither did any of them make one.
        let links = std::process::Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
        assert_eq!(String::from_utf8(links).unwrap().lines().count(), 3, "lo, tun7 and tap8");
    });
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    in_network_namespace(|| {
        let folder = Folder::new();
        refused(&folder, with(["--net", "fd=77"]), &["network `net0`", "descriptor 77 is not open"]);
        refused(&folder, with(["--net", "fd=0"]), &["descriptor 0 is no tap"]);
        let null = File::open("/dev/null").unwrap();
        refused(&folder, passing(&with(["--net", "fd=5"]), null), &["descriptor 5 is no tap"]);
        let bare = sys::attach("tap7", 0);
        refused(&folder, passing(&with(["--net", "fd=5"]), bare), &["descriptor 5 is a tap without headers"]);
    });
}

#[test]
fn names_and_addresses_that_cannot_be_are_refused_before_anything_is_opened() {
    let folder = Folder::new();
    let refused = |words: &[&str], parts: &[&str]| {
        let options: Vec<_> = words.iter().flat_map(|word| ["--net", word]).collect();
        refused(&folder, with(options), parts);
    };
    refused(&["tap=t,mac=01:00:5e:00:00:01"], &["network `net0`: mac", "01:00:5e:00:00:01 is the address of a group"]);
    refused(&["tap=t,mac=ff:ff:ff:ff:ff:ff"], &["address of a group"]);
    refused(&["tap=t,mac=00:00:00:00:00:00"], &["no station's address"]);
    refused(&["tap=t,id=lan,mac=02:00:00"], &["network `lan`: mac", "`02:00:00` is no MAC address"]);
    refused(&["tap=a-name-of-16-byt"], &["`a-name-of-16-byt` is no name of a tap"]);
    refused(&["tap=tap%d"], &["no name of a tap"]);
    refused(&["tap="], &["no name of a tap"]);
    refused(&["tap=a", "tap=a"], &["networks `net0` and `net1` both use tap `a`"]);
    refused(&["tap=a,id=x", "tap=b,id=x"], &["device id `x` is used twice"]);
    let many: Vec<_> = (0..20).map(|number| format!("tap=t{number}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    refused(&many, &["device `net19` is number 20"]);
}

#[test]
fn a_net_option_that_cannot_be_read_is_a_usage_error() {
    for words in ["", "tap7", "mac=02:00:00:00:00:01", "tap=a,fd=3", "fd=x", "tap=a,mtu=65536", "tap=a,speed=1"] {
        let ended = with(["--net", words]).end();
        assert_eq!(ended.code(), Some(2), "{ended}");
        assert!(ended.stderr.contains("--net"), "{ended}");
    }
}
