//! Sessions and runs.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};
use ort::session::{RunOptions, SessionInputValue};
use ort::value::{Outlet, ValueType};

use crate::memory::{GivesBack, Thrift, give_back};
use crate::tensor::{self, DType, Tensor};

use super::{Engine, EngineError, RunError};

/// Where a model is.
#[derive(Debug, Clone, Copy)]
pub enum ModelSource<'a> {
    /// A file; its external data lies beside it and is mapped, not read.
    File(&'a Path),
    /// A serialised model without external data.
    Bytes(&'a [u8]),
}

/// How far ONNX Runtime rewrites a graph before it runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Optimisation {
    /// Everything, with layouts and fusions for this processor.
    #[default]
    Full,
    /// Only what is true on every device: constant folding, redundant nodes.
    Basic,
    /// Nothing: the graph as it was written.
    Off,
}

/// How a session is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads inside an operator; 0 for as many as there are cores.
    pub threads: usize,
    /// How far the graph is rewritten.
    pub optimisation: Optimisation,
    /// Re-lay weights into memory of their own for faster products. Without it weights of external files stay
    /// mapped, so that the kernel can drop and read them again: slower by some percent, much less memory.
    pub prepack: bool,
    /// Keep freed activation memory for the next run: faster, but it is not given back.
    pub arena: bool,
    /// Execution providers in order of preference; one that is named and missing is an error. `cpu` always follows.
    pub providers: Vec<String>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            optimisation: Optimisation::Full,
            prepack: true,
            arena: true,
            providers: vec!["cpu".to_owned()],
        }
    }
}

/// An input or output of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name in the graph.
    pub name: String,
    /// Element type; `None` when it is no tensor of numbers, and cannot cross a cut.
    pub dtype: Option<DType>,
    /// Extents; empty for a scalar, and where even the number of dimensions is known at run time only.
    pub dims: Vec<Dim>,
}

/// One extent of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Always this.
    Fixed(i64),
    /// Known at run time; all with one name are equal in one run. The name may be empty.
    Dynamic(String),
}

impl Dim {
    /// The extent, or -1 when it is known at run time only.
    pub fn or_minus_one(&self) -> i64 {
        match self {
            Self::Fixed(extent) => *extent,
            Self::Dynamic(_) => -1,
        }
    }
}

impl Port {
    fn of(outlet: &Outlet) -> Self {
        let name = outlet.name().to_owned();
        let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
            return Self { name, dtype: None, dims: Vec::new() };
        };
        let dims = shape.iter().zip(dimension_symbols.iter()).map(|(extent, symbol)| {
            if *extent < 0 { Dim::Dynamic(symbol.clone()) } else { Dim::Fixed(*extent) }
        });
        Self { name, dtype: DType::from_ort(*ty), dims: dims.collect() }
    }

    /// Whether a shape fits what is known of this one; ONNX Runtime checks the rest.
    pub fn accepts(&self, shape: &[i64]) -> bool {
        if self.dims.is_empty() {
            return true;
        }
        shape.len() == self.dims.len()
            && self.dims.iter().zip(shape).all(|(dim, extent)| match dim {
                Dim::Fixed(fixed) => fixed == extent,
                Dim::Dynamic(_) => true,
            })
    }

    fn shape_text(&self) -> String {
        let dims: Vec<String> = self
            .dims
            .iter()
            .map(|dim| match dim {
                Dim::Fixed(extent) => extent.to_string(),
                Dim::Dynamic(name) if name.is_empty() => "?".to_owned(),
                Dim::Dynamic(name) => name.clone(),
            })
            .collect();
        format!("[{}]", dims.join(", "))
    }
}

/// Ends a run from another thread. Good for one run: once cancelled, it stays so.
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<Cancel>);

struct Cancel {
    options: RunOptions,
    cancelled: AtomicBool,
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cancel").field("cancelled", &self.cancelled).finish_non_exhaustive()
    }
}

impl CancelToken {
    pub(super) fn new() -> Result<Self, EngineError> {
        let options = RunOptions::new()
            .map_err(|error| EngineError::Failed { doing: "preparing a run", message: error.to_string() })?;
        Ok(Self(Arc::new(Cancel { options, cancelled: AtomicBool::new(false) })))
    }

    /// Ends the run at its next operator; a run that has not begun will not.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        if let Err(error) = self.0.options.terminate() {
            tracing::warn!(%error, "a run could not be cancelled and goes on to its end");
        }
    }

    /// Whether it has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }
}

/// A model ready to run on this device.
#[derive(Debug)]
pub struct Session {
    session: ort::session::Session,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    engine: Engine,
    threads: usize,
    /// Dropped after the session itself.
    _memory: GivesBack,
}

impl Session {
    /// Threads that do its work, the caller's among them; 0 for as many as there are cores, or for work that other
    /// hardware does.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Inputs, in the order of the graph.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// Outputs, in the order of the graph.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The engine that runs it.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Runs the model; every input must be given once, in any order. Gives the outputs in the order of the graph.
    pub fn run<N: AsRef<str>>(&mut self, inputs: &[(N, Tensor)]) -> Result<Vec<Tensor>, RunError> {
        let token = CancelToken::new().map_err(|error| RunError::Failed { message: error.to_string() })?;
        self.run_cancellable(inputs, &token)
    }

    /// As [`Session::run`]; ends early with [`RunError::Cancelled`] when the token is cancelled.
    pub fn run_cancellable<N: AsRef<str>>(
        &mut self,
        inputs: &[(N, Tensor)],
        token: &CancelToken,
    ) -> Result<Vec<Tensor>, RunError> {
        self.check(inputs)?;
        if token.is_cancelled() {
            return Err(RunError::Cancelled);
        }
        let failed = |error: ort::Error| RunError::Failed { message: error.message().to_owned() };
        let values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = inputs
            .iter()
            .map(|(name, tensor)| Ok((Cow::Borrowed(name.as_ref()), tensor::to_ort(tensor)?)))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let outputs = match self.session.run_with_options(values, &token.0.options) {
            Ok(outputs) => outputs,
            Err(_) if token.is_cancelled() => return Err(RunError::Cancelled),
            Err(error) => return Err(failed(error)),
        };
        outputs
            .into_iter()
            .map(|(name, value)| {
                tensor::from_ort(value, inputs.iter().map(|(_, tensor)| tensor))
                    .map_err(|source| RunError::Output { name: name.to_owned(), source })
            })
            .collect()
    }

    /// ONNX Runtime checks too, but its messages are long and its errors have no types.
    fn check<N: AsRef<str>>(&self, inputs: &[(N, Tensor)]) -> Result<(), RunError> {
        let names = || self.inputs.iter().map(|port| port.name.clone()).collect();
        for (index, (name, tensor)) in inputs.iter().enumerate() {
            let name = name.as_ref();
            let port = self.inputs.iter().find(|port| port.name == name);
            let repeated = inputs[..index].iter().any(|(earlier, _)| earlier.as_ref() == name);
            let Some(port) = port.filter(|_| !repeated) else {
                return Err(RunError::UnknownInput { name: name.to_owned(), expected: names() });
            };
            check_port(port, tensor)?;
        }
        let missing =
            self.inputs.iter().find(|port| !inputs.iter().any(|(name, _)| name.as_ref() == port.name));
        match missing {
            Some(port) => Err(RunError::MissingInput { name: port.name.clone(), expected: names() }),
            None => Ok(()),
        }
    }
}

fn check_port(port: &Port, tensor: &Tensor) -> Result<(), RunError> {
    if let Some(expected) = port.dtype
        && expected != tensor.dtype()
    {
        return Err(RunError::WrongType { name: port.name.clone(), expected, got: tensor.dtype() });
    }
    if !port.accepts(tensor.shape()) {
        return Err(RunError::WrongShape {
            name: port.name.clone(),
            expected: port.shape_text(),
            got: tensor.shape().to_vec(),
        });
    }
    Ok(())
}

pub(super) fn create(
    engine: &Engine,
    source: ModelSource<'_>,
    options: &SessionOptions,
) -> Result<Session, EngineError> {
    let setup = |error: ort::Error| EngineError::Failed {
        doing: "setting up a session",
        message: error.message().to_owned(),
    };
    let _thrift = Thrift::start();
    let builder = configure(engine, options).map_err(setup)?;
    let mut builder = register(builder, options)?;
    let session = match source {
        ModelSource::File(path) => builder.commit_from_file(path),
        ModelSource::Bytes(bytes) => builder.commit_from_memory(bytes),
    }
    .map_err(|error| EngineError::of_model(error.message()))?;
    let inputs = session.inputs().iter().map(Port::of).collect();
    let outputs = session.outputs().iter().map(Port::of).collect();
    let on_cpu = options.providers.iter().all(|name| name == "cpu");
    let threads = if on_cpu { options.threads } else { 0 };
    // Loading takes up to twice what stays.
    drop(builder);
    give_back();
    Ok(Session { session, inputs, outputs, engine: engine.clone(), threads, _memory: GivesBack })
}

fn configure(engine: &Engine, options: &SessionOptions) -> Result<SessionBuilder, ort::Error> {
    let level = match options.optimisation {
        Optimisation::Full => GraphOptimizationLevel::All,
        Optimisation::Basic => GraphOptimizationLevel::Level1,
        Optimisation::Off => GraphOptimizationLevel::Disable,
    };
    let builder = ort::session::Session::builder(engine.environment())?
        // Providers are those of the config file, never chosen by ONNX Runtime.
        .with_auto_device(AutoDevicePolicy::PreferCPU)?
        .with_optimization_level(level)?
        .with_intra_threads(options.threads)?
        .with_inter_threads(1)?
        // A stage that waits for its next request must leave the processor to the others.
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_prepacking(options.prepack)?;
    Ok(builder)
}

fn register(mut builder: SessionBuilder, options: &SessionOptions) -> Result<SessionBuilder, EngineError> {
    for name in options.providers.iter().map(String::as_str).filter(|name| *name != "cpu") {
        let provider = KNOWN_PROVIDERS.iter().find(|provider| provider.name == name);
        let unavailable = |reason: String| EngineError::Provider {
            name: name.to_owned(),
            reason,
            available: available_providers(),
        };
        let Some(provider) = provider else {
            let known: Vec<&str> = KNOWN_PROVIDERS.iter().map(|provider| provider.name).collect();
            return Err(unavailable(format!("Mesh knows: cpu, {}", known.join(", "))));
        };
        if !(provider.available)() {
            return Err(unavailable("it was built without it".to_owned()));
        }
        builder = builder
            .with_execution_providers([(provider.build)().error_on_failure()])
            .map_err(|error| unavailable(error.message().to_owned()))?;
    }
    builder
        .with_execution_providers([ep::CPU::default().with_arena_allocator(options.arena).build()])
        .map_err(|error| EngineError::Failed {
            doing: "setting up the processor",
            message: error.message().to_owned(),
        })
}

/// Registers the providers as a session would.
pub(super) fn check_providers(engine: &Engine, names: &[String]) -> Result<(), EngineError> {
    let options = SessionOptions { providers: names.to_vec(), ..SessionOptions::default() };
    let builder = configure(engine, &options).map_err(|error| EngineError::Failed {
        doing: "setting up a session",
        message: error.message().to_owned(),
    })?;
    register(builder, &options).map(drop)
}

/// An execution provider that can be named in the config file.
struct Provider {
    name: &'static str,
    available: fn() -> bool,
    build: fn() -> ExecutionProviderDispatch,
}

macro_rules! provider {
    ($name:literal, $provider:ty) => {
        Provider {
            name: $name,
            available: || <$provider>::is_available().unwrap_or(false),
            build: || <$provider>::default().build(),
        }
    };
}

const KNOWN_PROVIDERS: [Provider; 6] = [
    provider!("cuda", ep::CUDA),
    provider!("tensorrt", ep::TensorRT),
    provider!("openvino", ep::OpenVINO),
    provider!("xnnpack", ep::XNNPACK),
    provider!("acl", ep::ACL),
    provider!("qnn", ep::QNN),
];

fn available_providers() -> Vec<String> {
    let others =
        KNOWN_PROVIDERS.iter().filter(|provider| (provider.available)()).map(|provider| provider.name);
    std::iter::once("cpu").chain(others).map(str::to_owned).collect()
}
