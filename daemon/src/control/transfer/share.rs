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

/// Gives each missing blob to one of its holders, largest blobs first: to one that has failed least with it so far, and
/// among those to the one with the fewest bytes. A holder of a damaged copy is not asked for it again.
pub(super) fn distribute(
    missing: &[Wanted],
    holders: &BTreeMap<PeerId, Vec<bool>>,
    faults: &Faults,
) -> BTreeMap<PeerId, VecDeque<Wanted>> {
    let mut order: Vec<usize> = (0..missing.len().min(HAVE_MAX)).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(missing[i].bytes.unwrap_or(0)));
    let mut load: BTreeMap<PeerId, u64> = BTreeMap::new();
    let mut queues: BTreeMap<PeerId, VecDeque<Wanted>> = BTreeMap::new();
    for i in order {
        let hash = missing[i].hash;
        let best = holders
            .iter()
            .filter(|(peer, held)| held[i] && !faults.is_damaged(**peer, hash))
            .map(|(peer, _)| *peer)
            .min_by_key(|peer| (faults.passing(*peer, hash), load.get(peer).copied().unwrap_or(0)));
        if let Some(peer) = best {
            *load.entry(peer).or_default() += missing[i].bytes.unwrap_or(1);
            queues.entry(peer).or_default().push_back(missing[i]);
        }
    }
    queues
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Wanted blobs, and who of some peers holds which, by bits.
    fn world(sizes: &[u64], held: &[u8]) -> (Vec<Wanted>, BTreeMap<PeerId, Vec<bool>>) {
        let wanted =
            |(i, bytes): (usize, &u64)| Wanted { hash: Hash::of(&i.to_be_bytes()), bytes: Some(*bytes) };
        let missing: Vec<Wanted> = sizes.iter().enumerate().map(wanted).collect();
        let holds = |p: usize| held.iter().take(sizes.len()).map(|bits| bits & (1 << p) != 0).collect();
        (missing, (0..3).map(|p| (PeerId::random(), holds(p))).collect())
    }

    fn asked(queues: &BTreeMap<PeerId, VecDeque<Wanted>>, hash: Hash) -> Vec<PeerId> {
        queues.iter().filter(|(_, q)| q.iter().any(|w| w.hash == hash)).map(|(p, _)| *p).collect()
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
            let queues = distribute(&missing, &holders, &faults);
            for (i, wanted) in missing.iter().enumerate() {
                let sound: Vec<PeerId> =
                    peers.iter().copied().filter(|p| holders[p][i] && !faults.is_damaged(*p, wanted.hash)).collect();
                let asked = asked(&queues, wanted.hash);
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
                let bits: BTreeMap<PeerId, Vec<bool>> = holders
                    .iter()
                    .map(|(p, held)| {
                        let of = |w: &Wanted| held[all.iter().position(|a| a.hash == w.hash).unwrap()];
                        (*p, missing.iter().map(of).collect())
                    })
                    .collect();
                let queues = distribute(&missing, &bits, &faults);
                if queues.is_empty() {
                    break;
                }
                for (peer, wanted) in queues.iter().flat_map(|(p, q)| q.iter().map(|w| (*p, *w))) {
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
                let somewhere = peers.iter().any(|p| holders[p][i] && is_sound(*p, i));
                prop_assert_eq!(missing.iter().any(|w| w.hash == wanted.hash), !somewhere);
            }
            let bad: Vec<Wanted> = missing.iter().filter(|w| faults.first_damaged(&[**w]).is_some()).copied().collect();
            prop_assert_eq!(faults.first_damaged(&missing).is_some(), !bad.is_empty());
        }
    }
}
