//! Planning: cut a profiled model into stages and place them on devices. Pure: no I/O, no clock.
//!
//! `solve` turns a `Problem` into a `Plan`; `check` verifies any plan against its problem, independently of how it
//! was found; `evaluate` is the one cost model behind both.

mod bound;
mod check;
mod evaluate;
mod explain;
mod flow;
mod instance;
mod lift;
mod loading;
mod plan;
mod problem;
mod restate;
mod size;
mod solve;
mod standby;

pub use check::{CheckError, check, evaluate};
pub use evaluate::{Evaluation, Load, ProcessorLoad, Resource, StageCost};
pub use lift::{Lift, lifts};
pub use loading::loading_s;
pub use plan::{Alternative, Bottleneck, BottleneckKind, Objective, Plan, Replica, Stage, Unused};
pub use problem::{
    Block, Device, LinkRate, Links, PairLink, PinnedStage, Problem, ProblemError, TransferCost,
};
pub use restate::{reshare, restate};
pub use size::size;
pub use solve::{DEFAULT_STEPS, Infeasible, Replan, replan, solve, solve_lighter};
pub use standby::with_standbys;
