//! Timing a repeated piece of work fairly on a device that may be throttled or shared.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::cgroup;

/// A piece of work is repeated for at least this many seconds.
const SHORTEST: f64 = 0.015;
/// What has taken so many seconds is not repeated: a slow device has hundreds of blocks to measure.
pub(super) const LONG: f64 = 0.25;
/// The same for runs of blocks, which have the last word on what the parts of a model cost: one run of half of a model
/// that something else made a fifth slower would move the cut by as much.
pub(super) const LONG_WINDOW: f64 = 1.5;

/// What is touched between two runs: more than a small computer's caches hold, and than a server core's own do.
pub(super) const OTHER_BYTES: usize = 16 << 20;
/// Touching one byte of each line brings the line in.
const LINE_BYTES: usize = 64;

/// Repeating ends here however short the work is.
const MOST_RUNS: usize = 500;

/// A group's quota is looked up again after this long: it can be changed while stages run.
const QUOTA_FRESH: Duration = Duration::from_secs(2);

/// Seconds that one run takes when this process has its processors to itself: the fastest of `runs` or more, of fewer
/// where they take `long` seconds together.
///
/// Each run starts without its weights in the caches, as a stage's runs do: it waits for inputs in between, while
/// the device receives and sends.
///
/// With one thread its processor time counts, which other programs on the device do not lengthen. A quota of processor
/// time (a control group's) does not show in single short runs, which fit into one period's share; it is known from
/// the group's settings, and the time is longer by what it leaves.
pub(super) fn seconds_per_run<E>(
    threads: usize,
    (runs, long): (usize, f64),
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<f64, E> {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut other = vec![1_u8; OTHER_BYTES];
    for done in 1.. {
        other.iter_mut().step_by(LINE_BYTES).for_each(|byte| *byte = byte.wrapping_add(1));
        std::hint::black_box(&mut other);
        let watch = Stopwatch::start();
        run()?;
        best = best.min(watch.seconds(threads));
        let took = start.elapsed().as_secs_f64();
        let long_enough = done >= runs && took >= SHORTEST;
        if long_enough || took >= long || done >= MOST_RUNS.max(runs) {
            break;
        }
    }
    Ok(best * cgroup::slowdown(threads))
}

/// One run under way on this thread.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    wall: Instant,
    processor: f64,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { wall: Instant::now(), processor: thread_seconds() }
    }

    pub(crate) fn wall(&self) -> Duration {
        self.wall.elapsed()
    }

    /// Processor time where one thread does the work, which must be this one; else wall time.
    fn seconds(&self, threads: usize) -> f64 {
        if threads == 1 { thread_seconds() - self.processor } else { self.wall().as_secs_f64() }
    }
}

/// What runs cost a device that serves: the time that counts for how many it can do in a row.
///
/// With one thread that is its processor time, longer by the quota of its control group as in a profile: short runs
/// fit into one period's share, and waiting for the processors is no part of the work. With more threads it is wall
/// time.
#[derive(Debug)]
pub(crate) struct Costing {
    threads: usize,
    slowdown: f64,
    read: Instant,
}

impl Costing {
    /// For sessions of so many threads; 0 stands for all cores.
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads, slowdown: cgroup::slowdown(threads), read: Instant::now() }
    }

    /// The cost of a run that this thread has just ended.
    pub(crate) fn of(&mut self, run: &Stopwatch) -> Duration {
        let seconds = run.seconds(self.threads);
        if self.threads != 1 {
            return Duration::from_secs_f64(seconds.max(0.0));
        }
        if self.read.elapsed() > QUOTA_FRESH {
            (self.slowdown, self.read) = (cgroup::slowdown(self.threads), Instant::now());
        }
        Duration::from_secs_f64((seconds * self.slowdown).max(0.0))
    }
}

/// Processor time of this thread so far, in seconds.
pub fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn waiting_costs_one_thread_nothing_and_several_their_time() {
        let wait = || {
            let watch = Stopwatch::start();
            std::thread::sleep(Duration::from_millis(20));
            watch
        };
        let run = wait();
        assert!(Costing::new(4).of(&run) >= Duration::from_millis(20));
        let mut one = Costing::new(1);
        one.slowdown = 1.0;
        assert!(one.of(&wait()) < Duration::from_millis(20));
    }

    #[test]
    fn short_work_is_repeated_and_errors_end_it() {
        let mut runs = 0;
        let seconds = seconds_per_run::<Infallible>(1, (2, LONG), || {
            runs += 1;
            Ok(())
        });
        assert!(runs >= 2 && seconds.unwrap() < SHORTEST, "{runs}");
        assert_eq!(seconds_per_run(1, (2, LONG), || Err("no")), Err("no"));
        runs = 0;
        let long = || {
            runs += 1;
            std::thread::sleep(Duration::from_secs_f64(LONG));
            Ok::<_, Infallible>(())
        };
        seconds_per_run(1, (2, LONG), long).unwrap();
        assert_eq!(runs, 1);
    }
}
