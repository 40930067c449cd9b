//! The machine: what it is made of, and the one right order in which each command touches its parts. Owned by the
//! control loop's thread; every other thread of the process is reached, and joined, through it.

mod assembly;
mod balloon;
mod build;
mod cpus;
mod devices;
mod disks;
mod generation;
mod hotplug;
mod irqchip;
mod kvm;
mod mapped;
mod memory;
mod nets;
mod pool;
mod restored;
mod saved;
mod slots;
mod stamps;
mod tracking;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::devices::virtio::balloon::BalloonControl;
use ::devices::virtio::mem::MemoryDeviceControl;
use arch::GuestMemory;
use arch::vcpu::VcpuShape;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// Where a serial port's bytes go: a bounded buffer and the thread that empties it into a descriptor.
pub use ::devices::legacy::ConsoleOutput as SerialOutput;
pub use ::devices::virtio::net::LinkState;
pub use assembly::{Assembly, Attendant, Unattended};
pub use build::{BuildError, Origin, Wiring};
pub use cpus::{CpuSaveError, CpuStates};
use devices::Devices;
pub use devices::{DeviceError, DeviceKind, DeviceReport, Direction, DiskChangeError, DriverState, Link, QueueReport};
use disks::Disk;
pub use disks::{BackingSize, FileQuestion, OpenedFile, SizeQuestion};
pub use generation::GenerationError;
pub(crate) use hotplug::{PageKind, PluggableMemory};
pub use kvm::KvmError;
pub use mapped::guest_address_of;
#[cfg(test)]
pub(crate) use memory::MachineMemory;
pub use memory::MemoryError;
pub use nets::NetChangeError;
pub use saved::{MachineSaveError, MachineStateError};
pub(crate) use saved::{MachineState, SavedMachine, cpu_of};
pub(crate) use slots::MemorySlots;
pub(crate) use stamps::{AskedStamps, DiskStamp, STAMP_PATIENCE, StampQuestion, Stamps};
use tracking::Tracking;

use crate::config::LimiterConfig;
use crate::control::{Action, EventSender, Refusal, State};
use crate::metrics::{Snapshot, VcpuFigures};
use crate::pager::MemoryThread;
use crate::placement::{PlacementSource, Watch};
use crate::vcpu::{ExitKind, VcpuHandle};

/// A machine, from its assembly to its end.
///
/// The order of the fields is the order of their drop: the vCPUs end before the devices they reach, and guest memory
/// outlives everything that touches it.
#[derive(Debug)]
pub struct Machine {
    watch: Option<Watch>,
    vcpus: Vec<VcpuHandle>,
    shape: Arc<VcpuShape>,
    devices: Devices,
    /// Guest memory and the vCPUs' descriptors are the VM's: it is closed after its threads have ended.
    vm: Arc<VmFd>,
    slots: Arc<MemorySlots>,
    /// Brings memory for as long as anybody touches it.
    memory_thread: Option<MemoryThread>,
    memory: Arc<GuestMemory>,
    tracking: Tracking,
    events: EventSender,
    placement: PlacementSource,
    state: State,
    ended: Option<Instant>,
    /// Threads of it were left to the end of the process.
    abandoned: bool,
}

/// What a machine cannot do.
#[derive(Debug, Error)]
pub enum MachineError {
    /// Its present state does not accept the action.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// KVM does not do it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host gives no more threads.
    #[error("cannot start the thread {name}: {cause}: check ulimit -u and the cgroup's pids.max")]
    Thread {
        /// Its name.
        name: String,
        /// What the host said.
        cause: io::Error,
    },
    /// Something did not let go of the machine, which runs on.
    #[error("cannot pause the machine: {holder} did not answer within {} s: see to its host file or device, or try again", patience.as_secs())]
    Held {
        /// What.
        holder: Holder,
        /// How long it was waited for.
        patience: Duration,
    },
}

/// What holds a machine that is to be paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A device whose requests do not complete.
    Device(String),
    /// A vCPU in the middle of a device's register, such as the reset of a disk that does not answer, or of a page of memory whose file
    /// does not.
    Vcpu(usize),
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(id) => write!(f, "device `{id}`"),
            Self::Vcpu(index) => write!(f, "vCPU {index}, which resets a device or waits for a page of memory,"),
        }
    }
}

/// How long a pause or a stop waits for what is in flight. A disk that is merely slow answers within it; for one that does
/// not, the control loop, and with it every client, is missed no longer than this.
const PARK_PATIENCE: Duration = Duration::from_secs(5);

impl Machine {
    /// Does what `action` says, all of it before this returns.
    ///
    /// # Errors
    /// The present state does not accept it, or the host fails it.
    pub fn apply(&mut self, action: Action) -> Result<State, MachineError> {
        let next = self.state.accepts(action)?;
        match action {
            Action::Start | Action::Resume if self.state != State::Running => self.run(),
            Action::Pause if self.state != State::Paused => self.park()?,
            Action::PowerButton => self.devices.press_power_button(),
            Action::Nmi => self.inject_nmi()?,
            Action::CtrlAltDel => self.devices.press_ctrl_alt_del(),
            Action::Stop => self.stop(),
            // It is so already; or the table has said that it may be done, by a method of its own.
            Action::Start
            | Action::Resume
            | Action::Pause
            | Action::Configure
            | Action::ChangeDevice
            | Action::Snapshot
            | Action::SnapshotPaused
            | Action::Restore
            | Action::FlushMetrics => {}
        }
        self.state = next;
        Ok(next)
    }

    /// Where the machine is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The machine's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Where its news goes.
    pub(crate) fn events(&self) -> &EventSender {
        &self.events
    }

    /// What tells where the machine's memory is.
    #[must_use]
    pub fn placement(&self) -> &PlacementSource {
        &self.placement
    }

    /// Gives the serial port what was typed, and returns how many bytes it took. If not all,
    /// [`serial_room`](Self::serial_room) tells when to try the rest.
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.devices.serial_input(bytes)
    }

    /// Readable after the guest has read from its serial port.
    #[must_use]
    pub fn serial_room(&self) -> &EventFd {
        self.devices.serial_room()
    }

    /// What the host has to be asked before the disk `id` gets another size.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn disk_size_question(&self, id: &str) -> Result<SizeQuestion, DiskChangeError> {
        self.devices.disk(id).map(Disk::size_question)
    }

    /// Gives the disk `id` another size, which its file or device must have already, and tells the guest.
    ///
    /// # Errors
    /// [`DiskChangeError`]; the size is what it was.
    pub fn resize_disk(&self, id: &str, found: &BackingSize, bytes: u64) -> Result<(), DiskChangeError> {
        self.devices.disk(id)?.resize(found, bytes)
    }

    /// Holds the disk `id`, and with it all of its group, to other limits from now on.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn limit_disk(&self, id: &str, limits: LimiterConfig) -> Result<(), DiskChangeError> {
        self.devices.limit_disk(id, limits)
    }

    /// Holds the network `id`, and with it all of its group, to other limits from now on: inward is what the guest
    /// receives, outward what it transmits.
    ///
    /// # Errors
    /// There is no such network.
    pub fn limit_net(&self, id: &str, limits: LimiterConfig) -> Result<(), NetChangeError> {
        self.devices.limit_net(id, limits)
    }

    /// Plugs the cable of the network `id` in or out, and tells the guest. While it is out, frames are lost.
    ///
    /// # Errors
    /// There is no such network.
    pub fn set_link(&self, id: &str, state: LinkState) -> Result<(), NetChangeError> {
        self.devices.set_link(id, state)
    }

    /// The balloon, if there is one.
    #[must_use]
    pub fn balloon(&self) -> Option<&BalloonControl> {
        self.devices.balloon()
    }

    /// The device that plugs memory, if there is one.
    #[must_use]
    pub fn pluggable_memory(&self) -> Option<&MemoryDeviceControl> {
        self.devices.pluggable_memory()
    }

    /// What each virtio device is and what its driver has done, in the order of their interrupts.
    #[must_use]
    pub fn device_reports(&self) -> Vec<DeviceReport> {
        self.devices.reports()
    }

    /// Whether a write to the disk `id` waits for space on the host (`OnEnospc::Stop`), and with it the disk.
    #[must_use]
    pub fn is_disk_full(&self, id: &str) -> bool {
        self.devices.is_disk_full(id)
    }

    /// What the host has to be asked before the disk `id` gets the file or block device at `path`.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn disk_file_question(&self, id: &str, path: &Path) -> Result<FileQuestion, DiskChangeError> {
        Ok(self.devices.disk(id)?.file_question(path))
    }

    /// Puts another file or block device behind the disk `id` while the guest uses it, or the one that it has again, whose
    /// size may have changed. It is open, locked and checked; what is in flight completes on the old one; the guest is told of
    /// the size. For the same device and inode the lock goes on unbroken.
    ///
    /// # Errors
    /// [`DiskChangeError`]; the disk is what it was.
    pub fn replace_disk(&self, id: &str, file: OpenedFile) -> Result<(), DiskChangeError> {
        self.devices.disk(id)?.replace(file)
    }

    /// What the machine has counted so far.
    #[must_use]
    pub fn metrics(&self) -> Snapshot {
        let vcpu = |vcpu: &VcpuHandle| VcpuFigures {
            exits: ExitKind::ALL.map(|(kind, _)| vcpu.counts().get(kind)),
            outside: vcpu.counts().outside(),
        };
        Snapshot {
            state: self.state,
            memory_bytes: self.slots.present().iter().map(|slot| slot.bytes).sum(),
            vcpus: self.vcpus.iter().map(vcpu).collect(),
            devices: self.devices.figures(),
            console: self.devices.console_figures(),
            placement_drift: self.watch.as_ref().map(Watch::drifted),
        }
    }

    /// Exits of all vCPUs so far, of one kind.
    #[must_use]
    pub fn exits(&self, kind: ExitKind) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.counts().get(kind)).sum()
    }

    /// When vCPU 0 first entered the guest.
    #[must_use]
    pub fn first_entry(&self) -> Option<Instant> {
        self.vcpus.first().and_then(VcpuHandle::first_run)
    }

    /// How long the machine has existed for its guest, its pauses included.
    #[must_use]
    pub fn run_time(&self) -> Duration {
        let end = self.ended.unwrap_or_else(Instant::now);
        self.first_entry().map_or(Duration::ZERO, |start| end.saturating_duration_since(start))
    }

    /// Whether the guest would hear of its power button: it has unmasked the button's interrupt.
    #[must_use]
    pub fn power_button_is_enabled(&self) -> bool {
        irqchip::is_unmasked(&self.vm, arch::layout::GED_GSI)
    }

    /// Interrupts every vCPU by what it cannot mask.
    fn inject_nmi(&self) -> Result<(), MachineError> {
        let count = u8::try_from(self.vcpus.len()).expect("at most 64 vCPUs");
        (0..count).try_for_each(|apic_id| irqchip::send_nmi(&self.vm, apic_id)).map_err(Into::into)
    }

    /// Devices first: a vCPU that runs finds them ready. It is not waited for: to wake this thread would be the last thing
    /// that it does before the guest's first instruction.
    fn run(&self) {
        self.devices.resume();
        self.vcpus.iter().for_each(VcpuHandle::ask_run);
    }

    /// Whether threads that touch its memory may outlive it.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// The machine has ended: who waits for a page of its memory waits no more, and gets zeros. Whoever was abandoned waits on.
    pub(crate) fn let_go_of_memory(&mut self) {
        self.memory_thread = None;
    }

    /// Starts the devices' threads that nothing has started yet. The guest's first instruction needs none of them, so the
    /// control loop does it when that has had its time; what uses one before starts it. They are threads of the control
    /// loop's: one that a vCPU's thread makes is, like it, where somebody may have moved it meanwhile.
    ///
    /// # Errors
    /// The host does not give one.
    pub fn start_threads(&self) -> Result<(), MachineError> {
        self.devices.start_threads().map_err(|(name, cause)| MachineError::Thread { name, cause })
    }

    /// Parks the machine, or lets it run on if something does not let go of it in time.
    fn park(&mut self) -> Result<(), MachineError> {
        self.try_park().map_err(|holder| {
            // The devices run on. A vCPU that is held up does what it was asked when it comes back.
            self.vcpus.iter().for_each(VcpuHandle::ask_run);
            MachineError::Held { holder, patience: PARK_PATIENCE }
        })
    }

    /// vCPUs first: with nobody to ring a doorbell, drained devices stay drained.
    fn try_park(&mut self) -> Result<(), Holder> {
        let deadline = Instant::now() + PARK_PATIENCE;
        self.vcpus.iter().for_each(VcpuHandle::ask_park);
        let held_up = self.vcpus.iter().position(|vcpu| !vcpu.wait_done_by(deadline));
        match held_up {
            Some(index) => Err(Holder::Vcpu(index)),
            None => self.devices.pause(deadline).map_err(Holder::Device),
        }
    }

    /// A machine that something holds ends all the same; what cannot be waited for is left to the end of the process.
    fn stop(&mut self) {
        if self.state == State::Running
            && let Err(holder) = self.try_park()
        {
            log::error!("{holder} does not answer: its requests are given up");
            if let Holder::Vcpu(_) = holder {
                std::mem::take(&mut self.vcpus).into_iter().for_each(std::mem::forget);
            }
            self.devices.abandon();
            // What waits for a page may not go on with zeros, which it would write to a disk.
            std::mem::forget(self.memory_thread.take());
            self.abandoned = true;
        }
        self.ended = Some(Instant::now());
        self.devices.finish(SERIAL_DRAIN_DEADLINE);
    }
}

/// Serial output that goes to `output`, for one machine or for several, one after the other.
#[must_use]
pub fn serial_output(output: OwnedFd) -> Arc<SerialOutput> {
    Arc::new(SerialOutput::new(CONSOLE_THREAD, output))
}

const CONSOLE_THREAD: &str = "husk-io-console";

/// How long the end of a machine waits for the console to take the guest's last words.
const SERIAL_DRAIN_DEADLINE: Duration = Duration::from_secs(1);
