//! How fast this device is, by the calibration run.

use std::time::Duration;

use mesh_inference::{profile::calibrate, runtime::Engine};

use super::facts::Facts;
use crate::net::Net;

/// The device is measured at once, and some times more after these pauses: one that has just been switched on is busy with
/// other things, and the fastest run is the one that they have not slowed.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(12),
    Duration::from_secs(16),
];
/// A time that is shorter by less than this part is no news.
const NEWS: f64 = 0.01;

/// Measures this device, away from the runtime's threads.
pub fn measure_in_background(net: &Net, facts: &Facts, engine: Engine, threads: usize) {
    let (net, facts) = (net.clone(), facts.clone());
    tokio::spawn(async move {
        for pause in PAUSES {
            tokio::time::sleep(pause).await;
            let (engine, facts, net) = (engine.clone(), facts.clone(), net.clone());
            let measured = crate::background::spawn(move || measure(&net, &facts, &engine, threads)).await;
            if !measured.unwrap_or(false) {
                return;
            }
        }
    });
}

/// Measures this device once more. Gives whether that was possible.
fn measure(net: &Net, facts: &Facts, engine: &Engine, threads: usize) -> bool {
    let measured = calibrate(engine, threads);
    mesh_inference::memory::give_back();
    match measured {
        Ok(calibration) => {
            let (seconds, known) = (calibration.seconds, facts.own().calibration_s);
            if known.is_none_or(|known| seconds < known * (1.0 - NEWS)) {
                tracing::info!(seconds, known, "this device is measured");
                facts.update_own(net, |own| own.calibration_s = Some(seconds));
            }
            true
        }
        Err(error) => {
            tracing::error!(error = %super::chain(&error), "this device cannot be measured: it takes no stages");
            false
        }
    }
}

/// The calibration time that belongs to times of a model measured just now: the fastest run of this device so far, and
/// now, when it is as busy as it was then. `known` is what was known before.
pub fn beside_a_profile(facts: &Facts, engine: &Engine, threads: usize, known: f64) -> f64 {
    let now = calibrate(engine, threads).map_or(known, |calibration| calibration.seconds);
    facts.own().calibration_s.unwrap_or(known).min(known).min(now)
}
