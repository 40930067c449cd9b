//! Configures vCPUs on the real `/dev/kvm` and lets them run a few instructions, which report by port writes.

#![expect(unsafe_code, reason = "a memory slot names host memory by its address")]

use std::io::Cursor;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_UNINITIALIZED, kvm_msr_entry, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};

use super::*;
use crate::boot::testing::TestElf;
use crate::boot::{BootEntry, KernelFile, load_kernel, write_boot_data};
use crate::cpuid::{self, CpuModel};
use crate::layout::{ACPI_START, KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion};
use crate::msrs;
use crate::topology::{ThreadsPerCore, VcpuCount};

const MIB: u64 = 1 << 20;

/// A VM with a little memory. The memory is declared last, so that it outlives the VM that uses it.
struct Machine {
    kvm: Kvm,
    vm: VmFd,
    memory: GuestMemory,
}

impl Machine {
    fn new() -> Self {
        let kvm = Kvm::new().expect("the tests need /dev/kvm");
        let vm = kvm.create_vm().unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let region = memory.iter().next().unwrap();
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: u64::try_from(region.as_ptr().addr()).unwrap(),
        };
        // SAFETY: the slot must name memory that stays mapped while the VM uses it = the region's own mapping, which
        // is dropped after the VM.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        vm.set_tss_address(usize::try_from(KVM_TSS.0).unwrap()).unwrap();
        vm.set_identity_map_address(KVM_IDENTITY_MAP.0).unwrap();
        vm.create_irq_chip().unwrap();
        Self { kvm, vm, memory }
    }

    fn cpuid(&self, index: VcpuIndex, count: VcpuCount) -> CpuId {
        let supported = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let model = CpuModel {
            count,
            threads: ThreadsPerCore::One,
            last_cache_bits: None,
            tsc_deadline_timer: true,
            tsc_khz: Some(1_000_000),
        };
        cpuid::for_vcpu(&supported, index, &model).unwrap()
    }

    fn msrs(&self) -> Msrs {
        msrs::boot(self.kvm.get_msr_index_list().unwrap().as_slice())
    }

    /// Boots `code` at 1 MiB and returns what it writes to ports, up to a write to port 0xff.
    fn run(&self, elf: &TestElf, entry: BootEntry) -> Vec<(u16, u32)> {
        let kernel = load_kernel(&self.memory, &mut Cursor::new(elf.bytes()), entry).unwrap();
        write_boot_data(&self.memory, &kernel, None, "", Some(ACPI_START)).unwrap();
        let mut vcpu = self.vm.create_vcpu(0).unwrap();
        let cpuid = self.cpuid(VcpuIndex::BOOT, VcpuCount::ONE);
        configure(&vcpu, VcpuIndex::BOOT, &cpuid, &self.msrs(), Some(&kernel)).unwrap();
        let mut reports = Vec::new();
        loop {
            match vcpu.run().unwrap() {
                VcpuExit::IoOut(0xff, _) => return reports,
                VcpuExit::IoOut(port, &[a, b, c, d]) => reports.push((port, u32::from_le_bytes([a, b, c, d]))),
                VcpuExit::MmioRead(address, data) => {
                    reports.push((0, u32::try_from(address).unwrap()));
                    data.fill(0);
                }
                exit => panic!("unexpected exit: {exit:?} after {reports:x?}"),
            }
        }
    }
}

#[test]
fn a_pvh_kernel_starts_in_flat_32_bit_mode_with_ebx_at_the_start_info() {
    // The encodings mean this only in 32-bit code: in 16-bit code the operands would be halves.
    #[rustfmt::skip]
    let code = [
        0x89, 0xd8,             // mov eax, ebx
        0xe7, 0x10,             // out 0x10, eax
        0x8b, 0x03,             // mov eax, [ebx]
        0xe7, 0x11,             // out 0x11, eax
        0x8b, 0x43, 0x20,       // mov eax, [ebx + 32]
        0xe7, 0x12,             // out 0x12, eax
        0x0f, 0x20, 0xc0,       // mov eax, cr0
        0xe7, 0x13,             // out 0x13, eax
        0xe6, 0xff,             // out 0xff, al
    ];
    let elf = TestElf::new(0).load(MIB, &code, 4096).pvh(MIB);
    let reports = Machine::new().run(&elf, BootEntry::Pvh);
    assert_eq!(reports[..3], [(0x10, 0x6000), (0x11, 0x336e_c578), (0x12, 0xe_0000)]);
    assert_eq!((reports[3].0, reports[3].1 & 0x8000_0001), (0x13, 1), "protected, without paging");
}

#[test]
fn a_linux64_kernel_starts_in_long_mode_with_rsi_at_the_zero_page() {
    #[rustfmt::skip]
    let code = [
        0x48, 0x89, 0xf0,                               // mov rax, rsi
        0xe7, 0x10,                                     // out 0x10, eax
        0x8b, 0x86, 0x02, 0x02, 0x00, 0x00,             // mov eax, [rsi + 0x202]
        0xe7, 0x11,                                     // out 0x11, eax
        0x50,                                           // push rax
        0x48, 0x89, 0xe0,                               // mov rax, rsp
        0xe7, 0x12,                                     // out 0x12, eax
        0xb9, 0x80, 0x00, 0x00, 0xc0,                   // mov ecx, 0xc0000080
        0x0f, 0x32,                                     // rdmsr
        0xe7, 0x13,                                     // out 0x13, eax
        0xb9, 0x00, 0x00, 0x00, 0xd0,                   // mov ecx, 0xd0000000
        0x8b, 0x01,                                     // mov eax, [rcx]
        0xb8, 0x18, 0x00, 0x00, 0x00,                   // mov eax, 0x18
        0x8e, 0xd8,                                     // mov ds, eax
        0xe6, 0xff,                                     // out 0xff, al
    ];
    let elf = TestElf::new(MIB).load(MIB, &code, 4096);
    let reports = Machine::new().run(&elf, BootEntry::Auto);
    let header = u32::from_le_bytes(*b"HdrS");
    assert_eq!(reports[..3], [(0x10, 0x7000), (0x11, header), (0x12, 0x8ff0 - 8)]);
    assert_eq!((reports[3].0, reports[3].1 & 0x500), (0x13, 0x500), "long mode enabled and active");
    assert_eq!(reports[4], (0, 0xd000_0000), "the device window is mapped");
}

#[test]
fn the_boot_cpu_has_its_local_interrupts_wired_and_a_clean_fpu() {
    let machine = Machine::new();
    let kernel = Kernel {
        entry: GuestAddress(MIB),
        protocol: BootProtocol::Pvh,
        end: GuestAddress(2 * MIB),
        file: KernelFile::Elf,
    };
    let vcpu = machine.vm.create_vcpu(0).unwrap();
    let cpuid = machine.cpuid(VcpuIndex::BOOT, VcpuCount::ONE);
    configure(&vcpu, VcpuIndex::BOOT, &cpuid, &machine.msrs(), Some(&kernel)).unwrap();
    let lapic = vcpu.get_lapic().unwrap();
    let lvt = |register: usize| {
        let bytes = [0, 1, 2, 3].map(|i| lapic.regs[register + i].to_le_bytes()[0]);
        u32::from_le_bytes(bytes)
    };
    assert_eq!((lvt(0x350), lvt(0x360)), (0x700, 0x400));
    // What FNINIT and a cleared MXCSR set (SDM 1 §8.1.5, §10.2.3). KVM_GET_FPU does not tell MXCSR, word 6 of XSAVE does.
    assert_eq!((vcpu.get_fpu().unwrap().fcw, vcpu.get_xsave().unwrap().region[6]), (0x37f, 0x1f80));
}

#[test]
fn every_vcpu_gets_its_cpuid_and_msrs_and_the_others_wait_for_a_start_up_ipi() {
    let machine = Machine::new();
    let count = VcpuCount::new(3).unwrap();
    let kernel = Kernel {
        entry: GuestAddress(MIB),
        protocol: BootProtocol::Linux64,
        end: GuestAddress(2 * MIB),
        file: KernelFile::Elf,
    };
    let msrs = machine.msrs();
    for index in count.indices() {
        let vcpu = machine.vm.create_vcpu(index.get().into()).unwrap();
        let cpuid = machine.cpuid(index, count);
        configure(&vcpu, index, &cpuid, &msrs, index.is_boot().then_some(&kernel)).unwrap();
        let waiting = vcpu.get_mp_state().unwrap().mp_state == KVM_MP_STATE_UNINITIALIZED;
        assert_eq!(waiting, !index.is_boot());
        let found = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let leaf_1 = found.as_slice().iter().find(|entry| entry.function == 1).unwrap();
        assert_eq!(leaf_1.ebx >> 24, u32::from(index.get()));
        let mut values = Msrs::from_entries(
            &msrs.as_slice().iter().map(|m| kvm_msr_entry { index: m.index, ..Default::default() }).collect::<Vec<_>>(),
        )
        .unwrap();
        assert_eq!(vcpu.get_msrs(&mut values).unwrap(), msrs.as_slice().len());
        assert_eq!(values.as_slice(), msrs.as_slice());
    }
}

#[test]
fn an_msr_that_kvm_refuses_is_named() {
    let machine = Machine::new();
    let vcpu = machine.vm.create_vcpu(0).unwrap();
    let cpuid = machine.cpuid(VcpuIndex::BOOT, VcpuCount::ONE);
    // EFER has reserved bits that no CPU lets be set.
    let bad = kvm_msr_entry { index: 0xc000_0080, data: u64::MAX, ..Default::default() };
    let refused = configure(&vcpu, VcpuIndex::BOOT, &cpuid, &Msrs::from_entries(&[bad]).unwrap(), None).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cannot configure vCPU 0: KVM refuses the value 0xffffffffffffffff for MSR 0xc0000080"
    );
}

#[test]
fn a_vm_without_a_lapic_is_an_error_that_names_the_ioctl() {
    let kvm = Kvm::new().unwrap();
    let vm = kvm.create_vm().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let kernel = Kernel {
        entry: GuestAddress(MIB),
        protocol: BootProtocol::Pvh,
        end: GuestAddress(2 * MIB),
        file: KernelFile::Elf,
    };
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let refused = configure(&vcpu, VcpuIndex::BOOT, &cpuid, &msrs::boot(&[]), Some(&kernel)).unwrap_err();
    assert_eq!(refused.to_string(), "cannot configure vCPU 0: KVM_GET_LAPIC");
}
