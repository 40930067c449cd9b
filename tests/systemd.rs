//! husk as a service: what it tells a service manager and takes from one, as systemd gives it, and the unit files.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::Command;
use std::time::Duration;

use common::ended::Ended;
use common::folder::Folder;
use common::guest::{LISTENING, READY, echoing, probe};
use common::http::Connection;
use common::sys::Held;
use common::{HUSK, Launch, husk, through_shell};
use serde_json::json;

/// How long a message may take to come.
const DEADLINE: Duration = Duration::from_secs(60);

/// A service manager that listens.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &str) -> Self {
        Self::of(UnixDatagram::bind(path).unwrap())
    }

    fn abstract_one(name: &str) -> Self {
        Self::of(UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap())
    }

    fn of(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    /// The next message's lines; none if it does not come in time.
    fn next(&self) -> Option<Vec<String>> {
        let mut buffer = [0; 4096];
        match self.0.recv(&mut buffer) {
            Ok(count) => {
                Some(String::from_utf8(buffer[..count].to_vec()).unwrap().lines().map(str::to_owned).collect())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// All lines up to this one, which comes.
    fn wait_for(&self, line: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while !seen.iter().any(|other| other == line) {
            seen.extend(self.next().unwrap_or_else(|| panic!("no `{line}` after {seen:?}")));
        }
        seen
    }

    /// All messages that are there already.
    fn rest(&self) -> Vec<String> {
        self.0.set_nonblocking(true).unwrap();
        let rest = std::iter::from_fn(|| self.next()).flatten().collect();
        self.0.set_nonblocking(false).unwrap();
        rest
    }
}

#[test]
fn a_service_is_ready_when_its_socket_accepts_and_says_when_it_stops() {
    let folder = Folder::new();
    let manager = Manager::at(&folder.at("notify"));
    let husk = husk(["--api-sock", &folder.at("s")]).env("NOTIFY_SOCKET", folder.at("notify")).start();
    assert_eq!(manager.next().unwrap(), ["READY=1", "STATUS=The machine has not been started"]);
    UnixStream::connect(folder.at("s")).expect("it accepts when it is ready");
    let mut client = Connection::open(folder.at("s"));
    let boot = json!({ "kernel_image_path": common::guest::PROBE, "boot_args": "check=serial end=poweroff" });
    client.ask("PUT", "/boot-source", &boot.to_string()).done();
    client.ask("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#).done();
    assert_eq!(manager.next().unwrap(), ["STATUS=The machine is running"]);
    client.ask("PATCH", "/vm", r#"{"state": "Paused"}"#).done();
    assert_eq!(manager.next().unwrap(), ["STATUS=The machine is paused"]);
    husk.signal(libc::SIGTERM);
    assert_eq!(husk.end().code(), Some(0));
    let last = manager.wait_for("STOPPING=1");
    assert_eq!(last, ["STATUS=The machine has ended", "STOPPING=1"]);
}

#[test]
fn without_a_socket_a_service_is_ready_when_its_guest_runs() {
    let name = format!("husk-test-{}", std::process::id());
    let manager = Manager::abstract_one(&name);
    let husk = probe("end=poweroff").env("NOTIFY_SOCKET", format!("@{name}")).start();
    assert_eq!(manager.next().unwrap(), ["READY=1", "STATUS=The machine is running"]);
    husk.end().went_well();
    manager.wait_for("STOPPING=1");
}

#[test]
fn a_machine_that_cannot_be_is_never_ready() {
    let folder = Folder::new();
    let manager = Manager::at(&folder.at("notify"));
    let ended = husk(["run", "--kernel", "/nowhere"]).env("NOTIFY_SOCKET", folder.at("notify")).end();
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert_eq!(manager.rest(), ["STOPPING=1"]);
}

#[test]
fn the_watchdog_hears_of_the_control_loop_and_of_no_other_thread() {
    let folder = Folder::new();
    let manager = Manager::at(&folder.at("notify"));
    let husk = husk(["--api-sock", &folder.at("s")])
        .env("NOTIFY_SOCKET", folder.at("notify"))
        .env("WATCHDOG_USEC", "100000")
        .start();
    manager.wait_for("READY=1");
    // Before the machine and with one, the loop goes round by itself.
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    let mut client = Connection::open(folder.at("s"));
    let boot = json!({ "kernel_image_path": common::guest::PROBE, "boot_args": "check=serial end=poweroff" });
    client.ask("PUT", "/boot-source", &boot.to_string()).done();
    client.ask("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#).done();
    manager.wait_for("STATUS=The machine is running");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    let held = Held::hold(husk.pid());
    manager.rest();
    assert_eq!(client.ask("GET", "/version", "").status, 200, "the socket's thread goes on");
    manager.0.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(manager.next(), None, "a loop that hangs is silent");
    manager.0.set_read_timeout(Some(DEADLINE)).unwrap();
    held.release();
    manager.wait_for("WATCHDOG=1");
}

#[test]
fn the_watchdog_of_another_process_and_one_without_a_limit_are_not_fed() {
    for (name, value) in [("WATCHDOG_PID", "1"), ("WATCHDOG_USEC", "0"), ("WATCHDOG_USEC", "soon")] {
        let folder = Folder::new();
        let manager = Manager::at(&folder.at("notify"));
        let launch = probe("end=poweroff").env("NOTIFY_SOCKET", folder.at("notify"));
        launch.env("WATCHDOG_USEC", "2").env(name, value).end().went_well();
        let told = manager.rest();
        assert!(told.contains(&"READY=1".to_owned()), "{told:?}");
        assert!(!told.contains(&"WATCHDOG=1".to_owned()), "{name}={value}: {told:?}");
    }
}

#[test]
fn a_service_manager_that_reads_nothing_holds_up_no_machine() {
    let folder = Folder::new();
    let manager = Manager::at(&folder.at("notify"));
    let mut husk = echoing().env("NOTIFY_SOCKET", folder.at("notify")).env("WATCHDOG_USEC", "2000").typed();
    husk.wait_for(LISTENING);
    // Its queue holds few messages (net.unix.max_dgram_qlen), and is full soon.
    husk.type_in(b"still here\n");
    husk.wait_for("still here");
    husk.type_in(b"end\n");
    husk.end().went_well();
    let told = manager.rest();
    assert!(told.contains(&"WATCHDOG=1".to_owned()), "{told:?}");
}

#[test]
fn a_service_manager_that_cannot_be_told_is_named_once_and_the_machine_runs() {
    let folder = Folder::new();
    for address in [folder.at("nobody"), "nonsense".to_owned()] {
        let ended = probe("end=poweroff").env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "2000").end();
        assert_eq!(ended.code(), Some(0), "{ended}");
        assert!(ended.text().contains(READY), "{ended}");
        assert!(ended.message().contains("service manager"), "{ended}");
    }
}

/// husk with descriptor 3, as a service manager leaves it behind when it becomes husk.
fn activated(launch: &Launch, descriptor: impl Into<OwnedFd>, variables: &str) -> Launch {
    let script = format!(r#"exec 3<&0 </dev/null; {variables} exec "$@""#);
    through_shell(&script, launch).stdin(descriptor.into())
}

#[test]
fn a_socket_that_is_handed_over_is_served_and_stays() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.at("given")).unwrap();
    let launch = husk(["--id", "given", "--api-sock", &folder.at("own")]);
    // A client may come before husk does.
    let mut client = Connection::open(folder.at("given"));
    let husk = activated(&launch, listener, "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api").start();
    assert_eq!(client.ask("GET", "/", "").json()["id"], "given");
    assert!(!folder.path().join("own").exists(), "it makes none of its own");
    husk.signal(libc::SIGTERM);
    assert_eq!(husk.end().code(), Some(0));
    assert!(folder.path().join("given").exists(), "whoever made it removes it");
}

#[test]
fn what_is_handed_to_another_process_is_left_alone() {
    for variables in ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1", "LISTEN_PID=$$ LISTEN_FDS=0", "LISTEN_PID=$$"] {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.at("given")).unwrap();
        let husk = activated(&husk(["--api-sock", &folder.at("own")]), listener, variables).start();
        assert_eq!(Connection::open(folder.at("own")).ask("GET", "/", "").status, 200, "{variables}");
        husk.signal(libc::SIGTERM);
        assert_eq!(husk.end().code(), Some(0));
    }
}

#[test]
fn what_is_handed_over_and_cannot_be_served_is_refused_by_name() {
    let folder = Folder::new();
    let refused = |descriptor: OwnedFd, variables: &str| -> Ended {
        let launch = husk(["--api-sock", &folder.at("own")]);
        let ended = activated(&launch, descriptor, variables).end();
        assert_eq!(ended.code(), Some(1), "{ended}");
        assert!(!folder.path().join("own").exists(), "{variables}: nothing is made");
        ended
    };
    let listener = || {
        let _ = fs::remove_file(folder.at("given"));
        UnixListener::bind(folder.at("given")).unwrap()
    };
    let two = refused(listener().into(), "LISTEN_PID=$$ LISTEN_FDS=2");
    assert!(two.message().contains("LISTEN_FDS=2"), "{two}");
    let file = fs::File::open("/dev/null").unwrap();
    let (connected, _peer) = UnixStream::pair().unwrap();
    let internet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UnixDatagram::unbound().unwrap();
    let others: [OwnedFd; 4] = [file.into(), connected.into(), internet.into(), datagrams.into()];
    for other in others {
        let ended = refused(other, "LISTEN_PID=$$ LISTEN_FDS=1");
        assert!(ended.message().contains("descriptor 3 is no listening UNIX stream socket"), "{ended}");
    }
    let closed = refused(listener().into(), "exec 3<&-; LISTEN_PID=$$ LISTEN_FDS=1");
    assert!(closed.message().contains("descriptor 3: Bad file descriptor"), "{closed}");
}

#[test]
fn systemd_finds_nothing_to_say_about_the_unit_files() {
    let folder = Folder::new();
    let verify = |service: &str| {
        let socket = include_str!("../resources/systemd/husk@.socket");
        let units = [folder.file("husk@.service", service.as_bytes()), folder.file("husk@.socket", socket.as_bytes())];
        let output = Command::new("systemd-analyze").arg("verify").args(units).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let service = include_str!("../resources/systemd/husk@.service").replace("/usr/bin/husk", HUSK);
    assert_eq!(verify(&service), "");
    let broken = verify(&service.replace("WatchdogSec", "WatchdogSecs"));
    assert!(broken.contains("WatchdogSecs"), "it would say so: {broken}");
}

#[test]
fn the_unit_s_command_line_boots_a_machine() {
    let folder = Folder::new();
    let unit = include_str!("../resources/systemd/husk@.service");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/husk ")).unwrap();
    let config = json!({
        "boot-source": { "kernel_image_path": common::guest::PROBE, "boot_args": "check=serial end=poweroff" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
    });
    folder.file("vm1.json", config.to_string().as_bytes());
    let command =
        command.replace("/etc/husk", &folder.at("")).replace("/run/husk/%i", &folder.at("")).replace("%i", "vm1");
    let husk = husk(command.split(' ')).start();
    husk.wait_for(LISTENING);
    assert_eq!(Connection::open(folder.at("api.sock")).ask("GET", "/", "").json()["id"], "vm1");
    husk.signal(libc::SIGTERM);
    assert_eq!(husk.end().code(), Some(0));
}
