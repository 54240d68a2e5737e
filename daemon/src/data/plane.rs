//! The data plane of one device: ingress, hosted stages and links behind one handle.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use libp2p::PeerId;
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    busy::Busy,
    frame::{Address, Body, Failure, FailureKind, Frame, truncated},
    hosting::{Hosted, HostedStage, Job, OnDone, StageRun},
    ingress::{Dispatch, Effect, Gone, Ingress},
    limits::DataLimits,
    link::Link,
    metrics::DataMetrics,
    reachable::Reachable,
    route::{Route, StageKey},
    transport::{DataStream, Transport},
    underway::UnderWay,
    wire::now,
};
use mesh_inference::tensor::Tensor;
use serve::{keep_time, lock, read_stream};

use crate::app::{AppError, InferRequest, InferResponse};

mod serve;

/// Handle on the data plane; clones are cheap. Its tasks end with the last handle.
#[derive(Debug, Clone)]
pub struct DataPlane {
    shared: Arc<Shared>,
}

struct Shared {
    me: PeerId,
    limits: DataLimits,
    transport: Arc<dyn Transport>,
    runtime: Handle,
    desk: Mutex<Desk>,
    /// The earliest timer of the ingress has changed.
    wake: Arc<Notify>,
    /// Stages that run here.
    stages: Mutex<Reachable<Arc<Hosted>>>,
    /// Peers that are up, with their stream once there was something to send.
    links: Mutex<BTreeMap<PeerId, Option<Arc<Link>>>>,
    readers: Mutex<HashMap<PeerId, VecDeque<AbortHandle>>>,
    on_done: Arc<OnDone>,
    /// How much of the time this device computes.
    busy: Arc<Busy>,
    /// Large frames that are on their way now.
    under_way: UnderWay,
    /// Bytes of the frames that came, as they were on the wire.
    received: AtomicU64,
    /// Bytes of the tensors that clients brought and took.
    entered: AtomicU64,
    /// What probes have shown that links carry, in bytes per second.
    rates: Mutex<BTreeMap<PeerId, f64>>,
    /// Processor seconds of moving a byte to a peer, on both ends together.
    moving: Mutex<BTreeMap<PeerId, f64>>,
    stop: CancellationToken,
}

/// The ingress and the clients that wait.
struct Desk {
    ingress: Ingress,
    clients: HashMap<u64, oneshot::Sender<Result<InferResponse, AppError>>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl DataPlane {
    /// Starts the data plane of device `me` on the current tokio runtime.
    pub fn start(me: PeerId, transport: impl Transport, limits: DataLimits) -> Self {
        let stop = CancellationToken::new();
        let shared = Arc::new_cyclic(|weak: &Weak<Shared>| {
            let stages_of = weak.clone();
            let on_done: Arc<OnDone> = Arc::new(move |key, done| {
                if let Some(shared) = stages_of.upgrade() {
                    shared.stage_done(key, done);
                }
            });
            Shared {
                me,
                transport: Arc::new(transport),
                runtime: Handle::current(),
                desk: Mutex::new(Desk {
                    ingress: Ingress::new(me, rand::random(), limits.clone()),
                    clients: HashMap::new(),
                }),
                wake: Arc::new(Notify::new()),
                stages: Mutex::new(Reachable::default()),
                links: Mutex::new(BTreeMap::new()),
                readers: Mutex::new(HashMap::new()),
                on_done,
                busy: Arc::new(Busy::new(now())),
                under_way: UnderWay::default(),
                received: AtomicU64::new(0),
                entered: AtomicU64::new(0),
                rates: Mutex::new(BTreeMap::new()),
                moving: Mutex::new(BTreeMap::new()),
                stop: stop.clone(),
                limits,
            }
        });
        shared.runtime.spawn(keep_time(Arc::downgrade(&shared), stop));
        Self { shared }
    }

    /// Large frames that are on their way to or from this device, for what can wait to give way to.
    pub fn under_way(&self) -> UnderWay {
        self.shared.under_way.clone()
    }

    /// Replaces all routes. Called on every change of the replicated state.
    pub fn set_routes(&self, routes: BTreeMap<String, Arc<Route>>) {
        lock(&self.shared.stages).forget(|deployment| routes.contains_key(deployment));
        self.shared.drive(|ingress, now| ingress.set_routes(now, routes));
    }

    /// Names of devices, for messages to people.
    pub fn set_names(&self, names: BTreeMap<PeerId, String>) {
        self.shared.drive(|ingress, _| ingress.set_names(names));
    }

    /// Makes a stage that runs here reachable. A stage that was there under this key is replaced.
    pub fn host<R: StageRun>(&self, key: StageKey, stage: HostedStage<R>) {
        let shared = &self.shared;
        let hosted =
            Hosted::new(key.clone(), stage, &shared.limits, shared.on_done.clone(), shared.busy.clone());
        // The replaced stage must not be dropped under the lock: its thread may be waited for.
        let replaced = lock(&self.shared.stages).host(key, Arc::new(hosted));
        drop(replaced);
    }

    /// Takes a stage out of reach: frames for it are refused as of a retired epoch. Runs on the way finish.
    pub fn unhost(&self, key: &StageKey) {
        let removed = lock(&self.shared.stages).unhost(key);
        drop(removed);
    }

    /// A peer is connected.
    pub fn peer_up(&self, peer: PeerId) {
        lock(&self.shared.links).entry(peer).or_insert(None);
        self.shared.drive(|ingress, now| ingress.peer_up(now, peer));
    }

    /// A peer is gone: its streams are closed, and requests on a route through it go out again.
    pub fn peer_down(&self, peer: PeerId, gone: Gone) {
        let link = lock(&self.shared.links).remove(&peer);
        lock(&self.shared.rates).remove(&peer);
        lock(&self.shared.moving).remove(&peer);
        drop(link);
        for reader in lock(&self.shared.readers).remove(&peer).unwrap_or_default() {
            reader.abort();
        }
        self.shared.drive(|ingress, now| ingress.peer_down(now, peer, gone));
    }

    /// Nothing has come from a peer for a while, or something has again.
    pub fn set_peer_late(&self, peer: PeerId, is_late: bool) {
        self.shared.drive(|ingress, now| ingress.peer_late(now, peer, is_late));
    }

    /// What a probe has shown that the link to a peer carries, in bytes per second: the codec is chosen by it until
    /// the stream itself has shown less.
    pub fn set_link_rate(&self, peer: PeerId, bytes_per_s: f64) {
        lock(&self.shared.rates).insert(peer, bytes_per_s);
        let link = lock(&self.shared.links).get(&peer).cloned().flatten();
        if let Some(link) = link {
            link.set_rate_hint(bytes_per_s);
        }
    }

    /// What moving a byte to a peer costs the processors of both ends together, in processor seconds: the codec is
    /// chosen by it too.
    pub fn set_moving_cost(&self, peer: PeerId, s_per_byte: f64) {
        lock(&self.shared.moving).insert(peer, s_per_byte);
        let link = lock(&self.shared.links).get(&peer).cloned().flatten();
        if let Some(link) = link {
            link.set_moving(s_per_byte);
        }
    }

    /// Counts the jobs that wait or run in the stages of this device, as heartbeats tell others.
    pub fn jobs(&self) -> Arc<AtomicU32> {
        self.shared.busy.counter()
    }

    /// Jobs that wait or run in the stages of a peer, as its heartbeat says.
    pub fn set_peer_jobs(&self, peer: PeerId, jobs: u32) {
        let mut desk = lock(&self.shared.desk);
        desk.ingress.on_backlog(now(), peer, jobs);
    }

    /// Takes an inbound stream of a peer.
    pub fn accept(&self, peer: PeerId, stream: impl DataStream) {
        let stop = self.shared.stop.clone();
        let reading = read_stream(
            Arc::downgrade(&self.shared),
            peer,
            stream,
            self.shared.limits.clone(),
            self.under_way(),
        );
        let task = self.shared.runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = reading => {}
            }
        });
        let mut readers = lock(&self.shared.readers);
        let of_peer = readers.entry(peer).or_default();
        of_peer.retain(|reader| !reader.is_finished());
        of_peer.push_back(task.abort_handle());
        if of_peer.len() > self.shared.limits.streams_per_peer
            && let Some(oldest) = of_peer.pop_front()
        {
            oldest.abort();
        }
    }

    /// Whether requests for a deployment are taken here.
    pub fn serves(&self, name: &str) -> bool {
        lock(&self.shared.desk).ingress.serves(name)
    }

    /// Runs a request through the mesh. Ends by the request's deadline; dropping the future gives the request up.
    pub async fn infer(&self, request: InferRequest) -> Result<InferResponse, AppError> {
        let (client, answer) = oneshot::channel();
        self.shared.count_entered(&request.inputs);
        let id = self.shared.drive_with(|desk, now| {
            let id = desk.ingress.begin(now, request)?;
            desk.clients.insert(id, client);
            Ok::<u64, AppError>(id)
        })?;
        let _guard = Waiting { shared: self.shared.clone(), id };
        match answer.await {
            Ok(result) => result.inspect(|answer| self.shared.count_entered(&answer.outputs)),
            Err(_) => Err(AppError::Internal("the daemon is shutting down; ask another device".into())),
        }
    }

    /// All numbers at this moment.
    pub fn metrics(&self) -> DataMetrics {
        let deployments = lock(&self.shared.desk).ingress.metrics(now());
        let mut stages: Vec<_> = lock(&self.shared.stages).values().map(|h| h.metrics()).collect();
        stages.sort_by(|a, b| a.key.cmp(&b.key));
        let links = lock(&self.shared.links).values().flatten().map(|link| link.metrics()).collect();
        let received = self.shared.received.load(Ordering::Relaxed);
        let entered = self.shared.entered.load(Ordering::Relaxed);
        DataMetrics { deployments, stages, links, received, entered }
    }
}

/// Gives a request up when its client goes away; nothing when it has been answered.
struct Waiting {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.drive_with(|desk, now| {
            desk.clients.remove(&id);
            desk.ingress.cancel(now, id);
        });
    }
}

impl Shared {
    fn count_entered(&self, tensors: &[(String, Tensor)]) {
        let bytes: usize = tensors.iter().map(|(_, tensor)| tensor.bytes().len()).sum();
        self.entered.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Brings the ingress an event and does what follows from it.
    fn drive(self: &Arc<Self>, event: impl FnOnce(&mut Ingress, Instant)) {
        self.drive_with(|desk, now| event(&mut desk.ingress, now));
    }

    fn drive_with<T>(self: &Arc<Self>, event: impl FnOnce(&mut Desk, Instant) -> T) -> T {
        let mut answers = Vec::new();
        let mut dispatches = Vec::new();
        let (value, timer_changed) = {
            let mut desk = lock(&self.desk);
            let before = desk.ingress.next_timer();
            desk.ingress.set_own_jobs(self.busy.jobs());
            let value = event(&mut desk, now());
            for effect in desk.ingress.take_effects() {
                match effect {
                    Effect::Send(dispatch) => dispatches.push(dispatch),
                    Effect::Finish { id, result } => {
                        answers.extend(desk.clients.remove(&id).map(|client| (client, result)));
                    }
                }
            }
            (value, desk.ingress.next_timer() != before)
        };
        if timer_changed {
            self.wake.notify_one();
        }
        for (client, result) in answers {
            // A client that has gone away needs no answer.
            let _ = client.send(result);
        }
        for dispatch in dispatches {
            self.dispatch(dispatch);
        }
        value
    }

    fn dispatch(self: &Arc<Self>, Dispatch { address, inputs, deadline }: Dispatch) {
        let Some(first) = address.devices.first().copied() else { return };
        let body = Body::Activation { stage: 0, deadline, tensors: inputs };
        self.send(first, Frame { address, body });
    }

    /// Sends a frame to a device, which may be this one.
    fn send(self: &Arc<Self>, to: PeerId, frame: Frame) {
        if to == self.me {
            self.receive(self.me, frame);
            return;
        }
        let Some(link) = self.link(to) else {
            self.lost(to, frame, FailureKind::Unreachable, "it is not connected");
            return;
        };
        if let Err(frame) = link.try_send(frame) {
            self.lost(to, *frame, FailureKind::Busy, "too much waits to be sent to it");
        }
    }

    /// The link to a peer that is up.
    fn link(self: &Arc<Self>, peer: PeerId) -> Option<Arc<Link>> {
        let mut links = lock(&self.links);
        let link = links.get_mut(&peer)?;
        Some(link.get_or_insert_with(|| Arc::new(self.new_link(peer))).clone())
    }

    fn new_link(self: &Arc<Self>, peer: PeerId) -> Link {
        let weak = Arc::downgrade(self);
        let on_lost = Box::new(move |frame: Frame, why: &str| {
            if let Some(shared) = weak.upgrade() {
                shared.lost(peer, frame, FailureKind::Unreachable, why);
            }
        });
        let transport = self.transport.clone();
        let counted = (self.busy.clone(), self.under_way.clone());
        let link = Link::start(&self.runtime, peer, transport, &self.limits, counted, on_lost);
        link.set_rate_hint(lock(&self.rates).get(&peer).copied().unwrap_or(0.0));
        link.set_moving(lock(&self.moving).get(&peer).copied().unwrap_or(0.0));
        link
    }

    /// A frame did not get to `peer`: its ingress is told. Where that is whom outputs did not get to, there may be room for
    /// a few words all the same.
    fn lost(self: &Arc<Self>, peer: PeerId, frame: Frame, kind: FailureKind, why: &str) {
        let Frame { address, body } = frame;
        match body {
            Body::Activation { stage, .. } => {
                let message = format!("the device cannot be reached: {why}");
                self.fail(address, Failure { kind, stage, blame: peer, message });
            }
            Body::Result { .. } => {
                let stage = address.devices.len().saturating_sub(1);
                let message = format!("the outputs did not get to the device that asked: {why}");
                self.fail(address, Failure { kind, stage, blame: self.me, message });
            }
            Body::Moved { .. } | Body::Failed(_) => {
                tracing::debug!(%peer, request = address.request, why, "an ingress cannot be reached");
            }
        }
    }

    fn fail(self: &Arc<Self>, address: Address, mut failure: Failure) {
        failure.message.truncate(truncated(&failure.message).len());
        self.send(address.ingress, Frame { address, body: Body::Failed(failure) });
    }

    /// A frame has come in from `from`, authenticated.
    fn receive(self: &Arc<Self>, from: PeerId, frame: Frame) {
        let Frame { address, body } = frame;
        match body {
            Body::Activation { stage, deadline, tensors } => {
                self.activation(stage, Job { address, deadline, tensors });
            }
            Body::Result { tensors } if address.ingress == self.me => {
                self.drive(|ingress, now| ingress.on_result(now, from, &address, tensors));
            }
            Body::Failed(failure) if address.ingress == self.me => {
                self.drive(|ingress, now| ingress.on_failure(now, from, &address, failure));
            }
            Body::Moved { stage } if address.ingress == self.me => {
                self.drive(|ingress, now| ingress.on_moved(now, from, &address, stage));
            }
            Body::Result { .. } | Body::Moved { .. } | Body::Failed(_) => {
                tracing::debug!(%from, ingress = %address.ingress, "dropped an answer for another device");
            }
        }
    }
}
