//! The command lines of the monitors that are measured beside husk.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BenchError;

/// Where everything under measurement is. `tools/dev bench` builds it all first.
pub(crate) struct Artifacts {
    pub(crate) husk: PathBuf,
    pub(crate) floor: PathBuf,
    pub(crate) first: PathBuf,
    pub(crate) vmlinux: PathBuf,
    pub(crate) bzimage: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Artifacts {
    pub(crate) fn find() -> Result<Self, BenchError> {
        Ok(Self {
            husk: from_environment("HUSK_BENCH_HUSK", "the release build of husk")?,
            floor: from_environment("HUSK_BENCH_FLOOR", "the floor program")?,
            first: from_environment("HUSK_BENCH_FIRST", "the one-instruction guest")?,
            vmlinux: from_environment("HUSK_BENCH_VMLINUX", "the Linux guest's kernel")?,
            bzimage: from_environment("HUSK_BENCH_BZIMAGE", "the Linux guest's bzImage")?,
            initramfs: from_environment("HUSK_BENCH_INITRAMFS", "the Linux guest's initramfs")?,
        })
    }

    pub(crate) fn floor(&self, mib: u64, vcpus: u64) -> Command {
        let mut command = Command::new(&self.floor);
        command.args([mib.to_string(), vcpus.to_string()]);
        command
    }

    pub(crate) fn husk(&self, kernel: &Path, mib: u64, vcpus: u64) -> Command {
        self.husk_on(kernel, &format!("{mib}M"), vcpus)
    }

    /// `memory` as husk's option takes it, with what the memory is backed by.
    pub(crate) fn husk_on(&self, kernel: &Path, memory: &str, vcpus: u64) -> Command {
        let mut command = Command::new(&self.husk);
        command.args(["run", "--kernel"]).arg(kernel);
        command.args(["--memory", memory, "--cpus", &vcpus.to_string()]);
        command
    }

    pub(crate) fn qemu(&self, kernel: &Path, mib: u64, vcpus: u64) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-M",
            "microvm,acpi=on,rtc=on,pit=on,pic=on,isa-serial=on",
            "-enable-kvm",
            "-cpu",
            "host,arch-capabilities=off",
        ]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.args(["-m", &mib.to_string(), "-smp", &vcpus.to_string(), "-kernel"]).arg(kernel);
        command
    }
}

pub(crate) fn from_environment(variable: &str, what: &'static str) -> Result<PathBuf, BenchError> {
    let path = PathBuf::from(std::env::var_os(variable).unwrap_or_default());
    if path.is_file() { Ok(path) } else { Err(BenchError::Missing { what, path: path.display().to_string() }) }
}
