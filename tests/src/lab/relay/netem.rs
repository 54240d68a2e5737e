//! The kernel's own impairments, where it has them.

use std::{process::Command, sync::OnceLock};

use super::Impairment;
use crate::rack::{Namespace, is_root};

/// Whether this kernel can delay and lose frames by itself: `tc` is asked for a netem queue in a throw-away network
/// namespace, once per process. False without root.
pub fn netem_available() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        if !is_root() {
            return false;
        }
        let probe = Namespace::create(&format!("mesh-netem-{}", std::process::id()));
        let asked = ["-n", probe.name(), "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"];
        Command::new("tc").args(asked).output().is_ok_and(|output| output.status.success())
    })
}

impl Impairment {
    /// The same for `tc qdisc ... netem`, what follows that word. A cut is a loss of everything that is sent; what is
    /// received has to be cut on the other side.
    pub fn netem_arguments(&self, queue_frames: usize) -> Vec<String> {
        let percent = |part: f64| format!("{}%", part * 100.0);
        let ms = |ms: f64| format!("{}us", (ms * 1e3).round());
        let mut arguments = vec!["limit".to_owned(), queue_frames.to_string()];
        // netem reorders only what is delayed.
        if self.delay_ms > 0.0 || self.jitter_ms > 0.0 {
            arguments.extend(["delay".to_owned(), ms(self.delay_ms), ms(self.jitter_ms)]);
        }
        let loss = if self.cut { 1.0 } else { self.loss };
        let reorder = if self.delay_ms > 0.0 { self.reorder } else { 0.0 };
        for (word, part) in [("loss", loss), ("duplicate", self.duplicate), ("reorder", reorder)] {
            if part > 0.0 {
                arguments.extend([word.to_owned(), percent(part)]);
            }
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_say_what_differs_from_a_plain_link() {
        assert_eq!(Impairment::default().netem_arguments(1000), ["limit", "1000"]);
        let link = Impairment { delay_ms: 20.0, jitter_ms: 1.5, loss: 0.3, ..Impairment::default() };
        let said = link.netem_arguments(10).join(" ");
        assert_eq!(said, "limit 10 delay 20000us 1500us loss 30%");
        assert_eq!(
            Impairment { cut: true, ..link }.netem_arguments(10).last().map(String::as_str),
            Some("100%")
        );
    }
}
