//! Running blocks, one session at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::correct::Window;
use super::measure::{LONG, LONG_WINDOW, seconds_per_run};
use super::memory::Watch;
use super::{ProfileError, ProfileOptions};
use crate::blobs::BlobStore;
use crate::codec::{Codec, Scratch, encode};
use crate::model::{Model, StageModel};
use crate::runtime::{Engine, ModelSource, RunError, Session};
use crate::tensor::Tensor;

/// How much of a block's peak memory cannot be told from the rest of the process.
const NOISE_BYTES: u64 = 4 << 20;
/// Looks at a block's memory after the first, until two show about the same.
const LOOKS_AGAIN: usize = 3;

/// What measures a model.
pub(super) struct Prober<'a> {
    pub(super) model: &'a Model,
    pub(super) store: &'a BlobStore,
    pub(super) engine: &'a Engine,
    pub(super) options: &'a ProfileOptions,
    pub(super) cancelled: &'a dyn Fn() -> bool,
}

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) seconds: Vec<f64>,
    pub(super) peaks: Vec<u64>,
    pub(super) cuts: Vec<u64>,
    pub(super) sparse_cuts: Vec<u64>,
    pub(super) windows: Vec<Window>,
    /// The most bytes that each window's session took until its first run had ended.
    pub(super) held: Vec<u64>,
}

/// The tensors of a cut by name.
type Tensors = HashMap<String, Tensor>;

/// One session's time, memory and outputs.
struct Probe {
    seconds: f64,
    peak: u64,
    held: u64,
    outputs: Vec<(String, Tensor)>,
}

impl Prober<'_> {
    /// Every block in order, fed by the one before, and each window as soon as its last block is done: tensors are kept for
    /// as long as a window begins with them.
    pub(super) fn blocks(
        &self,
        inputs: &[(String, Tensor)],
        windows: &[Range<usize>],
        step: &mut dyn FnMut(),
    ) -> Result<Measured, ProfileError> {
        let mut measured = Measured::default();
        let mut found: Vec<Option<(Window, u64)>> = vec![None; windows.len()];
        let mut kept: HashMap<usize, Tensors> = HashMap::new();
        let cuts = self.model.cuts();
        let mut crossing: Tensors = inputs.iter().cloned().collect();
        measured.cuts.push(bytes_of(crossing.values()));
        measured.sparse_cuts.push(bytes_of(crossing.values()));
        for block in 0..self.model.blocks().len() {
            if windows.iter().any(|window| window.start == block) {
                kept.insert(block, crossing.clone());
            }
            let probe = self.probe(block..block + 1, &crossing)?;
            crossing.extend(probe.outputs);
            crossing.retain(|name, _| cuts[block + 1].tensors.contains(name));
            measured.seconds.push(probe.seconds);
            measured.peaks.push(probe.peak);
            measured.cuts.push(bytes_of(crossing.values()));
            measured.sparse_cuts.push(sparse_bytes(&crossing, inputs));
            step();
            for (index, window) in windows.iter().enumerate().filter(|(_, window)| window.end == block + 1) {
                let inputs = kept.get(&window.start).expect("the tensors at each window's start were kept");
                let Probe { seconds, held, .. } = self.probe(window.clone(), inputs)?;
                found[index] = Some((Window { blocks: window.clone(), seconds }, held));
                step();
            }
            kept.retain(|start, _| windows.iter().any(|w| w.start == *start && w.end > block + 1));
        }
        (measured.windows, measured.held) = found.into_iter().flatten().unzip();
        Ok(measured)
    }

    fn probe(&self, blocks: Range<usize>, crossing: &Tensors) -> Result<Probe, ProfileError> {
        let (first, last) = (blocks.start, blocks.end - 1);
        let stage =
            self.model.stage(first, last).map_err(|source| ProfileError::Cut { first, last, source })?;
        if stage.outputs.is_empty() {
            // Every output is handed through: there is nothing to run.
            return Ok(Probe { seconds: 0.0, peak: 0, held: 0, outputs: Vec::new() });
        }
        let inputs: Vec<(&str, Tensor)> = stage
            .inputs
            .iter()
            .map(|input| match crossing.get(&input.name) {
                Some(tensor) => Ok((input.name.as_str(), tensor.clone())),
                None => Err(ProfileError::NoTensor { block: first, tensor: input.name.clone() }),
            })
            .collect::<Result<_, _>>()?;
        let watch = Watch::start();
        let failed = |source: RunError| ProfileError::Run { first, last, source };
        let begin = || {
            let mut session = self.session(&stage, first, last)?;
            let outputs = session.run(&inputs).map_err(failed)?;
            Ok::<_, ProfileError>((session, outputs))
        };
        let beyond_weights = |watch: &Watch| watch.peak().unwrap_or(0).saturating_sub(stage.weight_bytes);
        let (begun, loaded) = watch.most_held(stage.weight_bytes, begin);
        let (mut session, outputs) = begun?;
        let seen = beyond_weights(&watch);
        let held = bytes_of(inputs.iter().map(|(_, tensor)| tensor)) + bytes_of(&outputs);
        let long = if blocks.len() > 1 { LONG_WINDOW } else { LONG };
        let repetitions = (self.options.repetitions, long);
        let seconds = seconds_per_run(self.options.session.threads, repetitions, || {
            if (self.cancelled)() {
                return Err(ProfileError::Cancelled);
            }
            session.run(&inputs).map(|_| ()).map_err(failed)
        })?;
        let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
        drop(session);
        // Of blocks the peak counts, of longer runs what they take while they are loaded.
        let (mut peak, mut loaded) = (held, loaded);
        if blocks.len() == 1 {
            let seen = seen_twice(seen, held + NOISE_BYTES, || {
                let watch = Watch::start();
                begin().map(|_| beyond_weights(&watch))
            })?;
            peak = if seen > held + NOISE_BYTES { seen } else { held };
        } else {
            loaded = seen_twice(loaded, stage.weight_bytes + NOISE_BYTES, || {
                let (begun, loaded) = Watch::start().most_held(stage.weight_bytes, begin);
                begun.map(|_| loaded)
            })?;
        }
        Ok(Probe { seconds, peak, held: loaded, outputs: names.into_iter().zip(outputs).collect() })
    }

    fn session(&self, stage: &StageModel, first: usize, last: usize) -> Result<Session, ProfileError> {
        if (self.cancelled)() {
            return Err(ProfileError::Cancelled);
        }
        let file = StageFile::write(self.store, &stage.onnx)?;
        self.engine
            .session(ModelSource::File(&file.path), &self.options.session)
            .map_err(|source| ProfileError::Session { first, last, source })
    }
}

/// Bytes that something takes: what was `seen`, where it is more than `usual` and is seen `again`; else the least. Once may
/// be something else: other threads' memory, or code of the runtime that is read in when an operator is first used.
fn seen_twice<E>(seen: u64, usual: u64, mut again: impl FnMut() -> Result<u64, E>) -> Result<u64, E> {
    let mut least = seen;
    for _ in 0..LOOKS_AGAIN {
        if least <= usual {
            break;
        }
        let next = again()?;
        let is_seen_twice = next >= least - least / 8;
        least = least.min(next);
        if is_seen_twice {
            break;
        }
    }
    Ok(least)
}

fn bytes_of<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> u64 {
    tensors.into_iter().map(|tensor| tensor.bytes().len() as u64).sum()
}

/// Bytes of a cut's tensors without their zeros. What is handed through from the model's inputs is made up and counts
/// whole.
fn sparse_bytes(crossing: &Tensors, inputs: &[(String, Tensor)]) -> u64 {
    let mut scratch = Scratch::new();
    let packed = |(name, tensor): (&String, &Tensor)| {
        let codec = if inputs.iter().any(|(input, _)| input == name) { Codec::Raw } else { Codec::Sparse };
        encode(tensor, codec, &mut scratch).bytes.len() as u64
    };
    crossing.iter().map(packed).sum()
}

/// A stage's model beside its blobs, for as long as a session is being made from it.
struct StageFile {
    path: PathBuf,
}

impl StageFile {
    fn write(store: &BlobStore, onnx: &[u8]) -> Result<Self, ProfileError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = store.stage_path(&format!("profile-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let file = Self { path };
        let written = File::create(&file.path).and_then(|mut target| target.write_all(onnx));
        written.map_err(|source| ProfileError::Write { path: file.path.clone(), source })?;
        Ok(file)
    }
}

impl Drop for StageFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a profiled stage's file stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn memory_that_is_not_seen_twice_is_something_elses() {
        let looked = |looks: &[u64]| {
            let mut next = looks.iter().copied();
            seen_twice::<Infallible>(next.next().unwrap(), 5, || Ok(next.next().unwrap())).unwrap()
        };
        assert_eq!(looked(&[90, 3]), 3, "others' memory");
        assert_eq!(looked(&[90, 80]), 80);
        assert_eq!(looked(&[80, 900]), 80);
        assert_eq!(looked(&[90, 20, 7, 4]), 4, "as long as it becomes less");
        assert_eq!(looked(&[90, 60, 40, 30]), 30);
        assert_eq!(seen_twice(5, 5, || Err("not looked at again")), Ok(5));
        assert_eq!(seen_twice(6, 5, || Err("cancelled")), Err("cancelled"));
    }
}
