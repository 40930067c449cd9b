//! Saves vCPUs of the real `/dev/kvm` and restores them in another VM.

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, kvm_msr_entry};
use kvm_ioctls::VcpuExit;

use super::*;
use crate::vm::VmState;

/// The bytes that a machine of one vCPU may take (issue 7).
const STATE_BYTES_MAX: usize = 32 << 10;

/// A VM without memory, its vCPUs in reset.
struct Machine {
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    shape: VcpuShape,
    cpuid: CpuId,
}

impl Machine {
    fn new(vcpus: u64) -> Self {
        let kvm = Kvm::new().expect("the tests need /dev/kvm");
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        vm.create_pit2(kvm_bindings::kvm_pit_config::default()).unwrap();
        let vcpus = (0..vcpus).map(|id| vm.create_vcpu(id).unwrap()).collect();
        let shape = VcpuShape::of(&kvm, &vm).unwrap();
        Self { vm, vcpus, shape, cpuid: kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap() }
    }

    fn boot(&self) -> &VcpuFd {
        &self.vcpus[0]
    }

    fn save(&self, index: u8) -> VcpuState {
        VcpuState::save(&self.vcpus[usize::from(index)], vcpu(index), &self.shape).unwrap()
    }

    /// Restores the boot CPU.
    fn restore(&self, state: &VcpuState) -> Result<(), VcpuStateError> {
        let tsc = state.resume_tsc(self.boot(), TimeAway::NONE)?;
        state.restore(self.boot(), VcpuIndex::BOOT, &self.shape, tsc)
    }
}

fn vcpu(index: u8) -> VcpuIndex {
    crate::VcpuCount::new(64).unwrap().indices().nth(index.into()).unwrap()
}

/// A state with something of its own in every part.
fn lively(machine: &Machine) -> VcpuState {
    let fd = machine.boot();
    fd.set_cpuid2(&machine.cpuid).unwrap();
    let regs = kvm_regs { rax: 1, rbx: 2, rip: 0x1234, rflags: 0x202, r15: 15, ..Default::default() };
    fd.set_regs(&regs).unwrap();
    let mut sregs = fd.get_sregs().unwrap();
    sregs.cr2 = 0xdead_b000;
    fd.set_sregs(&sregs).unwrap();
    let mut xsave = machine.shape.xsave.read(fd).unwrap();
    // XMM0 is at 160, YMM0's upper half at 576, and bits of XSTATE_BV at 512 say that they are there (SDM 1 §13.4).
    xsave[160..176].copy_from_slice(b"sixteen bytes of");
    xsave[576..592].copy_from_slice(b"as many for AVX.");
    xsave[512] |= 7;
    machine.shape.xsave.write(fd, VcpuIndex::BOOT, &xsave).unwrap();
    fd.set_debug_regs(&kvm_debugregs { db: [1, 2, 3, 4], dr7: 0x400, ..fd.get_debug_regs().unwrap() }).unwrap();
    // IA32_SYSENTER_CS and the KVM steal time's address, disabled.
    msr_values::write(fd, VcpuIndex::BOOT, &[MsrValue { index: 0x174, value: 0x10 }]).unwrap();
    machine.save(0)
}

fn bytes(state: &VcpuState) -> Vec<u8> {
    postcard::to_allocvec(state).unwrap()
}

#[test]
fn a_restored_vcpu_has_every_register_of_the_saved_one() {
    let source = Machine::new(1);
    let saved = lively(&source);
    let decoded: VcpuState = postcard::from_bytes(&bytes(&saved)).unwrap();
    let target = Machine::new(1);
    target.restore(&decoded).unwrap();
    let mut again = target.save(0);
    assert!(again.tsc.offset.is_some() == saved.tsc.offset.is_some() && again.tsc.khz == saved.tsc.khz);
    assert!(again.tsc.value >= saved.tsc.value, "the counter went back");
    again.tsc = saved.tsc;
    assert_eq!(again.cpuid, saved.cpuid);
    assert_eq!(again.msrs, saved.msrs);
    assert_eq!(bytes(&again), bytes(&saved));
    assert_eq!((again.regs.rip, again.sregs.cr2), (0x1234, 0xdead_b000));
    assert_eq!((&again.xsave[160..176], &again.xsave[576..592]), (&b"sixteen bytes of"[..], &b"as many for AVX."[..]));
}

#[test]
fn a_vcpu_that_waits_for_its_start_up_ipi_waits_on() {
    let source = Machine::new(2);
    let saved = source.save(1);
    let target = Machine::new(2);
    let tsc = source.save(0).resume_tsc(target.boot(), TimeAway::NONE).unwrap();
    saved.restore(&target.vcpus[1], vcpu(1), &target.shape, tsc).unwrap();
    assert_eq!(target.vcpus[1].get_mp_state().unwrap().mp_state, KVM_MP_STATE_UNINITIALIZED);
}

#[test]
fn a_machine_of_one_vcpu_takes_at_most_32_kib() {
    let machine = Machine::new(1);
    let vcpu = bytes(&lively(&machine)).len();
    let vm = postcard::to_allocvec(&VmState::save(&machine.vm).unwrap()).unwrap().len();
    assert!(vcpu + vm <= STATE_BYTES_MAX, "{vcpu} bytes of a vCPU and {vm} of the VM");
}

#[test]
fn a_state_cut_anywhere_is_refused() {
    let whole = bytes(&lively(&Machine::new(1)));
    // Every length of the lists and structures at both ends, some of the long ones between.
    for len in (0..whole.len()).filter(|len| len % 13 == 0 || *len < 256 || whole.len() - len < 256) {
        assert!(postcard::from_bytes::<VcpuState>(&whole[..len]).is_err(), "cut to {len} of {} bytes", whole.len());
    }
}

#[test]
fn lists_longer_than_any_vcpus_are_refused() {
    let machine = Machine::new(1);
    let good = lively(&machine);
    let refused = |state: &VcpuState| machine.restore(state).unwrap_err().to_string();
    let many = vec![MsrValue { index: 0x174, value: 0 }; MSRS_MAX + 1];
    assert_eq!(
        refused(&VcpuState { msrs: many, ..good.clone() }),
        "cannot restore vCPU 0: 1025 MSRs are more than 1024"
    );
    let leaves = vec![good.cpuid[0]; 257];
    assert_eq!(
        refused(&VcpuState { cpuid: leaves, ..good.clone() }),
        "cannot restore vCPU 0: 257 CPUID leaves are more than 256"
    );
    for len in [0, 1, 4095, 4097, XSAVE_BYTES_MAX] {
        let told = refused(&VcpuState { xsave: vec![0; len], ..good.clone() });
        assert!(told.contains(&format!("{len} bytes of XSAVE registers")), "{told}");
    }
    let told = refused(&VcpuState { xsave: vec![0; XSAVE_BYTES_MAX + 1], ..good.clone() });
    assert_eq!(told, "cannot restore vCPU 0: 65537 bytes of XSAVE registers are more than 65536");
    machine.restore(&good).unwrap();
}

#[test]
fn what_kvm_refuses_is_named() {
    let machine = Machine::new(1);
    let good = lively(&machine);
    let refused = |state: VcpuState| machine.restore(&state).unwrap_err().to_string();
    let mut msrs = good.msrs.clone();
    // More than a batch before it.
    msrs.splice(0..0, vec![MsrValue { index: 0x174, value: 1 }; 200]);
    msrs.push(MsrValue { index: 0xc000_0080, value: u64::MAX });
    assert_eq!(
        refused(VcpuState { msrs, ..good.clone() }),
        "cannot restore vCPU 0: KVM refuses the value 0xffffffffffffffff for MSR 0xc0000080"
    );
    let mut xsave = good.xsave.clone();
    xsave[512..520].fill(0xff);
    assert_eq!(refused(VcpuState { xsave, ..good.clone() }), "cannot restore vCPU 0: KVM_SET_XSAVE");
    let mp_state = kvm_mp_state { mp_state: 77 };
    assert_eq!(refused(VcpuState { mp_state, ..good.clone() }), "cannot restore vCPU 0: KVM_SET_MP_STATE");
    let events = kvm_vcpu_events { flags: u32::MAX, ..good.events };
    assert_eq!(refused(VcpuState { events, ..good }), "cannot restore vCPU 0: KVM_SET_VCPU_EVENTS");
}

#[test]
fn an_msr_that_kvm_does_not_have_is_left_out_of_the_state_and_needs_no_write() {
    let machine = Machine::new(1);
    let fd = machine.boot();
    fd.set_cpuid2(&machine.cpuid).unwrap();
    let numbers: Vec<u32> = [0x174, 0xffff_fff0, 0x175].repeat(100);
    let read = msr_values::read(fd, VcpuIndex::BOOT, &numbers).unwrap();
    assert_eq!(read.iter().map(|msr| msr.index).collect::<Vec<_>>(), [0x174, 0x175].repeat(100));
    // IA32_MTRRCAP can be read only.
    let fixed = msr_values::read(fd, VcpuIndex::BOOT, &[0xfe]).unwrap();
    assert_eq!(fd.set_msrs(&kvm_bindings::Msrs::from_entries(&[entry(fixed[0])]).unwrap()).unwrap(), 0);
    msr_values::write(fd, VcpuIndex::BOOT, &fixed.repeat(3)).unwrap();
    let other = MsrValue { value: !fixed[0].value, ..fixed[0] };
    assert!(matches!(
        msr_values::write(fd, VcpuIndex::BOOT, &[fixed[0], other]),
        Err(VcpuStateError::Msr { msr: 0xfe, .. })
    ));
}

fn entry(msr: MsrValue) -> kvm_msr_entry {
    kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() }
}

#[test]
fn a_guest_that_is_a_hypervisor_is_told() {
    let with = |cr4, efer| kvm_sregs { cr4, efer, ..Default::default() };
    assert_eq!(nested(&with(1 << 13, 0)), Some("VT-x"));
    assert_eq!(nested(&with(0, 1 << 12)), Some("SVM"));
    assert_eq!(nested(&with(!(1 << 13), !(1 << 12))), None);
}

/// Whatever a bit of a saved state becomes, it is refused, or KVM makes a vCPU of it that runs or does not.
#[test]
fn flipped_bits_are_refused_or_make_a_vcpu() {
    let whole = bytes(&lively(&Machine::new(1)));
    let (mut refused, mut ran) = (0, 0);
    for byte in (0..whole.len()).step_by(97) {
        let mut flipped = whole.clone();
        flipped[byte] ^= 1 << (byte % 8);
        let Ok(state) = postcard::from_bytes::<VcpuState>(&flipped) else {
            refused += 1;
            continue;
        };
        let mut machine = Machine::new(1);
        if machine.restore(&state).is_err() {
            refused += 1;
            continue;
        }
        ran += 1;
        let fd = &mut machine.vcpus[0];
        fd.set_kvm_immediate_exit(1);
        match fd.run() {
            Ok(VcpuExit::Shutdown | VcpuExit::InternalError | VcpuExit::Intr) | Err(_) => {}
            other => panic!("a vCPU without memory ran to {other:?}"),
        }
    }
    assert!(refused > 0 && ran > 0, "{refused} refused, {ran} ran");
}
