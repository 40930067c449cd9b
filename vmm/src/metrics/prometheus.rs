//! Figures as Prometheus reads them (text format 0.0.4): base units, `_total` on counters, HELP and TYPE once a name.

use std::fmt::{Display, Write};

use devices::virtio::blk::DiskOperation;

use super::{ConsoleFigures, DeviceFigures, LatencyFigures, ProcessFigures, RouteFigures, Snapshot};
use crate::control::State;
use crate::machine::DeviceKind;
use crate::vcpu::ExitKind;

/// All figures as text. `lost_log_lines` and `api` are the program's own.
#[must_use]
pub fn prometheus(machine: &Snapshot, process: &ProcessFigures, api: &[RouteFigures], lost_log_lines: u64) -> String {
    let mut page = Page::default();
    page.metric("husk_vm_state", "gauge", "1 for the state that the machine is in.");
    for state in [State::NotStarted, State::Running, State::Paused, State::Ended] {
        page.sample("husk_vm_state", &[("state", state.name())], u8::from(state == machine.state));
    }
    page.metric("husk_guest_memory_bytes", "gauge", "Size of guest memory.");
    page.sample("husk_guest_memory_bytes", &[], machine.memory_bytes);
    vcpus(&mut page, machine);
    devices(&mut page, &machine.devices);
    disk_queues(&mut page, &machine.devices);
    net_queues(&mut page, &machine.devices);
    page.metric("husk_console_dropped_bytes_total", "counter", "Serial output that was not written.");
    let ConsoleFigures { dropped_bytes, limited_bytes } = machine.console;
    for (reason, bytes) in [("output", dropped_bytes), ("limit", limited_bytes)] {
        page.sample("husk_console_dropped_bytes_total", &[("reason", reason)], bytes);
    }
    if let Some(drift) = machine.placement_drift {
        page.metric(
            "husk_placement_drift",
            "gauge",
            "Threads, and memory as one, that are not where they were asked to be.",
        );
        page.sample("husk_placement_drift", &[], drift);
    }
    page.metric("husk_log_suppressed_lines_total", "counter", "Log lines about repeated faults that were left out.");
    page.sample("husk_log_suppressed_lines_total", &[], process.suppressed_log_lines);
    page.metric("husk_log_lost_lines_total", "counter", "Lines of the log that could not be written.");
    page.sample("husk_log_lost_lines_total", &[], lost_log_lines);
    page.metric("husk_thread_cpu_seconds_total", "counter", "CPU time of husk's threads, by name.");
    for (name, ran) in &process.threads {
        page.sample("husk_thread_cpu_seconds_total", &[("thread", name)], ran.as_secs_f64());
    }
    page.metric("husk_resident_memory_bytes", "gauge", "Resident memory of the process, by kind; guest memory counts.");
    for (kind, bytes) in &process.resident {
        page.sample("husk_resident_memory_bytes", &[("kind", kind)], bytes);
    }
    page.metric("husk_api_request_duration_seconds", "histogram", "How long requests of the control socket took.");
    for RouteFigures { method, route, latency } in api {
        page.histogram("husk_api_request_duration_seconds", &[("method", method), ("route", route)], latency);
    }
    page.text
}

fn vcpus(page: &mut Page, machine: &Snapshot) {
    page.metric("husk_vcpu_exits_total", "counter", "Exits of a vCPU to husk, by reason.");
    for (index, vcpu) in machine.vcpus.iter().enumerate() {
        for ((_, reason), count) in ExitKind::ALL.iter().zip(vcpu.exits) {
            let labels = [("vcpu", index.to_string()), ("reason", (*reason).to_owned())];
            page.sample("husk_vcpu_exits_total", &borrowed(&labels), count);
        }
    }
    page.metric("husk_vcpu_outside_guest_seconds_total", "counter", "Time that a vCPU spent in husk for its exits.");
    for (index, vcpu) in machine.vcpus.iter().enumerate() {
        let seconds = vcpu.outside.as_secs_f64();
        page.sample("husk_vcpu_outside_guest_seconds_total", &[("vcpu", &index.to_string())], seconds);
    }
}

fn devices(page: &mut Page, devices: &[DeviceFigures]) {
    let (mut all, mut flows) = (Series::new(), Series::new());
    for device in devices {
        let labels = vec![("device", device.id.clone()), ("kind", kind(device.kind).to_owned())];
        for flow in &device.flows {
            flows.push((with(&labels, "direction", flow.direction), flow));
        }
        all.push((labels, device));
    }
    let operations = "Requests or frames that a device completed.";
    page.counters("husk_device_operations_total", operations, &flows, |flow| flow.operations);
    page.counters("husk_device_bytes_total", "Bytes of data that a device moved.", &flows, |flow| flow.bytes);
    page.counters("husk_device_errors_total", "Requests or frames that failed.", &flows, |flow| flow.errors);
    page.counters("husk_device_dropped_total", "Frames that were dropped.", &flows, |flow| flow.dropped);
    let filtered = "Frames that the source filter refused.";
    page.counters("husk_device_filtered_total", filtered, &flows, |flow| flow.filtered);
    page.counters("husk_device_retired_queues_total", "Queues that a driver broke.", &all, |all| all.retired_queues);
}

fn disk_queues(page: &mut Page, devices: &[DeviceFigures]) {
    let (mut queues, mut operations) = (Series::new(), Series::new());
    for device in devices {
        for (index, queue) in device.queues.iter().enumerate() {
            let labels = of_queue(device, index);
            for ((_, operation), figures) in DiskOperation::ALL.iter().zip(&queue.operations) {
                operations.push((with(&labels, "operation", operation), figures));
            }
            queues.push((labels, queue));
        }
    }
    let requests = "Requests that a disk's queue answered.";
    page.counters("husk_disk_queue_requests_total", requests, &operations, |(requests, _)| *requests);
    page.counters("husk_disk_queue_bytes_total", "Bytes of data that they moved.", &operations, |(_, bytes)| *bytes);
    let errors = "Requests that were answered with an error.";
    page.counters("husk_disk_queue_errors_total", errors, &queues, |queue| queue.errors);
    let batches = "How often answers were shown to the driver together.";
    page.counters("husk_disk_queue_batches_total", batches, &queues, |queue| queue.batches);
    let throttled = "Time that a disk's queue waited for its limiter.";
    page.counters("husk_disk_queue_throttled_seconds_total", throttled, &queues, |queue| queue.throttled.as_secs_f64());
    let latency = "Time from the notice of a disk's request until its answer could be seen.";
    page.histograms("husk_disk_queue_latency_seconds", latency, &queues, |queue| &queue.latency);
}

fn net_queues(page: &mut Page, devices: &[DeviceFigures]) {
    let mut queues = Series::new();
    for device in devices {
        for (index, pair) in device.net_queues.iter().enumerate() {
            for (direction, queue) in ["receive", "transmit"].into_iter().zip(pair) {
                queues.push((with(&of_queue(device, index), "direction", direction), queue));
            }
        }
    }
    let frames = "Frames that went through a network's queue.";
    page.counters("husk_net_queue_frames_total", frames, &queues, |queue| queue.frames);
    page.counters("husk_net_queue_bytes_total", "Bytes of those frames.", &queues, |queue| queue.bytes);
    let errors = "Buffers that were none, and failures of the host.";
    page.counters("husk_net_queue_errors_total", errors, &queues, |queue| queue.errors);
    page.counters("husk_net_queue_dropped_total", "Frames that were dropped.", &queues, |queue| queue.dropped);
    let filtered = "Frames that the source filter refused.";
    page.counters("husk_net_queue_filtered_total", filtered, &queues, |queue| queue.filtered);
    let batches = "How often frames were shown to the driver together.";
    page.counters("husk_net_queue_batches_total", batches, &queues, |queue| queue.batches);
    let throttled = "Time that a network's queue waited for its limiter.";
    page.counters("husk_net_queue_throttled_seconds_total", throttled, &queues, |queue| queue.throttled.as_secs_f64());
    let latency = "Time from the beginning of a frame's batch until the driver could see it.";
    page.histograms("husk_net_queue_latency_seconds", latency, &queues, |queue| &queue.latency);
}

/// The labels of one of a series.
type Labels = Vec<(&'static str, String)>;
/// What all of one kind have counted, each under its labels.
type Series<'a, T> = Vec<(Labels, &'a T)>;

fn of_queue(device: &DeviceFigures, index: usize) -> Labels {
    vec![("device", device.id.clone()), ("queue", index.to_string())]
}

fn with(labels: &Labels, name: &'static str, value: &str) -> Labels {
    labels.iter().cloned().chain([(name, value.to_owned())]).collect()
}

fn kind(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Disk => "disk",
        DeviceKind::Net => "net",
        DeviceKind::Entropy => "entropy",
        DeviceKind::Balloon => "balloon",
        DeviceKind::Memory => "memory",
    }
}

fn borrowed<'a>(labels: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    labels.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes every write");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(self.text, "{name}{labels} {value}").expect("a String takes every write");
    }

    /// A counter of each of a series.
    fn counters<T, V: Display>(&mut self, name: &str, help: &str, series: &Series<'_, T>, value: impl Fn(&T) -> V) {
        self.metric(name, "counter", help);
        for (labels, of) in series {
            self.sample(name, &borrowed(labels), value(of));
        }
    }

    /// A histogram of each of a series.
    fn histograms<T>(&mut self, name: &str, help: &str, series: &Series<'_, T>, value: impl Fn(&T) -> &LatencyFigures) {
        self.metric(name, "histogram", help);
        for (labels, of) in series {
            self.histogram(name, &borrowed(labels), value(of));
        }
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], figures: &LatencyFigures) {
        for (bound, count) in figures.cumulative() {
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            self.sample(&format!("{name}_bucket"), &[labels, &[("le", bound.as_str())]].concat(), count);
        }
        self.sample(&format!("{name}_sum"), labels, figures.sum().as_secs_f64());
        self.sample(&format!("{name}_count"), labels, figures.count());
    }
}

/// A label's value within quotes.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{DiskQueueFigures, FlowFigures, Latency, NetQueueFigures, VcpuFigures};
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn page() -> String {
        let flow = FlowFigures { direction: "both", operations: 3, bytes: 4096, errors: 1, dropped: 0, filtered: 2 };
        let took = Latency::default();
        took.add(Duration::from_micros(3));
        let queue = DiskQueueFigures {
            operations: [(2, 1024), (1, 512), (0, 0), (0, 0)],
            errors: 1,
            batches: 3,
            throttled: Duration::from_millis(250),
            latency: took.read(),
        };
        let receiving = NetQueueFigures { frames: 7, throttled: Duration::from_millis(500), ..Default::default() };
        let sending = NetQueueFigures { batches: 2, latency: took.read(), ..Default::default() };
        let device = DeviceFigures {
            id: "a\"b".to_owned(),
            kind: DeviceKind::Disk,
            flows: vec![flow],
            queues: vec![queue],
            net_queues: vec![[receiving, sending]],
            retired_queues: 0,
        };
        let vcpu = VcpuFigures { exits: [1, 2, 3, 4, 5, 6], outside: Duration::from_millis(1500) };
        let machine = Snapshot {
            state: State::Running,
            memory_bytes: 1 << 27,
            vcpus: vec![vcpu],
            devices: vec![device],
            console: ConsoleFigures { dropped_bytes: 9, limited_bytes: 4 },
            placement_drift: Some(0),
        };
        let latency = Latency::default();
        latency.add(Duration::from_micros(3));
        let process = ProcessFigures {
            threads: vec![("husk".to_owned(), Duration::from_millis(20))],
            resident: vec![("anonymous", 4096)],
            suppressed_log_lines: 7,
        };
        let route = RouteFigures { method: "PUT".to_owned(), route: "/drives/{drive_id}", latency: latency.read() };
        prometheus(&machine, &process, &[route], 2)
    }

    #[test]
    fn figures_have_their_names_labels_and_units() {
        let page = page();
        for line in [
            "husk_vm_state{state=\"running\"} 1",
            "husk_vm_state{state=\"paused\"} 0",
            "husk_vcpu_exits_total{vcpu=\"0\",reason=\"mmio-write\"} 4",
            "husk_vcpu_outside_guest_seconds_total{vcpu=\"0\"} 1.5",
            "husk_device_bytes_total{device=\"a\\\"b\",kind=\"disk\",direction=\"both\"} 4096",
            "husk_device_filtered_total{device=\"a\\\"b\",kind=\"disk\",direction=\"both\"} 2",
            "husk_thread_cpu_seconds_total{thread=\"husk\"} 0.02",
            "husk_api_request_duration_seconds_bucket{method=\"PUT\",route=\"/drives/{drive_id}\",le=\"0.000002\"} 0",
            "husk_api_request_duration_seconds_bucket{method=\"PUT\",route=\"/drives/{drive_id}\",le=\"0.000004\"} 1",
            "husk_api_request_duration_seconds_bucket{method=\"PUT\",route=\"/drives/{drive_id}\",le=\"+Inf\"} 1",
            "husk_api_request_duration_seconds_count{method=\"PUT\",route=\"/drives/{drive_id}\"} 1",
            "husk_log_lost_lines_total 2",
            "husk_log_suppressed_lines_total 7",
            "husk_disk_queue_bytes_total{device=\"a\\\"b\",queue=\"0\",operation=\"read\"} 1024",
            "husk_disk_queue_errors_total{device=\"a\\\"b\",queue=\"0\"} 1",
            "husk_net_queue_frames_total{device=\"a\\\"b\",queue=\"0\",direction=\"receive\"} 7",
            "husk_net_queue_throttled_seconds_total{device=\"a\\\"b\",queue=\"0\",direction=\"receive\"} 0.5",
            "husk_net_queue_batches_total{device=\"a\\\"b\",queue=\"0\",direction=\"transmit\"} 2",
            "husk_net_queue_latency_seconds_count{device=\"a\\\"b\",queue=\"0\",direction=\"transmit\"} 1",
            "husk_disk_queue_batches_total{device=\"a\\\"b\",queue=\"0\"} 3",
            "husk_disk_queue_throttled_seconds_total{device=\"a\\\"b\",queue=\"0\"} 0.25",
            "husk_disk_queue_latency_seconds_bucket{device=\"a\\\"b\",queue=\"0\",le=\"0.000004\"} 1",
            "husk_disk_queue_latency_seconds_count{device=\"a\\\"b\",queue=\"0\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn every_sample_follows_its_help_and_type_and_counters_are_totals() {
        let page = page();
        let (mut current, mut kind, mut seen) = ("", "", BTreeSet::new());
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(seen.insert(name) && help.ends_with('.'), "{line}");
                current = name;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, found) = rest.split_once(' ').unwrap();
                assert_eq!(name, current);
                assert_eq!(found == "counter", name.ends_with("_total"), "{line}");
                kind = found;
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                let base = if kind == "histogram" { name.rsplit_once('_').unwrap().0 } else { name };
                assert_eq!(base, current, "{line}");
                assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(seen.len() >= 13, "{seen:?}");
    }
}
