//! The one way in which a machine comes to be.
//!
//! One thread does it, step by step: no step takes as long as two hand-overs between threads and the wake of a halted CPU,
//! which on a host that is virtual itself costs a twentieth of the whole. What the guest's first instruction does not need
//! comes after it (`Machine::start_threads`); vCPUs other than the boot CPU set themselves up beside each other, and disks,
//! whose hosts may never answer, are opened meanwhile.
//!
//! A machine that goes on from a point is assembled in the same way: its memory comes from the point's files instead of a
//! kernel's, and vCPUs, interrupt controllers, devices and clocks take over what they had come to, in this order.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arch::acpi::{self, AcpiConfig, AcpiError};
use arch::boot::{self, Kernel, KernelFile, LoadError};
use arch::cpu_identity::{CpuIdentity, Incompatible};
use arch::cpu_template::{CpuTemplate, CpuTemplateError};
use arch::cpuid::{self, CpuModel, Ring0};
use arch::layout;
use arch::mp::{self, MpError};
use arch::topology::{self, NumaNode};
use arch::vcpu::{TscResume, VcpuShape, VcpuState, VcpuStateError};
use arch::vm::VmStateError;
use arch::{GuestMemory, VcpuCount, VcpuIndex, msrs};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;

use super::assembly::{Assembly, Attendant, attended};
use super::devices::{self, DeviceError, Devices};
use super::disks::Opening;
use super::generation::{self, GenerationError};
use super::kvm::{self, KvmError, failed};
use super::memory::{self, Hotplug, MachineMemory, MemoryError};
use super::restored::{self, Brought};
use super::saved::MachineState;
use super::slots::MemorySlots;
use super::{Machine, SerialOutput};
use crate::config::{ClockPolicy, GuestNode, HardwareTables, KernelSource, MemoryBacking, ThreadName, VmConfig};
use crate::control::{EventSender, GuestEvent, State};
use crate::epoch::{DirtyLogError, PointError};
use crate::host::{IdList, MemoryFiles};
use crate::pager::PagerError;
use crate::placement::{
    self, HostCpus, PlacedThread, PlacementError, PlacementSource, Settled, SettledThreads, Thread, ThreadError, Watch,
};
use crate::snapshot::Restore;
use crate::vcpu::{
    ExitCounts, FirstState, KickError, Setup, SetupError, VcpuContext, VcpuHandle, VcpuThreadError,
    install_kick_handler,
};

/// What a machine is connected to.
#[derive(Debug)]
pub struct Wiring {
    /// Where the bytes of its serial port go. Machines that follow each other share it.
    pub serial_output: Arc<SerialOutput>,
    /// Where its news goes.
    pub events: EventSender,
}

/// What a machine's memory and vCPUs come from.
#[derive(Debug)]
pub enum Origin {
    /// The kernel in its configuration.
    Boot,
    /// A point of a machine of this configuration.
    Point(Box<Restore>),
}

/// What keeps a machine from being assembled.
#[derive(Debug, Error)]
pub enum BuildError {
    /// KVM does not give it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Its memory cannot be where it was asked to be.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Its memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Nobody can look after what has a place.
    #[error("cannot start the thread husk-placement")]
    Watch(#[source] io::Error),
    /// A thread cannot run where it was asked to.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// A file cannot be opened.
    #[error("cannot open {role} {}: {cause}: {hint}", path.display())]
    Open {
        /// What the file is for.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the host said.
        cause: io::Error,
        /// What would fix it.
        hint: &'static str,
    },
    /// A path leads to something else.
    #[error("{role} {} is {kind}: give a regular file", path.display())]
    NotAFile {
        /// What the file is for.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A file cannot be loaded.
    #[error("cannot load {role} {}", path.display())]
    Load {
        /// What the file is for.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: LoadError,
    },
    /// What the kernel is told does not fit.
    #[error("cannot write the boot data")]
    BootData(#[source] LoadError),
    /// The ACPI tables do not fit.
    #[error("cannot write the ACPI tables")]
    Acpi(#[from] AcpiError),
    /// The MP table does not fit.
    #[error(transparent)]
    Mp(#[from] MpError),
    /// The machine has no generation.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The user's CPU template asks for what cannot be.
    #[error(transparent)]
    CpuTemplate(CpuTemplateError),
    /// A device cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A vCPU cannot be interrupted.
    #[error("cannot prepare to interrupt vCPUs")]
    Kick(#[from] KickError),
    /// Somebody did not want the machine any more.
    #[error("the start was given up")]
    GivenUp,
    /// The memory of a point cannot be read.
    #[error("cannot read the memory of the snapshot")]
    Point(#[from] PointError),
    /// Memory cannot come as it is wanted.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// The guest has seen another CPU.
    #[error("the snapshot cannot go on here")]
    Cpu(#[from] Incompatible),
    /// The VM does not go on from its saved state.
    #[error(transparent)]
    VmState(#[from] VmStateError),
    /// What is written cannot be recorded.
    #[error("cannot track what the machine writes")]
    Track(#[from] DirtyLogError),
    /// KVM does not say what a vCPU's state is.
    #[error(transparent)]
    VcpuShape(#[from] VcpuStateError),
    /// A vCPU cannot be set up.
    #[error(transparent)]
    Vcpu(#[from] VcpuThreadError),
}

impl Machine {
    /// Assembles the machine that `config`, which has been validated, describes. Its vCPUs wait, parked.
    ///
    /// # Errors
    /// A file, the host or KVM does not give what it takes; what was made by then is gone again.
    pub fn build(
        config: &VmConfig,
        wiring: Wiring,
        origin: Origin,
        attendant: &mut dyn Attendant,
    ) -> Result<Self, BuildError> {
        install_kick_handler()?;
        let count = VcpuCount::new(config.cpus).expect("validate() holds the number of vCPUs against the limit");
        let events = wiring.events.clone();
        let disks = Opening::begin(&config.disks)?;
        let mut settled = settle(config, placement::settle_before_mapping)?;
        let settled_threads = settle_threads(config, &settled)?;
        let plugged = match &origin {
            Origin::Boot => Vec::new(),
            Origin::Point(restore) => restore.plugged.clone(),
        };
        let hotplug = config.hotplug.as_ref().map(|config| Hotplug { config, plugged: &plugged });
        let map = |settled: &mut Settled| MachineMemory::map(&config.memory, hotplug, settled);
        let mut memory = match map(&mut settled) {
            // What it was not asked before, the host says now.
            Err(MemoryError::Map { .. } | MemoryError::Memfd { .. }) if settled.is_of_pool() => {
                settled = settle(config, placement::settle)?;
                MachineMemory::map_or_less(&config.memory, hotplug, &mut settled)?
            }
            mapped => mapped?,
        };
        let kvm = match kvm::open(count, config.cpu_template.as_ref()) {
            Ok(kvm) => kvm,
            Err(error) => {
                // What is wrong with the user's files is told before what is wrong with the host.
                if let Origin::Boot = origin {
                    load(config, &memory.ram, count)?;
                }
                Devices::make(config, &memory, disks.images(attendant)?, wiring)?;
                return Err(error.into());
            }
        };
        // The files before the VM: what is wrong with them is told first.
        let (first, Brought { thread: memory_thread, mut tracking, origin }) = match origin {
            Origin::Boot => {
                if settled.takes_long() {
                    attended(attendant, |assembly| memory::make_present(&mut memory, map, &mut settled, assembly))
                        .ok_or(BuildError::GivenUp)??;
                }
                (First::Kernel(load(config, &memory.ram, count)?), Brought::default())
            }
            Origin::Point(restore) => {
                let Restore { state, memory: from, clock, cpu, .. } = *restore;
                let takes_long = from.takes_long();
                let bring =
                    |assembly: &Assembly| restored::bring(&mut memory, map, &mut settled, from, &events, assembly);
                let brought = if takes_long {
                    attended(attendant, bring).ok_or(BuildError::GivenUp)??
                } else {
                    bring(&Assembly::default())?
                };
                (First::Saved(Box::new((state, clock, cpu))), brought)
            }
        };
        if let Some(pluggable) = &mut memory.pluggable {
            pluggable.origin = origin;
        }
        let devices = Devices::make(config, &memory, disks.images(attendant)?, wiring)?;
        let Created { vm, slots, fds } = Created::make(&kvm, &memory, count)?;
        let shape = Arc::new(VcpuShape::of(&kvm, &vm)?);
        devices.connect(&vm, &slots)?;
        let templates = CpuTemplates::read(&kvm, count, config)?;
        let vcpus = match first {
            First::Kernel(kernel) => start_vcpus(fds, |index| templates.setup(index, kernel), &devices, &events)?,
            First::Saved(saved) => {
                let (MachineState { cpus, devices: saved, stamps: _ }, clock, cpu) = *saved;
                cpu.check(&templates.identity(&fds[0].1)?)?;
                let away = cpus.vm.time_away(clock, SystemTime::now());
                let tsc = cpus.vcpus[0].resume_tsc(&fds[0].1, away)?;
                let mut states = cpus.vcpus.into_iter();
                let setup = |index| {
                    let state = states.next().expect("a point has as many vCPUs as its configuration");
                    go_on(index, state, &shape, tsc)
                };
                let vcpus = start_vcpus(fds, setup, &devices, &events)?;
                cpus.vm.restore_interrupts(&vm)?;
                devices.restore(saved)?;
                generation::renew(&vm, &memory.ram, layout::generation_gsi(&config.windows()))?;
                cpus.vm.restore_clock(&vm, away)?;
                vcpus
            }
        };
        let threads = place_threads(settled_threads, &vcpus, &devices)?;
        let placement = PlacementSource::new(&memory.all, Arc::downgrade(&slots), settled, threads);
        let watch = watch(&placement, &events)?;
        tracking.begin(config.memory.track_dirty_pages, &slots)?;
        Ok(Self {
            watch,
            vcpus,
            shape,
            devices,
            vm,
            slots,
            memory_thread,
            memory: memory.all,
            tracking,
            events,
            placement,
            state: State::NotStarted,
            ended: None,
            abandoned: false,
        })
    }
}

/// What vCPUs and devices start from.
enum First {
    Kernel(Kernel),
    /// With what the clocks do, and the CPU that the guest has seen.
    Saved(Box<(MachineState, ClockPolicy, CpuIdentity)>),
}

/// What is asked held against the host.
type Settle = fn(Settled, MemoryBacking, &MemoryFiles) -> Result<Settled, PlacementError>;

/// Holds memory's placement against the host, which is asked only where it has a say.
fn settle(config: &VmConfig, settle: Settle) -> Result<Settled, PlacementError> {
    let mut asked = Settled::as_asked(&config.memory.placement, config.memory_parts());
    asked.requested_bytes = config.hotplug.map_or(0, |hotplug| hotplug.requested_bytes);
    if !asked.needs_the_host() {
        return Ok(asked);
    }
    let settled = settle(asked, config.memory.backing, &MemoryFiles::here())?;
    for difference in &settled.differences {
        log::warn!("best effort: {difference}");
    }
    Ok(settled)
}

/// Looks after what has a place.
fn watch(placement: &PlacementSource, events: &EventSender) -> Result<Option<Watch>, BuildError> {
    if !placement.can_drift() {
        return Ok(None);
    }
    let events = events.clone();
    let tell = move |what| events.send(GuestEvent::Drifted { what });
    Watch::start(placement.clone(), placement::WATCH_EVERY, tell).map(Some).map_err(BuildError::Watch)
}

/// The host's nodes that the memory of a vCPU's node comes from, if that has nodes.
fn home_of(config: &VmConfig, settled: &Settled, vcpu: u8) -> Option<IdList> {
    let node = config.numa.iter().position(|node| node.cpus.contains(vcpu.into()));
    let part = settled.parts.get(node.unwrap_or(0))?;
    part.nodes.as_ref().map(|nodes| nodes.nodes.clone())
}

/// Holds the threads' placement against the host, which is asked only where there is one.
fn settle_threads(config: &VmConfig, settled: &Settled) -> Result<SettledThreads, ThreadError> {
    if !config.threads.asks() {
        return Ok(SettledThreads::default());
    }
    let vcpus = (0..=u8::MAX).zip(0..config.cpus).map(|(index, _)| ThreadName::Vcpu(index));
    let io_threads = devices::io_threads(config);
    let io = io_threads.keys().cloned().map(ThreadName::Io);
    // A thread gives itself its name: whether there is a server is for the time when all threads are there.
    let names: Vec<ThreadName> = vcpus.chain(io).chain([ThreadName::Api, ThreadName::Main]).collect();
    let home = |vcpu| home_of(config, settled, vcpu);
    let served = |thread: &str| io_threads.get(thread).cloned().unwrap_or_default();
    let choose = |asked: &_| placement::choose_cpus(asked, home, served);
    placement::settle_threads(&config.threads, &names, &HostCpus::read(), choose)
}

/// Gives husk's threads their places, this one last.
fn place_threads(
    settled: SettledThreads,
    vcpus: &[VcpuHandle],
    devices: &Devices,
) -> Result<(Vec<PlacedThread>, Vec<ThreadError>), BuildError> {
    if settled.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut threads = Vec::new();
    let mut add = |name, id: Option<i32>| threads.extend(id.map(|id| Thread { name, id }));
    for (index, vcpu) in (0..=u8::MAX).zip(vcpus) {
        add(ThreadName::Vcpu(index), vcpu.id().ok());
    }
    for thread in devices.io_threads() {
        let name = thread.name().strip_prefix("husk-io-").unwrap_or(thread.name()).to_owned();
        add(ThreadName::Io(name), thread.id().ok());
    }
    add(ThreadName::Api, placement::thread_named("husk-api"));
    add(ThreadName::Main, i32::try_from(std::process::id()).ok());
    let (placed, differences) = placement::place_threads(settled, &threads)?;
    for difference in &differences {
        log::warn!("best effort: {difference}");
    }
    Ok((placed, differences))
}

/// Reads the kernel and what it is told into guest memory.
fn load(config: &VmConfig, memory: &GuestMemory, count: VcpuCount) -> Result<Kernel, BuildError> {
    let boot = config.boot.as_ref().expect("validate() wants a kernel");
    let kernel = match &boot.kernel {
        KernelSource::BuiltIn(image) => boot::load_kernel(memory, &mut Cursor::new(*image), boot.entry)
            .map_err(|source| BuildError::Load { role: "kernel", path: "(built in)".into(), source })?,
        KernelSource::Path(path) => {
            let mut file = open("kernel", path)?;
            load_failed("kernel", path, boot::load_kernel(memory, &mut file, boot.entry))?
        }
    };
    let initrd = match &boot.initrd {
        None => None,
        Some(path) => {
            let mut file = open("initrd", path)?;
            Some(load_failed("initrd", path, boot::load_initrd(memory, &mut file, &kernel))?)
        }
    };
    // Beside ACPI too: Linux looks for this table first, through 64 KiB in steps of 16 bytes, and to find it at once ends the
    // search. It names no device.
    mp::write_mp_table(memory, count)?;
    generation::begin(memory)?;
    let rsdp = match config.tables {
        HardwareTables::Mp => None,
        HardwareTables::Acpi | HardwareTables::AcpiAndMp => Some(acpi::write_tables(
            memory,
            &AcpiConfig { cpus: count, virtio_mmio: &config.windows(), numa: &numa_nodes(config) },
        )?),
    };
    boot::write_boot_data(memory, &kernel, initrd.as_ref(), &config.cmdline(), rsdp).map_err(BuildError::BootData)?;
    if let KernelFile::Unpacked { compression, .. } = kernel.file {
        log::info!(
            "kernel: unpacked from its bzImage ({compression}); its own KASLR is skipped (--boot-entry image keeps it)"
        );
    }
    Ok(kernel)
}

/// The guest's nodes with the memory that they take in turn, and that which can be plugged.
fn numa_nodes(config: &VmConfig) -> Vec<NumaNode> {
    let bytes: Vec<u64> = config.numa.iter().map(|node| node.bytes).collect();
    let ranges = layout::node_ranges(&bytes);
    let ids = config.device_ids();
    let pluggable = |number: u16| {
        let here = config.hotplug.filter(|_| config.hotplug_node() == Some(number));
        here.map(|hotplug| (hotplug.start(&config.memory), hotplug.total_bytes))
    };
    let node = |(number, (node, memory)): (u16, (&GuestNode, Vec<_>))| NumaNode {
        cpus: node.cpus.iter().filter_map(|cpu| u8::try_from(cpu).ok()).collect(),
        memory,
        pluggable: pluggable(number),
        devices: node.devices.iter().filter_map(|near| ids.iter().position(|id| id == near)).collect(),
        distances: node.distances.clone(),
    };
    (0..).zip(config.numa.iter().zip(ranges)).map(node).collect()
}

/// What KVM makes: the VM with memory, interrupt controllers and timer, and its vCPUs.
struct Created {
    vm: Arc<VmFd>,
    slots: Arc<MemorySlots>,
    fds: Vec<(VcpuIndex, VcpuFd)>,
}

impl Created {
    fn make(kvm: &Kvm, memory: &MachineMemory, count: VcpuCount) -> Result<Self, BuildError> {
        let vm = Arc::new(kvm.create_vm().map_err(failed("create a VM (KVM_CREATE_VM)"))?);
        // Before KVM_CREATE_IRQCHIP a slot costs KVM no grace period with it.
        let slots = Arc::new(MemorySlots::new(&vm, memory)?);
        kvm::create_irqchip(&vm)?;
        kvm::create_pit(&vm)?;
        let fds = count
            .indices()
            .map(|index| vm.create_vcpu(u64::from(index.get())).map(|fd| (index, fd)))
            .collect::<Result<_, _>>()
            .map_err(failed("create a vCPU (KVM_CREATE_VCPU)"))?;
        Ok(Self { vm, slots, fds })
    }
}

/// What every vCPU's registers start from.
struct CpuTemplates {
    supported: Arc<CpuId>,
    msrs: Arc<Msrs>,
    model: CpuModel,
    custom: Option<Arc<CpuTemplate>>,
}

impl CpuTemplates {
    fn read(kvm: &Kvm, count: VcpuCount, config: &VmConfig) -> Result<Self, BuildError> {
        let (custom, threads) = (config.cpu_template.as_ref(), config.threads_per_core);
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("read the CPUID that KVM supports (KVM_GET_SUPPORTED_CPUID)"))?;
        let supported = cpuid::usable(supported, Ring0::of_host());
        let msrs = kvm.get_msr_index_list().map_err(failed("list the MSRs (KVM_GET_MSR_INDEX_LIST)"))?;
        let supported = match custom {
            Some(custom) => custom.apply_cpuid(&supported).map_err(BuildError::CpuTemplate)?,
            None => supported,
        };
        Ok(Self {
            supported: Arc::new(supported),
            msrs: Arc::new(msrs::boot(msrs.as_slice())),
            custom: custom.cloned().map(Arc::new),
            model: CpuModel {
                count,
                threads,
                last_cache_bits: topology::last_cache_bits(&numa_nodes(config), count),
                tsc_deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
                tsc_khz: None,
            },
        })
    }

    /// The CPU that a guest would see here. KVM itself is asked, by a vCPU that has not run: some show a guest more of the
    /// host's CPU than they say that they support.
    fn identity(&self, boot: &VcpuFd) -> Result<CpuIdentity, BuildError> {
        let offered = cpuid::for_vcpu(&self.supported, VcpuIndex::BOOT, &self.model).map_err(SetupError::from);
        boot.set_cpuid2(&offered.map_err(VcpuThreadError::Setup)?)
            .map_err(failed("give a vCPU its CPUID (KVM_SET_CPUID2)"))?;
        let seen =
            boot.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("read the CPUID of a vCPU (KVM_GET_CPUID2)"))?;
        Ok(CpuIdentity::of(seen.as_slice()))
    }

    /// What brings vCPU `index` to its first state. The boot CPU enters `kernel`; the others wait for its start-up IPI.
    fn setup(&self, index: VcpuIndex, kernel: Kernel) -> Setup {
        let (supported, msrs) = (Arc::clone(&self.supported), Arc::clone(&self.msrs));
        let (model, custom) = (self.model, self.custom.clone());
        Box::new(move |fd| {
            let model = CpuModel { tsc_khz: fd.get_tsc_khz().ok(), ..model };
            let cpuid = cpuid::for_vcpu(&supported, index, &model)?;
            let entry = index.is_boot().then_some(&kernel);
            match custom {
                None => arch::vcpu::configure(fd, index, &cpuid, &msrs, entry)?,
                Some(custom) => {
                    let present = arch::vcpu::read_msrs(fd, index, &custom.msr_indices())?;
                    let msrs = custom.apply_msrs(&msrs, &present)?;
                    arch::vcpu::configure(fd, index, &cpuid, &msrs, entry)?;
                }
            }
            Ok(())
        })
    }
}

/// What brings a vCPU to its saved state.
fn go_on(index: VcpuIndex, state: VcpuState, shape: &Arc<VcpuShape>, tsc: TscResume) -> Setup {
    let shape = Arc::clone(shape);
    Box::new(move |fd| Ok(state.restore(fd, index, &shape, tsc)?))
}

/// Starts every vCPU's thread and returns when each vCPU is set up by what `setup` gives, in order. The boot CPU's is set up
/// here, while the others set up theirs, and its thread comes last.
fn start_vcpus(
    fds: Vec<(VcpuIndex, VcpuFd)>,
    mut setup: impl FnMut(VcpuIndex) -> Setup,
    devices: &Devices,
    events: &EventSender,
) -> Result<Vec<VcpuHandle>, BuildError> {
    let context = |index| VcpuContext {
        index,
        buses: devices.buses(),
        counts: Arc::new(ExitCounts::default()),
        events: events.clone(),
    };
    let mut fds = fds.into_iter();
    let (boot, boot_fd) = fds.next().expect("a machine has a boot CPU, and its index is the lowest");
    let set_up_boot = setup(boot);
    let others = fds
        .map(|(index, fd)| VcpuHandle::spawn(fd, context(index), FirstState::ByThread(setup(index))))
        .collect::<Result<Vec<_>, _>>()?;
    set_up_boot(&boot_fd).map_err(VcpuThreadError::Setup)?;
    let boot = VcpuHandle::spawn(boot_fd, context(boot), FirstState::Set)?;
    others.iter().try_for_each(VcpuHandle::wait_set_up)?;
    Ok(std::iter::once(boot).chain(others).collect())
}

/// Opens a regular file. Nothing else has a size to be held against guest memory, and a pipe would keep us waiting.
fn open(role: &'static str, path: &Path) -> Result<File, BuildError> {
    let path = path.to_owned();
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&path);
    match opened.and_then(|file| file.metadata().map(|metadata| (file, metadata))) {
        Ok((file, metadata)) if metadata.is_file() => Ok(file),
        Ok((_, metadata)) if metadata.is_dir() => Err(BuildError::NotAFile { role, path, kind: "a directory" }),
        Ok(_) => Err(BuildError::NotAFile { role, path, kind: "a pipe, socket or device" }),
        Err(cause) => {
            let hint = match cause.kind() {
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::PermissionDenied => "check its owner and mode",
                _ => "check that the file can be read at all",
            };
            Err(BuildError::Open { role, path, cause, hint })
        }
    }
}

fn load_failed<T>(role: &'static str, path: &Path, loaded: Result<T, LoadError>) -> Result<T, BuildError> {
    loaded.map_err(|source| BuildError::Load { role, path: path.to_owned(), source })
}
