//! A stretch of steady load: rates, latencies, processor time and bytes, beside what the plan had predicted.

use std::time::{Duration, Instant};

use mesh_daemon::status::{DeploymentStatus, Status};

use super::{PlayError, Player, reference::Reference};
use crate::lab::{
    load::{Window, measure_steady},
    machine::Usage,
    report::{DeviceUse, Measurement},
};

/// Most time for the warm-up, and for the measurement.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at what is predicted.
const LOOK: Duration = Duration::from_secs(4);
/// Most times that a measurement begins again because the plan has changed.
const MOVES: usize = 4;

/// What to measure of the running load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch<'a> {
    /// Heads the row of the report.
    pub(super) label: &'a str,
    /// Least length.
    pub(super) seconds: f64,
    /// Least number of answers.
    pub(super) answers: u64,
    /// Answers to let pass before.
    pub(super) warmup: u64,
}

impl Player {
    /// A stretch of the running load, and how fast the host is meanwhile.
    pub(super) fn measure(
        &self,
        stretch: &Stretch<'_>,
        mut reference: Option<&mut Reference>,
    ) -> Result<Measurement, PlayError> {
        let Stretch { label, seconds, answers, warmup } = *stretch;
        let Some((deployment, load)) = self.loads.iter().next() else {
            return Err(PlayError::Script(format!("{label}: there is no load to measure")));
        };
        let deployment = deployment.clone();
        load.wait_for(warmup, PATIENCE)?;
        let (mut moves, mut forecasts) = (0, Forecasts::default());
        let (status, before, begun, steady) = loop {
            let status = self.status();
            let begun = Instant::now();
            let before: Vec<Usage> = self.hall.devices.iter().map(|device| device.usage()).collect();
            let window = Window { warmup_answers: 0, answers, seconds, bound: PATIENCE };
            forecasts.clear();
            reference.iter_mut().for_each(|reference| reference.clear());
            let steady = measure_steady(load, &window, &mut || {
                forecasts.look(self, &deployment);
                reference.iter_mut().for_each(|reference| reference.look());
            })?;
            // A mesh that moves to a better plan meanwhile has shown neither of the two.
            let epoch = |status: &Status| {
                status.deployments.iter().find(|d| d.name == deployment).map(|deployed| deployed.epoch)
            };
            if moves == MOVES || status.as_ref().and_then(epoch) == self.status().as_ref().and_then(epoch) {
                break (status, before, begun, steady);
            }
            moves += 1;
            (self.tell)(&format!("            {label}: the plan has changed, measured again"));
        };
        // Where answers are slow, the devices are at work for long after the window, until its last requests are answered.
        let worked = begun.elapsed().as_secs_f64();
        let after: Vec<Usage> = self.hall.devices.iter().map(|device| device.usage()).collect();
        let deployed = status.as_ref().and_then(|s| s.deployments.iter().find(|d| d.name == deployment));
        let predicted = forecasts.mean();
        (self.tell)(&format!(
            "            {label}: {:.2} answers/s, predicted {predicted:.2}",
            steady.rate_rps
        ));
        let devices = self.hall.devices.iter().zip(before.iter().zip(&after));
        Ok(Measurement {
            label: label.to_owned(),
            seconds: steady.to_s - steady.from_s,
            answers: steady.answers,
            faults: steady.errors,
            rate: steady.rate_rps,
            p50_ms: steady.latency.p50_ms,
            p99_ms: steady.latency.p99_ms,
            predicted,
            foreseen: deployed.map_or(0.0, |deployed| deployed.predicted_rps),
            planned: 0.0,
            whole_s: reference.map_or(0.0, |reference| reference.middle()),
            plan: deployed
                .zip(status.as_ref())
                .map_or(String::new(), |(deployed, status)| plan(deployed, status)),
            devices: devices
                .map(|(device, (before, after))| {
                    DeviceUse::between(device.name(), *before, *after, worked, steady.rate_rps)
                })
                .collect(),
            deployment,
            impossible: None,
            turns: Vec::new(),
        })
    }

    /// As the first running device sees it.
    pub(super) fn status(&self) -> Option<Status> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let status = self.hall.running().next()?.daemon.status();
            if status.is_some() || Instant::now() > deadline {
                return status;
            }
        }
    }
}

/// What the mesh predicts while it is measured. A host's own speed drifts by a tenth and more within seconds, and the
/// forecast with it: what was predicted before is of another host than the rate.
#[derive(Debug, Default)]
struct Forecasts {
    looked: Option<Instant>,
    rates: Vec<f64>,
}

impl Forecasts {
    fn clear(&mut self) {
        *self = Self::default();
    }

    /// Asks for the forecast, unless that was done a moment ago.
    fn look(&mut self, player: &Player, deployment: &str) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        self.rates.extend(player.predicted(deployment));
    }

    fn mean(&self) -> f64 {
        self.rates.iter().sum::<f64>() / self.rates.len().max(1) as f64
    }
}

/// A plan in a line, and what limits it.
fn plan(deployed: &DeploymentStatus, status: &Status) -> String {
    let name = |id: &str| {
        status.nodes.iter().find(|node| node.id == id).map_or("?", |node| node.name.as_str()).to_owned()
    };
    let stages = deployed.stages.iter().map(|stage| {
        let devices: Vec<String> = stage.replicas.iter().map(|replica| name(&replica.node)).collect();
        format!("{}-{} on {}", stage.first_block, stage.last_block, devices.join("+"))
    });
    let stages = stages.collect::<Vec<_>>().join(" | ");
    match &deployed.bottleneck {
        Some(limit) => {
            format!("{stages}; limited by the {} of {}, stage {}", limit.kind, name(&limit.node), limit.stage)
        }
        None => stages,
    }
}
