//! How fast groups of devices run stages: what each device adds, for all pairs of positions.

use std::cell::OnceCell;

use crate::evaluate::Draft;
use crate::instance::Instance;

/// How busy the members of a group are when they share a stage in the best way: `load = fixed + each * share` with
/// the same load for all gives the load for shares that sum to 1.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Group {
    /// Sums of 1 / each and fixed / each, with what data costs the processors.
    rate: f64,
    fixed: f64,
    /// Requests per second by compute alone.
    compute: f64,
}

impl Group {
    /// What one device adds: nothing when it cannot hold the stage.
    fn alone(instance: &Instance<'_>, device: usize, first: usize, end: usize) -> Self {
        if instance.stage_bytes(first, end) > instance.memory(device) {
            return Self::default();
        }
        let compute = instance.seconds(device, first, end).max(1e-12);
        let entering = instance.ingress[device];
        let exchanged = instance.problem.ingress.is_some();
        let (mut each, mut fixed) = (compute * instance.compute_share(device), 0.0);
        // Requests that enter at this device stay here as far as its share goes; others are sent on.
        let receive_s = instance.receive_s(device, instance.cut(first));
        if first > 0 {
            each += receive_s;
            fixed += entering * instance.send_s(device, instance.cut(0));
        } else if exchanged {
            each += receive_s;
            fixed -= entering * receive_s;
        }
        let send_s = instance.send_s(device, instance.cut(end));
        if end < instance.blocks {
            each += send_s;
            fixed += entering * instance.receive_s(device, instance.cut(instance.blocks));
        } else if exchanged {
            each += send_s;
            fixed -= entering * send_s;
        }
        Self { rate: 1.0 / each, fixed: fixed / each, compute: 1.0 / compute }
    }

    /// One more device, or none when it cannot hold the stage.
    pub(super) fn join(&mut self, other: &Self) {
        self.rate += other.rate;
        self.fixed += other.fixed;
        self.compute += other.compute;
    }

    /// The group takes so long or longer, or has no members.
    pub(super) fn takes(&self, seconds: f64) -> bool {
        self.compute <= 0.0 || 1.0 + self.fixed >= seconds * self.rate || 1.0 >= seconds * self.compute
    }

    pub(super) fn busy_s(&self) -> f64 {
        f64::max((1.0 + self.fixed) / self.rate, 1.0 / self.compute)
    }
}

/// No shares make the stages of a draft with these devices faster: links and cards are left out, and no device may
/// have two stages.
pub(super) fn least_busy_s(instance: &Instance<'_>, draft: &Draft) -> f64 {
    let stages = draft.stages.iter().map(|stage| {
        let mut group = Group::default();
        for &(device, _) in &stage.replicas {
            group.join(&Group::alone(instance, device, stage.first, stage.end));
        }
        group.busy_s()
    });
    stages.fold(0.0, f64::max)
}

/// What devices add to groups.
pub(super) struct Rates<'a> {
    pub(super) instance: &'a Instance<'a>,
    /// Where stages may begin and end.
    pub(super) positions: Vec<usize>,
    /// By device, for those that were asked for.
    devices: Vec<OnceCell<Vec<Group>>>,
}

impl<'a> Rates<'a> {
    pub(super) fn new(instance: &'a Instance<'a>, positions: Vec<usize>) -> Self {
        Self { instance, positions, devices: vec![OnceCell::new(); instance.devices()] }
    }

    /// By the indices of a stage's first position and its end: `end * positions + first`, as searches go through the
    /// first positions for one end.
    pub(super) fn of(&self, device: usize) -> &[Group] {
        self.devices[device].get_or_init(|| {
            let width = self.positions.len();
            let mut groups = vec![Group::default(); width * width];
            for (end, &to) in self.positions.iter().enumerate() {
                for (start, &from) in self.positions.iter().enumerate().take(end) {
                    groups[end * width + start] = Group::alone(self.instance, device, from, to);
                }
            }
            groups
        })
    }
}
