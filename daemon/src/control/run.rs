//! The composition root: builds the parts of a daemon in order, runs them, ends them in order.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use mesh_config::Config;
use mesh_consensus::{DeviceId, StorageId, StoreError, founding::Candidate};
use mesh_inference::{
    blobs::{BlobError, BlobStore},
    runtime::{Engine, EngineError, SessionOptions},
};
use mesh_planner::TransferCost;
use tokio::sync::oneshot;

use super::{
    app::DaemonApp,
    budget,
    consensus::{self, Consensus, ConsensusError, End, Input, ThreadStart},
    deploy::{Deployer, Imports},
    events::{Events, Refusals, ask_to_join},
    facts::Facts,
    forecast::Forecasts,
    leader::Leader,
    models::Models,
    peers::Peers,
    prepare::Preparer,
    problems::Problems,
    propose::Proposer,
    reconcile::{Parts, Reconciler},
    report::{NO_CLUSTER, NodeReport},
    rpc::JoinCall,
    speed,
    spread::Spread,
    transfer::Transfer,
    upkeep,
    vitals::{TaskEnded, Vitals},
};
use crate::{
    app::AppHandle,
    data::{DataLimits, DataPlane},
    net::{Identity, IdentityError, Net, NetConfig, NetStartError},
};

/// Time for open streams and tasks to end at shutdown.
const GOODBYE: Duration = Duration::from_secs(3);

/// Why a daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory cannot be made.
    #[error(
        "cannot use the data directory {}: set node.data_dir to a folder that this user may write to",
        path.display()
    )]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The device's key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// ONNX Runtime.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The blob store.
    #[error("cannot open the blob store")]
    Blobs(#[source] BlobError),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetStartError),
    /// Consensus.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    /// A part that runs as long as the daemon has ended.
    #[error(transparent)]
    Task(#[from] TaskEnded),
}

impl RunError {
    /// Whether the config asks for what this device does not have, so that starting again would not help.
    pub fn is_of_config(&self) -> bool {
        match self {
            Self::Engine(error) => {
                matches!(error, EngineError::Unusable { .. } | EngineError::Provider { .. })
            }
            Self::Net(error) => matches!(error, NetStartError::UnknownInterface { .. }),
            Self::DataDir { .. }
            | Self::Identity(_)
            | Self::Blobs(_)
            | Self::Consensus(_)
            | Self::Task(_) => false,
        }
    }

    /// Whether the store refused because it is damaged: never reset it silently.
    pub fn is_corrupt_store(&self) -> bool {
        matches!(self, Self::Consensus(ConsensusError::Store { source: StoreError::Corrupt { .. }, .. }))
    }
}

/// A daemon at work.
pub struct Running {
    /// For the API.
    pub app: AppHandle,
    /// Where peers reach it.
    pub listen: SocketAddr,
    net: Net,
    consensus: Consensus,
    vitals: Vitals,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// Starts a daemon. Everything that can be refused is refused before this returns.
pub async fn start(config: Config) -> Result<Running, RunError> {
    let data_dir = config.node.data_dir.clone();
    crate::files::make_private_dir(&data_dir)
        .map_err(|source| RunError::DataDir { path: data_dir.clone(), source })?;
    let identity = Identity::load_or_create(&data_dir)?;
    let engine = Engine::load(config.inference.onnxruntime.as_deref())?;
    engine.check_providers(&config.inference.execution_providers)?;
    let store = BlobStore::open(&data_dir.join("blobs")).map_err(RunError::Blobs)?;
    if let Some(bytes) = config.limits.disk {
        store.set_limit(bytes);
    }
    let uploads = data_dir.join("uploads");
    let _ = std::fs::remove_dir_all(&uploads);
    crate::files::make_private_dir(&uploads)
        .map_err(|source| RunError::DataDir { path: uploads.clone(), source })?;
    let (net, events) = Net::start(NetConfig {
        identity,
        cluster_name: config.cluster.name.clone(),
        cluster_key: *config.cluster.key.as_bytes(),
        listen: config.network.listen,
        mdns: config.network.mdns,
        peers: config.network.peers.clone(),
        interfaces: config.network.interfaces.clone(),
    })
    .await?;
    let (consensus, ended) = start_consensus(&config, &net)?;
    let parts = build(&config, net.clone(), consensus.clone(), engine.clone(), store, uploads);
    net.count_jobs(parts.app.data.jobs());
    let mut vitals = Vitals::new(ended);
    let tasks = &mut vitals.tasks;
    tasks.spawn("events", parts.events.run(events));
    tasks.spawn("reconcile", parts.reconciler.run());
    tasks.spawn("leader", parts.leader.run());
    let (facts, models, proposer) =
        (parts.app.facts.clone(), parts.app.models.clone(), parts.app.proposer.clone());
    tasks.spawn("forecast", parts.app.forecasts.clone().run(consensus.clone(), facts.clone(), models));
    tasks.spawn("upkeep", upkeep::run(net.clone(), consensus.clone(), facts.clone(), proposer));
    tasks.spawn("cluster", tell_cluster(net.clone(), consensus.clone(), facts));
    speed::measure_in_background(&net, &parts.app.facts, engine, parts.threads);
    let listen = net.listen_address();
    Ok(Running { app: super::app::handle(parts.app), listen, net, consensus, vitals })
}

/// The parts that run as tasks.
struct Built {
    events: Events,
    reconciler: Reconciler,
    leader: Leader,
    app: DaemonApp,
    threads: usize,
}

fn start_consensus(config: &Config, net: &Net) -> Result<(Consensus, oneshot::Receiver<End>), RunError> {
    let (ended, end) = oneshot::channel();
    let (answer_to, answers) = std::sync::mpsc::sync_channel::<Consensus>(1);
    let me = Candidate {
        device: DeviceId(net.local_peer().to_string()),
        storage: StorageId([0; 16]),
        name: config.node.name.clone(),
        address: net.listen_address().to_string(),
    };
    let join = join_through(net.clone(), me.clone(), answers);
    let thread = ThreadStart {
        path: config.node.data_dir.clone(),
        me,
        devices: config.cluster.devices,
        cluster_name: config.cluster.name.clone(),
        data_dir: config.node.data_dir.display().to_string(),
        net: net.clone(),
        join,
        seed: rand::random(),
    };
    let consensus = consensus::start(consensus::Start { thread, ended })?;
    let _ = answer_to.send(consensus.clone());
    Ok((consensus, end))
}

/// How the consensus thread asks to join: on the runtime, with the answer coming back to its inbox.
fn join_through(net: Net, me: Candidate, answers: std::sync::mpsc::Receiver<Consensus>) -> consensus::Join {
    let runtime = tokio::runtime::Handle::current();
    let handle = std::sync::OnceLock::new();
    let asking = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    Box::new(move |storage, listed, via| {
        if handle.get().is_none()
            && let Ok(consensus) = answers.recv_timeout(Duration::from_secs(1))
        {
            let _ = handle.set(consensus);
        }
        let Some(consensus) = handle.get().cloned() else { return };
        if asking.swap(true, std::sync::atomic::Ordering::AcqRel) {
            return;
        }
        let (net, asking) = (net.clone(), std::sync::Arc::clone(&asking));
        let call = JoinCall { storage, listed, name: me.name.clone(), address: me.address.clone() };
        runtime.spawn(async move {
            let answer = ask_to_join(net, call, via).await;
            consensus.offer(Input::JoinAnswer(storage, answer));
            asking.store(false, std::sync::atomic::Ordering::Release);
        });
    })
}

fn build(
    config: &Config,
    net: Net,
    consensus: Consensus,
    engine: Engine,
    store: BlobStore,
    uploads: PathBuf,
) -> Built {
    let threads = session_threads(config.limits.threads);
    let budget = budget::of(config);
    let facts = Facts::new(net.local_peer(), Peers::default(), first_report(config, budget, threads));
    facts.update_own(&net, |own| own.cluster = Some(consensus.view().borrow().state.cluster_id));
    let data = DataPlane::start(net.local_peer(), net.clone(), DataLimits::for_memory(budget));
    let transfer = Transfer::new(net.clone(), store, facts.peers().clone(), data.under_way());
    let models = Models::new(transfer.clone());
    let proposer = Proposer::new(net.clone(), consensus.clone());
    let options = SessionOptions {
        threads,
        providers: config.inference.execution_providers.clone(),
        ..SessionOptions::default()
    };
    let preparer = Preparer::new(models.clone(), transfer.clone(), engine.clone(), options.clone());
    let (refusals, problems, forecasts) = (Refusals::default(), Problems::default(), Forecasts::default());
    let deployer = Deployer {
        consensus: consensus.clone(),
        facts: facts.clone(),
        models: models.clone(),
        transfer: transfer.clone(),
        forecasts: forecasts.clone(),
        proposer: proposer.clone(),
        engine,
        session: options,
        memory: budget,
        imports: Imports::default(),
    };
    let parts = Parts {
        net: net.clone(),
        consensus: consensus.clone(),
        facts: facts.clone(),
        models: models.clone(),
        data: data.clone(),
        preparer,
        forecasts: forecasts.clone(),
    };
    let app = DaemonApp {
        cluster_name: config.cluster.name.clone(),
        devices: config.cluster.devices,
        address: net.listen_address().to_string(),
        uploads,
        consensus,
        facts,
        models,
        data,
        proposer,
        deployer,
        problems,
        forecasts,
        net,
        refusals,
    };
    Built {
        events: events_of(&app, transfer.clone()),
        reconciler: Reconciler::new(
            parts,
            Spread::new(app.facts.clone(), transfer, app.deployer.imports.clone()),
        ),
        leader: leader_of(&app),
        app,
        threads,
    }
}

fn events_of(app: &DaemonApp, transfer: Transfer) -> Events {
    Events {
        net: app.net.clone(),
        consensus: app.consensus.clone(),
        facts: app.facts.clone(),
        data: app.data.clone(),
        transfer,
        proposer: app.proposer.clone(),
        problems: app.problems.clone(),
        refusals: app.refusals.clone(),
    }
}

fn leader_of(app: &DaemonApp) -> Leader {
    Leader::new(
        app.consensus.clone(),
        app.facts.clone(),
        app.models.clone(),
        app.proposer.clone(),
        app.problems.clone(),
        app.forecasts.clone(),
    )
}

/// What this device says of itself before it has measured or loaded anything.
fn first_report(config: &Config, memory_budget_bytes: u64, threads: usize) -> NodeReport {
    NodeReport {
        name: config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: Some(NO_CLUSTER),
        memory_budget_bytes,
        memory_used_bytes: 0,
        calibration_s: None,
        stages: Vec::new(),
        kept: std::collections::BTreeSet::new(),
        links: std::collections::BTreeMap::new(),
        transfer: TransferCost {
            compute_share: (threads as f64 / mesh_inference::profile::cores()).min(1.0),
            ..TransferCost::default()
        },
        entering: std::collections::BTreeMap::new(),
        arriving: std::collections::BTreeMap::new(),
        under_way: std::collections::BTreeMap::new(),
        crossing: Vec::new(),
        others_share: 0.0,
        card_bytes_per_s: None,
    }
}

/// Threads of a session: what the config says, else all processors that this process may use.
fn session_threads(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    }
}

/// Tells the others which cluster this device is in, whenever that changes: founding, joining, giving way.
async fn tell_cluster(net: Net, consensus: Consensus, facts: Facts) {
    let mut views = consensus.view();
    loop {
        let cluster = views.borrow_and_update().state.cluster_id;
        facts.set_cluster(&net, cluster);
        if views.changed().await.is_err() {
            return;
        }
    }
}

impl Running {
    /// Why the daemon cannot go on; pends while it can.
    pub async fn failure(&mut self) -> RunError {
        self.vitals.failure().await
    }

    /// Ends the daemon in order: no more commands, then the network, then the tasks.
    pub async fn shutdown(self) {
        self.consensus.offer(Input::Shutdown);
        self.net.shutdown().await;
        self.vitals.tasks.end(GOODBYE).await;
    }
}
