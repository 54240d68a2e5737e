//! Weights give way to activations on slow links: somebody waits for those.

use std::time::Duration;

use super::STALL;
use crate::data::UnderWay;

/// A link that takes less for a chunk of weights is fast: those are over soon.
const SLOW: Duration = Duration::from_millis(40);
/// While activations are on their way, weights pause for so many times what their last chunk took: they keep a quarter.
const PAUSES: u32 = 3;
/// No pause is longer, nor as long that it and a chunk come near [`STALL`]: the other side would take the transfer for
/// stalled.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Of one device, to what it serves and what it fetches.
#[derive(Debug, Clone)]
pub(super) struct Courtesy {
    under_way: UnderWay,
}

impl Courtesy {
    pub(super) fn new(under_way: UnderWay) -> Self {
        Self { under_way }
    }

    /// Pauses after a chunk that took so long, if something else needs the link.
    pub(super) async fn after(&self, took: Duration) {
        if let Some(pause) = pause(took, self.under_way.any()) {
            tokio::time::sleep(pause).await;
        }
    }
}

fn pause(took: Duration, is_needed: bool) -> Option<Duration> {
    let most = PAUSE_MAX.min((STALL / 2).saturating_sub(took));
    (is_needed && took >= SLOW && !most.is_zero()).then(|| (took * PAUSES).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_pause_where_they_are_slow_and_in_the_way() {
        let ms = Duration::from_millis;
        for (took, is_needed, pauses) in [
            (ms(2), true, None),
            (ms(200), true, Some(ms(600))),
            (ms(200), false, None),
            (ms(1000), true, Some(PAUSE_MAX)),
            (ms(4000), true, Some(ms(1000))),
            (ms(8000), true, None),
        ] {
            assert_eq!(pause(took, is_needed), pauses, "{took:?} {is_needed}");
        }
    }
}
