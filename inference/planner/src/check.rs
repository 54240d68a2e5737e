//! Independent verification: no plan is proposed or accepted that does not pass.

use std::collections::{BTreeMap, BTreeSet};

use crate::evaluate::{Draft, DraftStage, Evaluation, evaluate_draft};
use crate::instance::Instance;
use crate::plan::{Plan, Stage};
use crate::problem::{Problem, ProblemError};

/// Predictions may differ by rounding only.
const RELATIVE_ERROR: f64 = 1e-6;

/// Why a plan must not be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CheckError {
    /// The problem itself is senseless.
    #[error("the problem cannot be planned for")]
    Problem(#[from] ProblemError),
    /// Stages leave blocks out, overlap or run past the end.
    #[error("stage {stage} runs blocks {first} to {last}; block {next} of {blocks} comes next")]
    Cover {
        /// Index of the stage.
        stage: usize,
        /// Its first block.
        first: usize,
        /// Its last block.
        last: usize,
        /// The block that it should begin with.
        next: usize,
        /// How many blocks the model has.
        blocks: usize,
    },
    /// The stages end before the model does.
    #[error("the stages end before block {next} of {blocks}")]
    Short {
        /// First block that no stage runs.
        next: usize,
        /// How many blocks the model has.
        blocks: usize,
    },
    /// More or fewer stages than asked for.
    #[error("the plan has {got} stages; between {min} and {max} were asked for")]
    StageCount {
        /// Stages of the plan.
        got: usize,
        /// Fewest stages.
        min: usize,
        /// Most stages.
        max: usize,
    },
    /// A stage's replicas are not usable.
    #[error("stage {stage}: {reason}")]
    Replicas {
        /// Index of the stage.
        stage: usize,
        /// What is wrong.
        reason: String,
    },
    /// A device would need more memory than it may use.
    #[error("device {device:?} would need {needed} bytes and may use {available}")]
    Memory {
        /// The device's id.
        device: String,
        /// Bytes that the plan puts there.
        needed: u64,
        /// Bytes that it may use.
        available: u64,
    },
    /// A stated number is not what the cost model says.
    #[error("the plan states {what} {stated}; it is {actual}")]
    Number {
        /// Which number.
        what: &'static str,
        /// What the plan says.
        stated: f64,
        /// What the cost model says.
        actual: f64,
    },
    /// The stages are not the pinned ones.
    #[error("stage {stage} differs from the pinned one")]
    Pin {
        /// Index of the stage.
        stage: usize,
    },
}

/// Verifies a plan against its problem: cover, shares, devices, memory, limits and every stated number.
///
/// # Errors
/// The first defect found.
pub fn check(problem: &Problem, plan: &Plan) -> Result<(), CheckError> {
    let evaluation = evaluate(problem, plan)?;
    check_limits(problem, plan)?;
    check_pin(problem, plan)?;
    let insured = standby_bytes(problem, plan)?;
    let devices = problem.devices.iter().zip(evaluation.memory_bytes.iter().zip(insured));
    for (device, (needed, insured)) in devices {
        let needed = needed.saturating_add(insured);
        if needed > device.memory_bytes {
            let (device, available) = (device.id.clone(), device.memory_bytes);
            return Err(CheckError::Memory { device, needed, available });
        }
    }
    check_numbers(plan, &evaluation)
}

/// Costs of any plan whose stages cover the model with known devices; memory is reported, not judged. Where a link is
/// missing, times are infinite.
///
/// # Errors
/// When the problem is senseless or the plan's stages and shares do not make a plan.
pub fn evaluate(problem: &Problem, plan: &Plan) -> Result<Evaluation, CheckError> {
    problem.validate()?;
    let draft = draft_of(problem, plan)?;
    let mut evaluation = evaluate_draft(&Instance::new(problem), &draft);
    if !evaluation.is_served() {
        let never = f64::INFINITY;
        (evaluation.bottleneck_s, evaluation.latency_s, evaluation.throughput_rps) = (never, never, 0.0);
    }
    Ok(evaluation)
}

pub(crate) fn draft_of(problem: &Problem, plan: &Plan) -> Result<Draft, CheckError> {
    let blocks = problem.blocks.len();
    let index: BTreeMap<&str, usize> =
        problem.devices.iter().enumerate().map(|(i, device)| (device.id.as_str(), i)).collect();
    let mut next = 0;
    let mut stages = Vec::with_capacity(plan.stages.len());
    for (position, stage) in plan.stages.iter().enumerate() {
        let (first, last) = (stage.first_block, stage.last_block);
        if first != next || last < first || last >= blocks {
            return Err(CheckError::Cover { stage: position, first, last, next, blocks });
        }
        let replicas = replicas_of(problem, stage, &index)
            .map_err(|reason| CheckError::Replicas { stage: position, reason })?;
        stages.push(DraftStage { first, end: last + 1, replicas });
        next = last + 1;
    }
    if next == blocks { Ok(Draft { stages }) } else { Err(CheckError::Short { next, blocks }) }
}

fn replicas_of(
    problem: &Problem,
    stage: &Stage,
    index: &BTreeMap<&str, usize>,
) -> Result<Vec<(usize, f64)>, String> {
    if !problem.replication && stage.replicas.len() > 1 {
        return Err(format!("{} replicas, but replication is off", stage.replicas.len()));
    }
    let mut seen = BTreeSet::new();
    let mut replicas = Vec::with_capacity(stage.replicas.len());
    let mut sum = 0.0;
    for replica in &stage.replicas {
        let id = &replica.device;
        let device = *index.get(id.as_str()).ok_or_else(|| format!("the device {id:?} is not known"))?;
        if !seen.insert(device) {
            return Err(format!("the device {id:?} is named twice"));
        }
        let class = &problem.devices[device].class;
        let blocks = &problem.blocks[stage.first_block..=stage.last_block];
        if blocks.iter().any(|block| !block.seconds.contains_key(class)) {
            return Err(format!("the device {id:?} is of class {class:?}, which is not profiled"));
        }
        if !(replica.share > 0.0 && replica.share <= 1.0 + RELATIVE_ERROR) {
            return Err(format!("the share of {id:?} is {}", replica.share));
        }
        sum += replica.share;
        replicas.push((device, replica.share));
    }
    if (sum - 1.0).abs() > RELATIVE_ERROR {
        return Err(format!("the shares sum to {sum}, not to 1"));
    }
    Ok(replicas)
}

fn check_limits(problem: &Problem, plan: &Plan) -> Result<(), CheckError> {
    if problem.pin.is_some() {
        return Ok(());
    }
    let (min, max) = (problem.min_stages.unwrap_or(1), problem.max_stages.unwrap_or(usize::MAX));
    let got = plan.stages.len();
    if got < min || got > max { Err(CheckError::StageCount { got, min, max }) } else { Ok(()) }
}

/// Bytes that each device needs for the stages that it stands by for.
fn standby_bytes(problem: &Problem, plan: &Plan) -> Result<Vec<u64>, CheckError> {
    let instance = Instance::new(problem);
    let mut bytes = vec![0u64; problem.devices.len()];
    for (position, stage) in plan.stages.iter().enumerate() {
        let refuse = |reason: String| CheckError::Replicas { stage: position, reason };
        for id in &stage.standbys {
            let device = problem.devices.iter().position(|device| device.id == *id);
            let device = device.ok_or_else(|| refuse(format!("the standby {id:?} is not known")))?;
            if stage.replicas.iter().any(|replica| replica.device == *id) {
                return Err(refuse(format!("{id:?} runs the stage and stands by for it")));
            }
            let needed = instance.stage_bytes(stage.first_block, stage.last_block + 1);
            bytes[device] = bytes[device].saturating_add(needed);
        }
    }
    Ok(bytes)
}

fn check_pin(problem: &Problem, plan: &Plan) -> Result<(), CheckError> {
    let Some(pin) = &problem.pin else { return Ok(()) };
    for (stage, (pinned, planned)) in pin.iter().zip(&plan.stages).enumerate() {
        let wanted: BTreeSet<&str> = pinned.devices.iter().map(String::as_str).collect();
        let got: BTreeSet<&str> = planned.replicas.iter().map(|replica| replica.device.as_str()).collect();
        if (pinned.first_block, pinned.last_block) != (planned.first_block, planned.last_block)
            || wanted != got
        {
            return Err(CheckError::Pin { stage });
        }
    }
    Ok(())
}

fn check_numbers(plan: &Plan, evaluation: &Evaluation) -> Result<(), CheckError> {
    let numbers = [
        ("a bottleneck in seconds of", plan.bottleneck_s, evaluation.bottleneck_s),
        ("a rate per second of", plan.throughput_rps, evaluation.throughput_rps),
        ("a latency in seconds of", plan.latency_s, evaluation.latency_s),
    ];
    for (what, stated, actual) in numbers {
        let is_near = (stated - actual).abs() <= RELATIVE_ERROR * actual.abs().max(1e-9);
        if !is_near {
            return Err(CheckError::Number { what, stated, actual });
        }
    }
    let (stated, actual) = (plan.lower_bound_s, plan.bottleneck_s);
    if !(stated >= 0.0 && stated <= actual * (1.0 + RELATIVE_ERROR)) {
        return Err(CheckError::Number { what: "a lower bound in seconds of", stated, actual });
    }
    Ok(())
}
