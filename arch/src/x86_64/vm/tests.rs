//! Saves VMs of the real `/dev/kvm` and restores them in others.

use kvm_ioctls::Kvm;

use super::*;

fn vm() -> VmFd {
    let vm = Kvm::new().expect("the tests need /dev/kvm").create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    vm.create_pit2(kvm_bindings::kvm_pit_config::default()).unwrap();
    vm
}

/// A state with something of its own in every part.
fn lively() -> VmState {
    let vm = vm();
    let mut state = VmState::save(&vm).unwrap();
    state.pit.channels[0] =
        kvm_bindings::kvm_pit_channel_state { count: 11932, mode: 2, rw_mode: 3, gate: 1, ..state.pit.channels[0] };
    // The mask of the first 8259: the third byte of the chip, which comes behind two words (KVM api: KVM_GET_IRQCHIP).
    let mut encoded = postcard::to_allocvec(&state.pic_master).unwrap();
    let mask = encoded.len() - size_of::<kvm_irqchip>() + 8 + 2;
    assert_ne!(encoded[mask], 0xfb);
    encoded[mask] = 0xfb;
    state.pic_master = postcard::from_bytes(&encoded).unwrap();
    state.restore_interrupts(&vm).unwrap();
    VmState::save(&vm).unwrap()
}

fn bytes(state: &VmState) -> Vec<u8> {
    postcard::to_allocvec(state).unwrap()
}

fn restore(state: &VmState) -> Result<VmFd, VmStateError> {
    let vm = vm();
    state.restore_interrupts(&vm)?;
    state.restore_clock(&vm, TimeAway::NONE)?;
    Ok(vm)
}

#[test]
fn a_restored_vm_has_the_interrupt_controllers_and_the_timer_of_the_saved_one() {
    let saved = lively();
    let again = VmState::save(&restore(&postcard::from_bytes(&bytes(&saved)).unwrap()).unwrap()).unwrap();
    let chips = |state: &VmState| {
        [&state.pic_master, &state.pic_slave, &state.ioapic].map(|chip| postcard::to_allocvec(chip).unwrap())
    };
    assert_eq!(chips(&again), chips(&saved));
    let [new, old] = [again.pit.channels[0], saved.pit.channels[0]];
    assert_eq!((new.count, new.mode, new.rw_mode, new.gate), (11932, 2, 3, 1));
    assert_eq!((new.count, new.mode, new.rw_mode, new.gate), (old.count, old.mode, old.rw_mode, old.gate));
    assert!(again.clock.guest_ns >= saved.clock.guest_ns, "the clock went back");
    assert!(again.saved_at() >= saved.saved_at());
}

#[test]
fn a_chip_is_what_its_place_says() {
    let saved = lively();
    let posing = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..saved.pic_slave };
    let again = VmState::save(&restore(&VmState { pic_slave: posing, ..saved.clone() }).unwrap()).unwrap();
    assert_eq!(postcard::to_allocvec(&again.ioapic).unwrap(), postcard::to_allocvec(&saved.ioapic).unwrap());
}

#[test]
fn counts_and_clocks_that_cannot_be_are_refused() {
    let saved = lively();
    let mut state = saved.clone();
    state.pit.channels[2].count = 65537;
    assert_eq!(
        restore(&state).unwrap_err().to_string(),
        "cannot restore the VM: channel 2 of its interval timer counts from 65537, and the most is 65536"
    );
    let clock = ClockState { guest_ns: 1 << 63, realtime_ns: u64::MAX };
    let told = restore(&VmState { clock, ..saved }).unwrap_err().to_string();
    assert_eq!(
        told,
        "cannot restore the VM: its clock of 9223372036854775808 ns, advanced by 0 ns, is beyond 292 years"
    );
}

#[test]
fn a_state_cut_anywhere_is_refused() {
    let whole = bytes(&lively());
    for len in 0..whole.len() {
        assert!(postcard::from_bytes::<VmState>(&whole[..len]).is_err(), "cut to {len} of {} bytes", whole.len());
    }
}

/// Whatever a bit of a saved state becomes, it is refused or makes a VM.
#[test]
fn flipped_bits_are_refused_or_make_a_vm() {
    let whole = bytes(&lively());
    let (mut refused, mut made) = (0, 0);
    for byte in (0..whole.len()).step_by(23) {
        let mut flipped = whole.clone();
        flipped[byte] ^= 1 << (byte % 8);
        match postcard::from_bytes::<VmState>(&flipped).map(|state| restore(&state)) {
            Ok(Ok(vm)) => {
                made += 1;
                vm.set_irq_line(4, true).unwrap();
            }
            Ok(Err(_)) | Err(_) => refused += 1,
        }
    }
    assert!(made > 0, "{refused} refused, {made} made");
}
