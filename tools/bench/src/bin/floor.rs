//! The floor of a boot: the ioctls that any monitor with in-kernel interrupt controllers and timer must make, and one
//! guest instruction, with nothing between them. It prints what the guest wrote to its serial port: one `!`.
//!
//! Linked like husk (`build.rs`), so that the loader of shared libraries makes it no slower. What a vCPU's CPUID answers is part
//! of it: no monitor can do without, since KVM lets no guest into long mode before, and where the host is virtual itself the
//! question is the dearest of all.
//!
//! usage: `husk-bench-floor MIB [VCPUS]`
#![expect(unsafe_code, reason = "raw ioctls are what this program measures")]

use std::fs::OpenOptions;
use std::io::{self, Error, Write};
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    CpuId, KVM_EXIT_IO, KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_regs, kvm_run, kvm_sregs,
    kvm_userspace_memory_region,
};
use libc::{c_int, c_ulong, c_void};

const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: c_ulong = 0xae04;
const KVM_GET_SUPPORTED_CPUID: c_ulong = 0xc008_ae05;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_SET_TSS_ADDR: c_ulong = 0xae47;
const KVM_SET_IDENTITY_MAP_ADDR: c_ulong = 0x4008_ae48;
const KVM_CREATE_IRQCHIP: c_ulong = 0xae60;
const KVM_CREATE_PIT2: c_ulong = 0x4040_ae77;
const KVM_RUN: c_ulong = 0xae80;
const KVM_SET_CPUID2: c_ulong = 0x4008_ae90;
const KVM_GET_SREGS: c_ulong = 0x8138_ae83;
const KVM_SET_SREGS: c_ulong = 0x4138_ae84;
const KVM_SET_REGS: c_ulong = 0x4090_ae82;

const MIB: usize = 1 << 20;
/// Where RAM ends below 4 GiB, as in husk.
const HOLE_START: usize = 0xc000_0000;
const HOLE_END: u64 = 1 << 32;
const CODE_ADDRESS: usize = 0x1000;
/// `mov dx, 0x3f8; out dx, al; hlt` with `!` in AL.
const CODE: [u8; 5] = [0xba, 0xf8, 0x03, 0xee, 0xf4];

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().map_err(io::Error::other));
    let mib = arguments.next().unwrap_or(Ok(128))?;
    let vcpus = arguments.next().unwrap_or(Ok(1))?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let kvm = kvm.as_raw_fd();
    let vm = call(kvm, KVM_CREATE_VM, 0)?;
    let memory = map(mib * MIB, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)?;
    give_memory(vm, memory, mib * MIB)?;
    call(vm, KVM_SET_TSS_ADDR, 0xfeff_d000)?;
    pass(vm, KVM_SET_IDENTITY_MAP_ADDR, &mut 0xfeff_c000_u64)?;
    call(vm, KVM_CREATE_IRQCHIP, 0)?;
    pass(vm, KVM_CREATE_PIT2, &mut kvm_pit_config::default())?;
    let size = usize::try_from(call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)?).map_err(io::Error::other)?;
    let mut cpuid = CpuId::new(KVM_MAX_CPUID_ENTRIES).map_err(|_| io::Error::other("no room for CPUID"))?;
    pass_cpuid(kvm, KVM_GET_SUPPORTED_CPUID, &mut cpuid)?;
    let boot = call(vm, KVM_CREATE_VCPU, 0)?;
    pass_cpuid(boot, KVM_SET_CPUID2, &mut cpuid)?;
    let run = map(size, libc::MAP_SHARED, boot)?.cast::<kvm_run>();
    for index in 1..vcpus {
        let fd = call(vm, KVM_CREATE_VCPU, index as c_ulong)?;
        pass_cpuid(fd, KVM_SET_CPUID2, &mut cpuid)?;
        map(size, libc::MAP_SHARED, fd)?;
    }
    // SAFETY: the mapping has at least 1 MiB, so the address is inside it.
    let place = unsafe { memory.cast::<u8>().add(CODE_ADDRESS) };
    // SAFETY: the code ends within the mapping, which nobody else uses before the vCPU runs.
    unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), place, CODE.len()) };
    let mut sregs = kvm_sregs::default();
    pass(boot, KVM_GET_SREGS, &mut sregs)?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    pass(boot, KVM_SET_SREGS, &mut sregs)?;
    let mut regs = kvm_regs { rip: CODE_ADDRESS as u64, rax: u64::from(b'!'), rflags: 2, ..Default::default() };
    pass(boot, KVM_SET_REGS, &mut regs)?;
    call(boot, KVM_RUN, 0)?;
    // SAFETY: `run` maps the vCPU's kvm_run page, and the vCPU is not running.
    let reason = unsafe { (*run).exit_reason };
    if reason != KVM_EXIT_IO {
        return Err(io::Error::other(format!("the guest's first exit is {reason}, not its port write")));
    }
    io::stdout().write_all(b"!")?;
    io::stdout().flush()?;
    // The measurement ends with the byte; like husk under measurement, this process is then killed.
    loop {
        std::thread::park();
    }
}

fn give_memory(vm: RawFd, memory: *mut c_void, bytes: usize) -> io::Result<()> {
    let low = bytes.min(HOLE_START);
    let mut slot =
        kvm_userspace_memory_region { memory_size: low as u64, userspace_addr: memory as u64, ..Default::default() };
    pass(vm, KVM_SET_USER_MEMORY_REGION, &mut slot)?;
    if bytes > low {
        slot.slot = 1;
        slot.guest_phys_addr = HOLE_END;
        slot.memory_size = (bytes - low) as u64;
        slot.userspace_addr += low as u64;
        pass(vm, KVM_SET_USER_MEMORY_REGION, &mut slot)?;
    }
    Ok(())
}

fn map(bytes: usize, flags: c_int, fd: RawFd) -> io::Result<*mut c_void> {
    // SAFETY: no fixed address is given, so nothing that exists is replaced.
    let place = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if place == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(place) }
}

fn call(fd: RawFd, request: c_ulong, value: c_ulong) -> io::Result<c_int> {
    // SAFETY: the requests made this way take a number, no pointer.
    let result = unsafe { libc::ioctl(fd, request, value) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn pass_cpuid(fd: RawFd, request: c_ulong, cpuid: &mut CpuId) -> io::Result<()> {
    // SAFETY: the structure says how many entries it has room for, and both requests keep to that.
    let result = unsafe { libc::ioctl(fd, request, cpuid.as_mut_fam_struct_ptr()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn pass<T>(fd: RawFd, request: c_ulong, value: &mut T) -> io::Result<()> {
    // SAFETY: each request is made with the structure that its number's size field was computed from.
    let result = unsafe { libc::ioctl(fd, request, std::ptr::from_mut(value)) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
