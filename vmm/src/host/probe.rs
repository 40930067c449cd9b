//! What only the running kernel can answer. Everything that is made here is closed again here.
#![expect(unsafe_code, reason = "io_uring_setup, userfaultfd and landlock have no safe interface in libc")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use kvm_ioctls::Kvm;

use super::capabilities::CAPABILITIES;
use super::facts::Attempt;
use crate::memfd;

/// The kernel's answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Probes {
    pub(super) kvm: Attempt,
    pub(super) kvm_api_version: Option<i32>,
    pub(super) create_vm: Option<Attempt>,
    pub(super) capabilities: BTreeMap<&'static str, i32>,
    pub(super) memfd: Attempt,
    pub(super) userfaultfd: Attempt,
    pub(super) io_uring: Attempt,
    pub(super) tun: Attempt,
    pub(super) vhost_net: Attempt,
    pub(super) vhost_vsock: Attempt,
    pub(super) landlock: Attempt,
    pub(super) landlock_abi: Option<u32>,
}

impl Probes {
    /// Asks for each thing as husk would.
    pub(super) fn run() -> Self {
        let kvm = Kvm::new().map_err(io::Error::from);
        let landlock = landlock_abi();
        Self {
            kvm: Attempt::of(&kvm),
            kvm_api_version: kvm.as_ref().ok().map(Kvm::get_api_version),
            create_vm: kvm.as_ref().ok().map(create_vm),
            capabilities: kvm.as_ref().map(capabilities).unwrap_or_default(),
            memfd: Attempt::of(&memfd::create("husk-host", 4096)),
            userfaultfd: Attempt::of(&userfaultfd()),
            io_uring: Attempt::of(&io_uring()),
            tun: opening("/dev/net/tun"),
            vhost_net: opening("/dev/vhost-net"),
            vhost_vsock: opening("/dev/vhost-vsock"),
            landlock: Attempt::of(&landlock),
            landlock_abi: landlock.ok(),
        }
    }
}

/// Another hypervisor may hold the processors although the device opens.
fn create_vm(kvm: &Kvm) -> Attempt {
    Attempt::of(&kvm.create_vm().map_err(io::Error::from))
}

fn capabilities(kvm: &Kvm) -> BTreeMap<&'static str, i32> {
    CAPABILITIES.iter().map(|capability| (capability.name, kvm.check_extension_raw(capability.number.into()))).collect()
}

/// The nodes of devices exist before their drivers do, so only opening tells.
fn opening(path: &str) -> Attempt {
    Attempt::of(&File::options().read(true).write(true).open(path))
}

/// Without UFFD_USER_MODE_ONLY, since KVM touches guest memory from inside the kernel.
fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: userfaultfd takes flags and no pointer.
    descriptor(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) })
}

fn io_uring() -> io::Result<OwnedFd> {
    const ENTRIES: libc::c_uint = 1;
    // `struct io_uring_params`, 120 bytes since its first version: all zero asks for nothing special.
    let mut params = [0u32; 30];
    // SAFETY: io_uring_setup reads and writes the 120 bytes it is given, which are all of `params`.
    descriptor(unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr()) })
}

/// Landlock's version of its interface, 1 or more.
fn landlock_abi() -> io::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    const NO_BYTES: libc::size_t = 0;
    // SAFETY: asked for the version, the call takes no attribute: null and 0 bytes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            NO_BYTES,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The result of a system call that makes a descriptor.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the call just made this descriptor and nobody else knows of it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
