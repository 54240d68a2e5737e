//! Where requests enter: each device tells how many come to it, so that what a plan can do is stated for the requests
//! as they really come.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Rates are taken this often...
const STEP: Duration = Duration::from_secs(5);
/// ...and what is older than this hardly counts.
const MEMORY_S: f64 = 30.0;
/// A rate that has moved by less than this part is told as before. Where each device serves what enters it, a plan's
/// rate is that of the device whose part is told too large by the most: it is off by about this part.
const NEWS: f64 = 0.03;
/// Fewer requests per second are none.
const LEAST: f64 = 1e-3;

/// Learns the rates at which requests for each deployment enter here.
#[derive(Debug, Default)]
pub struct Entering {
    looked: Option<Instant>,
    deployments: BTreeMap<String, Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    requests: u64,
    rate: f64,
    told: f64,
}

impl Entering {
    /// `requests`: accepted so far, by deployment. What to tell: requests per second, without those that get none.
    pub fn look<'a>(
        &mut self,
        now: Instant,
        requests: impl Iterator<Item = (&'a str, u64)>,
    ) -> BTreeMap<String, f64> {
        let since = self.looked.map(|at| now.saturating_duration_since(at));
        if since.is_none_or(|since| since >= STEP) {
            self.looked = Some(now);
            self.count(since.unwrap_or_default().as_secs_f64(), requests);
        }
        let told = self.deployments.iter().filter(|(_, counted)| counted.told > 0.0);
        told.map(|(name, counted)| (name.clone(), counted.told)).collect()
    }

    fn count<'a>(&mut self, seconds: f64, requests: impl Iterator<Item = (&'a str, u64)>) {
        let mut before = std::mem::take(&mut self.deployments);
        for (name, requests) in requests {
            // What was counted before this device looked for the first time came at no known rate.
            let mut counted = before.remove(name).unwrap_or(Counted { requests, ..Counted::default() });
            let came = requests.saturating_sub(counted.requests) as f64;
            counted.requests = requests;
            if seconds > 0.0 {
                counted.rate += (1.0 - (-seconds / MEMORY_S).exp()) * (came / seconds - counted.rate);
            }
            if counted.rate < LEAST {
                counted.told = 0.0;
            } else if (counted.rate - counted.told).abs() > NEWS * counted.told {
                counted.told = counted.rate;
            }
            self.deployments.insert(name.to_owned(), counted);
        }
    }
}

/// So many requests are taken to have entered everywhere alike, beside those that were seen: a few say nothing.
const ALIKE: f64 = 30.0;

/// Where requests are expected to enter, for a plan on these devices: as they have lately, and the fewer they were, the
/// more evenly.
pub fn expected<'a>(
    rates: impl Iterator<Item = (String, f64)>,
    devices: impl Iterator<Item = &'a str>,
) -> BTreeMap<String, f64> {
    let mut seen: BTreeMap<String, f64> = devices.map(|device| (device.to_owned(), 0.0)).collect();
    for (device, rate) in rates {
        // Peers say what they like.
        let is_sane = rate.is_finite() && rate > 0.0;
        if let Some(requests) = seen.get_mut(&device).filter(|_| is_sane) {
            *requests = (rate * MEMORY_S).min(f64::from(u32::MAX));
        }
    }
    let all = ALIKE + seen.values().sum::<f64>();
    let even = ALIKE / seen.len().max(1) as f64;
    seen.into_iter().map(|(device, requests)| (device, (requests + even) / all)).collect()
}

/// Each device's part of what enters, and the part of that whose clients are elsewhere, from rates; `None` when nothing
/// enters.
pub fn shares(
    entering: impl Iterator<Item = (String, f64)>,
    arriving: impl Iterator<Item = (String, f64)>,
) -> Option<(BTreeMap<String, f64>, BTreeMap<String, f64>)> {
    // Peers say what they like.
    let sane = |(_, rate): &(String, f64)| rate.is_finite() && *rate > 0.0;
    let entering: BTreeMap<String, f64> = entering.filter(sane).collect();
    let total: f64 = entering.values().sum();
    let part = |(device, rate): (String, f64)| (device, rate / total);
    let is_some = total.is_finite() && total > 0.0;
    is_some.then(|| (entering.into_iter().map(part).collect(), arriving.filter(sane).map(part).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told after `seconds` of `per_second` requests, looked at once a second.
    fn after(
        entering: &mut Entering,
        now: &mut Instant,
        total: &mut f64,
        per_second: f64,
        seconds: u32,
    ) -> f64 {
        let mut told = BTreeMap::new();
        for _ in 0..seconds {
            *now += Duration::from_secs(1);
            *total += per_second;
            told = entering.look(*now, [("digits", *total as u64)].into_iter());
        }
        told.get("digits").copied().unwrap_or(0.0)
    }

    #[test]
    fn rates_are_followed_and_forgotten() {
        let (mut entering, mut now, mut total) = (Entering::default(), Instant::now(), 1e6);
        assert_eq!(
            after(&mut entering, &mut now, &mut total, 0.0, 60),
            0.0,
            "earlier requests are not counted"
        );
        let busy = after(&mut entering, &mut now, &mut total, 20.0, 180);
        assert!((18.0..22.0).contains(&busy), "{busy}");
        let few = after(&mut entering, &mut now, &mut total, 0.5, 300);
        assert!((0.4..0.6).contains(&few), "{few}");
        assert_eq!(after(&mut entering, &mut now, &mut total, 0.0, 600), 0.0);
    }

    #[test]
    fn a_deployment_made_anew_counts_from_nothing() {
        let (mut entering, mut now, mut total) = (Entering::default(), Instant::now(), 0.0);
        after(&mut entering, &mut now, &mut total, 20.0, 60);
        total = 0.0;
        let told = after(&mut entering, &mut now, &mut total, 20.0, 60);
        assert!((10.0..22.0).contains(&told), "{told}");
        now += STEP;
        assert!(entering.look(now, std::iter::empty()).is_empty(), "it is gone");
        assert!(entering.deployments.is_empty());
    }

    #[test]
    fn what_is_told_changes_seldom() {
        let (mut entering, mut now, mut total) = (Entering::default(), Instant::now(), 0.0);
        after(&mut entering, &mut now, &mut total, 20.0, 120);
        let mut told: Vec<u64> = (0..300)
            .map(|second| {
                let wave = 20.0 + f64::from(second % 7) / 7.0;
                after(&mut entering, &mut now, &mut total, wave, 1).to_bits()
            })
            .collect();
        told.dedup();
        assert!(told.len() <= 3, "{} different rates", told.len());
    }

    #[test]
    fn the_more_requests_there_are_the_more_they_say() {
        let expected = |rates: &[(&str, f64)]| {
            let rates = rates.iter().map(|(name, rate)| ((*name).to_owned(), *rate));
            let shares = super::expected(rates, ["a", "b"].into_iter());
            assert!((shares.values().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
            shares["a"]
        };
        assert!((expected(&[]) - 0.5).abs() < 1e-9);
        assert!((expected(&[("a", 1.0)]) - 0.75).abs() < 1e-9);
        assert!(expected(&[("a", 100.0)]) > 0.99);
        assert!((expected(&[("c", 100.0), ("b", f64::NAN), ("a", -1.0)]) - 0.5).abs() < 1e-9);
        assert!(expected(&[("a", 1e300), ("b", 1e300)]) <= 0.5);
    }

    #[test]
    fn shares_of_nothing_or_of_nonsense_are_none() {
        let named = |rates: &[(&str, f64)]| {
            rates.iter().map(|(name, rate)| ((*name).to_owned(), *rate)).collect::<Vec<_>>()
        };
        let of = |rates| shares(named(rates).into_iter(), named(&[("a", 1.0), ("b", f64::NAN)]).into_iter());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("a", 0.0), ("b", f64::NAN), ("c", -1.0), ("d", f64::INFINITY)]), None);
        assert_eq!(of(&[("a", f64::MAX), ("b", f64::MAX)]), None);
        let (entering, arriving) = of(&[("a", 3.0), ("b", 1.0), ("c", f64::NAN)]).expect("some enter");
        assert_eq!(entering, BTreeMap::from([("a".to_owned(), 0.75), ("b".to_owned(), 0.25)]));
        assert_eq!(arriving, BTreeMap::from([("a".to_owned(), 0.25)]));
    }
}
