//! `husk ctl`: people's client of the control socket.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use vmm::config::{DeviceLimits, MIB, parse_size};

use super::limit::{LimitWord, limits};
use super::progress::ProgressBar;
use super::restore::RestoreWords;
use super::samples::samples;
use crate::client::{Client, ClientError};
use crate::exit::ExitStatus;
use crate::session::RunError;

/// Arguments of `husk ctl`.
#[derive(Debug, Args)]
pub(super) struct CtlArgs {
    /// Path of the VM's control socket.
    #[arg(long, value_name = "PATH", default_value = crate::api::DEFAULT_PATH, global = true)]
    api_sock: PathBuf,
    /// Prints what husk answers, as JSON, instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// What the VM is and how it is.
    Status,
    /// Start the VM that was described.
    Start,
    /// Park its vCPUs and drain its devices.
    Pause,
    /// Let it go on.
    Resume,
    /// End it: by its power button, and at once when the grace has passed.
    Stop {
        /// Seconds that the guest has; 0 ends it at once.
        #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = super::parse_seconds)]
        grace: Duration,
    },
    /// Press its power button.
    PowerButton,
    /// Interrupt it by what it cannot mask.
    Nmi,
    /// Type Ctrl-Alt-Delete.
    CtrlAltDel,
    /// Its configuration.
    Config,
    /// Its virtio devices.
    Devices,
    /// Where its memory is: what was asked, and what is.
    Placement,
    /// Memory that can be plugged; with a size, what its guest shall have plugged of it.
    Memory {
        /// The size, with a suffix K, M, G or T; whole blocks.
        size: Option<String>,
    },
    /// A disk in use.
    #[command(subcommand)]
    Disk(DiskVerb),
    /// A network in use.
    #[command(subcommand)]
    Net(NetVerb),
    /// Hold a disk or a network in use to other limits; what is not named has none.
    Limit {
        /// The disk or network.
        id: String,
        /// bps=N, iops=N of all; rd_bps, rd_iops, or rx_bps, rx_pps, of what the guest gets; wr_bps, wr_iops, or tx_bps,
        /// tx_pps, of what it gives: N a second, or N+BURST. `none` lifts all.
        #[arg(value_name = "WORD=N|none", value_delimiter = ',', required = true)]
        words: Vec<LimitWord>,
    },
    /// Write it to a folder; it may run. Prints what that took.
    Snapshot {
        /// The folder, which is made if it is not there.
        folder: PathBuf,
        /// The folder of its last snapshot: this one holds what has changed since.
        #[arg(long, value_name = "FOLDER")]
        parent: Option<PathBuf>,
        /// Record what is written from now on, so that the next one can have this one as its parent.
        #[arg(long)]
        track: bool,
    },
    /// The snapshots that it goes on from, and has made.
    Snapshots,
    /// Make the VM that such a folder holds, in a husk that waits to be told what to run.
    Restore {
        /// The folder.
        folder: PathBuf,
        #[command(flatten)]
        how: RestoreWords,
    },
    /// Its jobs.
    Jobs,
    /// Give a job up.
    Cancel {
        /// The job's number.
        job: u64,
    },
    /// What happens to it, as it happens.
    Events,
    /// Its metrics, as Prometheus reads them.
    Metrics,
}

#[derive(Debug, Subcommand)]
enum DiskVerb {
    /// Give it another size, which its file or device has already.
    Resize {
        /// The disk.
        id: String,
        /// The size, with a suffix K, M, G or T.
        size: String,
    },
    /// Give it another file or device; the same again tells of a new size.
    Replace {
        /// The disk.
        id: String,
        /// The file or device.
        path: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum NetVerb {
    /// Plug its cable in, or pull it.
    Link {
        /// The network.
        id: String,
        /// Which.
        state: Link,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Link {
    Up,
    Down,
}

impl CtlArgs {
    pub(super) fn run(self) -> Result<ExitStatus, RunError> {
        let client = Client::new(&self.api_sock);
        let json = self.json;
        let say = |text: String| super::print("print the answer", text.as_bytes());
        // For scripts, something that reads as JSON where there is nothing to tell.
        let say_done = || say(if json { "{}\n".to_owned() } else { String::new() });
        match self.verb {
            Verb::Status => say(render(&client.request("GET", "/husk/v1/health", None)?, json))?,
            Verb::Start => {
                start(&client)?;
                say_done()?;
            }
            Verb::Pause => say(act(&client, "pause", None, json)?)?,
            Verb::Resume => say(act(&client, "resume", None, json)?)?,
            Verb::PowerButton => say(act(&client, "power-button", None, json)?)?,
            Verb::Nmi => say(act(&client, "nmi", None, json)?)?,
            Verb::CtrlAltDel => say(act(&client, "ctrl-alt-del", None, json)?)?,
            Verb::Stop { grace } => {
                let body = json!({ "grace_ms": u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) });
                say(act(&client, "stop", Some(&body), json)?)?;
            }
            Verb::Config => say(render(&client.request("GET", "/husk/v1/config", None)?, json))?,
            Verb::Devices => {
                let mut devices = client.request("GET", "/husk/v1/devices", None)?;
                if !json {
                    devices.as_array_mut().into_iter().flatten().for_each(sum_queues);
                }
                say(render(&devices, json))?;
            }
            Verb::Placement => say(render(&client.request("GET", "/husk/v1/placement", None)?, json))?,
            Verb::Memory { size: None } => say(render(&client.request("GET", MEMORY, None)?, json))?,
            Verb::Memory { size: Some(size) } => {
                let body = json!({ "requested_size_mib": whole_mib(&size)? });
                client.request("PATCH", MEMORY, Some(&body))?;
                say_done()?;
            }
            Verb::Disk(verb) => {
                verb.run(&client)?;
                say_done()?;
            }
            Verb::Net(NetVerb::Link { id, state }) => {
                let link = match state {
                    Link::Up => "up",
                    Link::Down => "down",
                };
                client.request("PATCH", &format!("/husk/v1/devices/{id}"), Some(&json!({ "link": link })))?;
                say_done()?;
            }
            Verb::Limit { id, words } => {
                let body = json!({ "limits": DeviceLimits::from(limits(&words)) });
                client.request("PATCH", &format!("/husk/v1/devices/{id}"), Some(&body))?;
                say_done()?;
            }
            Verb::Snapshot { folder, parent, track } => {
                let body = json!({ "path": super::absolute(folder)?, "parent": parent.map(super::absolute).transpose()?, "track": track });
                let job = client.request("POST", "/husk/v1/snapshots", Some(&body))?;
                say(render(&finished(&client, &job)?, json))?;
            }
            Verb::Restore { folder, how } => {
                let job = client.request("POST", "/husk/v1/restore", Some(&how.body(super::absolute(folder)?)?))?;
                let ended = finished(&client, &job)?;
                say(if json { render(&ended, true) } else { String::new() })?;
            }
            Verb::Snapshots => say(render(&client.request("GET", "/husk/v1/snapshots", None)?, json))?,
            Verb::Jobs => say(render(&client.request("GET", "/husk/v1/jobs", None)?, json))?,
            Verb::Cancel { job } => {
                say(render(&client.request("DELETE", &format!("/husk/v1/jobs/{job}"), None)?, json))?;
            }
            Verb::Events => client.lines("/husk/v1/events", |line| {
                let text = match (json, serde_json::from_str::<Value>(line)) {
                    (false, Ok(event)) => event_line(&event),
                    _ => format!("{line}\n"),
                };
                io::stdout().write_all(text.as_bytes())
            })?,
            Verb::Metrics => {
                let page = client.text("GET", "/husk/v1/metrics", None)?;
                say(if json { render(&samples(&page), true) } else { page })?;
            }
        }
        Ok(ExitStatus::Success)
    }
}

const MEMORY: &str = "/hotplug/memory";

/// Puts what a device's queues have done together in the place of what each has.
fn sum_queues(device: &mut Value) {
    let Some(Value::Array(queues)) = device.as_object_mut().and_then(|device| device.remove("queues")) else { return };
    for figure in ["requests", "bytes", "errors", "dropped", "throttled_ms"] {
        let counts: Vec<u64> = queues.iter().filter_map(|queue| queue[figure].as_u64()).collect();
        if !counts.is_empty() {
            device[figure] = counts.iter().sum::<u64>().into();
        }
    }
}

/// A size in MiB, of which it is a whole number.
fn whole_mib(size: &str) -> Result<u64, ClientError> {
    let refused = |message| ClientError::Refused { message };
    let bytes = parse_size(size).map_err(|error| refused(error.to_string()))?;
    match bytes.is_multiple_of(MIB) {
        true => Ok(bytes / MIB),
        false => Err(refused(format!("{size} is no whole number of MiB"))),
    }
}

impl DiskVerb {
    fn run(self, client: &Client) -> Result<(), RunError> {
        match self {
            Self::Resize { id, size } => {
                let bytes = parse_size(&size).map_err(|error| ClientError::Refused { message: error.to_string() })?;
                client.request("PATCH", &format!("/husk/v1/devices/{id}"), Some(&json!({ "size_bytes": bytes })))?;
            }
            Self::Replace { id, path } => {
                let body = json!({ "drive_id": id, "path_on_host": path });
                client.request("PATCH", &format!("/drives/{id}"), Some(&body))?;
            }
        }
        Ok(())
    }
}

/// Follows a job to its end, with a bar meanwhile.
fn finished(client: &Client, job: &Value) -> Result<Value, ClientError> {
    let mut bar = ProgressBar::new();
    client.finished(job, |job| bar.show(job))
}

/// Starts the machine, which takes as long as its memory needs; a bar shows how far that is.
fn start(client: &Client) -> Result<(), ClientError> {
    const LOOK: Duration = Duration::from_millis(250);
    let mut bar = ProgressBar::new();
    let action = json!({ "action_type": "InstanceStart" });
    std::thread::scope(|scope| {
        let (started, done) = mpsc::channel::<()>();
        if bar.is_seen() {
            scope.spawn(move || {
                while done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    // What keeps it from being told is told by the start itself.
                    let jobs = client.request("GET", "/husk/v1/jobs", None).unwrap_or_default();
                    let running = |job: &&Value| job["kind"] == "start" && job["state"] == "running";
                    jobs.as_array().into_iter().flatten().filter(running).for_each(|job| bar.show(job));
                }
            });
        }
        let result = client.awaited("PUT", "/actions", Some(&action));
        drop(started);
        result
    })
}

/// Begins a job, and tells of it.
fn act(client: &Client, what: &str, body: Option<&Value>, json: bool) -> Result<String, ClientError> {
    let job = client.request("POST", &format!("/husk/v1/{what}"), body)?;
    Ok(match (json, job["state"].as_str()) {
        (true, _) => render(&job, true),
        (false, Some("running")) => format!("job {} runs: `husk ctl jobs` follows it\n", job["id"]),
        (false, _) => String::new(),
    })
}

fn event_line(event: &Value) -> String {
    let mut text =
        format!("{:>6}  {}", event["seq"].as_u64().unwrap_or(0), event["event"].as_str().unwrap_or_default());
    for (name, value) in event.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "seq" | "unix_ms" | "event") {
            write!(text, "  {name}={}", plain(value)).expect("a String takes every write");
        }
    }
    text.push('\n');
    text
}

/// A value for people: a list as a table, an object as a list of its fields, one a line.
fn render(value: &Value, json: bool) -> String {
    match value {
        _ if json => format!("{value:#}\n"),
        Value::Array(rows) => table(rows),
        Value::Object(_) => {
            let mut fields = Vec::new();
            flatten("", value, &mut fields);
            let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            fields.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
        }
        value => format!("{}\n", plain(value)),
    }
}

fn table(rows: &[Value]) -> String {
    let mut columns: Vec<&String> = Vec::new();
    for row in rows {
        for name in row.as_object().into_iter().flat_map(serde_json::Map::keys) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
    }
    let cell = |row: &Value, column: &str| if row[column].is_null() { "-".to_owned() } else { plain(&row[column]) };
    let width = |column: &String| rows.iter().map(|row| cell(row, column).len()).chain([column.len()]).max();
    let widths: Vec<_> = columns.iter().map(|column| width(column).unwrap_or(0)).collect();
    let line = |cells: Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let head = line(columns.iter().map(|column| column.to_uppercase()).collect());
    let body = rows.iter().map(|row| line(columns.iter().map(|column| cell(row, column)).collect()));
    std::iter::once(head).chain(body).collect()
}

/// Fields in fields as `outer.inner`; what is null is left out.
fn flatten(prefix: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    let named = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    match value {
        Value::Object(inner) => inner.iter().for_each(|(name, value)| flatten(&named(name), value, fields)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| flatten(&named(&index.to_string()), item, fields));
        }
        Value::Null => {}
        value => fields.push((prefix.to_owned(), plain(value))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_table_and_an_object_a_list_of_its_fields() {
        let rows = json!([{ "id": "root", "kind": "disk", "size_bytes": 512 }, { "id": "eth0", "kind": "net" }]);
        assert_eq!(render(&rows, false), "ID    KIND  SIZE_BYTES\nroot  disk  512\neth0  net   -\n");
        let object = json!({ "state": "running", "inner": { "n": 1, "none": null }, "list": [true] });
        let text = render(&object, false);
        assert!(text.contains("inner.n  1\n") && text.contains("list.0   true\n"), "{text}");
        assert!(!text.contains("none"), "{text}");
    }

    #[test]
    fn a_device_has_what_its_queues_have_done_together() {
        let mut device =
            json!({ "id": "eth0", "queues": [{ "requests": 2, "dropped": 1 }, { "requests": 3, "dropped": 0 }] });
        sum_queues(&mut device);
        assert_eq!(device, json!({ "id": "eth0", "requests": 5, "dropped": 1 }));
    }

    #[test]
    fn an_event_is_a_line() {
        let event = json!({ "seq": 3, "unix_ms": 1, "event": "ended", "reason": "stopped" });
        assert_eq!(event_line(&event), "     3  ended  reason=stopped\n");
    }
}
