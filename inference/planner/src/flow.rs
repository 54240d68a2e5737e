//! Who sends how much to whom: local first, the rest in proportion.
//!
//! A device that has a request and also runs the next stage keeps the request, as far as its share of that stage
//! goes. What is left over is spread over the receivers that still lack requests. So a model that runs everywhere, with
//! requests that enter evenly, moves nothing over links.

/// Parts smaller than this are rounding.
const NOTHING: f64 = 1e-12;

/// What two neighbouring distributions cannot settle within devices.
#[derive(Debug)]
pub(crate) struct Remote {
    /// What each sender still has, by device.
    pub(crate) senders: Vec<(usize, f64)>,
    /// What each receiver still lacks, by device.
    pub(crate) receivers: Vec<(usize, f64)>,
    /// The fraction of all requests that moves.
    pub(crate) fraction: f64,
}

impl Remote {
    /// From the fractions of the requests at each sender and the fractions that each receiver takes. No device is
    /// listed twice in one of them.
    pub(crate) fn between(senders: &[(usize, f64)], receivers: &[(usize, f64)]) -> Self {
        let (mut senders, mut receivers) = (senders.to_vec(), receivers.to_vec());
        senders.sort_unstable_by_key(|&(device, _)| device);
        receivers.sort_unstable_by_key(|&(device, _)| device);
        let mut next = 0;
        for (device, has) in &mut senders {
            while receivers.get(next).is_some_and(|(other, _)| other < device) {
                next += 1;
            }
            if let Some((_, lacks)) = receivers.get_mut(next).filter(|(other, _)| other == device) {
                let local = has.min(*lacks);
                *has -= local;
                *lacks -= local;
            }
        }
        senders.retain(|&(_, part)| part > NOTHING);
        receivers.retain(|&(_, part)| part > NOTHING);
        let fraction = senders.iter().map(|(_, part)| part).sum();
        Self { senders, receivers, fraction }
    }

    /// Every pair with the fraction of all requests that goes from the first to the second.
    pub(crate) fn flows(&self) -> impl Iterator<Item = (usize, usize, f64)> + '_ {
        self.senders.iter().flat_map(move |&(from, has)| {
            self.receivers.iter().map(move |&(to, lacks)| (from, to, has * lacks / self.fraction))
        })
    }
}
