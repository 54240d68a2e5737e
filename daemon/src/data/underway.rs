//! Large frames that are on their way to or from this device now: what can wait gives way to them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Frames from this size on count: a smaller one is gone before anything could give way to it.
pub(super) const LARGE: u64 = 64 << 10;

/// Counts them. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct UnderWay(Arc<AtomicU32>);

/// A large frame that is on its way until this is dropped.
#[derive(Debug)]
pub(super) struct Crossing(Arc<AtomicU32>);

impl UnderWay {
    /// A frame of so many bytes begins to be written or read.
    pub(super) fn begin(&self, bytes: u64) -> Option<Crossing> {
        (bytes >= LARGE).then(|| {
            self.0.fetch_add(1, Ordering::Relaxed);
            Crossing(Arc::clone(&self.0))
        })
    }

    /// Whether some large frame is on its way now.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Crossing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_frames_count_while_they_are_on_their_way() {
        let under_way = UnderWay::default();
        let small = under_way.begin(LARGE - 1);
        assert!(small.is_none() && !under_way.any());
        let (first, second) = (under_way.begin(LARGE), under_way.clone().begin(1 << 30));
        assert!(under_way.any());
        drop(first);
        assert!(under_way.any());
        drop(second);
        assert!(!under_way.any());
    }
}
