//! What is known of the link to one peer while a session lasts: when it was last heard, its round trip, its queues
//! and the calls that wait for an answer.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{
    NetError,
    frames::{Answer, Beat, Frame},
};

/// Frames that wait for one peer.
const MAX_QUEUED: usize = 256;
/// Bytes that wait for one peer, unless a single frame is larger.
const MAX_QUEUED_BYTES: usize = 32 * 1024 * 1024;
/// Calls to one peer that wait for an answer.
const MAX_CALLS: usize = 256;
/// Five missed heartbeats and nothing else that came: a frozen peer is noticed within 3 s. On a full slow link heartbeats
/// may wait for longer, but then what they wait behind comes.
pub(super) const SILENCE: Duration = Duration::from_millis(2500);
/// Three missed heartbeats and nothing else that came: a peer that is late may be frozen.
pub(super) const LATE: Duration = Duration::from_millis(1500);
/// Longest time that whatever else comes stands for heartbeats: their lane alone may be stuck for good.
const BEATLESS: Duration = Duration::from_secs(30);
/// The shortest round trip of the last one or two of these spans counts.
const LEAST_SPAN: Duration = Duration::from_secs(15);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data behind these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bounded queue of frames to one peer.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    sender: mpsc::Sender<Frame>,
    weight: Arc<AtomicUsize>,
}

/// The other end of an [`Outbox`].
#[derive(Debug)]
pub(super) struct OutboxReader {
    pub(super) receiver: mpsc::Receiver<Frame>,
    weight: Arc<AtomicUsize>,
}

impl Outbox {
    pub(super) fn new() -> (Self, OutboxReader) {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED);
        let weight = Arc::new(AtomicUsize::new(0));
        let reader = OutboxReader { receiver, weight: weight.clone() };
        (Self { sender, weight }, reader)
    }

    /// Queues a frame; never waits.
    pub(super) fn push(&self, frame: Frame) -> Result<(), NetError> {
        let weight = frame.weight();
        let before = self.weight.fetch_add(weight, Ordering::Relaxed);
        let result = if before > 0 && before + weight > MAX_QUEUED_BYTES {
            Err(NetError::Full)
        } else {
            self.sender.try_send(frame).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => NetError::Full,
                mpsc::error::TrySendError::Closed(_) => NetError::NotConnected,
            })
        };
        if result.is_err() {
            self.weight.fetch_sub(weight, Ordering::Relaxed);
        }
        result
    }
}

impl OutboxReader {
    /// A frame has left the queue for good.
    pub(super) fn done(&self, weight: usize) {
        self.weight.fetch_sub(weight, Ordering::Relaxed);
    }
}

/// Signs of life of one peer: heartbeats, and whatever else it sends. A heartbeat has to wait behind activations where
/// a link is full of them; that they come says as much.
#[derive(Debug)]
pub(super) struct Pulse {
    base: Instant,
    /// When something came last, in microseconds after `base`.
    heard: AtomicU64,
    /// When a heartbeat came last, likewise.
    beat: AtomicU64,
    state: Mutex<PulseState>,
}

#[derive(Debug)]
struct PulseState {
    /// The newest heartbeat: its sender's clock, and when it came.
    newest: Option<(u64, Instant)>,
    rtt: Option<Duration>,
    least: Least,
}

/// The shortest round trip of late: a link may change.
#[derive(Debug)]
struct Least {
    since: Instant,
    /// Of this span of time.
    now: Option<Duration>,
    /// Of the span before.
    before: Option<Duration>,
}

impl Least {
    fn new(since: Instant) -> Self {
        Self { since, now: None, before: None }
    }

    fn note(&mut self, at: Instant, sample: Duration) {
        if at.saturating_duration_since(self.since) >= LEAST_SPAN {
            (self.since, self.before) = (at, self.now.take());
        }
        self.now = Some(self.now.map_or(sample, |least| least.min(sample)));
    }

    fn get(&self) -> Option<Duration> {
        [self.now, self.before].into_iter().flatten().min()
    }
}

impl Pulse {
    pub(super) fn new() -> Self {
        let base = Instant::now();
        let state = Mutex::new(PulseState { newest: None, rtt: None, least: Least::new(base) });
        Self { base, heard: AtomicU64::new(0), beat: AtomicU64::new(0), state }
    }

    /// The head of the heartbeat to send now, with the jobs that wait or run here.
    pub(super) fn beat(&self, jobs: u32) -> Beat {
        let now = Instant::now();
        let newest = lock(&self.state).newest;
        Beat {
            // Never 0, which says "none" in an echo.
            sent: micros(now - self.base).max(1),
            echo: newest.map_or(0, |(sent, _)| sent),
            held: newest.map_or(0, |(_, at)| micros(now - at)),
            jobs,
        }
    }

    /// Takes note of a heartbeat; `true` when it answers one of ours, which shows that both directions work.
    pub(super) fn heard(&self, beat: Beat) -> bool {
        let now = Instant::now();
        self.forgive();
        let mut state = lock(&self.state);
        state.newest = Some((beat.sent, now));
        if beat.echo == 0 {
            return false;
        }
        let away = micros(now - self.base).saturating_sub(beat.echo);
        let sample = Duration::from_micros(away.saturating_sub(beat.held));
        // The usual smoothing of TCP (RFC 6298): an eighth of every new sample.
        state.rtt = Some(state.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        state.least.note(now, sample);
        true
    }

    /// Something has come from the peer.
    pub(super) fn alive(&self) {
        self.heard.fetch_max(micros(self.base.elapsed()), Ordering::Relaxed);
    }

    /// A heartbeat has come from the peer, or the lack of one says nothing because we were stalled ourselves.
    pub(super) fn forgive(&self) {
        self.alive();
        self.beat.fetch_max(micros(self.base.elapsed()), Ordering::Relaxed);
    }

    /// Time since the peer was last heard, or since it was given a fresh allowance.
    pub(super) fn silence(&self) -> Duration {
        self.since(&self.heard)
    }

    /// Whether the peer has been silent for too long, or without a heartbeat whatever else came.
    pub(super) fn is_lost(&self) -> bool {
        self.silence() > SILENCE || self.since(&self.beat) > BEATLESS
    }

    fn since(&self, moment: &AtomicU64) -> Duration {
        let moment = Duration::from_micros(moment.load(Ordering::Relaxed));
        self.base.elapsed().saturating_sub(moment)
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        lock(&self.state).rtt
    }

    /// The shortest round trip of late: what the network takes, without what processors at both ends had to do first.
    pub(super) fn least_rtt(&self) -> Option<Duration> {
        lock(&self.state).least.get()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Where an answer goes.
type Caller = oneshot::Sender<Result<Bytes, NetError>>;

/// Calls that wait for an answer. `None` once the session is over.
#[derive(Debug)]
pub(super) struct Calls {
    waiting: Mutex<Option<BTreeMap<u64, Caller>>>,
    next: AtomicU64,
}

impl Calls {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::new(Some(BTreeMap::new())), next: AtomicU64::new(1) }
    }

    /// Registers a call; its entry goes with the guard.
    pub(super) fn start(self: &Arc<Self>) -> Result<WaitingCall, NetError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        let calls = waiting.as_mut().ok_or(NetError::NotConnected)?;
        if calls.len() >= MAX_CALLS {
            return Err(NetError::Full);
        }
        calls.insert(id, sender);
        Ok(WaitingCall { id, answer, calls: self.clone() })
    }

    /// An answer has come; one that nobody waits for any more is dropped.
    pub(super) fn answered(&self, id: u64, answer: Answer, body: Bytes) {
        let sender = lock(&self.waiting).as_mut().and_then(|calls| calls.remove(&id));
        if let Some(sender) = sender {
            let _ = sender.send(match answer {
                Answer::Given => Ok(body),
                Answer::None => Err(NetError::Closed),
                Answer::Busy => Err(NetError::Full),
            });
        }
    }

    /// The session is over: every waiting caller is told.
    pub(super) fn close(&self) {
        lock(&self.waiting).take();
    }
}

/// A call under way.
#[derive(Debug)]
pub(super) struct WaitingCall {
    pub(super) id: u64,
    answer: oneshot::Receiver<Result<Bytes, NetError>>,
    calls: Arc<Calls>,
}

impl WaitingCall {
    pub(super) async fn wait(mut self, timeout: Duration) -> Result<Bytes, NetError> {
        match tokio::time::timeout(timeout, &mut self.answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(NetError::Closed),
            Err(_) => Err(NetError::Timeout),
        }
    }
}

impl Drop for WaitingCall {
    fn drop(&mut self) {
        if let Some(calls) = lock(&self.calls.waiting).as_mut() {
            calls.remove(&self.id);
        }
    }
}

/// What handles need to reach a peer while its session is up.
#[derive(Debug, Clone)]
pub(super) struct PeerLink {
    pub(super) session: u64,
    pub(super) address: SocketAddr,
    pub(super) messages: Outbox,
    pub(super) requests: Outbox,
    pub(super) calls: Arc<Calls>,
    pub(super) pulse: Arc<Pulse>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_round_trip_is_forgotten_after_a_while() {
        let start = Instant::now();
        let mut least = Least::new(start);
        assert_eq!(least.get(), None);
        let mut get = |seconds: u64, millis: u64| {
            least.note(start + Duration::from_secs(seconds), Duration::from_millis(millis));
            least.get().map(|least| least.as_millis())
        };
        assert_eq!(get(1, 30), Some(30));
        assert_eq!(get(2, 9), Some(9));
        assert_eq!(get(10, 500), Some(9));
        assert_eq!(get(16, 500), Some(9), "the span before counts");
        assert_eq!(get(30, 500), Some(9));
        assert_eq!(get(31, 500), Some(500));
        assert_eq!(get(40, 20), Some(20), "a shorter one counts at once");
    }

    #[test]
    fn data_stands_for_heartbeats_only_for_so_long() {
        let base = Instant::now() - 2 * BEATLESS;
        let lost = |heard: Duration, beat: Duration, then: fn(&Pulse)| {
            let at = |ago| AtomicU64::new(micros(2 * BEATLESS - ago));
            let pulse = Pulse { base, heard: at(heard), beat: at(beat), ..Pulse::new() };
            then(&pulse);
            pulse.is_lost()
        };
        let (short, long) = (BEATLESS - Duration::from_secs(10), BEATLESS + Duration::from_secs(1));
        assert!(!lost(Duration::ZERO, short, |_| {}));
        assert!(lost(Duration::ZERO, long, |_| {}));
        assert!(lost(long, long, Pulse::alive));
        assert!(!lost(long, long, Pulse::forgive));
        assert!(lost(SILENCE + Duration::from_secs(1), short, |_| {}));
    }
}
