//! The floor of a boot: the ioctls that any monitor with in-kernel interrupt controllers and timer must make, and one
//! guest instruction, with nothing between them. It prints what the guest wrote to its serial port: one `!`.
//!
//! Linked like husk (`build.rs`), so that the loader of shared libraries makes it no slower. What a vCPU's CPUID answers is part
//! of it: no monitor can do without, since KVM lets no guest into long mode before, and where the host is virtual itself the
//! question is the dearest of all.
//!
//! With `logged` it has KVM log what the guest writes: each byte on standard input has the guest write to its pages and answer with
//! `!`; then the log is read and cleared, as husk does at a harvest.
//!
//! usage: `husk-bench-floor MIB [VCPUS [logged]]`
#![expect(unsafe_code, reason = "raw ioctls are what this program measures")]

use std::fs::OpenOptions;
use std::io::{self, Error, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    CpuId, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_EXIT_IO, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log, kvm_dirty_log, kvm_enable_cap,
    kvm_pit_config, kvm_regs, kvm_run, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use libc::{c_int, c_ulong, c_void};

const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: c_ulong = 0xae04;
const KVM_GET_SUPPORTED_CPUID: c_ulong = 0xc008_ae05;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_SET_TSS_ADDR: c_ulong = 0xae47;
const KVM_SET_IDENTITY_MAP_ADDR: c_ulong = 0x4008_ae48;
const KVM_GET_DIRTY_LOG: c_ulong = 0x4010_ae42;
const KVM_CLEAR_DIRTY_LOG: c_ulong = 0xc018_aec0;
const KVM_ENABLE_CAP: c_ulong = 0x4068_aea3;
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
const CODE_ADDRESS: u64 = 0x1000;
/// `mov dx, 0x3f8; out dx, al; hlt` with `!` in AL.
const CODE: [u8; 5] = [0xba, 0xf8, 0x03, 0xee, 0xf4];

/// Where the guest of `logged` has its page tables, its TSS and its code.
const TABLES_ADDRESS: u64 = 0x2000;
const TSS_ADDRESS: u64 = 0x5000;
const PAGES_ADDRESS: u64 = 0x10_0000;
/// A byte to each page of 64 MiB from 16 MiB on, for each byte from the serial port, and `!` to it.
const PAGES_CODE: [u8; 46] = [
    0xbe, 0x00, 0x00, 0x00, 0x01, //             mov esi, 0x1000000
    0xba, 0xfd, 0x03, 0x00, 0x00, //       1:    mov edx, 0x3fd
    0xec, //                               2:    in al, dx
    0xa8, 0x01, //                               test al, 1
    0x74, 0xfb, //                               jz 2b
    0xba, 0xf8, 0x03, 0x00, 0x00, //             mov edx, 0x3f8
    0xec, //                                     in al, dx
    0x89, 0xf7, //                               mov edi, esi
    0xb9, 0x00, 0x40, 0x00, 0x00, //             mov ecx, 0x4000
    0x88, 0x07, //                         3:    mov [rdi], al
    0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add rdi, 0x1000
    0xff, 0xc9, //                               dec ecx
    0x75, 0xf3, //                               jnz 3b
    0xb0, 0x21, //                               mov al, '!'
    0xee, //                                     out dx, al
    0xeb, 0xd7, //                               jmp 1b
];
const SERIAL_DATA: u16 = 0x3f8;
const SERIAL_STATUS: u16 = 0x3fd;

fn main() -> io::Result<()> {
    let is_logged = std::env::args().nth(3).is_some_and(|word| word == "logged");
    let mut arguments =
        std::env::args().skip(1).take(2).map(|argument| argument.parse::<usize>().map_err(io::Error::other));
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
    if is_logged {
        return run_logged(vm, memory, mib * MIB, boot, run);
    }
    put(memory, CODE_ADDRESS, &CODE);
    let mut sregs = kvm_sregs::default();
    pass(boot, KVM_GET_SREGS, &mut sregs)?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    pass(boot, KVM_SET_SREGS, &mut sregs)?;
    let mut regs = kvm_regs { rip: CODE_ADDRESS, rax: u64::from(b'!'), rflags: 2, ..Default::default() };
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

/// Puts code into guest memory, of which there is more than that.
fn put(memory: *mut c_void, address: u64, code: &[u8]) {
    // SAFETY: the mapping has more than 1 MiB, so the address is inside it.
    let place = unsafe { memory.cast::<u8>().add(usize::try_from(address).expect("a 64-bit host")) };
    // SAFETY: the code ends within the mapping, which nobody else uses before the vCPU runs.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), place, code.len()) };
}

/// Runs that guest for ever, with KVM's log of memory, which is one slot, on.
fn run_logged(vm: RawFd, memory: *mut c_void, bytes: usize, vcpu: RawFd, run: *mut kvm_run) -> io::Result<()> {
    put(memory, PAGES_ADDRESS, &PAGES_CODE);
    // 2 MiB pages, for ring 3, which runs at full speed everywhere.
    let tables =
        [(0, 0x3027), (0x1000, 0x4027)].into_iter().chain((0..512).map(|page| (0x2000 + 8 * page, page << 21 | 0xe7)));
    tables.for_each(|(offset, entry): (u64, u64)| put(memory, TABLES_ADDRESS + offset, &entry.to_le_bytes()));
    // The map of ports that it may use, which are all, is behind the TSS (SDM 1 §19.5.2).
    put(memory, TSS_ADDRESS + 102, &104_u16.to_le_bytes());
    put(memory, TSS_ADDRESS + 104 + 8192, &[0xff]);
    let flags = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
    let mut protect = kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..Default::default() };
    protect.args[0] = flags;
    pass(vm, KVM_ENABLE_CAP, &mut protect)?;
    let mut slot = kvm_userspace_memory_region {
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        memory_size: bytes as u64,
        userspace_addr: memory as u64,
        ..Default::default()
    };
    pass(vm, KVM_SET_USER_MEMORY_REGION, &mut slot)?;
    let mut bits = vec![u64::MAX; bytes / 4096 / 64];
    clear(vm, &bits)?;
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, dpl: 3, ..Default::default() };
    let data = kvm_segment { selector: 0x2b, type_: 3, db: 1, ..flat };
    let mut sregs = kvm_sregs::default();
    pass(vcpu, KVM_GET_SREGS, &mut sregs)?;
    sregs.cs = kvm_segment { selector: 0x23, type_: 11, l: 1, ..flat };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS_ADDRESS,
        limit: 104 + 8192,
        selector: 0x30,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    // Long mode with paging, as husk's own guests have it.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0033, TABLES_ADDRESS, 0x620, 0x500);
    pass(vcpu, KVM_SET_SREGS, &mut sregs)?;
    pass(vcpu, KVM_SET_REGS, &mut kvm_regs { rip: PAGES_ADDRESS, rflags: 2, ..Default::default() })?;
    let mut byte = [0];
    loop {
        call(vcpu, KVM_RUN, 0)?;
        // SAFETY: `run` maps the vCPU's kvm_run page, and the vCPU is not running.
        let reason = unsafe { (*run).exit_reason };
        if reason != KVM_EXIT_IO {
            return Err(io::Error::other(format!("the guest left for reason {reason}, not for a port")));
        }
        // SAFETY: as above.
        let exit = unsafe { (*run).__bindgen_anon_1 };
        // SAFETY: of an exit for a port this is the member that KVM wrote.
        let exit = unsafe { exit.io };
        let answer = match (exit.port, exit.direction) {
            (SERIAL_STATUS, 0) => {
                io::stdin().read_exact(&mut byte)?;
                1
            }
            (SERIAL_DATA, 0) => byte[0],
            _ => {
                io::stdout().write_all(b"!")?;
                io::stdout().flush()?;
                harvest(vm, &mut bits)?;
                continue;
            }
        };
        let offset = usize::try_from(exit.data_offset).map_err(io::Error::other)?;
        // SAFETY: KVM says where in its mapping it takes the answer from, which is behind the structure.
        let place = unsafe { run.cast::<u8>().add(offset) };
        // SAFETY: as above; the vCPU is not running.
        unsafe { place.write(answer) };
    }
}

/// Reads the log, and clears in it what was set.
fn harvest(vm: RawFd, bits: &mut [u64]) -> io::Result<()> {
    let mut request = kvm_dirty_log::default();
    request.__bindgen_anon_1.dirty_bitmap = bits.as_mut_ptr().cast();
    pass(vm, KVM_GET_DIRTY_LOG, &mut request)?;
    clear(vm, bits)
}

fn clear(vm: RawFd, bits: &[u64]) -> io::Result<()> {
    let num_pages = u32::try_from(bits.len() * 64).map_err(io::Error::other)?;
    let mut request = kvm_clear_dirty_log { num_pages, ..Default::default() };
    request.__bindgen_anon_1.dirty_bitmap = bits.as_ptr().cast_mut().cast();
    pass(vm, KVM_CLEAR_DIRTY_LOG, &mut request)
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
