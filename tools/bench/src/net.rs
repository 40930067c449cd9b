//! `tools/dev bench net`: Linux's TCP over a tap, between a guest and this process, husk beside QEMU's microvm.
#![expect(unsafe_code, reason = "unshare has no safe interface in libc")]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::child::Measured;
use crate::peer::Artifacts;
use crate::report::Row;
use crate::stats::median;
use crate::{BenchError, Wanted};

const PAIRS: usize = 3;
const STREAM_BYTES: u32 = 512 << 10;
const CHUNK_BYTES: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(120);
const QEMU: &str = "qemu-microvm";
const TAP: &str = "husk-bench0";
const MAC: &str = "02:00:00:00:00:07";
/// Where the guest's init finds its peer (resources/guest/linux/README.md).
const HOST: &str = "192.0.2.1";
const PORT: u16 = 4243;
const READY: &str = "GUEST READY";

/// How fast a stream went each way, in MiB a second.
struct Rates {
    from_guest: f64,
    to_guest: f64,
}

pub(crate) fn run(wanted: &Wanted) -> Result<Vec<Row>, BenchError> {
    let names = ["linux-tcp-from-guest", "linux-tcp-to-guest"];
    if !names.iter().any(|name| wanted.has(name)) {
        return Ok(Vec::new());
    }
    let artifacts = Artifacts::find()?;
    let host = |what: &str| {
        let path = what.to_owned();
        move |source| BenchError::Proc { path, source }
    };
    make_network().map_err(host("a network namespace with a tap"))?;
    let listener = TcpListener::bind((HOST, PORT)).map_err(host("the TCP port of the guest's peer"))?;
    let (mut husk, mut qemu) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        husk.push(stream(husk_command(&artifacts), &listener)?);
        qemu.push(stream(qemu_command(&artifacts), &listener)?);
    }
    let row = |name: &str, rate: fn(&Rates) -> f64| {
        let of = |rates: &[Rates]| median(rates.iter().map(rate).collect());
        Row::more_is_better(name, "MiB/s", of(&husk), of(&qemu).map(|figure| (QEMU, figure)))
    };
    Ok(vec![row(names[0], |rates| rates.from_guest), row(names[1], |rates| rates.to_guest)])
}

fn husk_command(artifacts: &Artifacts) -> Command {
    let mut command = artifacts.husk(&artifacts.vmlinux, 128, 1);
    command.args(["--net", &format!("tap={TAP},mac={MAC}"), "--initrd"]).arg(&artifacts.initramfs);
    command.args(["--cmdline", &words()]);
    command
}

fn qemu_command(artifacts: &Artifacts) -> Command {
    let mut command = artifacts.qemu(&artifacts.vmlinux, 128, 1);
    let backend = format!("tap,id=n,ifname={TAP},script=no,downscript=no,vhost=off");
    command.args(["-netdev", &backend, "-device", &format!("virtio-net-device,netdev=n,mac={MAC}"), "-initrd"]);
    command.arg(&artifacts.initramfs).args(["-append", &words()]);
    command
}

fn words() -> String {
    format!("{} husk.check=net husk.net={STREAM_BYTES} husk.end=poweroff", crate::boot::LINUX_WORDS)
}

/// Boots the guest, takes its stream and gives one of the same length back.
fn stream(command: Command, listener: &TcpListener) -> Result<Rates, BenchError> {
    let guest = Measured::start(command, READY, LIMIT)?;
    let rates =
        exchange(listener).map_err(|source| BenchError::Proc { path: "the guest's TCP stream".to_owned(), source });
    drop(guest);
    rates
}

fn exchange(listener: &TcpListener) -> io::Result<Rates> {
    let mut peer = accept(listener)?;
    peer.set_read_timeout(Some(LIMIT))?;
    peer.set_write_timeout(Some(LIMIT))?;
    let began = Instant::now();
    let came = io::copy(&mut peer, &mut io::sink())?;
    let from_guest = rate(came, began);
    let began = Instant::now();
    let chunk = vec![0xa5; CHUNK_BYTES];
    let mut left = u64::from(STREAM_BYTES);
    while left > 0 {
        let next = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
        peer.write_all(&chunk[..next])?;
        left -= u64::try_from(next).expect("64 bits fit");
    }
    peer.shutdown(Shutdown::Write)?;
    // The guest closes when it has received all.
    peer.read_to_end(&mut Vec::new())?;
    Ok(Rates { from_guest, to_guest: rate(STREAM_BYTES.into(), began) })
}

/// The guest's connection, if it comes within the limit.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((peer, _)) => {
                peer.set_nonblocking(false)?;
                return Ok(peer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(ACCEPT_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

fn rate(bytes: u64, began: Instant) -> f64 {
    let mib = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / f64::from(1 << 20);
    mib / began.elapsed().as_secs_f64()
}

/// A network namespace that goes with this process, and the tap in it.
fn make_network() -> io::Result<()> {
    // SAFETY: the one thread there is leaves its network namespace; nothing of this process depends on the old one.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for words in
        [format!("tuntap add {TAP} mode tap"), format!("address add {HOST}/24 dev {TAP}"), format!("link set {TAP} up")]
    {
        let status = Command::new(Path::new("ip")).args(words.split(' ')).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("ip {words}: {status}")));
        }
    }
    Ok(())
}
