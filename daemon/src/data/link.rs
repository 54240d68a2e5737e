//! The outbound stream to one peer: a bounded queue and the task that writes it.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use libp2p::PeerId;
use mesh_inference::codec::Encoded;
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    busy::Busy,
    frame::{Body, Frame},
    limits::DataLimits,
    metrics::LinkMetrics,
    pack::Packer,
    sent::Sent,
    taken::Taken,
    transport::{DataStream, Transport},
    underway::UnderWay,
    wire::{Outgoing, now},
};

/// Weight of the newest measurement.
const SMOOTHING: f64 = 0.2;
/// Pause after a stream could not be opened; doubles up to [`REOPEN_MAX`].
const REOPEN_MIN: Duration = Duration::from_millis(50);
const REOPEN_MAX: Duration = Duration::from_secs(2);

/// How long a new stream is tried for again, for a frame that no other device can make up for. What is behind it waits, too.
const TRY_MAX: Duration = Duration::from_secs(1);

/// Why frames in the queue of a peer that is gone are lost.
const DOWN: &str = "the peer went down";
/// Why frames that a stream has taken may be lost.
const BROKE: &str = "the stream to it broke";

/// Told of every frame that could not be delivered, with the reason.
pub(super) type OnLost = Box<dyn Fn(Frame, &str) + Send + Sync>;

/// Handle on the writer of one peer's stream. Dropping it ends the writer.
#[derive(Debug)]
pub(super) struct Link {
    queue: mpsc::Sender<Frame>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    peer: PeerId,
    queued_bytes: AtomicUsize,
    queue_bytes_max: usize,
    /// Bytes per second that the link is known to carry at most, as the bits of an `f64`; 0: not known.
    rate_hint: AtomicU64,
    /// Processor seconds of moving a byte, on both ends together, as the bits of an `f64`; 0: not known.
    moving: AtomicU64,
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    codec: &'static str,
    frames: u64,
    bytes_sent: u64,
    bytes_raw: u64,
    busy_s: f64,
    bytes_per_s: f64,
    last_bytes_per_s: f64,
    sent: Sent,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Link {
    /// Starts the writer on `runtime`. The stream is opened for the first frame.
    pub(super) fn start(
        runtime: &tokio::runtime::Handle,
        peer: PeerId,
        transport: Arc<dyn Transport>,
        limits: &DataLimits,
        counted: (Arc<Busy>, UnderWay),
        on_lost: OnLost,
    ) -> Self {
        let (busy, under_way) = counted;
        let (queue, frames) = mpsc::channel(limits.link_queue_frames.max(1));
        let shared = Arc::new(Shared {
            peer,
            queued_bytes: AtomicUsize::new(0),
            queue_bytes_max: limits.link_queue_bytes,
            rate_hint: AtomicU64::new(0),
            moving: AtomicU64::new(0),
            numbers: Mutex::new(Numbers { codec: "raw", ..Numbers::default() }),
        });
        let stop = CancellationToken::new();
        let sender = Sender {
            peer,
            transport,
            stall: limits.stall_max,
            under_way,
            stream: None,
            taken: Taken::default(),
            lost: Vec::new(),
            closed_until: None,
            reopen_pause: REOPEN_MIN,
        };
        let writer = Writer { shared: shared.clone(), packer: Packer::new(busy), sender, on_lost };
        runtime.spawn(writer.run(frames, stop.clone()));
        Self { queue, shared, stop }
    }

    /// Whether a frame would find room now.
    pub(super) fn has_room(&self) -> bool {
        self.queue.capacity() > 0
            && self.shared.queued_bytes.load(Ordering::Relaxed) < self.shared.queue_bytes_max
    }

    /// Queues a frame, or gives it back when the queue is full. Never blocks.
    pub(super) fn try_send(&self, frame: Frame) -> Result<(), Box<Frame>> {
        let bytes = frame.bytes();
        // What carries no tensors always fits into the memory; a first frame of any size is taken.
        if bytes > 0 {
            let queued = self.shared.queued_bytes.load(Ordering::Relaxed);
            if queued > 0 && queued + bytes > self.shared.queue_bytes_max {
                return Err(Box::new(frame));
            }
        }
        self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue.try_send(frame).map_err(|error| {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            Box::new(error.into_inner())
        })
    }

    /// What a probe has shown that the link carries, in bytes per second.
    pub(super) fn set_rate_hint(&self, bytes_per_s: f64) {
        let hint = if bytes_per_s.is_finite() { bytes_per_s.max(0.0) } else { 0.0 };
        self.shared.rate_hint.store(hint.to_bits(), Ordering::Relaxed);
    }

    /// What a byte costs the processors of both ends together, in seconds.
    pub(super) fn set_moving(&self, seconds: f64) {
        let seconds = if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
        self.shared.moving.store(seconds.to_bits(), Ordering::Relaxed);
    }

    pub(super) fn metrics(&self) -> LinkMetrics {
        let numbers = self.shared.numbers();
        let Numbers { codec, frames, bytes_sent, bytes_raw, busy_s, bytes_per_s, last_bytes_per_s, sent } =
            &*numbers;
        LinkMetrics {
            peer: self.shared.peer,
            frames: *frames,
            bytes_sent: *bytes_sent,
            bytes_raw: *bytes_raw,
            busy_s: *busy_s,
            bytes_per_s: *bytes_per_s,
            last_bytes_per_s: *last_bytes_per_s,
            codec,
            queue: self.queue.max_capacity() - self.queue.capacity(),
            sent: sent.metrics(),
        }
    }
}

impl Shared {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes per second that the link carries, as far as known; 0: not known. A stream that never pushed back
    /// shows more than the link carries, a probe at some other time may show less.
    fn rate(&self) -> f64 {
        let hint = f64::from_bits(self.rate_hint.load(Ordering::Relaxed));
        let seen = self.numbers().bytes_per_s;
        match (hint > 0.0, seen > 0.0) {
            (true, true) => hint.min(seen),
            (true, false) => hint,
            (false, _) => seen,
        }
    }
}

/// Takes frames from the queue, packs them and sends them.
struct Writer {
    shared: Arc<Shared>,
    packer: Packer,
    sender: Sender,
    on_lost: OnLost,
}

/// A frame ready to be sent.
struct Packed {
    frame: Frame,
    tensors: Vec<Encoded>,
}

impl Writer {
    async fn run(mut self, mut frames: mpsc::Receiver<Frame>, stop: CancellationToken) {
        let mut ready: Option<Packed> = None;
        loop {
            let packed = match ready.take() {
                Some(packed) => packed,
                None => {
                    let frame = tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        frame = frames.recv() => frame,
                        () = self.sender.broken() => {
                            self.tell_of_lost();
                            continue;
                        }
                    };
                    let Some(frame) = frame else { break };
                    pack(&mut self.packer, &self.shared, frame).await
                }
            };
            // The next frame, if there is one, is packed while this one is on its way.
            let next = frames.try_recv().ok();
            let Self { shared, packer, sender, on_lost: _ } = &mut self;
            let shared = &*shared;
            let sending = async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Err(DOWN.to_owned()),
                    result = sender.deliver(shared, &packed) => result.map_err(|error| error.to_string()),
                }
            };
            let packing = async {
                match next {
                    Some(frame) => Some(pack(packer, shared, frame).await),
                    None => None,
                }
            };
            let (delivered, next) = tokio::join!(sending, packing);
            ready = next;
            let frame = packed.frame;
            self.shared.queued_bytes.fetch_sub(frame.bytes(), Ordering::Relaxed);
            self.tell_of_lost();
            match delivered {
                Ok(()) => self.sender.taken.add(now(), frame),
                Err(why) => {
                    tracing::debug!(peer = %self.shared.peer, why, "a frame was not delivered");
                    (self.on_lost)(frame, &why);
                }
            }
        }
        frames.close();
        for frame in self.sender.taken.lose(now()) {
            (self.on_lost)(frame, DOWN);
        }
        if let Some(packed) = ready {
            (self.on_lost)(packed.frame, DOWN);
        }
        while let Some(frame) = frames.recv().await {
            (self.on_lost)(frame, DOWN);
        }
    }

    /// Tells of what may have been lost with a stream.
    fn tell_of_lost(&mut self) {
        for frame in std::mem::take(&mut self.sender.lost) {
            (self.on_lost)(frame, BROKE);
        }
    }
}

async fn pack(packer: &mut Packer, shared: &Shared, frame: Frame) -> Packed {
    let moving = f64::from_bits(shared.moving.load(Ordering::Relaxed));
    let (tensors, codec) = packer.pack(&frame, shared.rate(), moving).await;
    if let Some(codec) = codec {
        shared.numbers().codec = codec;
    }
    Packed { frame, tensors }
}

/// Owns the stream.
struct Sender {
    peer: PeerId,
    transport: Arc<dyn Transport>,
    stall: Duration,
    under_way: UnderWay,
    stream: Option<Box<dyn DataStream>>,
    /// What it has taken.
    taken: Taken,
    /// What may have been lost with the one before.
    lost: Vec<Frame>,
    /// No new stream is tried before this time.
    closed_until: Option<Instant>,
    reopen_pause: Duration,
}

impl Sender {
    /// Comes back when the stream ends while nothing is sent: what it has taken may be lost, and whoever waits for it sends
    /// nothing that would show this. The other end never writes, so all that can be read is the end.
    async fn broken(&mut self) {
        match &mut self.stream {
            Some(stream) => {
                // A byte, which no peer of ours sends, or an error is an end as well.
                let _ = stream.read(&mut [0]).await;
            }
            None => std::future::pending().await,
        }
        self.stream = None;
        self.lost = self.taken.lose(now());
    }

    /// Writes a frame, on a fresh stream when the old one fails.
    async fn deliver(&mut self, shared: &Shared, packed: &Packed) -> io::Result<()> {
        if expired(&packed.frame) {
            // Its ingress has answered by itself.
            return Ok(());
        }
        let outgoing = Outgoing::new(&packed.frame, &packed.tensors, now()).map_err(io::Error::other)?;
        if let Some(stream) = self.stream.take() {
            match self.write(shared, stream, &packed.frame, &outgoing).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.lost = self.taken.lose(now());
                    if error.kind() == io::ErrorKind::TimedOut {
                        return Err(error);
                    }
                }
            }
        }
        let stream = self.open_for(&packed.frame).await?;
        self.write(shared, stream, &packed.frame, &outgoing).await
    }

    /// A stream for a frame. An activation is better sent another way at once; what an ingress waits for has no other way.
    async fn open_for(&mut self, frame: &Frame) -> io::Result<Box<dyn DataStream>> {
        let waits = !matches!(frame.body, Body::Activation { .. });
        let last = now() + TRY_MAX;
        loop {
            match (self.open().await, self.closed_until) {
                (Err(_), Some(next)) if waits && next < last => tokio::time::sleep_until(next.into()).await,
                (result, _) => return result,
            }
        }
    }

    async fn open(&mut self) -> io::Result<Box<dyn DataStream>> {
        if self.closed_until.is_some_and(|until| now() < until) {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "no stream could be opened a moment ago",
            ));
        }
        match self.transport.open(self.peer).await {
            Ok(stream) => {
                self.closed_until = None;
                self.reopen_pause = REOPEN_MIN;
                Ok(stream)
            }
            Err(error) => {
                self.closed_until = Some(now() + self.reopen_pause);
                self.reopen_pause = (self.reopen_pause * 2).min(REOPEN_MAX);
                Err(error)
            }
        }
    }

    /// Keeps the stream only if all went well: half a frame must not be followed by another.
    async fn write(
        &mut self,
        shared: &Shared,
        mut stream: Box<dyn DataStream>,
        frame: &Frame,
        outgoing: &Outgoing,
    ) -> io::Result<()> {
        let start = now();
        let wire_bytes = outgoing.wire_bytes();
        // A large one also measures the stream.
        let crossing = self.under_way.begin(wire_bytes as u64);
        outgoing.write(&mut stream, self.stall).await?;
        let seconds = now().saturating_duration_since(start).as_secs_f64();
        self.stream = Some(stream);
        let mut numbers = shared.numbers();
        numbers.frames += 1;
        numbers.bytes_sent += wire_bytes as u64;
        numbers.bytes_raw += outgoing.raw_bytes as u64;
        if let Body::Activation { stage, .. } = frame.body {
            numbers.sent.add(&frame.address, stage, wire_bytes);
        }
        if crossing.is_some() && seconds > 0.0 {
            numbers.busy_s += seconds;
            numbers.last_bytes_per_s = wire_bytes as f64 / seconds;
            numbers.bytes_per_s = smooth(numbers.bytes_per_s, numbers.last_bytes_per_s);
        }
        Ok(())
    }
}

fn expired(frame: &Frame) -> bool {
    match &frame.body {
        Body::Activation { deadline, .. } => *deadline <= now(),
        Body::Result { .. } | Body::Moved { .. } | Body::Failed(_) => false,
    }
}

/// Moving average that starts at its first value.
pub(super) fn smooth(old: f64, new: f64) -> f64 {
    if old == 0.0 { new } else { old + SMOOTHING * (new - old) }
}
