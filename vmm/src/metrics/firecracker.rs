//! The machine's figures as Firecracker writes them: a line of JSON every minute, when a client asks, and at the end.
//! Counters tell what came since the line before, as Firecracker's do; keys that husk cannot tell truly are left out.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use devices::virtio::blk::DiskOperation;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::{DeviceFigures, FlowFigures, Snapshot};
use crate::config::firecracker::bodies::Metrics;
use crate::line_file;
use crate::machine::DeviceKind;
use crate::time::unix_ms;
use crate::vcpu::ExitKind;

/// How often a line is written without being asked for.
const PERIOD: Duration = Duration::from_secs(60);

/// A file that metrics cannot go to.
#[derive(Debug, Error)]
#[error("metrics_path: cannot open {}: {cause}: check that its folder exists and can be written", path.display())]
pub struct MetricsFileError {
    path: PathBuf,
    cause: io::Error,
}

/// The file or named pipe. The control loop owns it.
#[derive(Debug)]
pub struct FirecrackerFile {
    file: File,
    path: PathBuf,
    last: Snapshot,
    next: Instant,
    missed: u64,
    /// The end of a line that was not taken whole: no other line comes before it.
    rest: Vec<u8>,
    /// What every line has beside the figures.
    extra: Map<String, Value>,
}

impl FirecrackerFile {
    /// Opens a file behind its end, or a named pipe without waiting for who reads it.
    ///
    /// # Errors
    /// The host does not open it.
    pub fn open(path: &Path) -> Result<Self, MetricsFileError> {
        let file = line_file::open(path).map_err(|cause| MetricsFileError { path: path.to_owned(), cause })?;
        let next = Instant::now() + PERIOD;
        let (last, extra) = (Snapshot::of_no_machine(), Map::new());
        Ok(Self { file, path: path.to_owned(), last, next, missed: 0, rest: Vec::new(), extra })
    }

    /// As a body asks, of the VM `id`.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn of_body(metrics: &Metrics, id: &str) -> Result<Self, MetricsFileError> {
        let mut file = Self::open(&metrics.metrics_path)?;
        if metrics.emit_id {
            file.extra.insert("id".to_owned(), id.into());
        }
        if !metrics.properties.is_empty() {
            file.extra.insert("properties".to_owned(), json!(metrics.properties));
        }
        Ok(file)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When the next line is due.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.next
    }

    /// Writes a line. One that the file does not take is counted, and its figures come with the next.
    pub fn write(&mut self, now: Snapshot) {
        self.next = Instant::now() + PERIOD;
        self.push_rest();
        if !self.rest.is_empty() {
            self.missed += 1;
            return;
        }
        self.rest = format!("{}\n", line(unix_ms(), &now, &self.last, self.missed, &self.extra)).into_bytes();
        if self.push_rest() > 0 {
            (self.last, self.missed) = (now, 0);
        } else {
            self.rest.clear();
            self.missed += 1;
        }
    }

    /// Writes what the file takes at once; how much that is.
    fn push_rest(&mut self) -> usize {
        let taken = self.file.write(&self.rest).unwrap_or(0);
        self.rest.drain(..taken);
        taken
    }
}

/// The line for what came between `last` and `now`.
fn line(utc_ms: u64, now: &Snapshot, last: &Snapshot, missed: u64, extra: &Map<String, Value>) -> String {
    let exits = |snapshot: &Snapshot, kind: ExitKind| -> u64 {
        snapshot.vcpus.iter().map(|vcpu| vcpu.exits[kind as usize]).sum()
    };
    let exits = |kind| exits(now, kind).saturating_sub(exits(last, kind));
    let mut figures = extra.clone();
    figures.insert("logger".to_owned(), json!({ "missed_metrics_count": missed }));
    let vcpu = json!({
        "exit_io_in": exits(ExitKind::IoIn),
        "exit_io_out": exits(ExitKind::IoOut),
        "exit_mmio_read": exits(ExitKind::MmioRead),
        "exit_mmio_write": exits(ExitKind::MmioWrite),
    });
    figures.insert("vcpu".to_owned(), vcpu);
    let uart = json!({
        "missed_write_count": now.console.dropped_bytes.saturating_sub(last.console.dropped_bytes),
        "rate_limiter_dropped_bytes": now.console.limited_bytes.saturating_sub(last.console.limited_bytes),
    });
    figures.insert("uart".to_owned(), uart);
    for (kind, name) in [(DeviceKind::Disk, "block"), (DeviceKind::Net, "net"), (DeviceKind::Entropy, "entropy")] {
        let mut sums = Map::new();
        for device in now.devices.iter().filter(|device| device.kind == kind) {
            let before = last.devices.iter().find(|other| other.id == device.id);
            let own = keys(device, before);
            for (key, value) in &own {
                let sum = sums.get(*key).and_then(Value::as_u64).unwrap_or(0) + value;
                sums.insert((*key).to_owned(), sum.into());
            }
            // There is one entropy device, and it has no name there.
            if kind != DeviceKind::Entropy {
                let own = own.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
                figures.insert(format!("{name}_{}", device.id), Value::Object(own));
            }
        }
        if !sums.is_empty() {
            figures.insert(name.to_owned(), Value::Object(sums));
        }
    }
    // Who reads lines as they grow looks for the time at their beginning, where Firecracker has it.
    let figures = Value::Object(figures).to_string();
    format!("{{\"utc_timestamp_ms\":{utc_ms},{}", figures.strip_prefix('{').expect("an object begins so"))
}

/// Firecracker's names for what a device did since `before`.
fn keys(device: &DeviceFigures, before: Option<&DeviceFigures>) -> Vec<(&'static str, u64)> {
    let mut keys = Vec::new();
    for flow in &device.flows {
        let before = before.and_then(|before| before.flows.iter().find(|other| other.direction == flow.direction));
        let since = |figure: fn(&FlowFigures) -> u64| figure(flow).saturating_sub(before.map_or(0, figure));
        let (operations, bytes, errors) =
            (since(|flow| flow.operations), since(|flow| flow.bytes), since(|flow| flow.errors));
        match (device.kind, flow.direction) {
            (DeviceKind::Net, "receive") => {
                keys.extend([("rx_packets_count", operations), ("rx_bytes_count", bytes), ("rx_fails", errors)])
            }
            (DeviceKind::Net, _) => {
                keys.extend([("tx_packets_count", operations), ("tx_bytes_count", bytes), ("tx_fails", errors)]);
                keys.push(("tx_spoofed_mac_count", since(|flow| flow.filtered)));
            }
            (DeviceKind::Entropy, _) => keys.extend([
                ("entropy_event_count", operations),
                ("entropy_bytes", bytes),
                ("entropy_event_fails", errors),
            ]),
            (DeviceKind::Disk, _) => keys.push(("execute_fails", errors)),
            // Firecracker counts events of their queues, husk pages and bytes.
            (DeviceKind::Balloon | DeviceKind::Memory, _) => {}
        }
    }
    if device.kind == DeviceKind::Disk {
        let total = |device: &DeviceFigures, operation: DiskOperation| {
            let all = device.queues.iter().map(|queue| queue.operations[operation as usize]);
            all.fold((0, 0), |sum: (u64, u64), (requests, bytes)| (sum.0 + requests, sum.1 + bytes))
        };
        let since = |operation| {
            let (now, before) =
                (total(device, operation), before.map(|before| total(before, operation)).unwrap_or_default());
            (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1))
        };
        let (reads, read_bytes) = since(DiskOperation::Read);
        let (writes, write_bytes) = since(DiskOperation::Write);
        keys.extend([("read_count", reads), ("read_bytes", read_bytes)]);
        keys.extend([("write_count", writes), ("write_bytes", write_bytes)]);
        keys.push(("flush_count", since(DiskOperation::Flush).0));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{DiskQueueFigures, VcpuFigures};
    use std::io::Read;

    fn snapshot(io_out: u64, frames: u64) -> Snapshot {
        let flow = |direction, operations| FlowFigures {
            direction,
            operations,
            bytes: 60 * operations,
            errors: 0,
            dropped: 0,
            filtered: operations,
        };
        let flows = vec![flow("receive", 2 * frames), flow("transmit", frames)];
        let net = DeviceFigures {
            id: "eth0".to_owned(),
            kind: DeviceKind::Net,
            flows,
            queues: Vec::new(),
            net_queues: Vec::new(),
            retired_queues: 0,
        };
        let flow =
            FlowFigures { direction: "both", operations: frames, bytes: 0, errors: frames, dropped: 0, filtered: 0 };
        let queue = DiskQueueFigures {
            operations: [(frames, 512 * frames), (0, 0), (1, 0), (0, 0)],
            ..DiskQueueFigures::default()
        };
        let disk = DeviceFigures {
            id: "root".to_owned(),
            kind: DeviceKind::Disk,
            flows: vec![flow],
            queues: vec![queue.clone(), queue],
            net_queues: Vec::new(),
            retired_queues: 0,
        };
        let vcpu = VcpuFigures { exits: [0, io_out, 0, 0, 0, 0], ..VcpuFigures::default() };
        Snapshot { vcpus: vec![vcpu.clone(), vcpu], devices: vec![net, disk], ..Snapshot::of_no_machine() }
    }

    #[test]
    fn a_line_tells_what_came_since_the_one_before() {
        let text = line(77, &snapshot(10, 5), &snapshot(4, 3), 1, &Map::new());
        assert!(text.starts_with(r#"{"utc_timestamp_ms":77,""#), "{text}");
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["vcpu"]["exit_io_out"], 12);
        assert_eq!(json["net"]["rx_packets_count"], 4);
        assert_eq!(json["net_eth0"]["tx_bytes_count"], 120);
        assert_eq!(
            (&json["net"]["tx_spoofed_mac_count"], &json["net"]["rx_spoofed_mac_count"]),
            (&json!(2), &Value::Null)
        );
        assert_eq!(json["logger"]["missed_metrics_count"], 1);
        assert_eq!(
            (json["block_root"]["read_count"].as_u64(), json["block"]["read_bytes"].as_u64()),
            (Some(4), Some(2048))
        );
        assert_eq!(
            (json["block"]["execute_fails"].as_u64(), json["block"]["flush_count"].as_u64()),
            (Some(2), Some(0))
        );
        assert_eq!(json.get("entropy"), None);
    }

    #[test]
    fn lines_are_appended_and_the_next_is_due_in_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        let mut file = FirecrackerFile::open(&path).unwrap();
        file.write(snapshot(1, 1));
        file.write(snapshot(3, 1));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (lines[0]["vcpu"]["exit_io_out"].as_u64(), lines[1]["vcpu"]["exit_io_out"].as_u64()),
            (Some(2), Some(4))
        );
        assert!(file.due() > Instant::now() + Duration::from_secs(50));
        assert!(FirecrackerFile::open(&folder.path().join("no/metrics")).is_err());
    }

    #[test]
    fn lines_stay_whole_in_a_pipe_that_takes_only_parts_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut file = FirecrackerFile::open(&path).unwrap();
        // A line longer than the pipe's 64 KiB, as many devices give.
        file.extra.insert("properties".to_owned(), json!({ "long": "x".repeat(100 << 10) }));
        let mut reader = line_file::open(&path).unwrap();
        let mut read = Vec::new();
        let mut drain = || {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                read.extend_from_slice(&buffer[..count]);
            }
            read.clone()
        };
        file.write(snapshot(1, 1));
        file.write(snapshot(2, 1));
        drain();
        for io_out in 3..5 {
            file.write(snapshot(io_out, 1));
            drain();
        }
        file.write(snapshot(5, 1));
        let read = drain();
        let text = String::from_utf8(read).unwrap();
        let (lines, _torn) = text.rsplit_once('\n').unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told =
            |line: &Value| (line["vcpu"]["exit_io_out"].as_u64(), line["logger"]["missed_metrics_count"].as_u64());
        assert_eq!(lines.iter().map(told).collect::<Vec<_>>(), [(Some(2), Some(0)), (Some(4), Some(1))]);
    }
}
