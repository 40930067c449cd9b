//! `tools/dev bench boot`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::child::Measured;
use crate::peer::Artifacts;
use crate::report::Row;
use crate::stats::median;
use crate::{BenchError, Wanted, bzimage};

const FIRST_INSTRUCTION_PAIRS: usize = 31;
const QEMU_BOOTS: usize = 5;
pub(crate) const LINUX_READY: &str = "GUEST READY";
const LINUX_PAIRS: usize = 3;
const BZIMAGE_PAIRS: usize = 11;
/// The kernel goes on taking a VM apart after its process has been reaped; the next one must not pay for it.
const SETTLE: Duration = Duration::from_millis(40);
const LIMIT: Duration = Duration::from_secs(60);
/// What the one-instruction guest writes.
pub(crate) const FIRST_BYTE: &str = "!";
const QEMU: &str = "qemu-microvm";
/// The Linux guest's words: what these machines need, and the rest for speed (resources/guest/linux/README.md).
const LINUX_WORDS: &str = "console=ttyS0 quiet clearcpuid=smap,popcnt,erms noxsave rodata=off noreplace-smp \
                                      reboot=k panic=-1 ";

pub(crate) fn run(wanted: &Wanted) -> Result<Vec<Row>, BenchError> {
    let artifacts = Artifacts::find()?;
    let mut rows = Vec::new();
    for (name, mib) in [("boot-128m", 128), ("boot-1g", 1024), ("boot-6g", 6144)] {
        if wanted.has(name) {
            rows.push(first_instruction(&artifacts, name, mib)?);
        }
    }
    for (name, more) in [("boot-each-further-vcpu", 7), ("boot-each-of-63-further-vcpus", 63)] {
        if wanted.has(name) {
            rows.push(each_further_vcpu(&artifacts, name, more)?);
        }
    }
    if wanted.has("bzimage-zstd") {
        rows.push(bzimage(&artifacts)?);
    }
    if wanted.has("footprint") {
        rows.extend(footprint(&artifacts)?);
    }
    if wanted.has("linux-userspace") {
        rows.push(linux(&artifacts)?);
    }
    Ok(rows)
}

fn first_instruction(artifacts: &Artifacts, name: &str, mib: u64) -> Result<Row, BenchError> {
    let kernel = &artifacts.first;
    let (husk, floor) =
        pairs(FIRST_INSTRUCTION_PAIRS, FIRST_BYTE, || artifacts.husk(kernel, mib, 1), || artifacts.floor(mib, 1))?;
    let qemu = (0..QEMU_BOOTS)
        .map(|_| milliseconds(artifacts.qemu(kernel, mib, 1), FIRST_BYTE))
        .collect::<Result<Vec<_>, _>>()?;
    let qemu = median(qemu).map(|figure| (QEMU, figure));
    Ok(Row::less_is_better(name, "ms", median(husk), qemu, median(floor)))
}

/// What a vCPU adds: a machine of so many more against a machine of one, over their number.
fn each_further_vcpu(artifacts: &Artifacts, name: &str, more: u32) -> Result<Row, BenchError> {
    let slope =
        |many: Vec<f64>, one: Vec<f64>| median(many).zip(median(one)).map(|(many, one)| (many - one) / f64::from(more));
    let all = u64::from(more) + 1;
    let husk = |vcpus| artifacts.husk(&artifacts.first, 128, vcpus);
    let floor = |vcpus| artifacts.floor(128, vcpus);
    let (many, one) = pairs(FIRST_INSTRUCTION_PAIRS, FIRST_BYTE, || husk(all), || husk(1))?;
    let (floor_many, floor_one) = pairs(FIRST_INSTRUCTION_PAIRS, FIRST_BYTE, || floor(all), || floor(1))?;
    Ok(Row::less_is_better(name, "ms", slope(many, one), None, slope(floor_many, floor_one)))
}

/// From exec to the first instruction of a kernel of real size in a bzImage; the floor is a process that unpacks the same
/// bytes by the same crate and does nothing else.
fn bzimage(artifacts: &Artifacts) -> Result<Row, BenchError> {
    let packed = bzimage::pack(&artifacts.bzimage, &artifacts.vmlinux)?;
    let files = [
        (artifacts.first.with_extension("bzImage"), packed.image),
        (artifacts.first.with_extension("zst"), packed.payload),
    ];
    for (path, bytes) in &files {
        std::fs::write(path, bytes).map_err(|source| BenchError::Proc { path: path.display().to_string(), source })?;
    }
    let [(image, _), (payload, _)] = &files;
    let this =
        std::env::current_exe().map_err(|source| BenchError::Proc { path: "/proc/self/exe".to_owned(), source })?;
    let floor = || {
        let mut command = Command::new(&this);
        command.arg(bzimage::UNPACK).arg(payload);
        command
    };
    let (husk, floor) = pairs(BZIMAGE_PAIRS, FIRST_BYTE, || artifacts.husk(image, 128, 1), floor)?;
    for (path, _) in &files {
        // A failure leaves a file of some MiB in target/.
        let _ = std::fs::remove_file(path);
    }
    Ok(Row::less_is_better("bzimage-zstd", "ms", median(husk), None, median(floor)))
}

/// Memory of the monitor beyond its guest's: 128 MiB, one disk, the guest halted.
fn footprint(artifacts: &Artifacts) -> Result<[Row; 2], BenchError> {
    // One each: the kernel gives up a lock some time after the end of a process that was killed in the middle of io_uring.
    let disks = ["husk-disk", "qemu-disk"].map(|extension| artifacts.first.with_extension(extension));
    for disk in &disks {
        std::fs::write(disk, vec![0; 1 << 20])
            .map_err(|source| BenchError::Proc { path: disk.display().to_string(), source })?;
    }
    let [husk_disk, qemu_disk] = &disks;
    let mut husk = artifacts.husk(&artifacts.first, 128, 1);
    husk.arg("--disk").arg(husk_disk);
    let mut qemu = artifacts.qemu(&artifacts.first, 128, 1);
    let drive = format!("if=none,id=d,format=raw,file={}", qemu_disk.display());
    qemu.args(["-drive", &drive, "-device", "virtio-blk-device,drive=d"]);
    let husk = memory_of(husk)?;
    let qemu = memory_of(qemu)?;
    let row = |name: &str, husk, qemu| Row::less_is_better(name, "MiB", Some(husk), Some((QEMU, qemu)), None);
    for disk in &disks {
        // A failure leaves a file of 1 MiB in target/.
        let _ = std::fs::remove_file(disk);
    }
    Ok([row("footprint-unique", husk.unique, qemu.unique), row("footprint-resident", husk.resident, qemu.resident)])
}

struct Footprint {
    unique: f64,
    resident: f64,
}

/// Adds up /proc/PID/smaps but for the mapping that is the guest's memory, the only one of its size or more.
fn memory_of(command: Command) -> Result<Footprint, BenchError> {
    const GUEST_KIB: u64 = 128 << 10;
    let measured = Measured::start(command, FIRST_BYTE, LIMIT)?;
    let path = format!("/proc/{}/smaps", measured.pid());
    let text = std::fs::read_to_string(&path).map_err(|source| BenchError::Proc { path, source })?;
    let mut in_guest_memory = false;
    let (mut unique, mut resident) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(kib)) = (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) else {
            continue;
        };
        match key {
            "Size:" => in_guest_memory = kib >= GUEST_KIB,
            "Rss:" if !in_guest_memory => resident += kib,
            "Private_Clean:" | "Private_Dirty:" if !in_guest_memory => unique += kib,
            _ => {}
        }
    }
    let mib = |kib: u64| f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0;
    Ok(Footprint { unique: mib(unique), resident: mib(resident) })
}

fn linux(artifacts: &Artifacts) -> Result<Row, BenchError> {
    let kernel = &artifacts.vmlinux;
    let (husk, qemu) = pairs(
        LINUX_PAIRS,
        LINUX_READY,
        || linux_guest(artifacts.husk(kernel, 128, 1), "--initrd", "--cmdline", &artifacts.initramfs),
        || linux_guest(artifacts.qemu(kernel, 128, 1), "-initrd", "-append", &artifacts.initramfs),
    )?;
    let qemu = median(qemu).map(|figure| (QEMU, figure));
    Ok(Row::less_is_better("linux-userspace", "ms", median(husk), qemu, None))
}

/// Gives a monitor the rest of the Linux guest, by its own names for the initramfs and the command line.
pub(crate) fn linux_guest(mut command: Command, initrd: &str, append: &str, initramfs: &Path) -> Command {
    command.arg(initrd).arg(initramfs).args([append, &format!("{LINUX_WORDS} husk.end=poweroff")]);
    command
}

/// A B A B: the two in turn, in milliseconds to `wanted`.
fn pairs(
    count: usize,
    wanted: &str,
    a: impl Fn() -> Command,
    b: impl Fn() -> Command,
) -> Result<(Vec<f64>, Vec<f64>), BenchError> {
    // One of each that does not count: the page cache is warm from then on.
    milliseconds(a(), wanted)?;
    milliseconds(b(), wanted)?;
    (0..count).map(|_| Ok((milliseconds(a(), wanted)?, milliseconds(b(), wanted)?))).collect()
}

/// From just before the exec to `wanted`.
pub(crate) fn milliseconds(command: Command, wanted: &str) -> Result<f64, BenchError> {
    std::thread::sleep(SETTLE);
    Measured::start(command, wanted, LIMIT).map(|measured| measured.took.as_secs_f64() * 1e3)
}
