//! A daemon without a mesh: `add` adds its two inputs, `echo-TYPE` gives its input back, others fail in their ways.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use mesh_inference::tensor::{DType, Tensor};
use mesh_planner::{Bottleneck, BottleneckKind, Lift, Plan, Replica, Stage};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::{
    app::{
        App, AppError, DeployEvent, DeployRequest, InferRequest, InferResponse, ModelMetadata, ModelSummary,
        ProblemDocument, TensorSpec,
    },
    status::{NodeStatus, Status},
};

#[derive(Debug)]
pub(crate) struct Adder {
    uploads: TempDir,
    pub(crate) ready: AtomicBool,
    pub(super) draining: Mutex<BTreeSet<String>>,
    /// Requests to `slow` and `forever` that somebody waits for.
    pub(super) waiting: Arc<AtomicUsize>,
}

/// A request that counts as long as somebody waits for it.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn begin(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Adder {
    fn default() -> Self {
        Self {
            uploads: tempfile::tempdir().unwrap(),
            ready: AtomicBool::new(true),
            draining: Mutex::default(),
            waiting: Arc::default(),
        }
    }
}

fn spec(name: &str, dtype: DType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
}

fn unknown(name: &str) -> AppError {
    AppError::NotFound(format!("no deployment {name}"))
}

pub(super) fn plan() -> Plan {
    let stage = |first_block, device: &str| Stage {
        first_block,
        last_block: first_block,
        replicas: vec![Replica { device: device.into(), share: 1.0 }],
        standbys: Vec::new(),
        compute_s: 0.001,
        hop_s: 0.0005,
        output_bytes: 12,
        weight_bytes: 0,
        memory_bytes: 0,
    };
    Plan {
        stages: vec![stage(0, "a"), stage(1, "b")],
        bottleneck_s: 0.001,
        bottleneck: Bottleneck { kind: BottleneckKind::Compute, stage: 0, device: "a".into() },
        throughput_rps: 1000.0,
        latency_s: 0.003,
        lower_bound_s: 0.001,
        optimal: true,
        why: "two halves".into(),
        unused: Vec::new(),
        alternatives: Vec::new(),
    }
}

impl App for Adder {
    fn status(&self) -> Status {
        let drains = self.draining.lock().unwrap().contains("camera-1");
        let node = NodeStatus {
            id: "a".into(),
            name: "camera-1".into(),
            state: if drains { "draining".into() } else { "up".into() },
            ..NodeStatus::default()
        };
        Status { this_node: "a".into(), nodes: vec![node], ..Status::default() }
    }

    fn metrics(&self) -> String {
        "# TYPE mesh_up gauge\nmesh_up 1\n".into()
    }

    fn plan(&self, name: &str) -> Result<(u64, Plan), AppError> {
        if name == "add" { Ok((7, plan())) } else { Err(unknown(name)) }
    }

    fn problem(&self, name: &str) -> BoxFuture<'static, Result<ProblemDocument, AppError>> {
        let problem = serde_json::json!({
            "blocks": [], "cuts": [12], "devices": [],
            "links": {"default": {"bytes_per_s": 1e8, "latency_s": 0.0}},
        });
        let problem = serde_json::from_value(problem).unwrap();
        let document =
            ProblemDocument { name: name.into(), epoch: 7, rebuilt: false, corrected: false, problem };
        let answer = if name == "add" { Ok(document) } else { Err(unknown(name)) };
        async move { answer }.boxed()
    }

    fn lifts(&self, name: &str) -> BoxFuture<'static, Result<Vec<Lift>, AppError>> {
        let lift = Lift { what: "a 1 Gbit/s link to 12D3KooWattic".into(), gain: 0.38 };
        let answer = if name == "add" { Ok(vec![lift]) } else { Err(unknown(name)) };
        async move { answer }.boxed()
    }

    fn metadata(&self, name: &str) -> Result<ModelMetadata, AppError> {
        let (inputs, outputs) = match name {
            "add" => (
                vec![spec("a", DType::Fp32, &[-1, 3]), spec("b", DType::Fp32, &[-1, 3])],
                vec![spec("sum", DType::Fp32, &[-1, 3])],
            ),
            "busy" | "slow" | "broken" | "late" | "forever" => (Vec::new(), Vec::new()),
            _ => match name.strip_prefix("echo-").and_then(DType::from_oip_name) {
                Some(dtype) => (vec![spec("x", dtype, &[-1])], vec![spec("x", dtype, &[-1])]),
                None => return Err(unknown(name)),
            },
        };
        Ok(ModelMetadata { name: name.into(), inputs, outputs })
    }

    fn model_ready(&self, name: &str) -> Result<bool, AppError> {
        self.metadata(name).map(|_| name != "busy")
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    fn infer(&self, request: InferRequest) -> BoxFuture<'static, Result<InferResponse, AppError>> {
        let waiting = self.waiting.clone();
        async move {
            let outputs = match request.model.as_str() {
                "busy" => {
                    return Err(AppError::Unavailable {
                        message: "the ingress is full".into(),
                        retry_after_s: 3,
                    });
                }
                "slow" => {
                    let _here = Waiting::begin(waiting);
                    tokio::time::sleep(request.timeout).await;
                    return Err(AppError::DeadlineExceeded("no answer in time".into()));
                }
                "broken" => panic!("this model is made to break"),
                "forever" => {
                    let _here = Waiting::begin(waiting);
                    std::future::pending().await
                }
                "late" => return Err(AppError::Internal("the stage is gone".into())),
                "add" => {
                    let sum = |i: usize| {
                        request.inputs[0].1.as_slice::<f32>().unwrap()[i]
                            + request.inputs[1].1.as_slice::<f32>().unwrap()[i]
                    };
                    let sums: Vec<f32> = (0..request.inputs[0].1.len()).map(sum).collect();
                    let shape = request.inputs[0].1.shape();
                    vec![("sum".to_owned(), Tensor::from_slice(shape, &sums).unwrap())]
                }
                _ => request.inputs,
            };
            Ok(InferResponse { outputs, epoch: 7, retries: 1 })
        }
        .boxed()
    }

    fn upload_dir(&self, id: &str) -> Result<PathBuf, AppError> {
        let folder = self.uploads.path().join(id);
        std::fs::create_dir_all(&folder).map_err(|error| AppError::Internal(error.to_string()))?;
        Ok(folder)
    }

    fn deploy(&self, request: DeployRequest, events: mpsc::Sender<DeployEvent>) -> BoxFuture<'static, ()> {
        let file = self.uploads.path().join(&request.upload).join(&request.file);
        let held = request.name == "held";
        async move {
            let bytes = std::fs::metadata(&file).map_or(0, |m| m.len());
            let progress = |done| DeployEvent::Progress { step: "importing".into(), done, total: bytes };
            let _ = events.send(progress(bytes)).await;
            if held {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            let end = match request.name.as_str() {
                "bad" => DeployEvent::Failed { status: 400, error: "not an ONNX file".into() },
                _ => {
                    let _ =
                        events.send(DeployEvent::Planned { plan: Box::new(plan()), lifts: Vec::new() }).await;
                    DeployEvent::Serving { epoch: 8 }
                }
            };
            let _ = events.send(end).await;
        }
        .boxed()
    }

    fn undeploy(&self, name: &str) -> BoxFuture<'static, Result<(), AppError>> {
        let known = self.metadata(name).map(drop);
        async move { known }.boxed()
    }

    fn models(&self) -> Vec<ModelSummary> {
        vec![ModelSummary {
            hash: "ab12".into(),
            deployments: vec!["add".into()],
            source: "add.onnx".into(),
            weight_bytes: 0,
            nodes: 1,
            blocks: 1,
        }]
    }

    fn remove_model(&self, model: &str) -> BoxFuture<'static, Result<(), AppError>> {
        let result = match model {
            "ab12" => Err(AppError::Conflict("model ab12 is served as add: undeploy it first".into())),
            "old model.onnx" => Ok(()),
            _ => Err(unknown(model)),
        };
        async move { result }.boxed()
    }

    fn set_draining(&self, node: &str, draining: bool) -> BoxFuture<'static, Result<(), AppError>> {
        let mut set = self.draining.lock().unwrap();
        let _ = if draining { set.insert(node.to_owned()) } else { set.remove(node) };
        async { Ok(()) }.boxed()
    }

    fn remove_node(&self, node: &str) -> BoxFuture<'static, Result<(), AppError>> {
        let result = match node {
            "camera-1" => Err(AppError::Unavailable { message: "no quorum".into(), retry_after_s: 0 }),
            _ => Err(unknown(node)),
        };
        async move { result }.boxed()
    }
}
