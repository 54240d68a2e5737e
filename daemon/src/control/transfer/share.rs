//! Who is asked for which blob. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mesh_inference::blobs::Hash;

use super::{super::rpc::HAVE_MAX, Wanted};
use crate::net::PeerId;

/// Why a peer did not give a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It was out of reach, broke off, has none after all, or still reads its copy through.
    Passing,
    /// What it gave is not the blob.
    Damaged,
}

/// What went wrong during one fetch, by whom was asked for what.
#[derive(Debug, Default)]
pub(super) struct Faults {
    damaged: BTreeSet<(PeerId, Hash)>,
    passing: BTreeMap<(PeerId, Hash), u32>,
}

impl Faults {
    pub(super) fn note(&mut self, peer: PeerId, hash: Hash, fault: Fault) {
        match fault {
            Fault::Passing => *self.passing.entry((peer, hash)).or_default() += 1,
            Fault::Damaged => {
                self.damaged.insert((peer, hash));
            }
        }
    }

    /// Whether what this peer gives is not this blob.
    fn is_damaged(&self, peer: PeerId, hash: Hash) -> bool {
        self.damaged.contains(&(peer, hash))
    }

    fn passing(&self, peer: PeerId, hash: Hash) -> u32 {
        self.passing.get(&(peer, hash)).copied().unwrap_or(0)
    }

    /// One of these blobs that came damaged, and from whom.
    pub(super) fn first_damaged(&self, missing: &[Wanted]) -> Option<(PeerId, Hash)> {
        self.damaged.iter().find(|(_, hash)| missing.iter().any(|wanted| wanted.hash == *hash)).copied()
    }
}

/// Slower holders than this part of another do not take its blobs over: they would be the last.
const NOT_SLOWER: f64 = 0.5;

/// Another holder is this many times faster than one that is given up in the middle of a blob.
const FAR_FASTER: f64 = 4.0;

/// A device that holds some of the missing blobs.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    /// Which, by position.
    pub(super) held: Vec<bool>,
    /// Of the way from it to here, as far as is known.
    pub(super) bytes_per_s: f64,
}

/// What is asked of whom, until all have been asked for all of it.
#[derive(Debug, Default)]
pub(super) struct Round {
    work: BTreeMap<PeerId, Work>,
}

#[derive(Debug)]
struct Work {
    queue: VecDeque<Wanted>,
    bytes_per_s: f64,
    /// What it holds and has not failed with.
    held: BTreeSet<Hash>,
}

impl Round {
    /// Nobody is asked for anything.
    pub(super) fn is_empty(&self) -> bool {
        self.peers().is_empty()
    }

    /// Who is asked.
    pub(super) fn peers(&self) -> Vec<PeerId> {
        self.work.iter().filter(|(_, work)| !work.queue.is_empty()).map(|(peer, _)| *peer).collect()
    }

    /// Whether a blob that comes from a holder at this rate would come far faster from another one.
    pub(super) fn is_far_faster_elsewhere(&self, peer: PeerId, hash: Hash, bytes_per_s: f64) -> bool {
        self.work.iter().any(|(other, work)| {
            *other != peer && work.held.contains(&hash) && work.bytes_per_s > bytes_per_s * FAR_FASTER
        })
    }

    /// Bytes per second of each holder, as last seen or known.
    pub(super) fn rates(&self) -> impl Iterator<Item = (PeerId, f64)> {
        self.work.iter().map(|(peer, work)| (*peer, work.bytes_per_s))
    }

    /// What a holder is asked for next: the next in its queue; once that is empty, the last in the longest queue of one
    /// that is not much faster.
    pub(super) fn next(&mut self, peer: PeerId) -> Option<Wanted> {
        let own = self.work.get_mut(&peer)?;
        if let Some(wanted) = own.queue.pop_front() {
            return Some(wanted);
        }
        let own = self.work.get(&peer)?;
        let may_take = |other: &Work| {
            own.bytes_per_s >= other.bytes_per_s * NOT_SLOWER
                && other.queue.back().is_some_and(|wanted| own.held.contains(&wanted.hash))
        };
        let seconds = |other: &Work| bytes(&other.queue) as f64 / other.bytes_per_s.max(1.0);
        let longest = self
            .work
            .iter()
            .filter(|(_, other)| may_take(other))
            .max_by(|(_, a), (_, b)| seconds(a).total_cmp(&seconds(b)))?;
        let longest = *longest.0;
        self.work.get_mut(&longest)?.queue.pop_back()
    }

    /// A holder has given bytes at this rate.
    pub(super) fn seen(&mut self, peer: PeerId, bytes_per_s: f64) {
        if let Some(work) = self.work.get_mut(&peer) {
            work.bytes_per_s = bytes_per_s;
        }
    }

    /// What is still in a holder's queue.
    pub(super) fn left(&self, peer: PeerId) -> impl Iterator<Item = Hash> {
        self.work.get(&peer).into_iter().flat_map(|work| work.queue.iter().map(|wanted| wanted.hash))
    }
}

fn bytes(queue: &VecDeque<Wanted>) -> u64 {
    queue.iter().map(|wanted| wanted.bytes.unwrap_or(1)).sum()
}

/// Gives each missing blob to one of its holders, largest blobs first: to one that has failed least with it so far, and
/// among those to the one that is done with it first. A holder of a damaged copy is not asked for it again.
pub(super) fn distribute(missing: &[Wanted], holders: &BTreeMap<PeerId, Holder>, faults: &Faults) -> Round {
    let mut order: Vec<usize> = (0..missing.len().min(HAVE_MAX)).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(missing[i].bytes.unwrap_or(0)));
    // Alike where one is not twice as fast: measured rates differ a little, and all would ask the same one.
    let rate = |holder: &Holder| holder.bytes_per_s.max(1.0).log2().round().exp2();
    let mut load_s: BTreeMap<PeerId, f64> = BTreeMap::new();
    let mut round = Round::default();
    for i in order {
        let hash = missing[i].hash;
        let able: Vec<(PeerId, &Holder)> = holders
            .iter()
            .filter(|(peer, holder)| holder.held[i] && !faults.is_damaged(**peer, hash))
            .map(|(peer, holder)| (*peer, holder))
            .collect();
        let done_s = |(peer, holder): &(PeerId, &Holder)| {
            load_s.get(peer).copied().unwrap_or(0.0) + missing[i].bytes.unwrap_or(1) as f64 / rate(holder)
        };
        let best = able.iter().min_by(|a, b| {
            let failures = |(peer, _): &(PeerId, &Holder)| faults.passing(*peer, hash);
            failures(a).cmp(&failures(b)).then_with(|| done_s(a).total_cmp(&done_s(b)))
        });
        let Some(&best) = best else { continue };
        let done = done_s(&best);
        load_s.insert(best.0, done);
        for (peer, holder) in able {
            let new =
                || Work { queue: VecDeque::new(), bytes_per_s: holder.bytes_per_s, held: BTreeSet::new() };
            let work = round.work.entry(peer).or_insert_with(new);
            if peer == best.0 {
                work.queue.push_back(missing[i]);
            }
            if faults.passing(peer, hash) == 0 {
                work.held.insert(hash);
            }
        }
    }
    round
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Wanted blobs, and who of some peers holds which, by bits.
    fn world(sizes: &[u64], held: &[u8]) -> (Vec<Wanted>, BTreeMap<PeerId, Holder>) {
        let wanted =
            |(i, bytes): (usize, &u64)| Wanted { hash: Hash::of(&i.to_be_bytes()), bytes: Some(*bytes) };
        let missing: Vec<Wanted> = sizes.iter().enumerate().map(wanted).collect();
        let holds = |p: usize| held.iter().take(sizes.len()).map(|bits| bits & (1 << p) != 0).collect();
        let holder = |p: usize| Holder { held: holds(p), bytes_per_s: [1e6, 1e6, 1e8][p] };
        (missing, (0..3).map(|p| (PeerId::random(), holder(p))).collect())
    }

    /// Everything that is asked in a round, in turns.
    fn played(mut round: Round) -> Vec<(PeerId, Wanted)> {
        let mut asked = Vec::new();
        loop {
            let before = asked.len();
            for peer in round.peers() {
                asked.extend(round.next(peer).map(|wanted| (peer, wanted)));
            }
            if asked.len() == before {
                return asked;
            }
        }
    }

    proptest! {
        /// Every missing blob that somebody holds undamaged is asked of exactly one holder: a real one, none whose copy
        /// is damaged, and one with the fewest failures.
        #[test]
        fn each_blob_is_asked_of_one_sound_holder(
            sizes in prop::collection::vec(0u64..1000, 1..40),
            held in prop::collection::vec(any::<u8>(), 40),
            noted in prop::collection::vec((0usize..3, 0usize..40, any::<bool>()), 0..200),
        ) {
            let (missing, holders) = world(&sizes, &held);
            let peers: Vec<PeerId> = holders.keys().copied().collect();
            let mut faults = Faults::default();
            for (p, i, is_damaged) in noted.into_iter().filter(|(_, i, _)| *i < missing.len()) {
                let fault = if is_damaged { Fault::Damaged } else { Fault::Passing };
                faults.note(peers[p], missing[i].hash, fault);
            }
            let all = played(distribute(&missing, &holders, &faults));
            for (i, wanted) in missing.iter().enumerate() {
                let sound: Vec<PeerId> = peers
                    .iter()
                    .copied()
                    .filter(|p| holders[p].held[i] && !faults.is_damaged(*p, wanted.hash))
                    .collect();
                let asked: Vec<PeerId> =
                    all.iter().filter(|(_, w)| w.hash == wanted.hash).map(|(p, _)| *p).collect();
                prop_assert_eq!(asked.len(), usize::from(!sound.is_empty()));
                prop_assert!(asked.iter().all(|p| sound.contains(p)));
                let least = sound.iter().map(|p| faults.passing(*p, wanted.hash)).min();
                prop_assert!(asked.iter().all(|p| Some(faults.passing(*p, wanted.hash)) == least));
            }
        }

        /// Whatever is damaged where, every copy is tried before a fetch ends, and no damaged one twice.
        #[test]
        fn a_fetch_finds_the_sound_copy(
            sizes in prop::collection::vec(0u64..1000, 1..20),
            held in prop::collection::vec(any::<u8>(), 20),
            damaged in prop::collection::vec(any::<u8>(), 20),
        ) {
            let (mut missing, holders) = world(&sizes, &held);
            let all = missing.clone();
            let peers: Vec<PeerId> = holders.keys().copied().collect();
            let is_sound = |p: PeerId, i: usize| {
                let bit = peers.iter().position(|q| *q == p).unwrap();
                damaged[i] & (1 << bit) == 0
            };
            let mut faults = Faults::default();
            let mut tried = BTreeSet::new();
            loop {
                let bits: BTreeMap<PeerId, Holder> = holders
                    .iter()
                    .map(|(p, holder)| {
                        let of = |w: &Wanted| holder.held[all.iter().position(|a| a.hash == w.hash).unwrap()];
                        (*p, Holder { held: missing.iter().map(of).collect(), ..holder.clone() })
                    })
                    .collect();
                let round = distribute(&missing, &bits, &faults);
                if round.is_empty() {
                    break;
                }
                for (peer, wanted) in played(round) {
                    let i = all.iter().position(|a| a.hash == wanted.hash).unwrap();
                    if is_sound(peer, i) {
                        missing.retain(|w| w.hash != wanted.hash);
                    } else {
                        prop_assert!(tried.insert((peer, wanted.hash)), "asked again for a damaged copy");
                        faults.note(peer, wanted.hash, Fault::Damaged);
                    }
                }
            }
            for (i, wanted) in all.iter().enumerate() {
                let somewhere = peers.iter().any(|p| holders[p].held[i] && is_sound(*p, i));
                prop_assert_eq!(missing.iter().any(|w| w.hash == wanted.hash), !somewhere);
            }
            let bad: Vec<Wanted> = missing.iter().filter(|w| faults.first_damaged(&[**w]).is_some()).copied().collect();
            prop_assert_eq!(faults.first_damaged(&missing).is_some(), !bad.is_empty());
        }
    }

    /// Seconds until the last of the blobs is here when the holders have these rates.
    fn time(mut round: Round, rates: &BTreeMap<PeerId, f64>) -> f64 {
        let mut free: BTreeMap<PeerId, f64> = round.peers().into_iter().map(|peer| (peer, 0.0)).collect();
        let mut last = 0.0f64;
        while let Some((&peer, &now)) = free.iter().min_by(|a, b| a.1.total_cmp(b.1)) {
            if now > 0.0 {
                round.seen(peer, rates[&peer]);
            }
            match round.next(peer) {
                Some(wanted) => {
                    let done = now + wanted.bytes.unwrap() as f64 / rates[&peer];
                    last = last.max(done);
                    free.insert(peer, done);
                }
                None => {
                    free.remove(&peer);
                }
            }
        }
        last
    }

    #[test]
    fn a_slow_holder_keeps_nobody_waiting_for_more_than_one_blob() {
        const MB: u64 = 1_000_000;
        let sizes: Vec<u64> = (0..60).map(|i| MB * (1 + i % 3)).collect();
        let (missing, mut holders) = world(&sizes, &[0b111; 60]);
        let peers: Vec<PeerId> = holders.keys().copied().collect();
        let rates = BTreeMap::from([(peers[0], 1e6), (peers[1], 1e8), (peers[2], 1e8)]);
        let all_by_two = sizes.iter().sum::<u64>() as f64 / 2e8;
        // Nobody knows yet that the first one has become slow.
        holders.values_mut().for_each(|holder| holder.bytes_per_s = 1e8);
        let unknown = time(distribute(&missing, &holders, &Faults::default()), &rates);
        assert!(unknown < 3.1 + 0.1, "{unknown} s: the blob that it was asked for first takes 3 s");
        holders.get_mut(&peers[0]).unwrap().bytes_per_s = 1e6;
        let known = time(distribute(&missing, &holders, &Faults::default()), &rates);
        assert!(known < 2.0 * all_by_two, "{known} s, {all_by_two} s by the fast ones alone");
    }

    #[test]
    fn a_blob_is_handed_over_to_who_is_far_faster_and_has_not_failed_with_it() {
        let (missing, mut holders) = world(&[1000, 1000], &[0b111, 0b011]);
        holders.values_mut().for_each(|holder| holder.bytes_per_s = 1e8);
        let mut peers: Vec<PeerId> = holders.keys().copied().collect();
        peers.sort_by_key(|peer| !holders[peer].held[1]);
        let mut round = distribute(&missing, &holders, &Faults::default());
        let is_handed = |round: &Round, blob: usize, rate: f64| {
            round.is_far_faster_elsewhere(peers[0], missing[blob].hash, rate)
        };
        assert!(is_handed(&round, 0, 1e6) && is_handed(&round, 1, 1e6) && !is_handed(&round, 0, 5e7));
        round.seen(peers[1], 2e6);
        assert!(is_handed(&round, 0, 1e6), "the third one, though it was asked for nothing");
        assert!(!is_handed(&round, 1, 1e6), "which does not hold this one");
        let mut faults = Faults::default();
        faults.note(peers[1], missing[1].hash, Fault::Passing);
        let round = distribute(&missing, &holders, &faults);
        assert!(!is_handed(&round, 1, 1e6));
    }

    #[test]
    fn holders_that_are_alike_are_asked_alike() {
        let (missing, mut holders) = world(&[1000; 30], &[0b111; 30]);
        holders.values_mut().zip([1.0e8, 1.1e8, 1.2e8]).for_each(|(holder, rate)| holder.bytes_per_s = rate);
        let round = distribute(&missing, &holders, &Faults::default());
        assert!(round.peers().iter().all(|peer| round.left(*peer).count() == 10));
    }
}
