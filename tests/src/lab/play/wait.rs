//! Waits of a script: on conditions, each with a bound.

use std::time::{Duration, Instant};

use super::{PlayError, Player};
use crate::lab::{machine::LabDevice, scenario::Condition};

const LOOK: Duration = Duration::from_millis(50);

impl Player {
    pub(super) fn wait(&mut self, until: &Condition, within: Duration) -> Result<(), PlayError> {
        if let Condition::Time(span) = until {
            std::thread::sleep(span.0);
            return Ok(());
        }
        let start = Instant::now();
        let answers: u64 = self.answers();
        while !self.is_so(until, answers) {
            let ended =
                |device: &mut LabDevice| device.daemon.ended().map(|how| (device.name().to_owned(), how));
            if let Some((name, how)) = self.hall.devices.iter_mut().find_map(ended) {
                let log = self.hall.device(&name).map_or(String::new(), |device| device.daemon.log_tail());
                return Err(PlayError::Script(format!(
                    "the daemon of {name} has ended by itself ({how})\n{log}"
                )));
            }
            if start.elapsed() > within {
                let what = format!("{until:?}");
                return Err(PlayError::Wait { what, after: within, logs: self.hall.logs() });
            }
            std::thread::sleep(LOOK);
        }
        if let Condition::NewPlan(name) = until {
            self.remember_epoch(name);
        }
        Ok(())
    }

    pub(super) fn answers(&self) -> u64 {
        self.loads.values().map(|load| load.answers()).sum()
    }

    pub(super) fn remember_epoch(&mut self, name: &str) {
        if let Some(epoch) = self.epoch(name) {
            self.epochs.insert(name.to_owned(), epoch);
        }
    }

    fn is_so(&self, until: &Condition, answers: u64) -> bool {
        match until {
            Condition::Cluster => self.hall.is_one_cluster(),
            Condition::Serving(name) => self.hall.running().all(|device| {
                let path = format!("/v2/models/{name}/ready");
                device
                    .daemon
                    .with_client(move |client| client.get(&path))
                    .is_some_and(|(code, _)| code == 200)
            }),
            Condition::NewPlan(name) => {
                self.epoch(name).is_some_and(|epoch| self.epochs.get(name).is_none_or(|old| epoch > *old))
            }
            Condition::Answers(count) => self.answers() >= answers + count,
            Condition::State { device, state } => self.is_seen(device, state),
            Condition::Time(_) => true,
        }
    }

    fn is_seen(&self, device: &str, state: &str) -> bool {
        self.hall.running().filter(|other| other.name() != device).all(|other| {
            let status = other.daemon.status();
            status.is_some_and(|s| s.nodes.iter().any(|node| node.name == device && node.state == state))
        })
    }

    /// Epoch of a deployment's plan, as the first running device sees it; `None` while it does not serve.
    pub fn epoch(&self, name: &str) -> Option<u64> {
        let status = self.hall.running().next()?.daemon.status()?;
        status.deployments.iter().find(|d| d.name == name && d.state == "serving").map(|d| d.epoch)
    }
}
