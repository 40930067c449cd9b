//! What takes longer than a reply: jobs, numbered, with their progress, for as long as somebody may ask.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

use crate::snapshot::SnapshotFigures;

/// Jobs that are remembered after their end.
const ENDED_MAX: usize = 64;

/// A job's number, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct JobId(#[schemars(range(min = 1))] pub u64);

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Parks the vCPUs.
    Pause,
    /// Lets them go on.
    Resume,
    /// Presses the power button.
    PowerButton,
    /// Types Ctrl-Alt-Delete.
    CtrlAltDel,
    /// Interrupts the guest.
    Nmi,
    /// Waits for the guest to end, and then ends it.
    Stop,
    /// Brings in the memory of a machine that is being assembled.
    Start,
    /// Writes a point of the machine to files.
    Snapshot,
    /// Makes a machine from such a point.
    Restore,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It goes on.
    Running,
    /// It did what it should.
    Done,
    /// It could not.
    Failed,
    /// Somebody gave it up.
    Cancelled,
}

/// How a job ended.
#[derive(Debug)]
pub(super) enum JobEnd {
    /// It did what it should, and measured this.
    Done(Option<SnapshotFigures>),
    /// It could not, for this reason.
    Failed(String),
    /// Somebody gave it up.
    Cancelled,
}

/// How far a job is that counts its work: its own thread writes, anybody reads.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// There is so much more to do.
    pub fn expect(&self, more: u64) {
        self.total.fetch_add(more, Ordering::Relaxed);
    }

    /// So much more is done.
    pub fn add(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }

    /// 0 to 1.
    fn share(&self) -> f64 {
        let read = |counter: &AtomicU64| u32::try_from(counter.load(Ordering::Relaxed) >> 12).unwrap_or(u32::MAX);
        match read(&self.total) {
            0 => 0.0,
            total => (f64::from(read(&self.done)) / f64::from(total)).min(1.0),
        }
    }
}

/// A job for whoever asks.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct JobReport {
    /// Its number.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// Where it is.
    pub state: JobState,
    /// How much of it is done, 0 to 1.
    pub progress: f64,
    /// How long it has taken, in milliseconds.
    pub elapsed_ms: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a snapshot measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<SnapshotFigures>,
}

/// All jobs of the process.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: VecDeque<Job>,
    last: u64,
}

#[derive(Debug)]
struct Job {
    id: JobId,
    kind: JobKind,
    state: JobState,
    started: Instant,
    extent: Extent,
    ended: Option<Instant>,
    error: Option<String>,
    figures: Option<SnapshotFigures>,
}

/// What a job's progress is measured by.
#[derive(Debug, Clone)]
pub(super) enum Extent {
    /// The time that it takes at most.
    Time(Duration),
    /// What it counts itself.
    Work(Arc<Progress>),
}

impl Jobs {
    /// A new job.
    pub(super) fn begin(&mut self, kind: JobKind, extent: Extent, now: Instant) -> JobId {
        self.last += 1;
        let id = JobId(self.last);
        let (error, figures) = (None, None);
        self.jobs.push_back(Job {
            id,
            kind,
            state: JobState::Running,
            started: now,
            extent,
            ended: None,
            error,
            figures,
        });
        let ended = |job: &Job| job.ended.is_some();
        if self.jobs.iter().filter(|job| ended(job)).count() > ENDED_MAX
            && let Some(oldest) = self.jobs.iter().position(ended)
        {
            self.jobs.remove(oldest);
        }
        id
    }

    /// The end of a job that goes on; nothing of another.
    pub(super) fn end(&mut self, id: JobId, end: JobEnd, now: Instant) {
        let running = self.jobs.iter_mut().find(|job| job.id == id && job.state == JobState::Running);
        let Some(job) = running else { return };
        job.ended = Some(now);
        match end {
            JobEnd::Done(figures) => (job.state, job.figures) = (JobState::Done, figures),
            JobEnd::Failed(error) => (job.state, job.error) = (JobState::Failed, Some(error)),
            JobEnd::Cancelled => job.state = JobState::Cancelled,
        }
    }

    pub(super) fn report(&self, id: JobId, now: Instant) -> Option<JobReport> {
        self.jobs.iter().find(|job| job.id == id).map(|job| job.report(now))
    }

    pub(super) fn reports(&self, now: Instant) -> Vec<JobReport> {
        self.jobs.iter().map(|job| job.report(now)).collect()
    }
}

impl Job {
    fn report(&self, now: Instant) -> JobReport {
        let elapsed = self.ended.unwrap_or(now).saturating_duration_since(self.started);
        let progress = match (self.state, &self.extent) {
            (JobState::Done, _) => 1.0,
            (_, Extent::Work(progress)) => progress.share(),
            (_, Extent::Time(limit)) if limit.is_zero() => 0.0,
            (_, Extent::Time(limit)) => (elapsed.as_secs_f64() / limit.as_secs_f64()).min(1.0),
        };
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let (error, figures) = (self.error.clone(), self.figures.clone());
        JobReport { id: self.id, kind: self.kind, state: self.state, progress, elapsed_ms, error, figures }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_told_from_its_begin_to_its_end() {
        let (mut jobs, start) = (Jobs::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let id = jobs.begin(JobKind::Stop, Extent::Time(Duration::from_secs(2)), start);
        assert_eq!(id, JobId(1));
        let half = jobs.report(id, at(1000)).unwrap();
        assert_eq!((half.state, half.progress, half.elapsed_ms), (JobState::Running, 0.5, 1000));
        jobs.end(id, JobEnd::Cancelled, at(1500));
        jobs.end(id, JobEnd::Done(None), at(1600));
        let ended = jobs.report(id, at(9000)).unwrap();
        assert_eq!((ended.state, ended.elapsed_ms), (JobState::Cancelled, 1500));
        assert_eq!(jobs.report(JobId(2), start), None);
    }

    #[test]
    fn a_job_that_counts_its_work_tells_its_share_and_why_it_failed() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let progress = Arc::new(Progress::default());
        let id = jobs.begin(JobKind::Snapshot, Extent::Work(Arc::clone(&progress)), now);
        assert!(jobs.report(id, now).unwrap().progress.abs() < f64::EPSILON);
        progress.expect(4 << 20);
        progress.add(1 << 20);
        assert!((jobs.report(id, now).unwrap().progress - 0.25).abs() < f64::EPSILON);
        jobs.end(id, JobEnd::Failed("disk full".to_owned()), now);
        let report = jobs.report(id, now).unwrap();
        assert_eq!((report.state, report.error.as_deref()), (JobState::Failed, Some("disk full")));
    }

    #[test]
    fn ended_jobs_are_forgotten_oldest_first_and_running_ones_never() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let running = jobs.begin(JobKind::Stop, Extent::Time(Duration::from_secs(1)), now);
        for _ in 0..3 * ENDED_MAX {
            let id = jobs.begin(JobKind::Nmi, Extent::Time(Duration::ZERO), now);
            jobs.end(id, JobEnd::Done(None), now);
        }
        let reports = jobs.reports(now);
        assert!(reports.len() <= ENDED_MAX + 2, "{}", reports.len());
        assert_eq!(reports[0].id, running);
        assert_eq!(reports.last().unwrap().id, JobId(1 + 3 * u64::try_from(ENDED_MAX).unwrap()));
    }
}
