//! What is asked of a network, and changed of it, while its guest uses it: filter, cable, limits and MTU.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::{noise, probe};
use common::http::Connection;
use common::network::{Echo, in_network_namespace, tap};
use common::refusal::{refused, with};
use common::{Husk, husk};
use serde_json::{Value, json};

const MAC: &str = "02:00:00:00:00:07";

/// The probe behind `tap7`, and its control socket.
struct Station {
    folder: Folder,
    husk: Husk,
    client: Connection,
}

impl Station {
    /// With these words of its own, and these more of its network, which is `net0`.
    fn start(words: &str, net: &str) -> Self {
        tap("tap7");
        let folder = Folder::new();
        let net = format!("tap=tap7,mac={MAC}{net}");
        let husk = probe(words).args(["--net", &net, "--api-sock", &folder.at("s")]).start();
        let client = Connection::open(folder.at("s"));
        Self { folder, husk, client }
    }

    /// That sends back what it gets, and is ready to.
    fn echoing(net: &str) -> (Self, Echo) {
        let station = Self::start("check=netecho end=poweroff", net);
        station.husk.wait_for("NETECHO WAIT");
        (station, Echo::new())
    }

    fn ctl(&self, words: &[&str]) -> String {
        let ended = husk(["ctl", "--api-sock", &self.folder.at("s")]).args(words).end();
        assert_eq!(ended.code(), Some(0), "{ended}");
        ended.text()
    }

    fn ctl_json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ctl(&[&["--json"], words].concat())).unwrap()
    }

    fn device(&self) -> Value {
        self.ctl_json(&["devices"])[0].clone()
    }

    /// Waits until a counter of the network, of one direction, is at least `count`.
    fn wait_for_count(&mut self, counter: &str, direction: &str, count: u64) {
        let start = format!(r#"husk_device_{counter}_total{{device="net0",kind="net",direction="{direction}"}} "#);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let page = self.client.ask("GET", "/husk/v1/metrics", "").body;
            let line = page.lines().find_map(|line| line.strip_prefix(&start));
            if line.unwrap_or_else(|| panic!("{start} is not in\n{page}")).parse::<u64>().unwrap() >= count {
                return;
            }
            assert!(Instant::now() < deadline, "{start}is not {count} in time:\n{page}");
        }
    }

    fn limit_reception(&mut self, limiter: &Value) {
        let body = json!({ "iface_id": "net0", "rx_rate_limiter": limiter });
        self.client.ask("PATCH", "/network-interfaces/net0", &body.to_string()).done();
    }

    /// Lets the guest end.
    fn finish(self, echo: &Echo) {
        echo.send(b"end");
        assert_eq!(echo.receive(), b"end");
        let ended = self.husk.end();
        assert_eq!(ended.code(), Some(0), "{ended}");
        ended.check("netecho");
    }
}

#[track_caller]
fn echoes(echo: &Echo, sent: &[u8]) {
    echo.send(sent);
    assert!(echo.receive() == sent, "{} bytes", sent.len());
}

#[test]
fn a_guest_with_its_own_addresses_does_not_notice_its_filter() {
    for filter in ["mac", "mac+ip,ip=2001:db8::2,,192.0.2.2"] {
        in_network_namespace(|| {
            let station = Station::start("check=net end=poweroff", &format!(",filter={filter}"));
            station.husk.end().went_well().check("net");
        });
    }
}

#[test]
fn a_guest_with_another_address_is_filtered_out_and_counted_and_its_filter_is_told() {
    in_network_namespace(|| {
        let mut station = Station::start("check=net end=poweroff", ",filter=mac+ip,ip=192.0.2.9,,2001:db8::2");
        station.wait_for_count("filtered", "transmit", 2);
        assert_eq!(station.device()["filter"], "mac+ip");
        let config = &station.ctl_json(&["config"])["nets"][0];
        assert_eq!((&config["filter"], &config["ip"]), (&json!("mac+ip"), &json!(["192.0.2.9", "2001:db8::2"])));
        station.husk.wait_for_error("net0: transmitted 42 bytes filtered out: an ARP message for another's address");
        station.husk.signal(libc::SIGTERM);
        assert_eq!(station.husk.end().code(), Some(0));
    });
}

#[test]
fn a_filter_that_cannot_be_is_refused() {
    let folder = Folder::new();
    let refused = |net: &str, parts: &[&str]| refused(&folder, with(["--net", net]), parts);
    refused("tap=t,filter=mac", &["device `net0`", "filter=mac", "give mac="]);
    refused(&format!("tap=t,mac={MAC},filter=mac+ip"), &["filter=mac+ip: 0 addresses", "give 1 to 64 by ip="]);
    refused(&format!("tap=t,mac={MAC},filter=mac+ip,ip=224.0.0.1"), &["ip=224.0.0.1", "give one of the guest's"]);
    for words in ["tap=t,filter=all", "tap=t,ip=192.0.2.2", "tap=t,filter=mac+ip,ip=192.0.2"] {
        let ended = with(["--net", words]).end();
        assert_eq!(ended.code(), Some(2), "{ended}");
    }
}

#[test]
fn a_cable_that_is_out_loses_what_is_sent_and_one_that_is_in_again_does_not() {
    in_network_namespace(|| {
        let (mut station, echo) = Station::echoing("");
        echoes(&echo, &noise(1, 1000));
        assert_eq!(station.device()["link"], "up");
        station.ctl(&["net", "link", "net0", "down"]);
        assert_eq!(station.device()["link"], "down");
        echo.send(b"lost");
        station.wait_for_count("dropped", "receive", 1);
        station.ctl(&["net", "link", "net0", "up"]);
        assert_eq!(station.device()["link"], "up");
        echoes(&echo, &noise(2, 1000));
        station.finish(&echo);
    });
}

#[test]
fn limits_of_a_network_in_use_hold_from_then_on_and_until_they_are_taken_away() {
    const FRAMES: u32 = 40;
    const APART: Duration = Duration::from_millis(25);
    in_network_namespace(|| {
        let (mut station, echo) = Station::echoing("");
        station.limit_reception(&json!({ "ops": { "size": 1, "refill_time": APART.as_millis() } }));
        let limits = station.ctl_json(&["config"])["nets"][0]["limits"]["to_guest"].clone();
        assert_eq!(limits["operations"], json!({ "size": 1, "burst": 0, "refill_ms": 25 }));
        let start = Instant::now();
        (0..FRAMES).for_each(|number| echoes(&echo, &noise(number.into(), 200)));
        // The first is for nothing.
        assert!(start.elapsed() >= APART * (FRAMES - 1), "{:?}", start.elapsed());
        let queues = station.device()["queues"].clone();
        assert_eq!((&queues[0]["direction"], &queues[1]["direction"]), (&json!("receive"), &json!("transmit")));
        assert!(queues[0]["requests"].as_u64() >= Some(FRAMES.into()) && queues[1]["bytes"].as_u64() > Some(8000));
        assert!(queues[0]["throttled_ms"].as_u64() > Some(500) && queues[1]["throttled_ms"] == 0, "{queues}");
        station.limit_reception(&json!({ "ops": { "size": 0, "refill_time": 0 } }));
        let (many, start) = (40 * FRAMES, Instant::now());
        (0..many).for_each(|number| echoes(&echo, &noise(number.into(), 200)));
        assert!(start.elapsed() < APART * (many - 1), "{:?}", start.elapsed());
        station.finish(&echo);
    });
}

#[test]
fn a_guest_is_told_its_mtu_and_gets_nothing_longer() {
    in_network_namespace(|| {
        let station = Station::start("check=net end=poweroff", ",mtu=1500");
        assert_eq!(station.husk.end().went_well().check("net").number("mtu"), 1500);
    });
    in_network_namespace(|| {
        let (mut station, echo) = Station::echoing(",mtu=1280");
        assert_eq!(station.ctl_json(&["config"])["nets"][0]["mtu"], 1280);
        // IPv4 and UDP headers are part of the packet.
        echoes(&echo, &noise(1, 1280 - 28));
        echo.send(&noise(2, 1280 - 27));
        station.wait_for_count("dropped", "receive", 1);
        echoes(&echo, &noise(3, 100));
        station.finish(&echo);
    });
}
