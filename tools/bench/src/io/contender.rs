//! Who is measured, and the command lines on which they get the same machine: one vCPU, 128 MiB, one disk, one card.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::floor::FLOOR;
use super::{host, variable};
use crate::BenchError;

/// More than any cache of a CPU, and less than the page cache of any host that builds husk.
const DISK_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: usize = 4096;
const MEMORY_MIB: u64 = 128;
const MAC: &str = "02:00:00:00:00:07";
/// QEMU's own default for its iothreads.
const POLL_NS: u32 = 32_768;

/// What a contender's figures are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Husk,
    Peer,
    Floor,
}

/// One way to run the bench guest.
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) role: Role,
    start: Start,
}

enum Start {
    Husk { memory: &'static str, disk: &'static str },
    Qemu { aio: &'static str, cache: &'static str, poll_ns: u32 },
    Firecracker { program: PathBuf, engine: &'static str },
    Floor { cache: &'static str },
}

/// What all of them get.
pub(super) struct Place {
    husk: PathBuf,
    guest: PathBuf,
    disk: PathBuf,
    config: PathBuf,
}

impl Place {
    /// Makes the disk, and a network namespace with a tap in it, which is gone when this program ends.
    pub(super) fn prepare() -> Result<Self, BenchError> {
        let husk = variable("HUSK_BENCH_HUSK", "the release build of husk")?;
        let guest = variable("HUSK_BENCH_GUEST", "the bench guest")?;
        let place = Self {
            disk: husk.with_file_name("bench-io.disk"),
            config: husk.with_file_name("bench-io.json"),
            husk,
            guest,
        };
        write_disk(&place.disk)
            .map_err(|source| BenchError::Proc { path: place.disk.display().to_string(), source })?;
        host::enter_own_network().map_err(|source| BenchError::Start { program: "ip".to_owned(), source })?;
        Ok(place)
    }

    /// Writes the disk's pages back: to write to a clean one costs several times as much as to a dirty one, and each contender
    /// shall find the same.
    pub(super) fn clean(&self) -> Result<(), BenchError> {
        let written = File::open(&self.disk).and_then(|disk| disk.sync_all());
        written.map_err(|source| BenchError::Proc { path: self.disk.display().to_string(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A failure leaves files in target/.
        let _ = std::fs::remove_file(&self.disk);
        let _ = std::fs::remove_file(&self.config);
    }
}

/// Each block begins with the number of its first sector, as the guest expects.
fn write_disk(path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut block = [0x5a; BLOCK_BYTES];
    for sector in (0..DISK_BYTES / 512).step_by(BLOCK_BYTES / 512) {
        block[..8].copy_from_slice(&sector.to_le_bytes());
        file.write_all(&block)?;
    }
    // What is dirty would be written back in the middle of a measurement.
    file.into_inner()?.sync_all()
}

/// Warm files, nobody polls.
pub(super) fn cached() -> Vec<Contender> {
    let mut all = vec![
        Contender { name: "husk", role: Role::Husk, start: Start::Husk { memory: "", disk: "" } },
        qemu("qemu-io_uring", "io_uring", "writeback", 0),
        qemu("qemu-threads", "threads", "writeback", 0),
    ];
    all.extend(firecracker("firecracker-sync", "Sync"));
    all.extend(firecracker("firecracker-async", "Async"));
    all.push(Contender { name: "floor", role: Role::Floor, start: Start::Floor { cache: "cached" } });
    all
}

/// Warm files, everyone polls before sleeping.
pub(super) fn polled() -> Vec<Contender> {
    vec![
        Contender { name: "husk", role: Role::Husk, start: Start::Husk { memory: "", disk: ",poll_us=32" } },
        qemu("qemu-io_uring", "io_uring", "writeback", POLL_NS),
        qemu("qemu-threads", "threads", "writeback", POLL_NS),
    ]
}

/// Past the page cache, where each page of the guest's costs: so husk is told to take HugePages, which QEMU does always.
/// Firecracker has no such mode.
pub(super) fn direct() -> Vec<Contender> {
    vec![
        Contender {
            name: "husk",
            role: Role::Husk,
            start: Start::Husk { memory: ",pages=transparent", disk: ",cache=direct" },
        },
        qemu("qemu-io_uring", "io_uring", "none", 0),
        qemu("qemu-threads", "threads", "none", 0),
        Contender { name: "floor", role: Role::Floor, start: Start::Floor { cache: "direct" } },
    ]
}

/// Frames; the disk is there and idle.
pub(super) fn net() -> Vec<Contender> {
    let mut all = vec![
        Contender { name: "husk", role: Role::Husk, start: Start::Husk { memory: "", disk: "" } },
        qemu("qemu", "threads", "writeback", 0),
    ];
    all.extend(firecracker("firecracker", "Sync"));
    all.push(Contender { name: "floor", role: Role::Floor, start: Start::Floor { cache: "cached" } });
    all
}

fn qemu(name: &'static str, aio: &'static str, cache: &'static str, poll_ns: u32) -> Contender {
    Contender { name, role: Role::Peer, start: Start::Qemu { aio, cache, poll_ns } }
}

fn firecracker(name: &'static str, engine: &'static str) -> Option<Contender> {
    let program = PathBuf::from(std::env::var_os("HUSK_BENCH_FIRECRACKER")?);
    Some(Contender { name, role: Role::Peer, start: Start::Firecracker { program, engine } })
}

impl Contender {
    /// The command that does these runs.
    pub(super) fn command(&self, place: &Place, runs: &str) -> Result<Command, BenchError> {
        let disk = place.disk.display();
        match &self.start {
            Start::Husk { memory, disk: options } => {
                let mut command = Command::new(&place.husk);
                command.arg("run").arg("--kernel").arg(&place.guest).args(["--cmdline", runs]);
                command.args(["--memory", &format!("{MEMORY_MIB}M{memory}"), "--disk", &format!("{disk}{options}")]);
                command.args(["--net", &format!("tap={},mac={MAC}", host::TAP)]);
                Ok(command)
            }
            Start::Qemu { aio, cache, poll_ns } => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-M", "microvm,acpi=on,rtc=on,pit=on,pic=on,isa-serial=on", "-enable-kvm"]);
                command.args(["-cpu", "host,arch-capabilities=off", "-name", "bench,debug-threads=on"]);
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
                command.args(["-global", "virtio-mmio.force-legacy=false", "-m", &MEMORY_MIB.to_string()]);
                command.arg("-kernel").arg(&place.guest).args(["-append", runs]);
                command.args(["-object", &format!("iothread,id=io,poll-max-ns={poll_ns}")]);
                command.args(["-drive", &format!("if=none,id=d,format=raw,file={disk},aio={aio},cache={cache}")]);
                command.args(["-device", "virtio-blk-device,drive=d,iothread=io"]);
                command.args(["-netdev", &format!("tap,id=n,ifname={},script=no,downscript=no", host::TAP)]);
                command.args(["-device", &format!("virtio-net-device,netdev=n,mac={MAC}")]);
                Ok(command)
            }
            Start::Firecracker { program, engine } => {
                let config = json!({
                    "boot-source": {"kernel_image_path": place.guest, "boot_args": runs},
                    "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
                    "drives": [{"drive_id": "d", "path_on_host": place.disk, "is_root_device": false,
                                "is_read_only": false, "cache_type": "Writeback", "io_engine": engine}],
                    "network-interfaces": [{"iface_id": "n", "guest_mac": MAC, "host_dev_name": host::TAP}],
                });
                std::fs::write(&place.config, config.to_string())
                    .map_err(|source| BenchError::Proc { path: place.config.display().to_string(), source })?;
                let mut command = Command::new(program);
                command.args(["--no-api", "--level", "Error", "--config-file"]).arg(&place.config);
                Ok(command)
            }
            Start::Floor { cache } => {
                let this = std::env::current_exe()
                    .map_err(|source| BenchError::Proc { path: "/proc/self/exe".to_owned(), source })?;
                let mut command = Command::new(this);
                command.arg(FLOOR).arg(&place.disk).arg(cache).args(runs.split(' '));
                Ok(command)
            }
        }
    }
}
