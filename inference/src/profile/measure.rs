//! Timing a repeated piece of work fairly on a device that may be throttled or shared.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

use super::cgroup;

/// A piece of work is repeated for at least this many seconds.
const SHORTEST: f64 = 0.015;

/// What is touched between two runs: more than a small computer's caches hold, and than a server core's own do.
const OTHER_BYTES: usize = 16 << 20;
/// Touching one byte of each line brings the line in.
const LINE_BYTES: usize = 64;

/// Repeating ends here however short the work is.
const MOST_RUNS: usize = 500;

/// Seconds that one run takes when this process has its processors to itself: the fastest of `runs` or more.
///
/// Each run starts without its weights in the caches, as a stage's runs do: it waits for inputs in between, while
/// the device receives and sends.
///
/// With one thread its processor time counts, which other programs on the device do not lengthen. A quota of processor
/// time (a control group's) does not show in single short runs, which fit into one period's share; it is known from
/// the group's settings, and the time is longer by what it leaves.
pub(super) fn seconds_per_run<E>(
    threads: usize,
    runs: usize,
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<f64, E> {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut other = vec![1_u8; OTHER_BYTES];
    for done in 1.. {
        other.iter_mut().step_by(LINE_BYTES).for_each(|byte| *byte = byte.wrapping_add(1));
        std::hint::black_box(&mut other);
        let (wall_start, cpu_start) = (Instant::now(), thread_seconds());
        run()?;
        let (wall, cpu) = (wall_start.elapsed().as_secs_f64(), thread_seconds() - cpu_start);
        best = best.min(if threads == 1 { cpu } else { wall });
        let long_enough = done >= runs && start.elapsed().as_secs_f64() >= SHORTEST;
        if long_enough || done >= MOST_RUNS.max(runs) {
            break;
        }
    }
    Ok(best * cgroup::slowdown(threads))
}

/// Processor time of this thread.
fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn short_work_is_repeated_and_errors_end_it() {
        let mut runs = 0;
        let seconds = seconds_per_run::<Infallible>(1, 2, || {
            runs += 1;
            Ok(())
        });
        assert!(runs >= 2 && seconds.unwrap() < SHORTEST, "{runs}");
        assert_eq!(seconds_per_run(1, 2, || Err("no")), Err("no"));
    }
}
