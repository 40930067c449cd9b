//! The machine's devices: made, put on their buses, bound to their interrupts and doorbells, paused and ended in order.

mod error;
mod report;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use arch::layout::{self, VirtioMmioWindow};
use arch::{Gsi, GuestMemory};
use devices::RequestSink;
use devices::backend::block::DiskImage;
use devices::bus::{Bus, BusError, SharedDevice};
use devices::legacy::{AcpiPm, I8042, I8042State, PowerButton, Rtc, RtcState, Serial, SerialState};
use devices::limit::Limiter;
use devices::state::SaveState;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::mem::MemoryDeviceControl;
use devices::virtio::net::LinkState;
use devices::virtio::rng::Rng;
use devices::virtio::transport::{MmioState, MmioTransport};
use devices::virtio::worker::{Holding, IoThread};
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

pub use self::error::{DeviceError, DiskChangeError};
use self::report::Counters;
pub use self::report::{DeviceKind, DeviceReport, Direction, DriverState, Link, QueueReport};
use super::build::Wiring;
use super::disks::{Disk, DiskMaker};
use super::hotplug::{self, PluggableMemory};
use super::memory::MachineMemory;
use super::nets::{NetChangeError, Network};
use super::pool::IoPool;
use super::slots::MemorySlots;
use super::{CONSOLE_THREAD, SerialOutput};
use crate::config::{BALLOON_ID, ENTROPY_ID, HOTPLUG_ID, LimiterConfig, VmConfig};
use crate::control::{EventSender, GuestEvent};
use crate::vcpu::Buses;

/// What the devices have to say that nothing is in flight, however long the vCPUs took to park.
const QUIET_DEVICE_PATIENCE: Duration = Duration::from_millis(100);

/// All devices of a machine.
pub(super) struct Devices {
    // The order of the fields is the order of their drop: a transport stops its device while its I/O thread lives.
    virtio: Vec<VirtioSlot>,
    buses: Buses,
    serial: Arc<Mutex<Serial>>,
    serial_line: EventFd,
    serial_room: EventFd,
    keyboard: Arc<Mutex<I8042>>,
    rtc: Arc<Mutex<Rtc>>,
    power_button: PowerButton,
    console: Arc<SerialOutput>,
    disks: Vec<Disk>,
    nets: Vec<Network>,
    io_threads: Vec<IoThread>,
    pluggable: Option<Arc<PluggableMemory>>,
}

/// The threads that will serve the queues of a machine's devices, by name, and the vCPUs that each works for.
pub(super) fn io_threads(config: &VmConfig) -> BTreeMap<String, Vec<u8>> {
    let vcpus = usize::try_from(config.cpus).expect("validate() holds the number of vCPUs against the limit");
    let disks = config.disks.iter().map(|disk| (&disk.id, &disk.tuning.threads, disk.tuning.queues));
    let nets = config.nets.iter().map(|net| (&net.id, &net.tuning.threads, net.tuning.queues));
    let mut served = BTreeMap::<String, Vec<u8>>::new();
    for (id, threads, queues) in disks.chain(nets) {
        for (index, name) in super::pool::names(id, threads).into_iter().enumerate() {
            // The guest takes the memory for its requests on the device's node.
            let near = config.numa.iter().find(|node| node.devices.contains(id) && !node.cpus.is_empty());
            let of = match near {
                Some(node) => node.cpus.iter().filter_map(|vcpu| u8::try_from(vcpu).ok()).collect(),
                None => super::pool::served(index, threads, queues, vcpus),
            };
            // Devices may share one.
            served.entry(name).or_default().extend(of);
        }
    }
    let others = [
        (config.has_entropy(), ENTROPY_ID),
        (config.balloon.is_some(), BALLOON_ID),
        (config.hotplug.is_some(), HOTPLUG_ID),
    ];
    served.extend(others.iter().filter(|(is_there, _)| *is_there).map(|(_, id)| ((*id).to_owned(), Vec::new())));
    served
}

/// What the devices of a machine have come to.
#[derive(Debug)]
pub(super) struct DevicesState {
    /// By the devices' ids.
    pub(super) transports: Vec<(String, MmioState)>,
    pub(super) serial: SerialState,
    pub(super) keyboard: I8042State,
    pub(super) rtc: RtcState,
}

/// What a device is called, what it is, and what it counts.
struct Label {
    id: String,
    kind: DeviceKind,
    counters: Counters,
}

/// A virtio device with its place in the machine.
struct VirtioSlot {
    id: String,
    kind: DeviceKind,
    counters: Counters,
    window: VirtioMmioWindow,
    transport: Arc<Mutex<MmioTransport>>,
}

impl Devices {
    /// Makes all devices and puts them on their buses, those of the disks over `images`. Every tap is attached before the first
    /// device is made.
    pub(super) fn make(
        config: &VmConfig,
        memory: &MachineMemory,
        images: Vec<DiskImage>,
        wiring: Wiring,
    ) -> Result<Self, DeviceError> {
        let all = &memory.all;
        let taps = config.nets.iter().map(super::nets::open).collect::<Result<Vec<_>, _>>()?;
        let (mut pool, events) = (IoPool::default(), wiring.events.clone());
        let mut devices = Self::legacy(wiring)?;
        devices.console.limit(config.serial_limit);
        let mut windows = config.windows().into_iter();
        let mut next_window = || windows.next().expect("windows() counts the same devices");
        for (disk, image) in config.disks.iter().zip(images) {
            let (block, disk) = DiskMaker::new(events.clone(), &mut pool).make(disk, image)?;
            let counters = Counters::Disk(block.control());
            let label = Label { id: disk.id.clone(), kind: DeviceKind::Disk, counters };
            devices.plug(label, next_window(), Box::new(block), all)?;
            devices.disks.push(disk);
        }
        for (net, tap) in config.nets.iter().zip(taps) {
            let (device, net) = super::nets::make(net, tap, &mut pool)?;
            let counters = Counters::Frames(device.counters());
            let label = Label { id: net.id.clone(), kind: DeviceKind::Net, counters };
            devices.plug(label, next_window(), Box::new(device), all)?;
            devices.nets.push(net);
        }
        if config.has_entropy() {
            let limits = config.entropy_limits;
            let limiter = (!limits.is_unlimited()).then(|| Limiter::new(limits));
            let rng = Rng::new(ENTROPY_ID, limiter, pool.spawn(ENTROPY_ID, Duration::ZERO)?);
            let counters = Counters::Requests(rng.counters());
            let label = Label { id: ENTROPY_ID.to_owned(), kind: DeviceKind::Entropy, counters };
            devices.plug(label, next_window(), Box::new(rng), all)?;
        }
        if let Some(balloon) = &config.balloon {
            let device = super::balloon::make(balloon, memory.pages, all, &events, &mut pool)?;
            let counters = Counters::Pages(device.control());
            let label = Label { id: BALLOON_ID.to_owned(), kind: DeviceKind::Balloon, counters };
            devices.plug(label, next_window(), Box::new(device), all)?;
        }
        if let (Some(hotplug), Some(pluggable)) = (&config.hotplug, &memory.pluggable) {
            let store = Arc::new(PluggableMemory::new(memory, pluggable, hotplug));
            let node = config.hotplug_node();
            let device = hotplug::make(hotplug, &config.memory, &store, node, &events, &mut pool)?;
            let counters = Counters::Blocks(device.control());
            let label = Label { id: HOTPLUG_ID.to_owned(), kind: DeviceKind::Memory, counters };
            devices.plug(label, next_window(), Box::new(device), all)?;
            devices.pluggable = Some(store);
        }
        devices.io_threads = pool.into_threads();
        Ok(devices)
    }

    /// Binds every interrupt to its GSI and every doorbell to its register, so that neither costs a vCPU an exit to
    /// user space.
    pub(super) fn connect(&self, vm: &VmFd, slots: &Arc<MemorySlots>) -> Result<(), DeviceError> {
        if let Some(pluggable) = &self.pluggable {
            pluggable.connect(slots);
        }
        let interrupt = |line: &EventFd, gsi: Gsi, what: &str| {
            vm.register_irqfd(line, gsi.get()).map_err(|source| DeviceError::Bind {
                what: format!("the interrupt of {what}"),
                gsi,
                source,
            })
        };
        interrupt(&self.serial_line, layout::SERIAL_GSI, "the serial port")?;
        interrupt(lock(&self.keyboard).interrupt_line(), layout::KEYBOARD_GSI, "the keyboard")?;
        interrupt(self.power_button.interrupt_line(), layout::GED_GSI, "the power button")?;
        for VirtioSlot { id, window, transport, .. } in &self.virtio {
            let transport = lock(transport);
            interrupt(transport.interrupt_line(), window.gsi, &format!("device `{id}`"))?;
            let register = IoEventAddress::Mmio(window.base.0 + MmioTransport::NOTIFY_OFFSET);
            for (queue, doorbell) in (0u32..).zip(transport.doorbells()) {
                vm.register_ioevent(doorbell, &register, queue).map_err(|source| DeviceError::Bind {
                    what: format!("doorbell {queue} of device `{id}`"),
                    gsi: window.gsi,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// What all devices have come to. The machine is paused.
    pub(super) fn save(&self) -> DevicesState {
        let transport = |slot: &VirtioSlot| (slot.id.clone(), lock(&slot.transport).save());
        DevicesState {
            transports: self.virtio.iter().map(transport).collect(),
            serial: lock(&self.serial).save(),
            keyboard: lock(&self.keyboard).save(),
            rtc: lock(&self.rtc).save(),
        }
    }

    /// Lets every device take over what the one of its name had come to. They are connected, and interrupts go where they
    /// went.
    pub(super) fn restore(&self, state: DevicesState) -> Result<(), DeviceError> {
        let DevicesState { mut transports, serial, keyboard, rtc } = state;
        for slot in &self.virtio {
            let place = transports.iter().position(|(id, _)| *id == slot.id);
            let place = place.ok_or_else(|| DeviceError::Unmatched { id: slot.id.clone(), here: true })?;
            let (id, state) = transports.swap_remove(place);
            lock(&slot.transport).restore(state).map_err(|source| DeviceError::Restore { id, source })?;
        }
        if let Some((id, _)) = transports.pop() {
            return Err(DeviceError::Unmatched { id, here: false });
        }
        lock(&self.serial).restore(serial)?;
        lock(&self.keyboard).restore(keyboard)?;
        Ok(lock(&self.rtc).restore(rtc)?)
    }

    pub(super) fn buses(&self) -> Buses {
        self.buses.clone()
    }

    pub(super) fn press_power_button(&self) {
        self.power_button.press();
    }

    pub(super) fn press_ctrl_alt_del(&self) {
        lock(&self.keyboard).press_ctrl_alt_del();
    }

    pub(super) fn serial_input(&self, bytes: &[u8]) -> usize {
        lock(&self.serial).push(bytes)
    }

    pub(super) fn serial_room(&self) -> &EventFd {
        &self.serial_room
    }

    /// Holds a disk, and with it all of its group, to other limits.
    pub(super) fn limit_disk(&self, id: &str, limits: LimiterConfig) -> Result<(), DiskChangeError> {
        self.disk(id).map(|disk| disk.limit(limits))
    }

    /// Holds a network, and with it all of its group, to other limits.
    pub(super) fn limit_net(&self, id: &str, limits: LimiterConfig) -> Result<(), NetChangeError> {
        self.net(id).map(|net| net.limit(limits))
    }

    /// Plugs a network's cable in, or out.
    pub(super) fn set_link(&self, id: &str, state: LinkState) -> Result<(), NetChangeError> {
        self.net(id).map(|net| net.set_link(state))
    }

    fn net(&self, id: &str) -> Result<&Network, NetChangeError> {
        self.nets.iter().find(|net| net.id == id).ok_or_else(|| NetChangeError::Unknown(id.to_owned()))
    }

    pub(super) fn balloon(&self) -> Option<&BalloonControl> {
        self.virtio.iter().find_map(|slot| match &slot.counters {
            Counters::Pages(balloon) => Some(balloon),
            _ => None,
        })
    }

    /// What stands behind the memory device.
    pub(super) fn pluggable(&self) -> Option<&Arc<PluggableMemory>> {
        self.pluggable.as_ref()
    }

    pub(super) fn pluggable_memory(&self) -> Option<&MemoryDeviceControl> {
        self.virtio.iter().find_map(|slot| match &slot.counters {
            Counters::Blocks(memory) => Some(memory),
            _ => None,
        })
    }

    /// Whether a write to a disk waits for space.
    pub(super) fn is_disk_full(&self, id: &str) -> bool {
        self.disk(id).is_ok_and(Disk::is_full)
    }

    pub(super) fn disk(&self, id: &str) -> Result<&Disk, DiskChangeError> {
        self.disks.iter().find(|disk| disk.id == id).ok_or_else(|| DiskChangeError::Unknown(id.to_owned()))
    }

    /// Completes what is in flight in every device, and lets none take more.
    ///
    /// # Errors
    /// The id of a device that has not answered by the deadline: its host does not, or that of another on its thread. All go
    /// on then.
    pub(super) fn pause(&self, deadline: Instant) -> Result<(), String> {
        // All of them before the first is stopped: to stop one waits for its thread, which another may hold up.
        let holding: Vec<_> = self.virtio.iter().map(|slot| lock(&slot.transport).core().hold()).collect();
        let deadline = deadline.max(Instant::now() + QUIET_DEVICE_PATIENCE);
        let is_quiet = |holding: &[Holding]| holding.iter().all(|holding| holding.wait_until(deadline));
        let held = self.virtio.iter().zip(&holding).find(|(_, holding)| !is_quiet(holding));
        match held {
            Some((slot, _)) => {
                self.virtio.iter().for_each(|slot| lock(&slot.transport).core().release());
                Err(slot.id.clone())
            }
            None => {
                self.virtio.iter().for_each(|slot| lock(&slot.transport).core().pause());
                Ok(())
            }
        }
    }

    /// Starts the threads that do not run yet.
    ///
    /// # Errors
    /// The name of the one that the host does not give, and what it said.
    pub(super) fn start_threads(&self) -> Result<(), (String, io::Error)> {
        self.console.start().map_err(|error| (CONSOLE_THREAD.to_owned(), error))?;
        self.io_threads.iter().try_for_each(|thread| thread.start().map_err(|error| (thread.name().to_owned(), error)))
    }

    /// The threads that serve queues.
    pub(super) fn io_threads(&self) -> &[IoThread] {
        &self.io_threads
    }

    /// Leaves the virtio devices and their threads to the end of the process: what they wait for may still write to
    /// guest memory, which they keep.
    pub(super) fn abandon(&mut self) {
        std::mem::take(&mut self.virtio).into_iter().for_each(|slot| std::mem::forget(slot.transport));
        std::mem::take(&mut self.io_threads).into_iter().for_each(std::mem::forget);
    }

    /// Lets every device go on from where `pause` stopped it.
    pub(super) fn resume(&self) {
        self.virtio.iter().for_each(|slot| lock(&slot.transport).core().resume());
    }

    /// Waits until the console has taken the guest's last words.
    pub(super) fn finish(&self, limit: Duration) {
        if !self.console.drain(Instant::now() + limit) {
            log::warn!("the console did not take the guest's last output within {} ms", limit.as_millis());
        }
    }

    fn legacy(wiring: Wiring) -> Result<Self, DeviceError> {
        let host = |what: &str| {
            let what = what.to_owned();
            move |source| DeviceError::Host { what, source }
        };
        let console = wiring.serial_output;
        let serial = Serial::new(console.writer())?;
        let clone = |line: &EventFd| line.try_clone().map_err(host("an eventfd"));
        let (serial_line, serial_room) = (clone(serial.interrupt_line())?, clone(serial.room_event())?);
        let power_button = PowerButton::new().map_err(host("the power button's eventfd"))?;
        let serial = Arc::new(Mutex::new(serial));
        let requests = request_sink(wiring.events);
        let keyboard = I8042::new(Arc::clone(&requests)).map_err(host("the keyboard's eventfd"))?;
        let keyboard = Arc::new(Mutex::new(keyboard));
        let pio = Bus::new();
        let place = |port: u16, length: u16, device: SharedDevice| {
            let ports = u64::from(port)..u64::from(port) + u64::from(length);
            insert(&pio, ports, device);
        };
        place(layout::SERIAL_PORT, layout::SERIAL_PORT_LEN, Arc::clone(&serial) as SharedDevice);
        place(layout::I8042_PORT, layout::I8042_PORT_LEN, Arc::clone(&keyboard) as SharedDevice);
        let rtc = Arc::new(Mutex::new(Rtc::new()));
        place(layout::CMOS_PORT, layout::CMOS_PORT_LEN, Arc::clone(&rtc) as SharedDevice);
        place(layout::PM_PORT, layout::PM_PORT_LEN, shared(AcpiPm::new(requests)));
        Ok(Self {
            virtio: Vec::new(),
            buses: Buses { pio: Arc::new(pio), mmio: Arc::new(Bus::new()) },
            serial,
            serial_line,
            serial_room,
            keyboard,
            rtc,
            power_button,
            console,
            disks: Vec::new(),
            nets: Vec::new(),
            io_threads: Vec::new(),
            pluggable: None,
        })
    }

    fn plug(
        &mut self,
        Label { id, kind, counters }: Label,
        window: VirtioMmioWindow,
        device: Box<dyn VirtioDevice>,
        memory: &Arc<GuestMemory>,
    ) -> Result<(), DeviceError> {
        let transport = MmioTransport::new(&id, device, Arc::clone(memory))
            .map_err(|source| DeviceError::Transport { id: id.clone(), source })?;
        let transport = Arc::new(Mutex::new(transport));
        let GuestAddress(base) = window.base;
        insert(&self.buses.mmio, base..base + window.size, Arc::clone(&transport) as SharedDevice);
        self.virtio.push(VirtioSlot { id, kind, counters, window, transport });
        Ok(())
    }
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.virtio.iter().map(|slot| (&slot.id, slot.window))).finish()
    }
}

fn request_sink(events: EventSender) -> RequestSink {
    Arc::new(move |request| events.send(GuestEvent::Request(request)))
}

fn shared(device: impl devices::bus::BusDevice + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

fn insert(bus: &Bus, range: Range<u64>, device: SharedDevice) {
    let inserted: Result<(), BusError> = bus.insert(range, device);
    inserted.expect("the address map keeps devices apart, by the assertions beside it");
}

pub(super) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("a thread panicked with a device's lock held, which aborts the process")
}
