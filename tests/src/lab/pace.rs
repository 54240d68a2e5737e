//! How fast the host is now. Its processors, caches and memory are shared with others: within minutes the same work
//! takes a tenth more or less processor time. A reference runs the whole model now and then on one thread, outside of
//! the devices' shares; the processor time that it takes tells stretches of one lab apart.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use crate::models::Whole;

/// Of its time the reference runs one part in so many.
const RARELY: u32 = 15;
/// Fewer runs say less of the host than of chance.
const RUNS_LEAST: usize = 3;
/// Pause between two runs, at least.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Pieces that a pause is slept in, so that an end does not wait for it.
const PIECE: Duration = Duration::from_millis(100);

/// The reference of a lab. Ends on drop.
#[derive(Debug)]
pub struct Pace {
    runs: Arc<Mutex<Vec<(Instant, f64)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pace {
    /// Runs the model in `file`, with `length` for dynamic extents. A model that does not load has no pace.
    pub fn start(file: &Path, length: i64) -> Self {
        let (runs, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (file, to, stopped) = (file.to_path_buf(), Arc::clone(&runs), Arc::clone(&stop));
        let thread = thread::Builder::new().name("lab-pace".into()).spawn(move || {
            let Ok(mut whole) = Whole::open(&file) else { return };
            let Some(inputs) = whole.inputs(1, length, 0) else { return };
            while !stopped.load(Ordering::Relaxed) {
                let (begun, before) = (Instant::now(), processor_s());
                drop(whole.run(&inputs));
                let run = (Instant::now(), processor_s() - before);
                to.lock().unwrap_or_else(PoisonError::into_inner).push(run);
                let until = Instant::now() + (begun.elapsed() * RARELY).max(PAUSE_MIN);
                while Instant::now() < until && !stopped.load(Ordering::Relaxed) {
                    thread::sleep(PIECE);
                }
            }
        });
        Self { runs, stop, thread: thread.ok() }
    }

    /// Processor seconds of a run of the whole model between two moments: the middle one. `None` when too few ended
    /// then to say.
    pub fn between(&self, from: Instant, to: Instant) -> Option<f64> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut within: Vec<f64> =
            runs.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, seconds)| *seconds).collect();
        if within.len() < RUNS_LEAST {
            return None;
        }
        within.sort_by(f64::total_cmp);
        Some(within[within.len() / 2])
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Processor seconds of this thread.
fn processor_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits;

    #[test]
    fn the_reference_runs_and_ends() {
        let begun = Instant::now();
        let pace = Pace::start(&digits::model(), 0);
        crate::loopback::wait("a run", Duration::from_secs(30), || {
            pace.between(begun, Instant::now()).is_some_and(|seconds| seconds > 0.0)
        });
        assert_eq!(pace.between(begun, begun), None);
    }
}
