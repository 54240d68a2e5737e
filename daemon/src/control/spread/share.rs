//! A device's share of the models' blobs. Pure.

use std::collections::{BTreeMap, BTreeSet};

use mesh_inference::blobs::Hash;

/// The blobs of a model.
#[derive(Debug, Clone)]
pub struct ModelBlobs {
    /// The model's hash.
    pub model: String,
    /// Manifest and profile: every device keeps them.
    pub small: Vec<Hash>,
    /// Weights with their bytes; `None` while the manifest, which lists them, is not here.
    pub weights: Option<Vec<(Hash, u64)>>,
}

/// What a device lacks of its share.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Blobs to fetch, with their bytes where these are known.
    pub missing: BTreeMap<Hash, Option<u64>>,
    /// Models of which it holds all that it should.
    pub kept: BTreeSet<String>,
}

/// The share of the device `me` while these devices live, itself among them; `has` tells what it holds.
pub fn share(
    models: impl Iterator<Item = ModelBlobs>,
    me: &str,
    live: &[String],
    has: impl Fn(&Hash) -> bool,
) -> Share {
    let mut share = Share::default();
    for ModelBlobs { model, small, weights } in models {
        let is_known = weights.is_some();
        let mine = weights.into_iter().flatten().filter(|(hash, _)| keepers(hash, live).contains(&me));
        let wanted = small.into_iter().map(|hash| (hash, None));
        let wanted = wanted.chain(mine.map(|(hash, bytes)| (hash, Some(bytes))));
        let missing: Vec<(Hash, Option<u64>)> = wanted.filter(|(hash, _)| !has(hash)).collect();
        if is_known && missing.is_empty() {
            share.kept.insert(model);
        }
        share.missing.extend(missing);
    }
    share
}

/// How many devices keep each blob.
pub fn copies(devices: usize) -> usize {
    if devices >= 5 { 3 } else { 2 }
}

/// The devices that keep a blob: those with the highest hash of (blob, device) (rendezvous hashing: a device that
/// comes or goes moves only its own share).
pub fn keepers<'a>(blob: &Hash, devices: &'a [String]) -> Vec<&'a str> {
    let mut ranked: Vec<([u8; 32], &str)> = devices
        .iter()
        .map(|device| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(blob.as_bytes());
            hasher.update(device.as_bytes());
            (*hasher.finalize().as_bytes(), device.as_str())
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().rev().take(copies(devices.len())).map(|(_, device)| device).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn devices(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("device-{i}")).collect()
    }

    /// A model whose weights another model shares is not kept before they are here.
    #[test]
    fn models_that_share_weights_are_kept_when_both_have_them() {
        let (weights, manifest) = (Hash::of(b"weights"), |name: &str| Hash::of(name.as_bytes()));
        let model = |name: &str| ModelBlobs {
            model: name.to_owned(),
            small: vec![manifest(name)],
            weights: Some(vec![(weights, 7)]),
        };
        let live = devices(1);
        let of = |held: &[Hash]| {
            share(["a", "b"].map(model).into_iter(), "device-0", &live, |hash| held.contains(hash))
        };
        let without = of(&[manifest("a"), manifest("b")]);
        assert_eq!(without.missing, BTreeMap::from([(weights, Some(7))]));
        assert!(without.kept.is_empty(), "{without:?}");
        assert_eq!(of(&[manifest("a"), weights]).kept, BTreeSet::from(["a".to_owned()]));
    }

    #[test]
    fn a_model_whose_manifest_is_not_here_is_not_kept() {
        let model = ModelBlobs { model: "a".to_owned(), small: Vec::new(), weights: None };
        assert!(share([model].into_iter(), "device-0", &devices(1), |_| true).kept.is_empty());
    }

    proptest! {
        #[test]
        fn every_blob_survives_the_promised_losses(seed in any::<[u8; 8]>(), count in 1usize..12) {
            let blob = Hash::of(&seed);
            let devices = devices(count);
            let kept: BTreeSet<&str> = keepers(&blob, &devices).into_iter().collect();
            let losses = if count >= 5 { 2 } else { 1 };
            prop_assert!(kept.len() > losses || kept.len() == count);
        }

        #[test]
        fn a_lost_device_moves_only_its_own_share(seed in any::<[u8; 8]>(), count in 6usize..12, lost in 0usize..6) {
            let blob = Hash::of(&seed);
            let all = devices(count);
            let mut rest = all.clone();
            let gone = rest.remove(lost);
            let before: BTreeSet<&str> = keepers(&blob, &all).into_iter().collect();
            let after: BTreeSet<&str> = keepers(&blob, &rest).into_iter().collect();
            let stayed: BTreeSet<&str> = before.iter().copied().filter(|d| *d != gone).collect();
            prop_assert!(stayed.is_subset(&after));
        }
    }
}
