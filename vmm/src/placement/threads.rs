//! CPUs and priorities of husk's threads: set before the guest runs, read back, and compared.
#![expect(unsafe_code, reason = "the scheduler's system calls have no safe interface in libc")]

use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::OnceLock;
use std::{fs, ptr};

use libc::pid_t;
use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

use crate::config::{CoreScheduling, Cpus, Priority, ThreadName, ThreadPlacement, ThreadTerms};
use crate::host::{self, IdList};
use crate::plan::GroundError;

/// A thread that is not where it shall be.
#[derive(Debug, Error)]
pub enum ThreadError {
    /// No thread has the name.
    #[error("threads: there is no thread {name}: the machine has {present}")]
    NoSuchThread {
        /// What was asked.
        name: ThreadName,
        /// What there is.
        present: String,
    },
    /// A CPU that is not there.
    #[error("threads: {name}: CPU {cpu} is not online: the host's are {online}")]
    CpuOffline {
        /// The thread.
        name: ThreadName,
        /// The first such CPU.
        cpu: u16,
        /// What there is.
        online: IdList,
    },
    /// Fewer CPUs than vCPUs.
    #[error("threads: cpus=auto: {wanted} vCPUs need a {unit} each, and {place} has {found} for them: use fewer{hint}")]
    NoRoom {
        /// How many.
        wanted: usize,
        /// Of what.
        unit: &'static str,
        /// Where.
        place: String,
        /// How many there are.
        found: usize,
        /// What would do besides.
        hint: &'static str,
    },
    /// Nobody tells what CPUs there are.
    #[error(transparent)]
    Ground(#[from] GroundError),
    /// No CPU at all.
    #[error("threads: {name}: the list of CPUs is empty: name one, such as 0")]
    NoCpus {
        /// The thread.
        name: ThreadName,
    },
    /// The cpuset has not all of the CPUs.
    #[error(
        "threads: {name}: husk may not use CPU {forbidden}: its cpuset allows {allowed}: widen cpuset.cpus of its cgroup"
    )]
    Forbidden {
        /// The thread.
        name: ThreadName,
        /// What was asked of others.
        forbidden: IdList,
        /// What it may use.
        allowed: IdList,
    },
    /// The kernel does not do it.
    #[error("threads: {name}: cannot {what}: {cause}: {hint}")]
    Host {
        /// The thread.
        name: ThreadName,
        /// What was attempted.
        what: String,
        /// What the kernel said.
        cause: io::Error,
        /// What would help.
        hint: &'static str,
    },
}

/// A thread of husk's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Thread {
    pub(crate) name: ThreadName,
    pub(crate) id: pid_t,
}

/// A thread that has a place.
#[derive(Debug, Clone)]
pub(crate) struct PlacedThread {
    thread: Thread,
    terms: ThreadTerms,
}

/// A thread, asked against is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ThreadReport {
    /// Its name, cut to 15 bytes by the kernel.
    name: String,
    /// The kernel's number for it; null before the start.
    tid: Option<i32>,
    /// The CPUs that were asked for.
    asked_cpus: Option<String>,
    /// The CPUs that it may run on.
    cpus: Option<String>,
    /// The priority that was asked for.
    asked_priority: Option<String>,
    /// The priority that it has.
    priority: Option<String>,
    /// The CPU that it ran on last.
    last_cpu: Option<u16>,
    /// How long it ran, in milliseconds.
    run_ms: Option<u64>,
    /// How long it was ready and waited for a CPU, in milliseconds: a vCPU's is what its guest calls steal time.
    wait_ms: Option<u64>,
}

/// What the host has for threads. What it does not tell is not held against them.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostCpus {
    /// CPUs that are online.
    online: Option<IdList>,
    /// CPUs of husk's cpuset.
    allowed: Option<IdList>,
}

impl HostCpus {
    /// Asks the running host.
    pub(crate) fn read() -> Self {
        Self { online: host::online_cpus(), allowed: host::allowed_cpus() }
    }

    /// What a husk would find that read these facts.
    #[cfg(test)]
    pub(crate) fn of(facts: &host::Facts) -> Self {
        Self { online: facts.cpu.online.clone(), allowed: facts.limits.cpuset_cpus.clone() }
    }

    /// Whether `cpus` can be had for the thread `name`.
    fn check(&self, name: &ThreadName, cpus: &IdList) -> Result<(), ThreadError> {
        if cpus.is_empty() {
            return Err(ThreadError::NoCpus { name: name.clone() });
        }
        if let Some(online) = &self.online
            && let Some(cpu) = cpus.without(online).iter().next()
        {
            return Err(ThreadError::CpuOffline { name: name.clone(), cpu, online: online.clone() });
        }
        match &self.allowed {
            Some(allowed) if !cpus.without(allowed).is_empty() => Err(ThreadError::Forbidden {
                name: name.clone(),
                forbidden: cpus.without(allowed),
                allowed: allowed.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// Threads that the host has a place for.
#[derive(Debug, Default)]
pub(crate) struct SettledThreads {
    /// The terms of each, with a list for every `auto`.
    placement: ThreadPlacement,
    /// What differs from what was asked, where that is allowed.
    differences: Vec<ThreadError>,
}

impl SettledThreads {
    /// Whether nothing is to be done, and nothing to be told.
    pub(crate) fn is_empty(&self) -> bool {
        !self.placement.asks() && self.differences.is_empty()
    }
}

/// Holds what is asked for the threads `names` against the host, before there are any. `choose` gives those a list that
/// leave the choice. With the best effort what the host cannot do is left out.
///
/// # Errors
/// The first thing that it cannot.
pub(crate) fn settle(
    asked: &ThreadPlacement,
    names: &[ThreadName],
    host: &HostCpus,
    choose: impl FnOnce(&ThreadPlacement) -> Result<ThreadPlacement, ThreadError>,
) -> Result<SettledThreads, ThreadError> {
    let mut differences = Vec::new();
    let mut is_done = |done| asked.honour.settle(done, &mut differences);
    is_done(check_names(asked, names))?;
    let own = names.iter().map(|name| (name.clone(), asked.of(name)));
    let mut placement = ThreadPlacement { terms: own.collect(), ..asked.clone() };
    for (name, terms) in &mut placement.terms {
        if let Some(Cpus::List(cpus)) = &terms.cpus
            && !is_done(host.check(name, cpus))?
        {
            terms.cpus = None;
        }
    }
    let chosen = choose(&placement).map(|chosen| placement = chosen);
    if !is_done(chosen)? {
        let auto = placement.terms.values_mut().filter(|terms| matches!(terms.cpus, Some(Cpus::Auto(_))));
        auto.for_each(|terms| terms.cpus = None);
    }
    placement.terms.retain(|_, terms| *terms != ThreadTerms::default());
    Ok(SettledThreads { placement, differences })
}

/// Gives threads their places. Returns, beside what was settled without, what could not be done where that is allowed.
pub(crate) fn place(
    settled: SettledThreads,
    threads: &[Thread],
) -> Result<(Vec<PlacedThread>, Vec<ThreadError>), ThreadError> {
    let SettledThreads { placement, mut differences } = settled;
    if !placement.asks() {
        return Ok((Vec::new(), differences));
    }
    let mut or_tell = |done| placement.honour.settle(done, &mut differences).map(drop);
    let names: Vec<ThreadName> = threads.iter().map(|thread| thread.name.clone()).collect();
    or_tell(check_names(&placement, &names))?;
    let initial = INITIAL.get_or_init(Initial::read);
    let mut placed = Vec::with_capacity(threads.len());
    for thread in threads {
        let terms = placement.of(&thread.name);
        match (terms.cpus.as_ref().and_then(Cpus::list), &initial.cpus) {
            (Some(cpus), _) | (None, Some(cpus)) => or_tell(pin(thread, cpus))?,
            (None, None) => {}
        }
        match terms.priority {
            Some(priority) => or_tell(prioritise(thread, priority))?,
            None => initial.renice(thread.id),
        }
        if terms != ThreadTerms::default() {
            placed.push(PlacedThread { thread: thread.clone(), terms });
        }
    }
    or_tell(share_cores(placement.core_scheduling, threads))?;
    Ok((placed, differences))
}

/// What the process had before any thread got a place: a thread that is made by one with a place does not keep it.
#[derive(Debug)]
struct Initial {
    cpus: Option<IdList>,
    nice: Option<i8>,
}

static INITIAL: OnceLock<Initial> = OnceLock::new();

impl Initial {
    fn read() -> Self {
        Self { cpus: affinity(SELF).ok(), nice: nice(SELF) }
    }

    /// Real-time priorities and negative nice values are not inherited in the first place. Who may not go back to a lower
    /// value keeps it.
    fn renice(&self, id: pid_t) {
        if let Some(initial) = self.nice.filter(|_| nice(id) != self.nice) {
            let _ = set_priority(id, Priority::Nice(initial));
        }
    }
}

/// Gives the calling thread back what the process had before the thread that made it got its place.
pub(crate) fn leave_inherited_place() {
    let Some(initial) = INITIAL.get() else { return };
    if let Some(cpus) = &initial.cpus {
        // Where a cpuset has shrunk since, what was inherited is as good.
        let _ = set_affinity(SELF, cpus);
    }
    initial.renice(SELF);
}

/// How many CPUs the process may use, whatever place the calling thread has.
pub(super) fn parallelism() -> usize {
    match INITIAL.get().and_then(|initial| initial.cpus.as_ref()) {
        Some(cpus) => cpus.len().max(1),
        None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

fn check_names(placement: &ThreadPlacement, names: &[ThreadName]) -> Result<(), ThreadError> {
    let there = |name: &ThreadName| matches!(name, ThreadName::Vcpus | ThreadName::Ios) || names.contains(name);
    match placement.terms.keys().find(|name| !there(name)) {
        None => Ok(()),
        Some(name) => {
            let present: Vec<_> = names.iter().map(ToString::to_string).collect();
            Err(ThreadError::NoSuchThread { name: name.clone(), present: present.join(", ") })
        }
    }
}

fn pin(thread: &Thread, cpus: &IdList) -> Result<(), ThreadError> {
    let host = |what: &str, cause| {
        let hint = "check its cgroup's cpuset.cpus";
        ThreadError::Host { name: thread.name.clone(), what: format!("{what} {cpus}"), cause, hint }
    };
    set_affinity(thread.id, cpus).map_err(|cause| host("run on the CPUs", cause))?;
    let allowed = affinity(thread.id).map_err(|cause| host("tell whether it runs on the CPUs", cause))?;
    match cpus.without(&allowed) {
        forbidden if forbidden.is_empty() => Ok(()),
        forbidden => Err(ThreadError::Forbidden { name: thread.name.clone(), forbidden, allowed }),
    }
}

fn prioritise(thread: &Thread, priority: Priority) -> Result<(), ThreadError> {
    set_priority(thread.id, priority).map_err(|cause| ThreadError::Host {
        name: thread.name.clone(),
        what: format!("have the priority {priority}"),
        cause,
        hint: "give husk CAP_SYS_NICE, or raise RLIMIT_NICE or RLIMIT_RTPRIO",
    })
}

fn share_cores(cores: CoreScheduling, threads: &[Thread]) -> Result<(), ThreadError> {
    let cookie = |thread: &Thread, scope: libc::c_ulong| {
        core_cookie(thread.id, scope).map_err(|cause| ThreadError::Host {
            name: thread.name.clone(),
            what: "have a core scheduling cookie (PR_SCHED_CORE)".to_owned(),
            cause,
            hint: "this takes a kernel with CONFIG_SCHED_CORE on CPUs with SMT siblings: set core_scheduling to off",
        })
    };
    let vcpus = || threads.iter().filter(|thread| matches!(thread.name, ThreadName::Vcpu(_)));
    match cores {
        CoreScheduling::Off => Ok(()),
        CoreScheduling::Vm => threads.first().map_or(Ok(()), |thread| cookie(thread, PROCESS)),
        CoreScheduling::Vcpu => vcpus().try_for_each(|thread| cookie(thread, THREAD)),
    }
}

/// The calling thread, for the scheduler.
const SELF: pid_t = 0;
/// The scopes of a cookie (linux/prctl.h).
const THREAD: libc::c_ulong = 0;
const PROCESS: libc::c_ulong = 1;
/// CPUs in the kernel's largest mask.
const CPUS_MAX: usize = 8192;

type Mask = [u64; CPUS_MAX / 64];

pub(crate) fn set_affinity(id: pid_t, cpus: &IdList) -> io::Result<()> {
    let mut mask: Mask = [0; CPUS_MAX / 64];
    for cpu in cpus.iter().map(usize::from) {
        *mask.get_mut(cpu / 64).ok_or(io::ErrorKind::InvalidInput)? |= 1 << (cpu % 64);
    }
    // SAFETY: sched_setaffinity reads the mask's bytes, and no more than their number.
    let failed = unsafe { libc::sched_setaffinity(id, size_of::<Mask>(), ptr::from_ref(&mask).cast()) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn affinity(id: pid_t) -> io::Result<IdList> {
    let mut mask: Mask = [0; CPUS_MAX / 64];
    // SAFETY: sched_getaffinity writes to the mask's bytes, and no more than their number.
    let failed = unsafe { libc::sched_getaffinity(id, size_of::<Mask>(), ptr::from_mut(&mut mask).cast()) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok((0..=u16::MAX).take(CPUS_MAX).filter(|&cpu| mask[usize::from(cpu) / 64] & 1 << (cpu % 64) != 0).collect())
}

fn set_priority(id: pid_t, priority: Priority) -> io::Result<()> {
    let scheduled = |policy, value: u8| {
        let mut parameters = MaybeUninit::<libc::sched_param>::zeroed();
        // SAFETY: all of sched_param are numbers, for which zero is a value.
        unsafe { parameters.assume_init_mut() }.sched_priority = value.into();
        // Threads that this one makes are not real-time, and not before others, unless they are asked to be.
        let policy = policy | libc::SCHED_RESET_ON_FORK;
        // SAFETY: sched_setscheduler reads the parameters, which are set.
        unsafe { libc::sched_setscheduler(id, policy, parameters.as_ptr()) }
    };
    let failed = match priority {
        Priority::Fifo(value) => scheduled(libc::SCHED_FIFO, value),
        Priority::RoundRobin(value) => scheduled(libc::SCHED_RR, value),
        Priority::Nice(value) => {
            let number = libc::id_t::try_from(id).expect("a thread's number is positive");
            // SAFETY: setpriority takes numbers. Linux has a nice value for each thread.
            let failed = unsafe { libc::setpriority(libc::PRIO_PROCESS, number, value.into()) };
            if failed == 0 && value < 0 { scheduled(libc::SCHED_OTHER, 0) } else { failed }
        }
    } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn nice(id: pid_t) -> Option<i8> {
    // SAFETY: getpriority takes numbers. The system call gives 20 less the nice value, which is positive.
    let told = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, id) };
    i8::try_from(20 - told).ok().filter(|_| told > 0)
}

fn core_cookie(id: pid_t, scope: libc::c_ulong) -> io::Result<()> {
    let id = libc::c_ulong::try_from(id).expect("a thread's number is positive");
    // SAFETY: this prctl takes numbers.
    let failed = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, id, scope, 0) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The thread of this process with a name that the kernel has not cut.
pub(crate) fn named(name: &str) -> Option<pid_t> {
    tasks().find(|id| fs::read_to_string(format!("{TASKS}/{id}/comm")).is_ok_and(|comm| comm.trim_end() == name))
}

const TASKS: &str = "/proc/self/task";

fn tasks() -> impl Iterator<Item = pid_t> {
    let entries = fs::read_dir(TASKS).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Every thread of the process, those with a place beside what was asked of them.
pub(super) fn reports(placed: &[PlacedThread]) -> Vec<ThreadReport> {
    let terms = |id| placed.iter().find(|placed| placed.thread.id == id).map(|placed| &placed.terms);
    by_name(tasks().map(|id| ThreadReport::read(id, terms(id))))
}

/// The threads that have a place.
pub(super) fn placed_reports(placed: &[PlacedThread]) -> Vec<ThreadReport> {
    by_name(placed.iter().map(|placed| ThreadReport::read(placed.thread.id, Some(&placed.terms))))
}

fn by_name(reports: impl Iterator<Item = ThreadReport>) -> Vec<ThreadReport> {
    let mut reports: Vec<_> = reports.collect();
    reports.sort_by(|a, b| (&a.name, a.tid).cmp(&(&b.name, b.tid)));
    reports
}

/// What is not as it was asked, thread by thread.
pub(super) fn drift(reports: &[ThreadReport]) -> Vec<String> {
    let differs = |report: &ThreadReport| {
        let told = |what: &str, asked: &Option<String>, is: &Option<String>| match (asked, is) {
            (Some(asked), Some(is)) if asked != is => Some(format!("{} has {what} {is}, not {asked}", report.name)),
            _ => None,
        };
        let cpus = told("CPUs", &report.asked_cpus, &report.cpus);
        [cpus, told("priority", &report.asked_priority, &report.priority)]
    };
    reports.iter().flat_map(differs).flatten().collect()
}

impl ThreadReport {
    /// Of one or several that are not there yet.
    pub(super) fn planned(name: &ThreadName, terms: &ThreadTerms) -> Self {
        Self {
            name: name.to_string(),
            tid: None,
            asked_cpus: terms.cpus.as_ref().map(ToString::to_string),
            cpus: None,
            asked_priority: terms.priority.map(|priority| priority.to_string()),
            priority: None,
            last_cpu: None,
            run_ms: None,
            wait_ms: None,
        }
    }

    fn read(tid: pid_t, terms: Option<&ThreadTerms>) -> Self {
        let task = Path::new(TASKS).join(tid.to_string());
        let text = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
        let status = text("status");
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        // The name is in brackets and may have spaces; numbers follow (proc_pid_stat(5), from field 3 on).
        let stat = text("stat");
        let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.trim().parse::<i64>().ok());
        let schedstat = text("schedstat");
        let mut ran = schedstat.split_ascii_whitespace().map(|text| text.parse::<u64>().ok().map(|ns| ns / 1_000_000));
        Self {
            name: text("comm").trim_end().to_owned(),
            tid: Some(tid),
            asked_cpus: terms.and_then(|terms| terms.cpus.as_ref()).map(ToString::to_string),
            cpus: allowed.map(|list| list.trim().to_owned()),
            asked_priority: terms.and_then(|terms| terms.priority).map(|priority| priority.to_string()),
            priority: priority(field(41), field(40), field(19)),
            last_cpu: field(39).and_then(|cpu| cpu.try_into().ok()),
            run_ms: ran.next().flatten(),
            wait_ms: ran.next().flatten(),
        }
    }
}

/// A priority in the words in which it is asked for.
fn priority(policy: Option<i64>, real_time: Option<i64>, nice: Option<i64>) -> Option<String> {
    let (name, value) = match i32::try_from(policy?).ok()? {
        libc::SCHED_FIFO => ("fifo", real_time?),
        libc::SCHED_RR => ("rr", real_time?),
        libc::SCHED_OTHER => ("nice", nice?),
        libc::SCHED_BATCH => ("batch", nice?),
        libc::SCHED_IDLE => ("idle", 0),
        _ => ("other", 0),
    };
    Some(format!("{name}:{value}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Honour;
    use crate::config::Siblings;

    fn me() -> Thread {
        let link = fs::read_link("/proc/thread-self").unwrap();
        let id = link.file_name().unwrap().to_str().unwrap().parse().unwrap();
        Thread { name: ThreadName::Main, id }
    }

    fn terms(cpus: &str, priority: Option<Priority>) -> ThreadPlacement {
        let terms = ThreadTerms { cpus: Some(cpus.parse().unwrap()), priority };
        ThreadPlacement { terms: [(ThreadName::Main, terms)].into(), ..ThreadPlacement::default() }
    }

    fn settled(placement: &ThreadPlacement, host: &HostCpus) -> Result<SettledThreads, ThreadError> {
        settle(placement, &[ThreadName::Main], host, |placement| Ok(placement.clone()))
    }

    /// A host of four CPUs, of which husk may use two.
    fn host() -> HostCpus {
        HostCpus { online: "0-3".parse().ok(), allowed: "0-1".parse().ok() }
    }

    fn refused(placement: &ThreadPlacement) -> String {
        settled(placement, &host()).unwrap_err().to_string()
    }

    #[test]
    fn a_thread_is_where_it_was_asked_to_be_and_a_change_from_outside_is_seen() {
        std::thread::spawn(|| {
            let settled = settled(&terms("0", Some(Priority::Nice(3))), &HostCpus::read()).unwrap();
            let (placed, differences) = place(settled, &[me()]).unwrap();
            assert!(differences.is_empty(), "{differences:?}");
            let own = |placed: &[PlacedThread]| {
                let report = reports(placed).into_iter().find(|report| report.tid == Some(me().id)).unwrap();
                (report.cpus.clone().unwrap(), report.priority.clone().unwrap(), drift(&[report]))
            };
            assert_eq!(own(&placed), ("0".to_owned(), "nice:3".to_owned(), vec![]));
            set_affinity(SELF, &"0-1".parse().unwrap()).unwrap();
            let (_, _, drift) = own(&placed);
            assert_eq!(drift.len(), 1);
            assert!(drift[0].ends_with("has CPUs 0-1, not 0"), "{drift:?}");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_a_thread_with_a_place_makes_has_neither_its_priority_nor_keeps_its_cpus() {
        for priority in [Priority::Fifo(2), Priority::Nice(-5), Priority::Nice(5)] {
            std::thread::spawn(move || {
                let settled = settled(&terms("0", Some(priority)), &HostCpus::read()).unwrap();
                place(settled, &[me()]).unwrap();
                assert_eq!(ThreadReport::read(me().id, None).priority, Some(priority.to_string()));
                let child = std::thread::spawn(|| {
                    leave_inherited_place();
                    let report = ThreadReport::read(me().id, None);
                    (report.priority.unwrap(), affinity(SELF).unwrap().len())
                });
                assert_eq!(child.join().unwrap(), ("nice:0".to_owned(), parallelism()), "{priority}");
            })
            .join()
            .unwrap();
        }
    }

    #[test]
    fn what_cannot_be_is_named_with_what_can_before_there_is_a_thread() {
        assert_eq!(refused(&terms("0,4000", None)), "threads: main: CPU 4000 is not online: the host's are 0-3");
        assert_eq!(refused(&terms("", None)), "threads: main: the list of CPUs is empty: name one, such as 0");
        for (asked, forbidden) in [("2-3", "2-3"), ("0-2", "2")] {
            let expected = format!(
                "threads: main: husk may not use CPU {forbidden}: its cpuset allows 0-1: widen cpuset.cpus of its cgroup"
            );
            assert_eq!(refused(&terms(asked, None)), expected);
        }
        let mut other = terms("0", None);
        other.terms.insert(ThreadName::Io("x".to_owned()), ThreadTerms::default());
        assert_eq!(refused(&other), "threads: there is no thread io:x: the machine has main");
        settled(&terms("4000", None), &HostCpus::default()).expect("a host that tells nothing refuses nothing yet");
    }

    #[test]
    fn the_best_effort_tells_what_was_left_out() {
        std::thread::spawn(|| {
            let placement = ThreadPlacement { honour: Honour::BestEffort, ..terms("4000", Some(Priority::Nice(1))) };
            let (placed, differences) = place(settled(&placement, &host()).unwrap(), &[me()]).unwrap();
            assert_eq!((placed.len(), differences.len()), (1, 1));
            let report = reports(&placed).into_iter().find(|report| report.tid == Some(me().id)).unwrap();
            assert_eq!((report.priority.as_deref(), report.asked_cpus), (Some("nice:1"), None));
        })
        .join()
        .unwrap();
        let auto = ThreadTerms { cpus: Some(Cpus::Auto(Siblings::Idle)), priority: None };
        let auto = |honour| ThreadPlacement {
            terms: [(ThreadName::Vcpus, auto.clone())].into(),
            honour,
            ..ThreadPlacement::default()
        };
        let none = |_: &ThreadPlacement| Err(ThreadError::Ground(GroundError::NoCpu));
        let names = [ThreadName::Vcpu(0)];
        settle(&auto(Honour::Strictly), &names, &host(), none).unwrap_err();
        let settled = settle(&auto(Honour::BestEffort), &names, &host(), none).unwrap();
        assert_eq!((settled.placement.asks(), settled.differences.len()), (false, 1));
    }
}
