//! What takes longer than a reply: jobs, numbered, with their progress, for as long as somebody may ask.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

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
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It goes on.
    Running,
    /// It did what it should.
    Done,
    /// Somebody gave it up.
    Cancelled,
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
    /// How long it takes at most.
    limit: Duration,
    ended: Option<Instant>,
}

impl Jobs {
    /// A new job, which is over in `limit` at the latest.
    pub(super) fn begin(&mut self, kind: JobKind, limit: Duration, now: Instant) -> JobId {
        self.last += 1;
        let id = JobId(self.last);
        self.jobs.push_back(Job { id, kind, state: JobState::Running, started: now, limit, ended: None });
        let ended = |job: &Job| job.ended.is_some();
        if self.jobs.iter().filter(|job| ended(job)).count() > ENDED_MAX
            && let Some(oldest) = self.jobs.iter().position(ended)
        {
            self.jobs.remove(oldest);
        }
        id
    }

    /// The end of a job that goes on; nothing of another.
    pub(super) fn end(&mut self, id: JobId, state: JobState, now: Instant) {
        if let Some(job) = self.jobs.iter_mut().find(|job| job.id == id && job.state == JobState::Running) {
            (job.state, job.ended) = (state, Some(now));
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
        let progress = match self.state {
            JobState::Done => 1.0,
            _ if self.limit.is_zero() => 0.0,
            _ => (elapsed.as_secs_f64() / self.limit.as_secs_f64()).min(1.0),
        };
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        JobReport { id: self.id, kind: self.kind, state: self.state, progress, elapsed_ms }
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
        let id = jobs.begin(JobKind::Stop, Duration::from_secs(2), start);
        assert_eq!(id, JobId(1));
        let half = jobs.report(id, at(1000)).unwrap();
        assert_eq!((half.state, half.progress, half.elapsed_ms), (JobState::Running, 0.5, 1000));
        jobs.end(id, JobState::Cancelled, at(1500));
        jobs.end(id, JobState::Done, at(1600));
        let ended = jobs.report(id, at(9000)).unwrap();
        assert_eq!((ended.state, ended.elapsed_ms), (JobState::Cancelled, 1500));
        assert_eq!(jobs.report(JobId(2), start), None);
    }

    #[test]
    fn ended_jobs_are_forgotten_oldest_first_and_running_ones_never() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let running = jobs.begin(JobKind::Stop, Duration::from_secs(1), now);
        for _ in 0..3 * ENDED_MAX {
            let id = jobs.begin(JobKind::Nmi, Duration::ZERO, now);
            jobs.end(id, JobState::Done, now);
        }
        let reports = jobs.reports(now);
        assert!(reports.len() <= ENDED_MAX + 2, "{}", reports.len());
        assert_eq!(reports[0].id, running);
        assert_eq!(reports.last().unwrap().id, JobId(1 + 3 * u64::try_from(ENDED_MAX).unwrap()));
    }
}
