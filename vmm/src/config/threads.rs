//! Where husk's threads run: the CPUs and the priority of each.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::Honour;
use crate::host::{IdList, IdListError};

/// Where husk's threads run. The default leaves all of it to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThreadPlacement {
    /// The terms of threads; a thread's own go before those of its kind.
    pub terms: BTreeMap<ThreadName, ThreadTerms>,
    /// Which threads may share a core's SMT siblings at one time.
    pub core_scheduling: CoreScheduling,
    /// What happens if the host cannot honour this.
    pub honour: Honour,
}

/// Where a thread runs. What is absent is left to the host, or to the terms of its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ThreadTerms {
    /// The host's CPUs that it may run on.
    pub cpus: Option<Cpus>,
    /// How it is scheduled.
    pub priority: Option<Priority>,
}

/// CPUs of the host: a list, as in `0-3,8`; `auto`, those that the host has for it on the node of its memory, isolated ones
/// first, a core for each vCPU; or `auto:shared`, the same with a vCPU on each thread of a core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cpus {
    /// These.
    List(IdList),
    /// Those that are found at the start.
    Auto(Siblings),
}

/// Whether vCPUs run on both threads of a core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Siblings {
    /// A vCPU has a core's first thread, and no other vCPU runs on the others.
    #[default]
    Idle,
    /// Threads are CPUs like any other, shared with VMs that say the same.
    Shared,
}

/// One or several of husk's threads: `vcpu0`, `vcpu` (all), `io:NAME` (the thread `husk-io-NAME`), `io` (all), `api`,
/// `main`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThreadName {
    /// All vCPUs.
    Vcpus,
    /// One.
    Vcpu(u8),
    /// All I/O threads.
    Ios,
    /// One: the name of its device or group.
    Io(String),
    /// The server of the control socket.
    Api,
    /// The control loop.
    Main,
}

/// A text that names no thread of husk's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no thread: use vcpu, vcpu0 to vcpu63, io, io:NAME, api or main")]
pub struct ThreadNameError(String);

/// How a thread is scheduled, as sched(7) names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// SCHED_OTHER with a nice value of -20 (most) to 19 (least).
    Nice(i8),
    /// SCHED_FIFO, 1 (least) to 99.
    Fifo(u8),
    /// SCHED_RR, 1 (least) to 99.
    RoundRobin(u8),
}

/// A text that is no priority.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is no priority: use nice:-20 to nice:19, fifo:1 to fifo:99 or rr:1 to rr:99")]
pub struct PriorityError(String);

/// Which threads may share a core's SMT siblings at one time (PR_SCHED_CORE).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CoreScheduling {
    /// Any, as the host decides.
    #[default]
    Off,
    /// Those of this process: one cookie for the VM.
    Vm,
    /// Each vCPU has its core to itself: a cookie each.
    Vcpu,
}

impl ThreadPlacement {
    /// Whether anything is asked.
    #[must_use]
    pub fn asks(&self) -> bool {
        !self.terms.is_empty() || self.core_scheduling != CoreScheduling::Off
    }

    /// The terms of a thread.
    #[must_use]
    pub fn of(&self, thread: &ThreadName) -> ThreadTerms {
        let own = self.terms.get(thread).cloned().unwrap_or_default();
        let kind = match thread {
            ThreadName::Vcpu(_) => self.terms.get(&ThreadName::Vcpus),
            ThreadName::Io(_) => self.terms.get(&ThreadName::Ios),
            _ => None,
        };
        ThreadTerms {
            cpus: own.cpus.or_else(|| kind.and_then(|kind| kind.cpus.clone())),
            priority: own.priority.or_else(|| kind.and_then(|kind| kind.priority)),
        }
    }
}

impl Cpus {
    /// The list, if it is one.
    #[must_use]
    pub fn list(&self) -> Option<&IdList> {
        match self {
            Self::List(list) => Some(list),
            Self::Auto(_) => None,
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(list) => list.fmt(f),
            Self::Auto(Siblings::Idle) => f.write_str("auto"),
            Self::Auto(Siblings::Shared) => f.write_str("auto:shared"),
        }
    }
}

impl FromStr for Cpus {
    type Err = IdListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto(Siblings::Idle)),
            "auto:shared" => Ok(Self::Auto(Siblings::Shared)),
            list => list.parse().map(Self::List),
        }
    }
}

impl fmt::Display for ThreadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpus => f.write_str("vcpu"),
            Self::Vcpu(index) => write!(f, "vcpu{index}"),
            Self::Ios => f.write_str("io"),
            Self::Io(name) => write!(f, "io:{name}"),
            Self::Api => f.write_str("api"),
            Self::Main => f.write_str("main"),
        }
    }
}

impl FromStr for ThreadName {
    type Err = ThreadNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ThreadNameError(text.to_owned());
        Ok(match text {
            "vcpu" => Self::Vcpus,
            "io" => Self::Ios,
            "api" => Self::Api,
            "main" => Self::Main,
            _ => match (text.strip_prefix("vcpu"), text.strip_prefix("io:")) {
                (Some(index), _) if !index.starts_with('+') => Self::Vcpu(index.parse().map_err(|_| error())?),
                (_, Some(name)) if super::is_plain_name(name) => Self::Io(name.to_owned()),
                _ => return Err(error()),
            },
        })
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nice(value) => write!(f, "nice:{value}"),
            Self::Fifo(value) => write!(f, "fifo:{value}"),
            Self::RoundRobin(value) => write!(f, "rr:{value}"),
        }
    }
}

impl FromStr for Priority {
    type Err = PriorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let real_time = |value: &str| value.parse().ok().filter(|value| (1..=99).contains(value));
        let read = match text.split_once(':') {
            Some(("nice", value)) => value.parse().ok().filter(|value| (-20..=19).contains(value)).map(Self::Nice),
            Some(("fifo", value)) => real_time(value).map(Self::Fifo),
            Some(("rr", value)) => real_time(value).map(Self::RoundRobin),
            _ => None,
        };
        read.ok_or_else(|| PriorityError(text.to_owned()))
    }
}

/// A type that is a text in JSON.
macro_rules! as_text {
    ($type:ty, $name:literal, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

as_text!(ThreadName, "ThreadName", "^(vcpu([0-9]{1,2})?|io(:[A-Za-z0-9_-]{1,64})?|api|main)$");
as_text!(Cpus, "Cpus", "^(auto(:shared)?|([0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*)?)$");
as_text!(Priority, "Priority", "^(nice:(-?1?[0-9]|-20)|(fifo|rr):[1-9][0-9]?)$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_priorities_are_read_as_they_are_written() {
        for text in ["vcpu", "vcpu0", "vcpu63", "io", "io:root-1", "api", "main"] {
            assert_eq!(text.parse::<ThreadName>().unwrap().to_string(), text);
        }
        for text in ["", "vcpu-1", "vcpu+1", "vcpu256", "io:", "io:a b", "husk-api"] {
            assert_eq!(text.parse::<ThreadName>(), Err(ThreadNameError(text.to_owned())));
        }
        for text in ["nice:-20", "nice:0", "nice:19", "fifo:1", "rr:99"] {
            assert_eq!(text.parse::<Priority>().unwrap().to_string(), text);
        }
        for text in ["", "nice", "nice:20", "nice:-21", "fifo:0", "fifo:100", "rr:-1", "idle:1"] {
            assert_eq!(text.parse::<Priority>(), Err(PriorityError(text.to_owned())));
        }
    }

    #[test]
    fn a_threads_own_terms_go_before_those_of_its_kind() {
        let terms = |cpus: &str, priority: Option<Priority>| ThreadTerms { cpus: cpus.parse().ok(), priority };
        let placement = ThreadPlacement {
            terms: BTreeMap::from([
                (ThreadName::Vcpus, terms("0-3", Some(Priority::Fifo(1)))),
                (ThreadName::Vcpu(1), terms("7", None)),
                (ThreadName::Io("root".to_owned()), ThreadTerms { cpus: None, priority: Some(Priority::Nice(5)) }),
            ]),
            ..ThreadPlacement::default()
        };
        assert_eq!(placement.of(&ThreadName::Vcpu(0)), terms("0-3", Some(Priority::Fifo(1))));
        assert_eq!(placement.of(&ThreadName::Vcpu(1)), terms("7", Some(Priority::Fifo(1))));
        assert_eq!(placement.of(&ThreadName::Io("root".to_owned())).priority, Some(Priority::Nice(5)));
        assert_eq!(placement.of(&ThreadName::Api), ThreadTerms::default());
    }
}
