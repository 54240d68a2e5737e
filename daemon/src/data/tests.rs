//! Several data planes in one process, over in-memory streams, with stages that compute a sum.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures::future::BoxFuture;
use libp2p::PeerId;
use mesh_inference::{
    stage::{StageError, StageOutput},
    tensor::Tensor,
};

use super::*;
use crate::app::{AppError, InferRequest, InferResponse};

mod failures;
mod hostile;
mod real;
mod serving;

/// Devices that can reach each other.
#[derive(Debug, Clone, Default)]
struct Rack(Arc<Mutex<RackState>>);

#[derive(Debug, Default)]
struct RackState {
    planes: BTreeMap<PeerId, DataPlane>,
    /// Bytes that a stream holds before the writer has to wait.
    pipe_bytes: usize,
    cut: BTreeSet<PeerId>,
    /// Streams that could not be opened.
    refused: usize,
    /// Devices that take streams and never read them.
    deaf: BTreeMap<PeerId, Vec<tokio::io::DuplexStream>>,
}

/// One device's way to the others.
#[derive(Debug)]
struct RackPort {
    rack: Rack,
    me: PeerId,
}

impl Transport for RackPort {
    fn open(&self, peer: PeerId) -> BoxFuture<'static, io::Result<Box<dyn DataStream>>> {
        let mut state = self.rack.0.lock().unwrap();
        let pipe_bytes = state.pipe_bytes;
        if let Some(unread) = state.deaf.get_mut(&peer) {
            let (ours, theirs) = tokio::io::duplex(pipe_bytes);
            unread.push(theirs);
            return Box::pin(async move { Ok(Box::new(ours) as Box<dyn DataStream>) });
        }
        let target =
            state.planes.get(&peer).filter(|_| !state.cut.contains(&peer) && !state.cut.contains(&self.me));
        let result = match target {
            Some(plane) => {
                let (ours, theirs) = tokio::io::duplex(pipe_bytes);
                plane.accept(self.me, theirs);
                Ok(Box::new(ours) as Box<dyn DataStream>)
            }
            None => {
                state.refused += 1;
                Err(io::Error::from(io::ErrorKind::NotConnected))
            }
        };
        Box::pin(async move { result })
    }
}

impl Rack {
    fn new(devices: usize) -> (Self, Vec<PeerId>, Vec<DataPlane>) {
        Self::with_limits(devices, DataLimits::default())
    }

    fn with_limits(devices: usize, limits: DataLimits) -> (Self, Vec<PeerId>, Vec<DataPlane>) {
        let rack = Self::default();
        rack.0.lock().unwrap().pipe_bytes = 32 << 10;
        let peers: Vec<PeerId> = (0..devices).map(|_| PeerId::random()).collect();
        let planes: Vec<DataPlane> = peers
            .iter()
            .map(|me| DataPlane::start(*me, RackPort { rack: rack.clone(), me: *me }, limits.clone()))
            .collect();
        for (peer, plane) in peers.iter().zip(&planes) {
            rack.0.lock().unwrap().planes.insert(*peer, plane.clone());
            for other in peers.iter().filter(|other| *other != peer) {
                plane.peer_up(*other);
            }
        }
        (rack, peers, planes)
    }

    /// Cuts a device off; the others notice.
    fn kill(&self, peer: PeerId) {
        let planes = {
            let mut state = self.0.lock().unwrap();
            state.cut.insert(peer);
            state.planes.clone()
        };
        for (other, plane) in &planes {
            if *other == peer {
                planes.keys().filter(|p| **p != peer).for_each(|p| plane.peer_down(*p, Gone::Closed));
            } else {
                plane.peer_down(peer, Gone::Closed);
            }
        }
    }
}

/// What a made-up stage does with its only input.
type Run = dyn Fn(&Tensor) -> Result<Tensor, StageError> + Send + Sync;

/// A made-up stage with a thread of its own, as the real one has.
#[derive(Debug)]
struct FakeStage {
    inputs: Vec<String>,
    outputs: Vec<String>,
    jobs: mpsc::SyncSender<FakeJob>,
    runs: Arc<AtomicUsize>,
}

struct FakeJob {
    inputs: Vec<Tensor>,
    should_run: Box<dyn Fn() -> bool + Send>,
    done: Box<dyn FnOnce(Result<StageOutput, StageError>) + Send>,
}

impl FakeStage {
    fn new(input: &str, output: &str, run: Arc<Run>) -> Self {
        let (jobs, queue) = mpsc::sync_channel::<FakeJob>(8);
        let runs = Arc::new(AtomicUsize::new(0));
        let counter = runs.clone();
        let work = move || {
            for FakeJob { inputs, should_run, done } in queue {
                if !should_run() {
                    done(Err(StageError::Expired));
                    continue;
                }
                counter.fetch_add(1, Ordering::SeqCst);
                let compute = Duration::from_micros(100);
                done(run(&inputs[0]).map(|tensor| StageOutput {
                    tensors: vec![tensor],
                    compute,
                    cost: compute,
                }));
            }
        };
        std::thread::Builder::new().name("fake-stage".into()).spawn(work).unwrap();
        Self { inputs: vec![input.into()], outputs: vec![output.into()], jobs, runs }
    }

    /// Adds `term` to every element.
    fn adding(input: &str, output: &str, term: f32) -> Self {
        Self::new(input, output, Arc::new(move |tensor| Ok(add(tensor, term))))
    }
}

/// Holds made-up stages until it is opened.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    /// A stage that adds 1 once the gate is open.
    fn stage(self: &Arc<Self>) -> FakeStage {
        let gate = self.clone();
        let run = move |tensor: &Tensor| {
            drop(gate.opened.wait_while(gate.open.lock().unwrap(), |open| !*open).unwrap());
            Ok(add(tensor, 1.0))
        };
        FakeStage::new("t0", "t1", Arc::new(run))
    }
}

impl StageRun for FakeStage {
    fn submit(
        &self,
        inputs: Vec<Tensor>,
        should_run: Box<dyn Fn() -> bool + Send>,
        done: Box<dyn FnOnce(Result<StageOutput, StageError>) + Send>,
    ) -> Result<(), StageError> {
        self.jobs.try_send(FakeJob { inputs, should_run, done }).map_err(|_| StageError::Busy)
    }

    fn input_names(&self) -> &[String] {
        &self.inputs
    }

    fn output_names(&self) -> &[String] {
        &self.outputs
    }
}

fn add(tensor: &Tensor, term: f32) -> Tensor {
    let sum: Vec<f32> = tensor.as_slice::<f32>().unwrap().iter().map(|x| x + term).collect();
    Tensor::from_slice(tensor.shape(), &sum).unwrap()
}

fn key(epoch: u64, stage: usize) -> StageKey {
    StageKey { deployment: "m".into(), epoch, stage }
}

/// Stages that add 1, 10, 100, … to tensor `t0`, giving `t1`, `t2`, …; `placement` lists the replicas of each.
fn route(epoch: u64, placement: &[Vec<PeerId>]) -> BTreeMap<String, Arc<Route>> {
    let stage = |(i, peers): (usize, &Vec<PeerId>)| RouteStage {
        replicas: peers.iter().map(|p| (*p, 1.0 / peers.len() as f64)).collect(),
        inputs: vec![format!("t{i}")],
        ..RouteStage::default()
    };
    let route = Route {
        deployment: "m".into(),
        epoch,
        inputs: vec!["t0".into()],
        outputs: vec![format!("t{}", placement.len())],
        stages: placement.iter().enumerate().map(stage).collect(),
        latency: Duration::ZERO,
        in_flight: 0,
    };
    BTreeMap::from([("m".to_owned(), Arc::new(route))])
}

/// Hosts the stages of `placement` on its devices.
fn host_all(epoch: u64, placement: &[Vec<PeerId>], peers: &[PeerId], planes: &[DataPlane]) {
    for (stage, devices) in placement.iter().enumerate() {
        for device in devices {
            let plane = &planes[peers.iter().position(|p| p == device).unwrap()];
            let runner =
                FakeStage::adding(&format!("t{stage}"), &format!("t{}", stage + 1), 10f32.powi(stage as i32));
            plane.host(key(epoch, stage), HostedStage { runner, passthrough: Vec::new() });
        }
    }
}

fn request(value: f32, elements: usize, timeout: Duration) -> InferRequest {
    let input = Tensor::from_slice(&[1, elements as i64], &vec![value; elements]).unwrap();
    InferRequest {
        model: "m".into(),
        inputs: vec![("t0".into(), input)],
        outputs: Vec::new(),
        timeout,
        from_elsewhere: false,
    }
}

/// Every element of the only output is `expected`.
fn check(response: &InferResponse, expected: f32, elements: usize) {
    let [(_, tensor)] = response.outputs.as_slice() else { panic!("one output") };
    let values = tensor.as_slice::<f32>().unwrap();
    assert_eq!(values.len(), elements);
    assert!(values.iter().all(|v| *v == expected), "{:?} instead of {expected}", values.first());
}

const LONG: Duration = Duration::from_secs(60);
