//! How large the frames of each stage are on the wire.

use super::{frame::Address, link::smooth, route::StageKey};

/// Stages of which a link keeps the size; the one not sent to for the longest time makes room.
const STAGES_MAX: usize = 64;

/// Activations that went over one link to one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct SentMetrics {
    /// The stage that they were sent to.
    pub to: StageKey,
    /// How many.
    pub frames: u64,
    /// Bytes of one on the wire, smoothed.
    pub bytes: f64,
}

/// What a link has sent, by stage; the one sent to last comes last.
#[derive(Debug, Default)]
pub(super) struct Sent(Vec<SentMetrics>);

impl Sent {
    /// A frame of inputs for a stage has gone.
    pub(super) fn add(&mut self, address: &Address, stage: usize, bytes: usize) {
        let is_it = |sent: &SentMetrics| {
            let StageKey { deployment, epoch, stage: index } = &sent.to;
            (*index, *epoch, deployment.as_str()) == (stage, address.epoch, &*address.deployment)
        };
        match self.0.iter().rposition(is_it) {
            Some(at) => {
                let sent = &mut self.0[at];
                sent.frames += 1;
                sent.bytes = smooth(sent.bytes, bytes as f64);
                self.0[at..].rotate_left(1);
            }
            None => {
                if self.0.len() == STAGES_MAX {
                    self.0.remove(0);
                }
                let deployment = address.deployment.to_string();
                let to = StageKey { deployment, epoch: address.epoch, stage };
                self.0.push(SentMetrics { to, frames: 1, bytes: bytes as f64 });
            }
        }
    }

    pub(super) fn metrics(&self) -> Vec<SentMetrics> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    fn address(deployment: &str, epoch: u64) -> Address {
        Address {
            request: 1,
            attempt: 0,
            ingress: PeerId::random(),
            deployment: deployment.into(),
            epoch,
            devices: Vec::new().into(),
            backlog: Vec::new(),
        }
    }

    #[test]
    fn frames_are_counted_by_the_stage_they_go_to() {
        let mut sent = Sent::default();
        for (epoch, stage, bytes) in [(1, 0, 100), (1, 2, 300), (1, 0, 100), (2, 0, 500)] {
            sent.add(&address("a", epoch), stage, bytes);
        }
        sent.add(&address("b", 1), 0, 700);
        let seen: Vec<_> = sent.metrics().iter().map(|m| (m.to.to_string(), m.frames, m.bytes)).collect();
        let of = |stage, name, epoch| format!("stage {stage} of {name}, epoch {epoch}");
        assert_eq!(
            seen,
            [
                (of(2, "a", 1), 1, 300.0),
                (of(0, "a", 1), 2, 100.0),
                (of(0, "a", 2), 1, 500.0),
                (of(0, "b", 1), 1, 700.0)
            ]
        );
    }

    #[test]
    fn the_stage_not_sent_to_for_longest_makes_room() {
        let mut sent = Sent::default();
        for stage in 0..STAGES_MAX {
            sent.add(&address("a", 1), stage, 1);
        }
        sent.add(&address("a", 1), 0, 1);
        sent.add(&address("a", 2), 0, 1);
        let stages: Vec<_> = sent.metrics().iter().map(|m| (m.to.epoch, m.to.stage)).collect();
        assert_eq!(stages.len(), STAGES_MAX);
        assert!(stages.contains(&(1, 0)) && !stages.contains(&(1, 1)));
    }
}
