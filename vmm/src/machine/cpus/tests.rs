//! A small guest with timers runs, is parked and saved, and goes on in another VM made from that state.

mod guest;

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use arch::acpi::Generation;
use arch::boot::{BootProtocol, Kernel, KernelFile, write_boot_data};
use arch::clock::{ClockPolicy, TimeAway};
use arch::cpu_identity::CpuIdentity;
use arch::cpuid::{self, CpuModel, Ring0};
use arch::memory::Bytes;
use arch::vcpu::VcpuShape;
use arch::{GuestAddress, GuestMemory, ThreadsPerCore, VcpuCount, VcpuIndex, layout, msrs};
use devices::bus::{Bus, BusDevice};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::*;
use crate::config::Pages;
use crate::control::{EventReceiver, GuestEvent, event_queue};
use crate::machine::memory::MachineMemory;
use crate::machine::slots::MemorySlots;
use crate::machine::{generation, irqchip, kvm};
use crate::vcpu::{Buses, ExitCounts, FirstState, Setup, VcpuContext, install_kick_handler};

const MEMORY_BYTES: usize = 4 << 20;
/// How long anything may take on a machine that has more to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the guest has written to its ports last.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    lapic_ticks: u32,
    pit_ticks: u32,
    tsc: u64,
    failure: Option<u32>,
}

/// The guest's ports, and whoever waits for what is written there.
#[derive(Default)]
struct Ports(Arc<(Mutex<Report>, Condvar)>);

impl BusDevice for Ports {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        let value = u32::from_le_bytes(data.try_into().expect("the guest writes 32 bits"));
        let mut report = self.0.0.lock().unwrap();
        match offset {
            0 => report.failure = Some(value),
            1 => report.lapic_ticks = value,
            2 => report.pit_ticks = value,
            3 => report.tsc = value.into(),
            4 => report.tsc |= u64::from(value) << 32,
            other => panic!("port {other}"),
        }
        self.0.1.notify_all();
    }
}

/// A VM with a guest in it. The fields are in the order of their drop.
struct Vm {
    vcpus: Vec<VcpuHandle>,
    vm: Arc<VmFd>,
    memory: Arc<GuestMemory>,
    _slots: MemorySlots,
    kvm: Kvm,
    shape: Arc<VcpuShape>,
    ports: Arc<(Mutex<Report>, Condvar)>,
    events: EventReceiver,
}

impl Vm {
    /// A VM whose vCPUs come to their first state by what `first` says, given the boot CPU's descriptor.
    fn new(memory: GuestMemory, count: VcpuCount, first: impl FnOnce(&Self, &VcpuFd) -> Vec<Setup>) -> Self {
        install_kick_handler().unwrap();
        let kvm = kvm::open(count, None).unwrap();
        let vm = Arc::new(kvm.create_vm().unwrap());
        let memory = Arc::new(memory);
        let pages = Pages::HostsChoice;
        let ram = MachineMemory { ram: Arc::clone(&memory), all: Arc::clone(&memory), pluggable: None, pages };
        let slots = MemorySlots::new(&vm, &ram).unwrap();
        kvm::create_irqchip(&vm).unwrap();
        kvm::create_pit(&vm).unwrap();
        let shape = Arc::new(VcpuShape::of(&kvm, &vm).unwrap());
        let ports = Ports::default();
        let (sender, events) = event_queue().unwrap();
        let (vcpus, seen) = (Vec::new(), Arc::clone(&ports.0));
        let mut this = Self { vcpus, vm, memory, _slots: slots, kvm, shape, ports: seen, events };
        let pio = Arc::new(Bus::new());
        pio.insert(guest::PORTS, Arc::new(Mutex::new(ports))).unwrap();
        let buses = Buses { pio, mmio: Arc::new(Bus::new()) };
        let fds: Vec<_> = count.indices().map(|index| this.vm.create_vcpu(index.get().into()).unwrap()).collect();
        let setups = first(&this, &fds[0]);
        for ((fd, index), setup) in fds.into_iter().zip(count.indices()).zip(setups) {
            let (counts, events) = (Arc::new(ExitCounts::default()), sender.clone());
            let context = VcpuContext { index, buses: buses.clone(), counts, events };
            this.vcpus.push(VcpuHandle::spawn(fd, context, FirstState::ByThread(setup)).unwrap());
        }
        this.vcpus.iter().for_each(|vcpu| vcpu.wait_set_up().unwrap());
        this
    }

    /// A VM with the guest at its first instruction.
    fn boot(count: VcpuCount) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let protocol = BootProtocol::Linux64;
        let kernel =
            Kernel { entry: guest::ENTRY, protocol, end: GuestAddress(guest::ENTRY.0 + 4096), file: KernelFile::Elf };
        write_boot_data(&memory, &kernel, None, "", None).unwrap();
        guest::load(&memory);
        generation::begin(&memory).unwrap();
        Self::new(memory, count, |vm, _| {
            let supported = vm.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
            let supported = cpuid::usable(supported, Ring0::of_host());
            let listed = vm.kvm.get_msr_index_list().unwrap();
            let model = CpuModel {
                count,
                threads: ThreadsPerCore::One,
                last_cache_bits: None,
                tsc_deadline_timer: true,
                tsc_khz: None,
            };
            let setup = |index: VcpuIndex| {
                let cpuid = cpuid::for_vcpu(&supported, index, &model).unwrap();
                let msrs = msrs::boot(listed.as_slice());
                let setup: Setup = Box::new(move |fd: &VcpuFd| {
                    Ok(arch::vcpu::configure(fd, index, &cpuid, &msrs, index.is_boot().then_some(&kernel))?)
                });
                setup
            };
            count.indices().map(setup).collect()
        })
    }

    /// A VM in which the saved one goes on, in a copy of its memory: the order that a restore has.
    fn restore(memory: GuestMemory, states: CpuStates, policy: ClockPolicy) -> Self {
        let count = VcpuCount::new(u64::try_from(states.vcpus.len()).unwrap()).unwrap();
        let away = states.vm.time_away(policy, SystemTime::now());
        let vm = Self::new(memory, count, |vm, boot| {
            let tsc = states.vcpus[0].resume_tsc(boot, away).unwrap();
            let setup = |(index, state): (VcpuIndex, VcpuState)| {
                let shape = Arc::clone(&vm.shape);
                let setup: Setup = Box::new(move |fd: &VcpuFd| Ok(state.restore(fd, index, &shape, tsc)?));
                setup
            };
            count.indices().zip(states.vcpus).map(setup).collect()
        });
        states.vm.restore_interrupts(&vm.vm).unwrap();
        states.vm.restore_clock(&vm.vm, away).unwrap();
        generation::renew(&vm.vm, &vm.memory, layout::generation_gsi(&[])).unwrap();
        vm
    }

    fn run(&self) {
        self.vcpus.iter().for_each(VcpuHandle::ask_run);
        self.wait_done();
    }

    fn park(&self) {
        self.vcpus.iter().for_each(VcpuHandle::ask_park);
        self.wait_done();
    }

    fn wait_done(&self) {
        let deadline = Instant::now() + PATIENCE;
        assert!(self.vcpus.iter().all(|vcpu| vcpu.wait_done_by(deadline)), "a vCPU does not answer");
    }

    /// Saves the parked VM and takes its state through its form in a file.
    fn save(&self) -> CpuStates {
        self.vcpus.iter().for_each(|vcpu| vcpu.ask_save(&self.shape));
        let vcpus = self.vcpus.iter().map(|vcpu| through_bytes(&vcpu.wait_saved().unwrap()));
        CpuStates { vcpus: vcpus.collect(), vm: through_bytes(&VmState::save(&self.vm).unwrap()) }
    }

    /// What the guest reports once that is `enough`.
    fn report(&self, what: &str, enough: impl Fn(&Report) -> bool) -> Report {
        let deadline = Instant::now() + PATIENCE;
        let mut report = self.ports.0.lock().unwrap();
        loop {
            assert_eq!(report.failure, None, "{what}: the guest found itself changed: {report:?}");
            if let Some(event) = self.events.next() {
                panic!("{what}: {event:?}");
            }
            if enough(&report) {
                return *report;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: {report:?}");
            report = self.ports.1.wait_timeout(report, left.min(Duration::from_millis(100))).unwrap().0;
        }
    }

    fn word(&self, address: GuestAddress) -> u32 {
        self.memory.read_obj(address).unwrap()
    }

    /// Waits until a word of guest memory, which only grows, is `least`.
    fn wait_for_word(&self, what: &str, address: GuestAddress, least: u32) {
        self.report(what, |_| self.word(address) >= least);
    }
}

fn through_bytes<T: serde::Serialize + serde::de::DeserializeOwned>(state: &T) -> T {
    postcard::from_bytes(&postcard::to_allocvec(state).unwrap()).unwrap()
}

fn copy(memory: &GuestMemory) -> GuestMemory {
    let copied = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    let mut bytes = vec![0; MEMORY_BYTES];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    copied.write_slice(&bytes, GuestAddress(0)).unwrap();
    copied
}

fn generation_of(memory: &GuestMemory) -> [u8; Generation::BYTES] {
    memory.read_obj(layout::GENERATION_START).unwrap()
}

/// One vCPU with timers, one that counts, one that waits for its start-up IPI.
#[test]
fn a_guest_with_timers_and_three_vcpus_goes_on_in_another_vm() {
    let count = VcpuCount::new(3).unwrap();
    let first = Vm::boot(count);
    first.run();
    first.report("timers", |report| report.lapic_ticks >= 3 && report.pit_ticks >= 3);
    first.wait_for_word("the second vCPU", guest::SECOND_COUNTS, 1000);
    first.park();
    let (before, seconds) = (*first.ports.0.lock().unwrap(), first.word(guest::SECOND_COUNTS));
    let states = first.save();
    let memory = copy(&first.memory);
    let since = Instant::now();
    drop(first);

    let second = Vm::restore(memory, states, ClockPolicy::Freeze);
    assert_eq!(second.word(guest::SECOND_COUNTS), seconds, "nothing runs before it is let");
    second.run();
    let after = second.report("timers after the restore", |report| {
        report.lapic_ticks >= before.lapic_ticks + 3 && report.pit_ticks >= before.pit_ticks + 3
    });
    // The guest itself checks that its counter never goes back. It advances by no more than the time that has passed here.
    let khz = u64::from(second.kvm.create_vm().unwrap().create_vcpu(0).unwrap().get_tsc_khz().unwrap());
    let passed_ms = u64::try_from(since.elapsed().as_millis()).unwrap() + 1000;
    assert!(after.tsc > before.tsc && after.tsc - before.tsc <= passed_ms * khz, "{before:?}, then {after:?}");
    second.wait_for_word("the second vCPU after the restore", guest::SECOND_COUNTS, seconds + 1000);

    assert_eq!(second.word(guest::THIRD_COUNTS), 0, "nobody has started the third vCPU");
    second.memory.write_obj(1_u32, guest::START_THIRD).unwrap();
    second.wait_for_word("the third vCPU, started after the restore", guest::THIRD_COUNTS, 1000);
}

/// The cycle leaves nothing behind that grows or wears off.
#[test]
fn a_guest_is_saved_and_restored_ten_times_over() {
    let count = VcpuCount::new(2).unwrap();
    let mut vm = Vm::boot(count);
    let mut ticks = 0;
    for cycle in 0..10 {
        vm.run();
        let what = format!("cycle {cycle}");
        let report = vm.report(&what, |report| report.lapic_ticks > ticks && report.pit_ticks > ticks);
        ticks = report.lapic_ticks.max(report.pit_ticks);
        vm.park();
        let (states, memory) = (vm.save(), copy(&vm.memory));
        vm = Vm::restore(memory, states, ClockPolicy::Realtime);
    }
}

#[test]
fn a_restored_machine_has_a_new_generation_whose_interrupt_waits_for_the_first_instruction() {
    let first = Vm::boot(VcpuCount::ONE);
    first.run();
    first.report("timers", |report| report.lapic_ticks >= 1);
    first.park();
    assert_eq!(first.word(guest::GENERATIONS), 0);
    let restored = || Vm::restore(copy(&first.memory), first.save(), ClockPolicy::Freeze);
    let clones = [restored(), restored()];
    let [one, other] = [&clones[0], &clones[1]].map(|clone| generation_of(&clone.memory));
    assert!(one != other && one != generation_of(&first.memory) && one != [0; Generation::BYTES]);
    let [clone, _] = clones;
    assert_eq!(clone.word(guest::GENERATIONS), 0, "it has not run yet");
    clone.run();
    clone.wait_for_word("the interrupt of a new generation", guest::GENERATIONS, 1);
    clone.park();
    assert_eq!(clone.word(guest::GENERATIONS), 1, "one restore is one generation");
    // A guest that does not listen is not told.
    clone.memory.write_obj(1_u32, guest::MASK_GENERATION).unwrap();
    clone.run();
    let line = layout::generation_gsi(&[]);
    clone.report("masked", |_| !irqchip::is_unmasked(&clone.vm, line.unwrap()));
    generation::renew(&clone.vm, &clone.memory, line).unwrap();
    let ticks = clone.word(guest::LAPIC_TICKS);
    clone.wait_for_word("time for an interrupt that must not come", guest::LAPIC_TICKS, ticks + 2);
    assert_eq!(clone.word(guest::GENERATIONS), 1);
}

#[test]
fn clocks_freeze_or_make_up_for_the_time_away() {
    let vm = Vm::boot(VcpuCount::ONE);
    let clock = |vm: &Vm| vm.vm.get_clock().unwrap().clock;
    let hour = Duration::from_secs(3600);
    let hour_ns = 3_600_000_000_000;
    let states = vm.save();
    let (low, now) = (clock(&vm), SystemTime::now());
    let slack = u64::try_from(PATIENCE.as_nanos()).unwrap();
    for (policy, then, least, most) in [
        (ClockPolicy::Freeze, now + hour, 0, slack),
        (ClockPolicy::Realtime, now + hour, hour_ns, hour_ns + slack),
        (ClockPolicy::Realtime, now - hour, 0, slack),
    ] {
        let away = states.vm.time_away(policy, then);
        states.vm.restore_clock(&vm.vm, away).unwrap();
        let shown = clock(&vm);
        // The state is a little older than `low`.
        let range = (low + least).saturating_sub(1_000_000_000)..low + most;
        assert!(range.contains(&shown), "{policy:?}: {shown} is not in {range:?}");
    }
    let beyond = ClockPolicy::Realtime.time_away(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + hour * 4_000_000);
    let refused = states.vm.restore_clock(&vm.vm, beyond).unwrap_err().to_string();
    assert!(refused.ends_with("is beyond 292 years"), "{refused}");
    states.vm.restore_clock(&vm.vm, TimeAway::NONE).unwrap();
}

#[test]
fn a_vcpu_that_waits_for_its_start_up_ipi_is_saved_so_and_a_crashed_one_is_refused() {
    let vm = Vm::boot(VcpuCount::new(2).unwrap());
    let states = vm.save();
    let restored = Vm::restore(copy(&vm.memory), states, ClockPolicy::Freeze);
    assert_eq!(restored.save().vcpus[1].mp_state(), KVM_MP_STATE_UNINITIALIZED);
    // An instruction that ring 0 may not execute without an IDT: the guest's first is overwritten.
    vm.memory.write_slice(&[0x0f, 0x0b], guest::ENTRY).unwrap();
    vm.vcpus[0].ask_run();
    vm.wait_done();
    let deadline = Instant::now() + PATIENCE;
    while !matches!(vm.events.next(), Some(GuestEvent::Crashed(_))) {
        assert!(Instant::now() < deadline, "no crash was told");
        std::thread::yield_now();
    }
    vm.vcpus[0].ask_save(&vm.shape);
    let refused = vm.vcpus[0].wait_saved().unwrap_err().to_string();
    assert_eq!(refused, "cannot save vCPU 0: its guest has crashed");
}

#[test]
fn the_host_that_saved_a_guest_can_go_on_with_it() {
    let vm = Vm::boot(VcpuCount::ONE);
    let saved = CpuIdentity::of(&vm.save().vcpus[0].cpuid());
    let supported = vm.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let model = CpuModel {
        count: VcpuCount::ONE,
        threads: ThreadsPerCore::One,
        last_cache_bits: None,
        tsc_deadline_timer: true,
        tsc_khz: None,
    };
    let host = cpuid::for_vcpu(&cpuid::usable(supported, Ring0::of_host()), VcpuIndex::BOOT, &model).unwrap();
    let other = vm.kvm.create_vm().unwrap().create_vcpu(0).unwrap();
    other.set_cpuid2(&host).unwrap();
    let host = CpuIdentity::of(other.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap().as_slice());
    saved.check(&host).unwrap();
    assert_eq!(saved, host);
}
