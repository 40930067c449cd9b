use super::*;
use crate::testing::DEADLINE;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

/// Tells of every wake, and has as much to do as it was given.
#[derive(Debug)]
struct Teller {
    id: u32,
    source: EventFd,
    work: u32,
    sources: usize,
    tell: Sender<Told>,
}

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Woken(u32, String),
    Drained(u32),
}

impl Worker for Teller {
    fn sources(&self) -> Vec<Source> {
        vec![Source::Edge(self.source.as_raw_fd()); self.sources]
    }

    fn wake(&mut self) -> Progress {
        let thread = thread::current().name().unwrap().to_owned();
        self.tell.send(Told::Woken(self.id, thread)).unwrap();
        self.work = self.work.saturating_sub(1);
        if self.work > 0 { Progress::More } else { Progress::Idle }
    }

    fn drain(&mut self) {
        self.tell.send(Told::Drained(self.id)).unwrap();
    }
}

struct Bench {
    tell: Sender<Told>,
    told: Receiver<Told>,
}

impl Bench {
    fn new() -> Self {
        let (tell, told) = mpsc::channel();
        Self { tell, told }
    }

    fn worker(&self, id: u32, work: u32) -> (Teller, EventFd) {
        let source = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let signal = source.try_clone().unwrap();
        (Teller { id, source, work, sources: 1, tell: self.tell.clone() }, signal)
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(DEADLINE).expect("the worker tells in time")
    }
}

fn woken(id: u32) -> Told {
    Told::Woken(id, "husk-io-test".to_owned())
}

#[test]
fn a_worker_is_woken_after_attaching_and_by_each_signal_and_comes_back_drained() {
    let bench = Bench::new();
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let (worker, signal) = bench.worker(1, 0);
    let attachment = thread.handle().attach(worker).unwrap();
    assert_eq!(bench.next(), woken(1));
    for _ in 0..3 {
        signal.write(1).unwrap();
        assert_eq!(bench.next(), woken(1));
    }
    let worker = attachment.detach();
    assert_eq!(bench.next(), Told::Drained(1));
    assert_eq!(worker.id, 1);
    signal.write(1).unwrap();
    thread.join();
    assert_eq!(bench.told.try_recv().ok(), None, "a detached worker is not woken");
}

#[test]
fn a_prepared_thread_runs_from_its_first_worker_and_one_that_never_ran_ends() {
    let bench = Bench::new();
    let thread = IoThread::prepare("husk-io-test", Duration::ZERO).unwrap();
    let (worker, _signal) = bench.worker(1, 0);
    let attachment = thread.handle().attach(worker).unwrap();
    assert_eq!(bench.next(), woken(1));
    thread.start().unwrap();
    attachment.detach();
    assert_eq!(bench.next(), Told::Drained(1));
    thread.join();
    let never = IoThread::prepare("husk-io-test", Duration::ZERO).unwrap();
    let handle = never.handle();
    never.join();
    let (worker, _signal) = bench.worker(2, 0);
    assert!(handle.attach(worker).is_err(), "the thread has ended");
}

#[test]
fn an_idle_thread_is_not_woken() {
    let bench = Bench::new();
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let (worker, signal) = bench.worker(1, 0);
    // The signal from before attaching wakes once more at most, and then never again, though nobody reads it.
    signal.write(1).unwrap();
    let _attachment = thread.handle().attach(worker).unwrap();
    assert_eq!(bench.next(), woken(1));
    let further = bench.told.recv_timeout(Duration::from_millis(50));
    assert!(matches!(further, Ok(_) | Err(RecvTimeoutError::Timeout)));
    assert_eq!(bench.told.recv_timeout(Duration::from_millis(50)), Err(RecvTimeoutError::Timeout));
}

#[test]
fn a_worker_with_more_to_do_lets_its_siblings_go_first() {
    let bench = Bench::new();
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let (busy, _signal) = bench.worker(1, u32::MAX);
    let (calm, calm_signal) = bench.worker(2, 0);
    let busy = thread.handle().attach(busy).unwrap();
    let _calm = thread.handle().attach(calm).unwrap();
    while bench.next() != woken(2) {}
    calm_signal.write(1).unwrap();
    while bench.next() != woken(2) {}
    let worker = busy.detach();
    assert!(worker.work > 0, "the busy one was busy all the time");
}

#[test]
fn a_freed_slot_is_used_again_and_the_end_drains_who_is_left() {
    let bench = Bench::new();
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let handle = thread.handle();
    let (first, _first_signal) = bench.worker(1, 0);
    let (second, _second_signal) = bench.worker(2, 0);
    let (third, third_signal) = bench.worker(3, 0);
    let first = handle.attach(first).unwrap();
    let second = handle.attach(second).unwrap();
    assert_eq!([bench.next(), bench.next()], [woken(1), woken(2)]);
    first.detach();
    assert_eq!(bench.next(), Told::Drained(1));
    let third = handle.attach(third).unwrap();
    assert_eq!(third.slot, 0);
    assert_eq!(bench.next(), woken(3));
    third_signal.write(1).unwrap();
    assert_eq!(bench.next(), woken(3));
    thread.join();
    assert_eq!([bench.next(), bench.next()], [Told::Drained(3), Told::Drained(2)]);
    assert_eq!((second.detach().id, third.detach().id), (2, 3), "also from a thread that has ended");
}

/// Waits in its wake until it is let go, as one whose backend does not answer.
struct HeldUp(Receiver<()>);

impl Worker for HeldUp {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn wake(&mut self) -> Progress {
        self.0.recv_timeout(DEADLINE).unwrap();
        Progress::Idle
    }

    fn drain(&mut self) {}
}

#[test]
fn who_puts_a_worker_on_a_thread_that_is_held_up_does_not_wait_for_it() {
    let bench = Bench::new();
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let (let_go, held) = mpsc::channel();
    let first = thread.handle().attach(HeldUp(held)).map_err(|error| error.error).unwrap();
    let (worker, _signal) = bench.worker(1, 0);
    let second = thread.handle().attach(worker).unwrap();
    assert!(!second.hold().wait_until(Instant::now()), "the thread does not answer");
    second.release();
    let second = second.detach_by(Instant::now()).unwrap_err();
    let_go.send(()).unwrap();
    assert_eq!(bench.next(), woken(1));
    // What was asked in vain does not come later.
    assert!(second.hold().wait_until(Instant::now() + DEADLINE));
    second.release();
    assert_eq!(bench.next(), woken(1));
    assert_eq!(second.detach_by(Instant::now() + DEADLINE).unwrap().id, 1);
    first.detach();
}

#[test]
fn a_worker_that_cannot_be_watched_comes_back() {
    let bench = Bench::new();
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let handle = thread.handle();
    let (worker, _signal) = bench.worker(1, 0);
    // An epoll takes each descriptor once.
    let refused = handle.attach(Teller { sources: 2, ..worker }).unwrap_err();
    assert_eq!(refused.error.raw_os_error(), Some(libc::EEXIST));
    assert_eq!(refused.worker.id, 1);
    thread.join();
    let (worker, _signal) = bench.worker(2, 0);
    assert!(handle.attach(worker).is_err(), "the thread has ended");
}

/// Has work whenever its flag is up, and tells of every wake.
#[derive(Debug)]
struct Looker {
    work: Arc<std::sync::atomic::AtomicBool>,
    tell: Sender<&'static str>,
}

impl Worker for Looker {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn wake(&mut self) -> Progress {
        let had_work = self.work.swap(false, std::sync::atomic::Ordering::SeqCst);
        self.tell.send(if had_work { "work" } else { "nothing" }).unwrap();
        Progress::Idle
    }

    fn begin_looking(&mut self) {
        self.tell.send("looking").unwrap();
    }

    fn look(&self) -> bool {
        self.work.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn drain(&mut self) {}
}

/// Tells of every wake, and listens for the first `listens` of them.
#[derive(Debug)]
struct Listener {
    level: EventFd,
    edge: EventFd,
    listens: u32,
    tell: Sender<Told>,
}

impl Worker for Listener {
    fn sources(&self) -> Vec<Source> {
        vec![Source::Level(self.level.as_raw_fd()), Source::Edge(self.edge.as_raw_fd())]
    }

    fn wake(&mut self) -> Progress {
        self.listens = self.listens.saturating_sub(1);
        self.tell.send(Told::Woken(self.listens, String::new())).unwrap();
        Progress::Idle
    }

    fn is_listening(&self) -> bool {
        self.listens > 0
    }

    fn drain(&mut self) {}
}

#[test]
fn a_thread_that_polls_finds_work_without_an_event_and_gives_up_when_there_is_none() {
    let (tell, told) = mpsc::channel();
    let next = || told.recv_timeout(DEADLINE).expect("the worker tells in time");
    let work = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let thread = IoThread::spawn_polling("husk-io-test", Duration::from_millis(200)).unwrap();
    let attachment = thread.handle().attach(Looker { work: Arc::clone(&work), tell }).unwrap();
    assert_eq!([next(), next()], ["nothing", "looking"]);
    work.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!([next(), next()], ["work", "looking"]);
    assert_eq!(next(), "nothing", "it gives up, after one last wake");
    work.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(told.recv_timeout(Duration::from_millis(100)), Err(RecvTimeoutError::Timeout), "and sleeps");
    attachment.detach();
}

#[test]
fn a_level_wakes_a_worker_again_and_again_but_only_while_it_listens() {
    let bench = Bench::new();
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let (level, edge) = (event(), event());
    let signal = edge.try_clone().unwrap();
    level.write(1).unwrap();
    let tell = bench.tell.clone();
    let attachment = thread.handle().attach(Listener { level, edge, listens: 3, tell }).unwrap();
    for left in [2, 1, 0] {
        assert_eq!(bench.next(), Told::Woken(left, String::new()));
    }
    // It is deaf now; of anything else it hears, once.
    signal.write(1).unwrap();
    assert_eq!(bench.next(), Told::Woken(0, String::new()));
    let mut worker = attachment.detach();
    assert_eq!(bench.told.try_recv(), Err(mpsc::TryRecvError::Empty));
    worker.listens = 2;
    let attachment = thread.handle().attach(worker).unwrap();
    for left in [1, 0] {
        assert_eq!(bench.next(), Told::Woken(left, String::new()));
    }
    attachment.detach();
    assert_eq!(bench.told.try_recv(), Err(mpsc::TryRecvError::Empty));
}

#[test]
fn a_writable_level_wakes_a_worker_that_listens() {
    struct Writer(EventFd, Sender<Told>, u32);
    impl Worker for Writer {
        fn sources(&self) -> Vec<Source> {
            vec![Source::LevelWritable(self.0.as_raw_fd())]
        }

        fn wake(&mut self) -> Progress {
            self.2 = self.2.saturating_sub(1);
            self.1.send(Told::Woken(self.2, String::new())).unwrap();
            Progress::Idle
        }

        fn is_listening(&self) -> bool {
            self.2 > 0
        }

        fn drain(&mut self) {}
    }
    let bench = Bench::new();
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let attachment = thread.handle().attach(Writer(event, bench.tell.clone(), 3)).map_err(|error| error.error).unwrap();
    for left in [2, 1, 0] {
        assert_eq!(bench.next(), Told::Woken(left, String::new()));
    }
    attachment.detach();
    assert_eq!(bench.told.try_recv(), Err(mpsc::TryRecvError::Empty));
}

#[test]
fn a_thread_that_always_finds_work_still_obeys() {
    struct Busy;
    impl Worker for Busy {
        fn sources(&self) -> Vec<Source> {
            Vec::new()
        }

        fn wake(&mut self) -> Progress {
            Progress::Idle
        }

        fn look(&self) -> bool {
            true
        }

        fn drain(&mut self) {}
    }
    let thread = IoThread::spawn_polling("husk-io-test", Duration::from_secs(3600)).unwrap();
    let attachment = thread.handle().attach(Busy).map_err(|error| error.error).unwrap();
    attachment.detach();
    thread.join();
}
