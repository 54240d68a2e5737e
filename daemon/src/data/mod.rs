//! The data plane: requests enter at an ingress, run through the stages of a route, and their answers come back.
//!
//! - [`ingress`] keeps every accepted request until it is answered: route, window, retries, deadline. Pure: events
//!   in, effects out, time injected.
//! - [`balance`] picks a replica per stage. Pure.
//! - [`reachable`] says which stages frames reach and how others are refused. Pure.
//! - [`frame`] is the wire format, checked before anything is allocated; [`wire`] moves frames over a byte stream.
//! - [`link`] owns the one outbound stream to a peer, [`sent`] how large its frames were, [`taken`] which of them may be
//!   lost with it; [`underway`] counts large ones that cross; [`hosting`] is the queue in front of a stage that runs here.
//! - [`plane`] ties them together behind [`DataPlane`], the only thing that the rest of the daemon sees.
//!
//! Nothing here blocks on something that another device may hold up: readers only ever *try* to queue work, and what
//! finds a full queue is answered "busy" and sent again by its ingress. The ingress's window bounds what is in flight.

mod balance;
mod busy;
mod frame;
mod hosting;
mod ingress;
mod latency;
mod limits;
mod link;
mod metrics;
mod pack;
mod plane;
mod reachable;
mod route;
mod sent;
mod taken;
mod transport;
mod underway;
mod wire;

pub use balance::Detour;
pub use frame::{Address, Failure, FailureKind, Named};
pub use hosting::{HostedStage, StageRun};
pub use ingress::{Dispatch, Effect, Gone, Ingress};
pub use limits::DataLimits;
pub use metrics::{DataMetrics, DeploymentMetrics, LinkMetrics, StageMetrics};
pub use plane::DataPlane;
pub use reachable::Reachable;
pub use route::{Route, RouteStage, StageKey};
pub use sent::SentMetrics;
pub use transport::{DataStream, Transport};
pub use underway::UnderWay;

#[cfg(test)]
mod tests;
