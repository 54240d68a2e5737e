//! The planning of published systems as pure functions, to compare Mesh's plans with.
//!
//! Every policy turns a [`Problem`] into stages with one device each ([`Policy::Copies`]: one stage, many devices). What they cost is then Mesh's own evaluation,
//! the same for all: the stages are pinned and [`mesh_planner::solve`] predicts the numbers ([`plan`]). Each policy
//! decides by its own system's model; memory is counted as Mesh counts it, so that a policy that respects memory
//! never gives stages that cannot run.

mod copies;
mod defer;
mod edgepipe;
mod greedy;
mod kpath;
mod partition;
mod pipedream;
mod random;
mod seifer;
mod single;
#[cfg(test)]
mod tests;
mod view;
pub mod vit;

use std::str::FromStr;

use mesh_planner::{DEFAULT_STEPS, PinnedStage, Plan, Problem, solve};

pub use copies::copies;
pub use defer::{defer, defer_cuts, residual_joins};
pub use edgepipe::edgepipe;
pub use greedy::greedy;
pub use pipedream::pipedream;
pub use random::random;
pub use seifer::seifer;
pub use single::single;
pub(crate) use {
    kpath::{Links as PathLinks, place},
    partition::{Limits, least_sum},
};

/// Whose planning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Mesh's own planner.
    Mesh,
    /// The whole model on every device that holds it.
    Copies,
    /// The whole model on the fastest device that holds it.
    Single,
    /// DEFER: cuts given by hand, a chain in list order.
    Defer,
    /// SEIFER: cuts with the least sum of transfers, colour-coded k-path placement.
    Seifer,
    /// EdgePipe: the exact programme over device types.
    Edgepipe,
    /// PipeDream: the best partition when all devices are taken for equal.
    Pipedream,
    /// SEIFER's greedy baseline: its cuts, placed along the best remaining link.
    Greedy,
    /// A random division on random devices.
    Random,
}

impl Policy {
    /// All of them, Mesh first.
    pub const ALL: [Self; 9] = [
        Self::Mesh,
        Self::Copies,
        Self::Single,
        Self::Defer,
        Self::Seifer,
        Self::Edgepipe,
        Self::Pipedream,
        Self::Greedy,
        Self::Random,
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Copies => "copies",
            Self::Single => "single",
            Self::Defer => "defer",
            Self::Seifer => "seifer",
            Self::Edgepipe => "edgepipe",
            Self::Pipedream => "pipedream",
            Self::Greedy => "greedy",
            Self::Random => "random",
        }
    }

    /// Whether it stands for other systems, or for the planning of people.
    pub fn is_baseline(self) -> bool {
        !matches!(self, Self::Mesh | Self::Copies)
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|policy| policy.name()).collect();
            format!("there is no policy {name:?}; give one of {}", names.join(", "))
        })
    }
}

/// What some policies need beside the problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// Seed of what is drawn at random (`seifer`, `random`).
    pub seed: u64,
    /// DEFER's cuts: the first block of every part but the first. `None`: parts with equal numbers of blocks.
    pub defer_cuts: Option<Vec<usize>>,
    /// SEIFER's number of bandwidth classes.
    pub classes: usize,
}

impl Default for Choices {
    /// 20 classes: the best of SEIFER's published settings.
    fn default() -> Self {
        Self { seed: 0, defer_cuts: None, classes: 20 }
    }
}

/// The stages that a policy chooses, in the form that `Problem::pin` takes.
///
/// # Errors
/// Why the policy has no stages for this problem, in words.
pub fn stages(policy: Policy, problem: &Problem, choices: &Choices) -> Result<Vec<PinnedStage>, String> {
    match policy {
        Policy::Mesh => {
            let plan = solve(problem, DEFAULT_STEPS).map_err(|error| error.to_string())?;
            Ok(pinned(&plan))
        }
        Policy::Copies => copies(problem),
        Policy::Single => single(problem),
        Policy::Defer => defer(problem, choices.defer_cuts.as_deref()),
        Policy::Seifer => seifer(problem, choices.classes, choices.seed),
        Policy::Edgepipe => edgepipe(problem),
        Policy::Pipedream => pipedream(problem),
        Policy::Greedy => greedy(problem),
        Policy::Random => random(problem, choices.seed),
    }
}

/// A policy's plan with the numbers that Mesh's cost model predicts for it.
///
/// # Errors
/// Why there is none, in words.
pub fn plan(policy: Policy, problem: &Problem, choices: &Choices) -> Result<Plan, String> {
    if policy == Policy::Mesh {
        return solve(problem, DEFAULT_STEPS).map_err(|error| error.to_string());
    }
    let stages = stages(policy, problem, choices)?;
    cost(problem, stages).map(|plan| Plan { why: format!("Stages by the policy {}.", policy.name()), ..plan })
}

/// The plan of given stages, with the numbers that Mesh's cost model predicts.
///
/// # Errors
/// When the stages do not cover the model, or a device cannot hold what it is given.
pub fn cost(problem: &Problem, stages: Vec<PinnedStage>) -> Result<Plan, String> {
    let pinned = Problem { pin: Some(stages), ..problem.clone() };
    solve(&pinned, DEFAULT_STEPS).map_err(|error| error.to_string())
}

/// A plan's stages and devices without the shares.
pub fn pinned(plan: &Plan) -> Vec<PinnedStage> {
    let stage = |stage: &mesh_planner::Stage| PinnedStage {
        first_block: stage.first_block,
        last_block: stage.last_block,
        devices: stage.replicas.iter().map(|replica| replica.device.clone()).collect(),
    };
    plan.stages.iter().map(stage).collect()
}
