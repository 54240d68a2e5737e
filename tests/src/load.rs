//! Load that checks every answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    digits::Digits,
    rack::{Client, Device},
};

/// Clients that send digits to one device, one request after another, until stopped.
#[derive(Debug)]
pub struct DigitsLoad {
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    right: AtomicU64,
    wrong: AtomicU64,
    failures: std::sync::Mutex<Vec<String>>,
    longest_gap_ms: AtomicU64,
}

/// What a load saw.
#[derive(Debug)]
pub struct LoadResult {
    /// Answers equal to the whole model's.
    pub right: u64,
    /// Answers that were not.
    pub wrong: u64,
    /// Requests that got an error or no answer: what came instead.
    pub failures: Vec<String>,
    /// Longest time that one client went without an answer.
    pub longest_gap: Duration,
}

impl DigitsLoad {
    /// Starts `clients` closed-loop clients at a device's API.
    pub fn start(device: &Device, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared::default());
        let digits = Arc::new(Digits::load());
        let clients = (0..clients)
            .map(|number| {
                let (stop, shared, digits) = (Arc::clone(&stop), Arc::clone(&shared), Arc::clone(&digits));
                device.spawn_client(move |client| run(&client, number, &stop, &shared, &digits))
            })
            .collect();
        Self { stop, shared, clients }
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.shared.right.load(Ordering::Relaxed) + self.shared.wrong.load(Ordering::Relaxed)
    }

    /// Waits until `more` answers have come since now, or panics when `bound` passes.
    pub fn wait_for(&self, more: u64, bound: Duration) {
        let (start, from) = (Instant::now(), self.answers());
        while self.answers() < from + more {
            assert!(start.elapsed() < bound, "{more} answers did not come within {bound:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops the clients and tells what they saw.
    pub fn stop(self) -> LoadResult {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("a client of the load");
        }
        let failures = std::mem::take(&mut *self.shared.failures.lock().expect("the failures"));
        LoadResult {
            right: self.shared.right.load(Ordering::Relaxed),
            wrong: self.shared.wrong.load(Ordering::Relaxed),
            failures,
            longest_gap: Duration::from_millis(self.shared.longest_gap_ms.load(Ordering::Relaxed)),
        }
    }
}

fn run(client: &Client, number: usize, stop: &AtomicBool, shared: &Shared, digits: &Digits) {
    let mut index = number * 37;
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let image = index % digits.images.len();
        index += 1;
        match client.infer("digits", &digits.request(image)) {
            Some((200, answer)) if digits.is_right(image, &answer) => {
                shared.right.fetch_add(1, Ordering::Relaxed);
            }
            Some((200, answer)) => {
                shared.wrong.fetch_add(1, Ordering::Relaxed);
                shared.failures.lock().expect("the failures").push(format!("wrong answer {answer}"));
            }
            Some((code, answer)) => {
                shared.failures.lock().expect("the failures").push(format!("{code}: {answer}"));
            }
            None => shared.failures.lock().expect("the failures").push("the connection failed".into()),
        }
        let gap = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
        shared.longest_gap_ms.fetch_max(gap, Ordering::Relaxed);
        last = Instant::now();
    }
}
