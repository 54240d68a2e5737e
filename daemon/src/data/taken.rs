//! Frames that a stream has taken. Taken is not arrived: what lies in buffers is lost with the stream, and where both
//! ends go on living nobody else would notice.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::frame::{Body, Frame};

/// Frames that one link has on its way: four ingresses with full windows.
const FRAMES_MAX: usize = 256;
/// What was taken longer ago has arrived, or has been given up.
const AGE_MAX: Duration = Duration::from_secs(60);

/// The newest frames of a stream, without their tensors: whoever has sent a request keeps its inputs.
#[derive(Debug, Default)]
pub(super) struct Taken(VecDeque<(Instant, Frame)>);

impl Taken {
    /// The stream has taken a frame. Of those that only tell something none is kept.
    pub(super) fn add(&mut self, now: Instant, frame: Frame) {
        let Frame { address, body } = frame;
        let body = match body {
            Body::Activation { stage, deadline, tensors: _ } => {
                Body::Activation { stage, deadline, tensors: Vec::new() }
            }
            Body::Result { tensors: _ } => Body::Result { tensors: Vec::new() },
            Body::Moved { .. } | Body::Failed(_) => return,
        };
        if self.0.len() == FRAMES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, Frame { address, body }));
    }

    /// The stream is gone: the frames that may be lost with it. The newest come first, as they are the likeliest to be
    /// lost and what tells of them may find its own queue full.
    pub(super) fn lose(&mut self, now: Instant) -> Vec<Frame> {
        let is_open = |at: Instant, frame: &Frame| {
            let is_over = matches!(&frame.body, Body::Activation { deadline, .. } if *deadline <= now);
            !is_over && now.saturating_duration_since(at) < AGE_MAX
        };
        self.0.drain(..).rev().filter(|(at, frame)| is_open(*at, frame)).map(|(_, frame)| frame).collect()
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;
    use mesh_inference::tensor::Tensor;

    use super::*;
    use crate::data::frame::{Address, Failure, FailureKind};

    fn frame(request: u64, body: Body) -> Frame {
        let address = Address {
            request,
            attempt: 0,
            ingress: PeerId::random(),
            deployment: "m".into(),
            epoch: 1,
            devices: Vec::new().into(),
            backlog: Vec::new(),
        };
        Frame { address, body }
    }

    #[test]
    fn what_may_be_lost_is_told_once_the_newest_first() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let tensors = || vec![("x".to_owned(), Tensor::from_slice(&[1], &[1.0f32]).unwrap())];
        let activation = |seconds: u32| Body::Activation {
            stage: 1,
            deadline: now + second * seconds,
            tensors: tensors(),
        };
        let failure = || {
            let message = String::new();
            Failure { kind: FailureKind::Busy, stage: 0, blame: PeerId::random(), message }
        };
        let mut taken = Taken::default();
        taken.add(now, frame(1, Body::Result { tensors: tensors() }));
        taken.add(now + second * 5, frame(2, activation(1)));
        taken.add(now + second * 50, frame(3, activation(90)));
        taken.add(now + second * 50, frame(4, Body::Result { tensors: tensors() }));
        taken.add(now + second * 50, frame(5, Body::Moved { stage: 1 }));
        taken.add(now + second * 50, frame(6, Body::Failed(failure())));
        let lost = taken.lose(now + second * 61);
        assert_eq!(lost.iter().map(|frame| frame.address.request).collect::<Vec<_>>(), [4, 3]);
        assert!(lost.iter().all(|frame| frame.tensors().is_empty()));
        assert!(taken.lose(now + second * 61).is_empty());
        for request in 0..2 * FRAMES_MAX as u64 {
            taken.add(now, frame(request, Body::Result { tensors: tensors() }));
        }
        let lost = taken.lose(now);
        assert_eq!((lost.len(), lost[0].address.request), (FRAMES_MAX, 2 * FRAMES_MAX as u64 - 1));
    }
}
