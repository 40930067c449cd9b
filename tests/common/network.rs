//! A network of a test's own: a namespace with taps in it, whose other ends are the guests'.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::net::{Ipv4Addr, UdpSocket};
use std::panic;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::sys;

/// The host's address on [`Tap::plain`], and the guest's, which are the probe's defaults.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The port on which the probe sends back what comes.
pub(crate) const ECHO_PORT: u16 = 4242;

/// How long an answer of a guest may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Runs `test` on a thread in a network namespace of its own. What it makes there is gone when its processes have ended,
/// also when it fails.
pub(crate) fn in_network_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let run = || {
        sys::unshare_network();
        test()
    };
    let ended = thread::scope(|scope| scope.spawn(run).join());
    ended.unwrap_or_else(|reason| panic::resume_unwind(reason))
}

/// Runs `ip` with these words in this thread's network namespace.
#[track_caller]
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_ascii_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A tap that is up, with the host's address on it.
pub(crate) fn tap(name: &str) {
    ip(&format!("tuntap add {name} mode tap"));
    ip(&format!("address add {HOST}/24 dev {name}"));
    ip(&format!("link set {name} up mtu 65000"));
}

/// The host's end of a conversation with the probe's `netecho`.
pub(crate) struct Echo(UdpSocket);

impl Echo {
    pub(crate) fn new() -> Self {
        let socket = UdpSocket::bind((HOST, ECHO_PORT)).unwrap();
        socket.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
        socket.connect((GUEST, ECHO_PORT)).unwrap();
        Self(socket)
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        self.0.send(bytes).unwrap();
    }

    /// The next datagram that comes back.
    #[track_caller]
    pub(crate) fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 16];
        let len = self.0.recv(&mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    }
}
