//! The machine driven through the library, where the command line cannot reach yet: pause, resume, refusals, and guest
//! memory that the host takes away.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use vmm::config::{
    BootConfig, BootEntry, Entropy, HardwareTables, HostFacts, KernelSource, LimiterConfig, MIB, MemoryBacking,
    MemoryConfig, SerialTarget, ThreadPlacement, ThreadsPerCore, VmConfig,
};
use vmm::control::{Action, EventReceiver, GuestEvent, State, event_queue};
use vmm::machine::{Machine, MachineError, Origin, Unattended, Wiring, serial_output};
use vmm::vcpu::CrashKind;

const PROBE: &str = env!("HUSK_GUEST_PROBE");
const DEADLINE: Duration = Duration::from_secs(20);

/// A machine whose serial output comes line by line.
struct Scene {
    machine: Machine,
    events: EventReceiver,
    lines: Receiver<String>,
}

fn scene(cpus: u64, cmdline: &str, backing: MemoryBacking) -> Scene {
    let config = VmConfig {
        cpus,
        memory: MemoryConfig { backing, ..MemoryConfig::new(64 * MIB) },
        numa: Vec::new(),
        boot: Some(BootConfig {
            kernel: KernelSource::Path(PROBE.into()),
            initrd: None,
            cmdline: Some(cmdline.to_owned()),
            entry: BootEntry::Auto,
        }),
        tables: HardwareTables::Acpi,
        disks: Vec::new(),
        nets: Vec::new(),
        entropy: Entropy::On,
        entropy_limits: LimiterConfig::default(),
        balloon: None,
        hotplug: None,
        cpu_template: None,
        threads_per_core: ThreadsPerCore::One,
        serial_limit: None,
        serial: SerialTarget::Null,
        threads: ThreadPlacement::default(),
    };
    config.validate(HostFacts::read()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (sender, events) = event_queue().unwrap();
    let machine = Machine::build(
        &config,
        Wiring { serial_output: serial_output(OwnedFd::from(writer)), events: sender },
        Origin::Boot,
        &mut Unattended,
    )
    .unwrap();
    Scene { machine, events, lines: lines_of(OwnedFd::from(reader).into()) }
}

fn lines_of(mut output: File) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while let Ok(1) = output.read(&mut byte) {
            if byte[0] == b'\n' {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    return;
                }
            } else {
                line.push(byte[0]);
            }
        }
    });
    lines
}

impl Scene {
    fn wait_for(&self, start: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|error| panic!("no line `{start}`: {error}"));
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// The lines that still come until there is silence for `silence`.
    fn rest(&self, silence: Duration) -> Vec<String> {
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(silence) {
                Ok(line) => rest.push(line),
                Err(RecvTimeoutError::Timeout) => return rest,
                Err(RecvTimeoutError::Disconnected) => panic!("the console closed while the machine lives"),
            }
        }
    }

    fn wait_for_event(&self) -> GuestEvent {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(event) = self.events.next() {
                return event;
            }
            assert!(Instant::now() < deadline, "no event within the deadline");
            std::thread::yield_now();
        }
    }
}

fn tick(line: &str) -> u64 {
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_paused_guest_stands_still_and_a_resumed_one_goes_on_where_it_was() {
    let mut scene = scene(2, "check=count end=poweroff", MemoryBacking::Anonymous);
    assert_eq!(scene.machine.state(), State::NotStarted);
    scene.machine.apply(Action::Start).unwrap();
    scene.wait_for("TICK ");
    let mut last = 0;
    for _ in 0..5 {
        scene.machine.apply(Action::Pause).unwrap();
        // What was on its way out when the vCPUs parked still comes; then nothing.
        let late = scene.rest(Duration::from_millis(200));
        last = late.iter().rfind(|line| line.starts_with("TICK ")).map_or(last, |line| tick(line));
        assert!(scene.rest(Duration::from_millis(200)).is_empty(), "a paused guest printed");
        scene.machine.apply(Action::Resume).unwrap();
        let next = tick(&scene.wait_for("TICK "));
        assert!(next > last, "tick {next} after tick {last}");
        last = next;
    }
    assert_eq!(scene.machine.serial_input(b"q"), 1);
    scene.wait_for("CHECK count ok");
    assert!(matches!(scene.wait_for_event(), GuestEvent::Request(_)));
    scene.machine.apply(Action::Stop).unwrap();
    assert_eq!(scene.machine.state(), State::Ended);
}

#[test]
fn no_kick_of_many_is_lost() {
    let pauses = if std::env::var_os("HUSK_SOAK").is_some() { 2000 } else { 200 };
    let mut scene = scene(4, "check=count end=poweroff", MemoryBacking::Memfd);
    scene.machine.apply(Action::Start).unwrap();
    scene.wait_for("TICK ");
    for _ in 0..pauses {
        scene.machine.apply(Action::Pause).unwrap();
        scene.machine.apply(Action::Resume).unwrap();
    }
    scene.wait_for("TICK ");
    scene.machine.apply(Action::Stop).unwrap();
}

#[test]
fn a_command_that_the_state_does_not_accept_changes_nothing() {
    let mut scene = scene(1, "end=halt", MemoryBacking::Anonymous);
    for action in [Action::Pause, Action::Resume, Action::PowerButton] {
        assert!(matches!(scene.machine.apply(action), Err(MachineError::Refused(_))), "{action:?}");
        assert_eq!(scene.machine.state(), State::NotStarted);
    }
    scene.machine.apply(Action::Start).unwrap();
    scene.wait_for("PROBE READY");
    assert!(scene.machine.apply(Action::Start).is_err());
    scene.machine.apply(Action::Stop).unwrap();
    assert!(scene.machine.apply(Action::Stop).is_err());
}

#[test]
fn guest_memory_that_the_host_takes_away_ends_the_run_and_is_told() {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let mut scene = scene(1, "check=count end=poweroff", MemoryBacking::Memfd);
    scene.machine.apply(Action::Start).unwrap();
    scene.wait_for("TICK ");
    let memfd = scene.machine.memory().iter().next().unwrap().file_offset().unwrap().arc().clone();
    memfd.set_len(0).unwrap();
    let GuestEvent::Crashed(crash) = scene.wait_for_event() else { panic!("the machine asked for something") };
    assert!(matches!(crash.kind, CrashKind::Memory { .. } | CrashKind::TripleFault), "{crash}");
    scene.machine.apply(Action::Stop).unwrap();
}

#[test]
fn the_power_button_reaches_the_guest_as_an_interrupt() {
    let mut scene = scene(1, "check=button end=poweroff", MemoryBacking::Anonymous);
    scene.machine.apply(Action::Start).unwrap();
    scene.wait_for("BUTTON WAIT");
    scene.machine.apply(Action::PowerButton).unwrap();
    scene.wait_for("CHECK button ok");
    assert!(matches!(scene.wait_for_event(), GuestEvent::Request(_)));
    scene.machine.apply(Action::Stop).unwrap();
}

#[test]
fn a_machine_that_is_dropped_while_it_runs_leaves_no_thread() {
    let mut scene = scene(2, "check=count end=poweroff", MemoryBacking::Anonymous);
    scene.machine.apply(Action::Start).unwrap();
    scene.wait_for("TICK ");
    drop(scene.machine);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let names = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
        let left: Vec<String> = names.filter(|name| name.starts_with("husk-")).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "threads left: {left:?}");
        std::thread::yield_now();
    }
}
