//! Timing a repeated piece of work fairly on a device that may be throttled or shared.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// Shortest time over which runs are averaged. Processor quotas are handed out in periods (10 ms here, 100 ms by
/// default in most systems): a single short run would be timed at full speed inside one period's slice.
const SHORTEST: f64 = 0.025;

/// As [`SHORTEST`], once the thread is seen to wait for its processor.
const SHORTEST_THROTTLED: f64 = 0.25;

/// The thread waits for its processor when it gets less of it than this.
const FULL: f64 = 0.9;

/// No batch has more runs than this, however short they are.
const MOST_RUNS: u32 = 2000;

/// Seconds of one run, averaged over a batch of runs; the smallest average of `batches` batches, since whatever else
/// the device does can only make one longer.
pub(super) fn seconds_per_run<E>(batches: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..batches.max(1) {
        best = best.min(batch(&mut run)?);
    }
    Ok(best)
}

fn batch<E>(run: &mut impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let (start, cpu_start) = (Instant::now(), thread_seconds());
    let mut runs = 0_u32;
    loop {
        run()?;
        runs += 1;
        let wall = start.elapsed().as_secs_f64();
        let throttled = thread_seconds() - cpu_start < FULL * wall;
        let enough = if throttled { SHORTEST_THROTTLED } else { SHORTEST };
        if wall >= enough || runs >= MOST_RUNS {
            return Ok(wall / f64::from(runs));
        }
    }
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
        let seconds = seconds_per_run::<Infallible>(2, || {
            runs += 1;
            Ok(())
        });
        assert!(runs > 10 && seconds.unwrap() < SHORTEST, "{runs}");
        assert_eq!(seconds_per_run(2, || Err("no")), Err("no"));
    }
}
