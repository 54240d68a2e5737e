//! Keeps the host's processors awake while a lab is up.
//!
//! Devices with small shares leave the host idle most of the time. Its processors then go to sleep between any two
//! pieces of work, and on a virtual machine they are given to others: every piece begins cold. Measured on two cores
//! of a virtual machine with devices of 8 %: one answer of ViT-Large cost 1.7 to 1.9 seconds of processor time,
//! depending on how many devices were at work, and 1.42 to 1.46 with the processors kept awake.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// Everybody else comes first.
const NICE: i32 = 19;
/// Turns between two looks at whether to end.
const TURNS: u32 = 10_000;

/// A thread for every processor that has nothing else to do, until this is dropped.
#[derive(Debug)]
pub struct Awake {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Awake {
    /// Starts the threads.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start() -> std::io::Result<Self> {
        let mut awake = Self { end: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        for _ in 0..std::thread::available_parallelism()?.get() {
            let end = Arc::clone(&awake.end);
            awake
                .threads
                .push(std::thread::Builder::new().name("awake".to_owned()).spawn(move || turn(&end))?);
        }
        Ok(awake)
    }
}

/// One processor's thread. On Linux each thread has a priority of its own.
fn turn(end: &AtomicBool) {
    let own = rustix::thread::gettid();
    if rustix::process::setpriority_process(Some(own), NICE).is_err() {
        // At the priority of all others it would be in their way.
        return;
    }
    while !end.load(Ordering::Relaxed) {
        for _ in 0..TURNS {
            std::hint::spin_loop();
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_give_way_and_end() {
        let before = rustix::process::getpriority_process(None).unwrap();
        let awake = Awake::start().unwrap();
        assert_eq!(awake.threads.len(), std::thread::available_parallelism().unwrap().get());
        drop(awake);
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before, "only those threads");
    }
}
