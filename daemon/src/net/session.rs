//! One session with one peer: opens the lanes of the control link, says when the peer is up, carries messages,
//! heartbeats and calls, and notices silence.
//!
//! The session is one task. A second task, the forwarder, hands events to their owner: it may have to wait for a slow
//! owner, while heartbeats go on in the session.

mod forwarder;
mod lanes;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{AsyncWriteExt, StreamExt, stream::FuturesUnordered};
use libp2p::{PeerId, Stream, swarm::ConnectionId};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
    time::MissedTickBehavior,
};

use self::{
    forwarder::{Forwarder, Queued, Told},
    lanes::{Opening, closed, write_queue, write_replies},
};
use super::{
    Channel, NetEvent, Topic,
    frames::{self, Answer, Frame, Lane, MAX_CALL},
    link::{Calls, LATE, Outbox, OutboxReader, PeerLink, Pulse, SILENCE},
    shared::Shared,
    swarm::Internal,
};

/// A heartbeat goes out this often, to all peers at once, and with every change of the report...
const BEAT: Duration = Duration::from_millis(500);
/// ...which is told at most this often.
const BEAT_GAP: Duration = Duration::from_millis(20);
/// Silence is looked for when it may have lasted long enough, and at least this often.
const WATCH: Duration = Duration::from_millis(500);
/// A timer of ours that is late by more than this means that we stood still, not the peer.
const OWN_STALL: Duration = Duration::from_millis(500);
/// Messages and calls of one peer that wait for a slow owner of events.
const INBOX: usize = 256;
/// Kibibytes of them.
const INBOX_KIB: u32 = 32 * 1024;
/// Calls of one peer that wait for our owner's answer.
const PENDING_CALLS: usize = 64;
/// Longest time that a call is kept for its owner's answer.
const MAX_PATIENCE: Duration = Duration::from_secs(300);
/// Answers that wait for the lane; whoever answers waits with them.
const REPLIES: usize = 4;

/// What a session starts from.
pub(super) struct Session {
    pub(super) peer: PeerId,
    pub(super) address: SocketAddr,
    /// Names this session among those of this device.
    pub(super) id: u64,
    /// The connection that it opens its lanes on.
    pub(super) home: ConnectionId,
    pub(super) shared: Arc<Shared>,
    pub(super) internal: mpsc::Sender<Internal>,
    pub(super) events: mpsc::Sender<NetEvent>,
    pub(super) lanes: mpsc::Receiver<(Lane, Stream)>,
    pub(super) streams: mpsc::Receiver<(Channel, Stream)>,
    pub(super) cancel: oneshot::Receiver<()>,
    /// The forwarder of the session before, whose events must come first.
    pub(super) previous: Option<JoinHandle<()>>,
}

/// How a session ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) peer: PeerId,
    pub(super) id: u64,
    /// Whether it was up at any time.
    pub(super) worked: bool,
    /// Whether it ended by silence.
    pub(super) silent: bool,
    /// The forwarder that the next session must wait for.
    pub(super) forwarder: Option<JoinHandle<()>>,
}

/// Why a live session ends.
#[derive(Debug)]
enum End {
    Silent,
    Closed(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Closed(error)
    }
}

/// What the parts of a live session share.
struct Live {
    peer: PeerId,
    link: PeerLink,
    shared: Arc<Shared>,
    inbox: mpsc::Sender<Queued>,
    budget: Arc<Semaphore>,
    told: watch::Sender<Told>,
    late: watch::Sender<bool>,
    up: watch::Sender<bool>,
    kick: Notify,
}

impl Session {
    /// Runs the session to its end and reports it.
    pub(super) async fn run(mut self) {
        let mut previous = self.previous.take();
        let internal = self.internal.clone();
        let (peer, id) = (self.peer, self.id);
        let mut cancelled = std::mem::replace(&mut self.cancel, oneshot::channel().1);
        let waited = match &mut previous {
            Some(handle) => tokio::select! {
                _ = handle => true,
                _ = &mut cancelled => false,
            },
            None => true,
        };
        let ended = if waited {
            Box::pin(self.run_alone(cancelled)).await
        } else {
            Ended { peer, id, worked: false, silent: false, forwarder: previous }
        };
        // Fails only when the network task is gone, and with it everything that this would tell.
        let _ = internal.send(Internal::Ended(ended)).await;
    }

    async fn run_alone(self, cancelled: oneshot::Receiver<()>) -> Ended {
        let (inbox, inbox_reader) = mpsc::channel(INBOX);
        let (told, beats) = watch::channel(Told::default());
        let (late, is_late) = watch::channel(false);
        let (messages, message_frames) = Outbox::new();
        let (requests, request_frames) = Outbox::new();
        let silent = Arc::new(AtomicBool::new(false));
        let live = Live {
            peer: self.peer,
            link: PeerLink {
                session: self.id,
                address: self.address,
                messages,
                requests,
                calls: Arc::new(Calls::new()),
                pulse: Arc::new(Pulse::new()),
            },
            shared: self.shared.clone(),
            inbox,
            budget: Arc::new(Semaphore::new(usize::try_from(INBOX_KIB).unwrap_or(usize::MAX))),
            told,
            late,
            up: watch::channel(false).0,
            kick: Notify::new(),
        };
        let forwarder = Forwarder {
            peer: self.peer,
            inbox: inbox_reader,
            streams: self.streams,
            pulse: live.link.pulse.clone(),
            beats,
            late: is_late,
            events: self.events,
            silent: silent.clone(),
        };
        let forwarder = tokio::spawn(forwarder.run());
        let opening = Opening {
            peer: self.peer,
            id: self.id,
            home: self.home,
            internal: self.internal,
            lanes: self.lanes,
        };
        let end = tokio::select! {
            biased;
            _ = cancelled => None,
            end = Box::pin(live.run(opening, message_frames, request_frames)) => Some(end),
        };
        let worked = *live.up.borrow();
        let fell_silent = matches!(end, Some(End::Silent));
        silent.store(fell_silent, Ordering::Release);
        match end {
            Some(End::Closed(error)) => tracing::debug!(peer = %self.peer, %error, "session ended"),
            Some(End::Silent) => tracing::info!(peer = %self.peer, "peer fell silent"),
            None => tracing::debug!(peer = %self.peer, "session cancelled"),
        }
        self.shared.peer_down(self.peer, self.id);
        live.link.calls.close();
        Ended { peer: self.peer, id: self.id, worked, silent: fell_silent, forwarder: Some(forwarder) }
    }
}

impl Live {
    async fn run(&self, opening: Opening, messages: OutboxReader, requests: OutboxReader) -> End {
        let (outgoing, incoming) = match opening.all().await {
            Ok(lanes) => lanes,
            Err(error) => return error.into(),
        };
        let [beat_out, message_out, request_out, reply_out] = outgoing;
        let [beat_in, message_in, request_in, reply_in] = incoming;
        let (replies, mut reply_frames) = mpsc::channel(REPLIES);
        let (pending, pending_calls) = mpsc::channel(PENDING_CALLS);
        self.link.pulse.forgive();
        tokio::select! {
            end = self.watch_silence() => end,
            Err(error) = self.write_beats(beat_out) => error.into(),
            Err(error) = self.read_beats(beat_in) => error.into(),
            Err(error) = write_queue(message_out, messages) => error.into(),
            Err(error) = write_queue(request_out, requests) => error.into(),
            Err(error) = write_replies(reply_out, &mut reply_frames) => error.into(),
            Err(error) = self.read_messages(message_in) => error.into(),
            Err(error) = self.read_requests(request_in, pending, replies.clone()) => error.into(),
            Err(error) = self.read_replies(reply_in) => error.into(),
            Err(error) = answer_calls(pending_calls, replies) => error.into(),
        }
    }

    async fn watch_silence(&self) -> End {
        loop {
            let silence = self.link.pulse.silence();
            let next = if silence > LATE { SILENCE } else { LATE };
            let left = next.saturating_sub(silence);
            // Whatever came in while we slept is looked at before silence is called by its name.
            let pause = left.clamp(WATCH / 20, WATCH);
            let due = Instant::now() + pause;
            tokio::time::sleep(pause).await;
            let pulse = &self.link.pulse;
            if due.elapsed() > OWN_STALL {
                pulse.forgive();
            }
            if pulse.is_lost() {
                return End::Silent;
            }
            let is_late = pulse.silence() > LATE;
            self.late.send_if_modified(|was| std::mem::replace(was, is_late) != is_late);
        }
    }

    async fn write_beats(&self, mut lane: Stream) -> io::Result<()> {
        let mut report = self.shared.report();
        report.mark_changed();
        let mut tick = tokio::time::interval_at(self.shared.next_beat(BEAT), BEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(()) = report.changed() => report.mark_changed(),
                () = self.kick.notified() => {}
            }
            let body = match report.has_changed() {
                Ok(true) => report.borrow_and_update().clone(),
                Ok(false) | Err(_) => Bytes::new(),
            };
            let beat = self.link.pulse.beat(self.shared.jobs());
            let frame = Frame::Beat { beat, report: body };
            let mut head = Vec::new();
            let body = frame.encode(&mut head);
            head.extend_from_slice(&body);
            lane.write_all(&head).await?;
            lane.flush().await?;
            tokio::time::sleep(BEAT_GAP).await;
        }
    }

    async fn read_beats(&self, mut lane: Stream) -> io::Result<()> {
        let mut up = false;
        let mut told = Told::default();
        loop {
            let length = frames::read_length(&mut lane, Lane::Beat).await?;
            let frame = frames::read_body(&mut lane, Lane::Beat, length, &self.link.pulse).await?;
            let Frame::Beat { beat, report } = frame else {
                return Err(closed());
            };
            let answered = self.link.pulse.heard(beat);
            if !up && answered {
                up = true;
                self.come_up();
            } else if !up {
                // Answers at once, so that the other side need not wait for the next heartbeat.
                self.kick.notify_one();
            }
            // A report may come before the peer is up; it is not sent twice.
            let news = !report.is_empty() || beat.jobs > 0 || beat.jobs != told.jobs;
            if !report.is_empty() {
                told.report = report;
                told.number += 1;
            }
            told.jobs = beat.jobs;
            told.rtt = self.link.pulse.rtt().unwrap_or_default();
            if up && (news || told.number != self.told.borrow().number) {
                self.told.send_replace(told.clone());
            }
        }
    }

    fn come_up(&self) {
        let event = NetEvent::PeerUp { peer: self.peer, address: self.link.address };
        // The first in an empty queue: there is room.
        let _ = self.inbox.try_send(Queued { event, budget: None });
        self.shared.peer_up(self.peer, self.link.clone());
        self.up.send_replace(true);
        // The other side may be waiting for the answer that brings it up too.
        self.kick.notify_one();
        tracing::info!(peer = %self.peer, address = %self.link.address, "peer up");
    }

    /// Waits until the owner has heard that the peer is up, so that nothing overtakes that.
    async fn until_up(&self) -> io::Result<()> {
        let mut up = self.up.subscribe();
        up.wait_for(|up| *up).await.map_err(|_| closed())?;
        Ok(())
    }

    /// Reads a frame for the inbox; waits for room there before it takes memory.
    async fn read_budgeted(
        &self,
        lane: &mut Stream,
        kind: Lane,
    ) -> io::Result<(Frame, OwnedSemaphorePermit)> {
        let length = frames::read_length(lane, kind).await?;
        let kib = u32::try_from(length / 1024 + 1).unwrap_or(INBOX_KIB).min(INBOX_KIB);
        let permit = self.budget.clone().acquire_many_owned(kib).await.map_err(|_| closed())?;
        Ok((frames::read_body(lane, kind, length, &self.link.pulse).await?, permit))
    }

    async fn deliver(&self, event: NetEvent, budget: OwnedSemaphorePermit) -> io::Result<()> {
        let queued = Queued { event, budget: Some(budget) };
        self.inbox.send(queued).await.map_err(|_| closed())
    }

    async fn read_messages(&self, mut lane: Stream) -> io::Result<()> {
        self.until_up().await?;
        loop {
            let (frame, budget) = self.read_budgeted(&mut lane, Lane::Message).await?;
            self.link.pulse.alive();
            let Frame::Message { topic, body } = frame else {
                return Err(closed());
            };
            let Some(topic) = Topic::from_code(topic) else {
                // A newer version may know more topics; this one has no use for them.
                tracing::debug!(peer = %self.peer, topic, "message of an unknown topic dropped");
                continue;
            };
            let event = NetEvent::Message { peer: self.peer, topic, body };
            self.deliver(event, budget).await?;
        }
    }

    async fn read_requests(
        &self,
        mut lane: Stream,
        pending: mpsc::Sender<PendingCall>,
        replies: mpsc::Sender<Frame>,
    ) -> io::Result<()> {
        self.until_up().await?;
        let slots = Arc::new(Semaphore::new(PENDING_CALLS));
        loop {
            let (frame, budget) = self.read_budgeted(&mut lane, Lane::Request).await?;
            self.link.pulse.alive();
            let Frame::Request { id, method, patience, body } = frame else {
                return Err(closed());
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                let busy = Frame::Reply { id, answer: Answer::Busy, body: Bytes::new() };
                replies.send(busy).await.map_err(|_| closed())?;
                continue;
            };
            let (reply, answer) = oneshot::channel();
            let call = PendingCall { id, answer, patience: patience.min(MAX_PATIENCE), _slot: slot };
            pending.send(call).await.map_err(|_| closed())?;
            let event = NetEvent::Call { peer: self.peer, method, body, reply };
            self.deliver(event, budget).await?;
        }
    }

    async fn read_replies(&self, mut lane: Stream) -> io::Result<()> {
        loop {
            let length = frames::read_length(&mut lane, Lane::Reply).await?;
            let frame = frames::read_body(&mut lane, Lane::Reply, length, &self.link.pulse).await?;
            self.link.pulse.alive();
            let Frame::Reply { id, answer, body } = frame else {
                return Err(closed());
            };
            self.link.calls.answered(id, answer, body);
        }
    }
}

/// A call whose answer our owner has yet to give.
struct PendingCall {
    id: u64,
    answer: oneshot::Receiver<Bytes>,
    patience: Duration,
    _slot: OwnedSemaphorePermit,
}

impl PendingCall {
    async fn finish(self) -> Frame {
        let given = tokio::time::timeout(self.patience, self.answer).await;
        let (answer, body) = match given {
            Ok(Ok(body)) if body.len() <= MAX_CALL => (Answer::Given, body),
            Ok(Ok(body)) => {
                tracing::error!(
                    bytes = body.len(),
                    "the answer to a call is over the limit and was not sent"
                );
                (Answer::None, Bytes::new())
            }
            Ok(Err(_)) | Err(_) => (Answer::None, Bytes::new()),
        };
        Frame::Reply { id: self.id, answer, body }
    }
}

async fn answer_calls(
    mut pending: mpsc::Receiver<PendingCall>,
    replies: mpsc::Sender<Frame>,
) -> io::Result<()> {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            call = pending.recv() => running.push(call.ok_or_else(closed)?.finish()),
            Some(reply) = running.next() => replies.send(reply).await.map_err(|_| closed())?,
        }
    }
}
