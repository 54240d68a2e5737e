//! How fast is the link to a peer? Sends for a short while on a stream of its own; the receiver counts and times.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use rustix::time::{ClockId, clock_gettime};

use super::{link::Pulse, shared::Shared};

/// What a probe sends begins with one of these: what comes is answered at its end...
const ALL: u8 = 1;
/// ...or one chunk is answered before anything else is sent. A stream takes a quarter of a mebibyte at once, which a
/// slow link would be full of for seconds, with heartbeats behind it: it gets one chunk at a time.
const TRIAL: u8 = 2;
/// A link that carries a chunk in this time, and some round trips, may be filled: what a stream takes at once is through
/// within a second, before anybody misses a heartbeat.
const FAST: Duration = Duration::from_millis(200);
/// Round trips of a chunk that say nothing of the rate: TCP's slow start, and the answer.
const TRIAL_ROUND_TRIPS: u32 = 4;
/// Else it is tried so often, for either end may have come late, and the best counts...
const TRIALS: u32 = 3;
/// ...while this has not passed.
const TRYING: Duration = Duration::from_secs(1);
/// Sends at most this much...
const MAX_BYTES: usize = 1024 * 1024;
/// ...and at most for this long.
const MAX_SENDING: Duration = Duration::from_millis(200);
/// Time for what is under way to arrive on a slow link.
const SETTLE: Duration = Duration::from_secs(5);
const CHUNK: usize = 64 * 1024;
/// One part in so many of a probe comes before the clock starts...
const LEFT_OUT: u64 = 3;
/// ...where so many bytes come after it.
const STEADY_MIN: u64 = 64 * 1024;
const POINT_BYTES: u64 = 4 * 1024;
/// Round trips of a probe that say nothing of the rate: TCP's slow start up to `MAX_BYTES`, and the answer.
const ROUND_TRIPS: u32 = 8;
/// A probe waits this long for processors that are at other work, in all.
const LATE: Duration = Duration::from_millis(10);
/// Probes that are served at a time: more would measure each other.
pub(super) const MAX_SERVED: usize = 1;

/// Samples of a cost that are remembered; the smallest counts, for everything else that goes on adds to it. Those during
/// which no other chore went on count before others.
const SAMPLES: usize = 8;
/// What the process uses at rest is taken off a sample, and leaves this part at least: it does not come evenly.
const LEFT: f64 = 0.25;
/// Fewer bytes say nothing of what a byte costs.
const COST_BYTES_MIN: u64 = 256 * 1024;
/// A probe during which a processor was at work for more than this part of the time shows what the processor can do,
/// not what the link can.
const BOUND: f64 = 0.6;
/// Unless it took so many times as long as moving these bytes takes this device's processors: stages were what kept them
/// busy. The peer may be several times slower, and both may have had to share with their stages.
const FAR_LONGER: f64 = 50.0;

/// What a probe has shown.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Bytes per second that arrived.
    pub bytes_per_s: f64,
    /// Whether a processor at either end set that rate: the link may carry more.
    pub processor_bound: bool,
    /// Bytes sent in all.
    pub sent: u64,
}

/// What this device does for the mesh itself beside serving: links are measured, weights are handed to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chores {
    /// That go on now.
    pub under_way: u64,
    /// That have begun since the start.
    pub begun: u64,
}

/// Processor seconds per byte as the last probes have shown them.
#[derive(Debug, Default)]
pub(super) struct Costs {
    sent: Mutex<VecDeque<Sample>>,
    received: Mutex<VecDeque<Sample>>,
    begun: AtomicU64,
    ended: AtomicU64,
    /// Processors in use at rest, as the bits of an `f64`; 0: not known.
    rest: AtomicU64,
}

/// What a byte has cost in one probe.
#[derive(Debug, Clone, Copy)]
struct Sample {
    s_per_byte: f64,
    /// No other chore went on.
    alone: bool,
}

/// What the process uses from now on.
#[derive(Debug)]
struct Use {
    start: Instant,
    processor_s: f64,
    chores: Chores,
}

/// A chore that goes on until this is dropped.
#[derive(Debug)]
pub struct Chore(Arc<Shared>);

impl Chore {
    pub(super) fn begin(shared: &Arc<Shared>) -> Self {
        shared.costs.begun.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Chore {
    fn drop(&mut self) {
        self.0.costs.ended.fetch_add(1, Ordering::AcqRel);
    }
}

impl Costs {
    pub(super) fn chores(&self) -> Chores {
        // What ended was begun before: in this order the difference is never negative.
        let ended = self.ended.load(Ordering::Acquire);
        let begun = self.begun.load(Ordering::Acquire);
        Chores { under_way: begun - ended, begun }
    }

    fn begin(&self) -> Use {
        Use { start: Instant::now(), processor_s: processor_s(), chores: self.chores() }
    }

    /// Nothing is learnt while stages run: their time is in the process's time.
    fn note(&self, shared: &Shared, samples: &Mutex<VecDeque<Sample>>, bytes: u64, of: &Use) {
        if bytes < COST_BYTES_MIN || shared.jobs() > 0 {
            return;
        }
        let spent = processor_s() - of.processor_s;
        let rest = f64::from_bits(self.rest.load(Ordering::Relaxed)) * of.start.elapsed().as_secs_f64();
        let s_per_byte = (spent - rest).max(spent * LEFT) / bytes as f64;
        let alone = of.chores.under_way == 1 && self.chores().begun == of.chores.begun;
        let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(Sample { s_per_byte, alone });
    }

    /// What the process uses at rest, in processors.
    pub(super) fn set_rest(&self, processors: f64) {
        self.rest.store(processors.max(0.0).to_bits(), Ordering::Relaxed);
    }

    fn smallest(samples: &Mutex<VecDeque<Sample>>) -> Option<f64> {
        let samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
        let any_alone = samples.iter().any(|sample| sample.alone);
        let counted = samples.iter().filter(|sample| sample.alone || !any_alone);
        counted.map(|sample| sample.s_per_byte).reduce(f64::min)
    }

    /// Processor seconds per byte sent and per byte received, once a probe each has shown them.
    pub(super) fn per_byte(&self) -> (Option<f64>, Option<f64>) {
        (Self::smallest(&self.sent), Self::smallest(&self.received))
    }
}

/// Processor time of this process so far, in seconds.
pub(super) fn processor_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Bytes per second that the link can have carried at most, as its sender sees it: `sent` bytes in `took`, of which some
/// round trips are taken off. A receiver that comes late to its buffers finds much there at once, and counts too short
/// a time; what its sender has waited in all does not deceive. None: it took too little to say.
fn at_most(sent: usize, took: Duration, rtt: Duration) -> Option<f64> {
    let sending = took.checked_sub(rtt * ROUND_TRIPS + LATE).filter(|sending| !sending.is_zero())?;
    Some(sent as f64 / sending.as_secs_f64())
}

/// Measures the way to the peer behind `stream`, to whom a message and its answer take `rtt` at least.
pub(super) async fn measure<S>(mut stream: S, rtt: Duration, shared: &Arc<Shared>) -> io::Result<Probe>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _chore = Chore::begin(shared);
    tokio::time::timeout(TRYING + MAX_SENDING + SETTLE, async {
        // As large as what it stands for: a tensor does not lie in the processor's cache.
        let mut data = vec![ALL; MAX_BYTES];
        data[0] = TRIAL;
        let (tried, slow) = try_out(&mut stream, &data[..CHUNK], rtt, shared).await?;
        if let Some(probe) = slow {
            stream.close().await?;
            return Ok(probe);
        }
        data[0] = ALL;
        let probe = fill(&mut stream, &data, rtt, shared).await?;
        Ok(Probe { sent: tried + probe.sent, ..probe })
    })
    .await
    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Sends a chunk, which fills no link for long: the bytes sent, and what a link has shown that must not be filled.
async fn try_out<S>(
    stream: &mut S,
    chunk: &[u8],
    rtt: Duration,
    shared: &Shared,
) -> io::Result<(u64, Option<Probe>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let start = Instant::now();
    let (mut sent, mut best) = (0, None::<Probe>);
    for _ in 0..TRIALS {
        let using = shared.costs.begin();
        stream.write_all(chunk).await?;
        stream.flush().await?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await?;
        let took = using.start.elapsed();
        sent += chunk.len() as u64;
        if took < FAST + rtt * TRIAL_ROUND_TRIPS {
            return Ok((sent, None));
        }
        let spent = (processor_s() - using.processor_s) / shared.cores;
        let busy = u64::from_le_bytes(answer) as f64 / 1e6;
        let bytes_per_s = chunk.len() as f64 / took.saturating_sub(rtt).as_secs_f64();
        if best.is_none_or(|best| best.bytes_per_s < bytes_per_s) {
            let is_busy = spent.max(busy) > BOUND * took.as_secs_f64();
            let processor_bound = is_busy && may_be_processor(shared, chunk.len() as u64, took);
            best = Some(Probe { bytes_per_s, processor_bound, sent });
        }
        if start.elapsed() > TRYING {
            break;
        }
    }
    Ok((sent, best.map(|probe| Probe { sent, ..probe })))
}

/// Sends what a link can take in a short while.
async fn fill<S>(stream: &mut S, data: &[u8], rtt: Duration, shared: &Shared) -> io::Result<Probe>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let using = shared.costs.begin();
    let start = using.start;
    let mut sent = 0;
    while sent < data.len() && start.elapsed() < MAX_SENDING {
        let end = data.len().min(sent + CHUNK);
        stream.write_all(&data[sent..end]).await?;
        sent = end;
    }
    stream.close().await?;
    let mut answer = [0; 24];
    stream.read_exact(&mut answer).await?;
    let [bytes, micros, busy] = [0, 8, 16].map(|at| {
        let mut number = [0; 8];
        number.copy_from_slice(&answer[at..at + 8]);
        u64::from_le_bytes(number)
    });
    // Bytes that make no rate, more than were sent, or a time of nothing: the peer does not measure.
    if bytes == 0 || bytes > sent as u64 || micros == 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
    let seconds = micros as f64 / 1e6;
    let (spent, took) = (processor_s() - using.processor_s, start.elapsed());
    shared.costs.note(shared, &shared.costs.sent, sent as u64, &using);
    let here = spent / shared.cores > BOUND * took.as_secs_f64();
    let there = busy as f64 / 1e6 > BOUND * seconds;
    let arrived = bytes as f64 / seconds;
    let bytes_per_s = at_most(sent, took, rtt).map_or(arrived, |most| most.min(arrived));
    let processor_bound =
        (here || there) && may_be_processor(shared, bytes, Duration::from_secs_f64(seconds));
    Ok(Probe { bytes_per_s, processor_bound, sent: sent as u64 })
}

/// Whether busy processors can have been what made moving so many bytes take so long.
fn may_be_processor(shared: &Shared, bytes: u64, took: Duration) -> bool {
    let (sent, received) = shared.costs.per_byte();
    let costs = sent.into_iter().chain(received).map(|s_per_byte| s_per_byte / shared.cores);
    is_explained(costs.reduce(f64::max), bytes, took)
}

/// The same by what a byte costs, in seconds of the device; until that is known anything can be.
fn is_explained(s_per_byte: Option<f64>, bytes: u64, took: Duration) -> bool {
    s_per_byte.is_none_or(|s_per_byte| took.as_secs_f64() < FAR_LONGER * bytes as f64 * s_per_byte)
}

/// What arrived, and when: bytes so far. Points lie at least `POINT_BYTES` apart, so that a peer that sends byte by byte
/// does not fill the memory.
#[derive(Debug)]
struct Arrivals {
    start: Instant,
    points: Vec<(u64, Instant)>,
    last: (u64, Instant),
}

impl Arrivals {
    fn new(start: Instant) -> Self {
        Self { start, points: Vec::new(), last: (0, start) }
    }

    fn add(&mut self, bytes: u64, at: Instant) {
        self.last = (bytes, at);
        if self.points.last().is_none_or(|(point, _)| bytes >= point + POINT_BYTES) {
            self.points.push(self.last);
        }
    }

    /// Bytes, and the time that they took, without the part at the beginning that a shaper or a card with a bucket lets
    /// through at once: on a slow link that would make a fifth of the rate.
    fn steady(&self) -> (u64, Duration) {
        let (total, last) = self.last;
        let after = self.points.iter().find(|(bytes, _)| *bytes >= total / LEFT_OUT);
        let steady = after.map(|(bytes, at)| (total - bytes, last.saturating_duration_since(*at)));
        let whole = (total, last.saturating_duration_since(self.start));
        steady.filter(|(bytes, took)| *bytes >= STEADY_MIN && !took.is_zero()).unwrap_or(whole)
    }
}

/// What a peer sends, each read of which is a sign of life: its heartbeats wait behind it.
struct Heard<S> {
    stream: S,
    /// None: the peer is not up.
    pulse: Option<Arc<Pulse>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Heard<S> {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer).await?;
        if let Some(pulse) = self.pulse.as_ref().filter(|_| read > 0) {
            pulse.alive();
        }
        Ok(read)
    }

    /// Answers chunks that come alone; returns the first read of what comes then, 0 at the end, and the use since it
    /// was waited for.
    async fn answer_trials(&mut self, buffer: &mut [u8], shared: &Shared) -> io::Result<(usize, Use)> {
        loop {
            let using = shared.costs.begin();
            let mut read = self.read(&mut buffer[..CHUNK]).await?;
            if read == 0 || buffer[0] != TRIAL {
                return Ok((read, using));
            }
            while read < CHUNK {
                let more = self.read(&mut buffer[read..CHUNK]).await?;
                if more == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                read += more;
            }
            let busy = (processor_s() - using.processor_s) / shared.cores * 1e6;
            self.stream.write_all(&(busy as u64).to_le_bytes()).await?;
            self.stream.flush().await?;
        }
    }
}

/// The receiving side. Counts from the end of the first read, which starts the clock. What comes is a sign of life to
/// `pulse`.
pub(super) async fn serve<S>(stream: S, pulse: Option<Arc<Pulse>>, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _chore = Chore::begin(&shared);
    let mut heard = Heard { stream, pulse };
    let serving = async {
        // Fresh memory for what comes, as a tensor would have it: that is part of the price.
        let mut buffer = vec![0; CHUNK];
        let (first, using) = heard.answer_trials(&mut buffer, &shared).await?;
        if first == 0 {
            return Ok(());
        }
        let mut arrivals = Arrivals::new(Instant::now());
        let mut counted = 0;
        while first + counted < 2 * MAX_BYTES {
            if buffer.len() < counted + CHUNK {
                buffer.resize(counted + CHUNK, 0);
            }
            let read = heard.read(&mut buffer[counted..counted + CHUNK]).await?;
            if read == 0 {
                break;
            }
            counted += read;
            arrivals.add(counted as u64, Instant::now());
        }
        let (bytes, took) = arrivals.steady();
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let spent = processor_s() - using.processor_s;
        shared.costs.note(&shared, &shared.costs.received, counted as u64, &using);
        let part = bytes as f64 / (counted as f64).max(1.0);
        let busy = (part * spent / shared.cores * 1e6) as u64;
        let answer = [bytes, micros, busy].map(u64::to_le_bytes);
        heard.stream.write_all(answer.as_flattened()).await?;
        heard.stream.close().await
    };
    let limit = TRYING + MAX_SENDING + SETTLE;
    let outcome: Result<io::Result<()>, _> = tokio::time::timeout(limit, serving).await;
    if !matches!(outcome, Ok(Ok(()))) {
        tracing::debug!("a bandwidth probe of a peer broke off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of `rate` bytes per second that lets `burst` through at once.
    fn arrivals(total: u64, rate: f64, burst: u64) -> Arrivals {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(start);
        for read in 1..=total / 1000 {
            let bytes = read * 1000;
            let waits = bytes.saturating_sub(burst) as f64 / rate;
            arrivals.add(bytes, start + Duration::from_secs_f64(waits));
        }
        arrivals
    }

    fn rate(arrivals: &Arrivals) -> f64 {
        let (bytes, took) = arrivals.steady();
        bytes as f64 / took.as_secs_f64()
    }

    #[test]
    fn what_a_bucket_lets_through_at_once_does_not_count() {
        let slow = rate(&arrivals(400_000, 625e3, 66_000));
        assert!((slow / 625e3 - 1.0).abs() < 0.01, "{slow}");
        let without = rate(&arrivals(1_000_000, 1e7, 0));
        assert!((without / 1e7 - 1.0).abs() < 0.01, "{without}");
    }

    #[test]
    fn a_busy_processor_explains_only_so_much() {
        // A byte takes a third of a core 30 ns: a slow card is not its fault, a fast one that is four times slower may be.
        let (cost, ms) = (Some(30e-9), Duration::from_millis);
        assert!(is_explained(cost, 1 << 20, ms(130)) && is_explained(cost, 64 << 10, ms(20)));
        assert!(!is_explained(cost, 64 << 10, ms(1000)) && !is_explained(cost, 1 << 20, ms(1700)));
        assert!(is_explained(None, 64 << 10, ms(1000)), "nothing is known yet");
    }

    #[test]
    fn a_receiver_that_comes_late_does_not_make_a_link_faster() {
        let (megabyte, rtt) = (1_000_000, Duration::from_millis(1));
        // 10 Mbit/s: its receiver may claim what it likes.
        let most = at_most(megabyte, Duration::from_millis(810), rtt).unwrap();
        assert!((1.25e6..1.3e6).contains(&most), "{most}");
        // 1 Gbit/s: too short a time to tell.
        assert_eq!(at_most(megabyte, Duration::from_millis(12), rtt), None);
        // 1 Gbit/s and 40 ms there and back: seven round trips until the link is full.
        assert_eq!(at_most(megabyte, Duration::from_millis(308), rtt * 40), None);
    }

    #[test]
    fn what_a_byte_costs_is_told_by_probes_that_were_alone() {
        let costs = Costs::default();
        let add = |s_per_byte, alone| costs.sent.lock().unwrap().push_back(Sample { s_per_byte, alone });
        assert_eq!(costs.per_byte(), (None, None));
        add(2e-9, false);
        add(3e-9, false);
        assert_eq!(costs.per_byte().0, Some(2e-9));
        add(5e-9, true);
        add(4e-9, true);
        assert_eq!(costs.per_byte().0, Some(4e-9));
    }

    #[test]
    fn little_counts_whole() {
        assert_eq!(arrivals(50_000, 1e6, 0).steady().0, 50_000);
        let nothing = Arrivals::new(Instant::now());
        assert_eq!(nothing.steady(), (0, Duration::ZERO));
    }
}
