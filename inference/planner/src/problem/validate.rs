//! Checks of a problem before anything is computed from it.

use std::collections::BTreeSet;

use super::{Device, PinnedStage, Problem};

/// More blocks than any cut model has.
const MAX_BLOCKS: usize = 100_000;
/// More devices than the planner's tables are made for.
const MAX_DEVICES: usize = 2_000;
/// Longer than any block takes, in seconds; sums over blocks stay exact enough to tell short ones apart.
const MAX_SECONDS: f64 = 1e7;
/// More than any model's weights.
const MAX_WEIGHT_BYTES: u64 = 1 << 60;

/// Why a problem makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProblemError {
    /// No blocks.
    #[error("the problem has no blocks; give at least one")]
    NoBlocks,
    /// No devices.
    #[error("the problem has no devices; give at least one")]
    NoDevices,
    /// More entries than the planner takes.
    #[error("the problem has {got} {what}; the planner takes at most {limit}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many are taken.
        limit: usize,
    },
    /// `cuts` has the wrong length.
    #[error("`cuts` has {got} entries; {blocks} blocks need {} (inputs, after each block)", blocks + 1)]
    CutCount {
        /// Entries given.
        got: usize,
        /// Blocks given.
        blocks: usize,
    },
    /// A number is negative, infinite or not a number.
    #[error("{what} is {value}; it must be {must}")]
    Number {
        /// Which number.
        what: String,
        /// Its value.
        value: f64,
        /// What it must be.
        must: &'static str,
    },
    /// Two devices of one id, or one pair of devices listed twice.
    #[error("{what} is listed twice; remove one")]
    Duplicate {
        /// What is listed twice.
        what: String,
    },
    /// An id that no device has.
    #[error("{place} names the device {id:?}, which is not in `devices`")]
    UnknownDevice {
        /// Where it stands.
        place: &'static str,
        /// The id.
        id: String,
    },
    /// The ingress shares do not add up.
    #[error("the ingress shares sum to {sum}; they must sum to 1")]
    IngressSum {
        /// Their sum.
        sum: f64,
    },
    /// The wished stage counts contradict each other.
    #[error("`min_stages` {min} and `max_stages` {max} cannot both hold; stages count from 1")]
    StageCounts {
        /// Least number of stages.
        min: usize,
        /// Greatest number of stages.
        max: usize,
    },
    /// The pinned stages do not cover the blocks in order.
    #[error("pinned stage {stage} is not usable: {reason}")]
    Pin {
        /// Index of the pinned stage.
        stage: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl Problem {
    /// Says what makes the problem senseless, if anything does.
    ///
    /// # Errors
    /// The first defect found: wrong lengths, numbers out of range, unknown or repeated ids, contradictory limits.
    pub fn validate(&self) -> Result<(), ProblemError> {
        self.validate_sizes()?;
        self.validate_blocks()?;
        let ids = self.validate_devices()?;
        self.validate_links(&ids)?;
        self.validate_ingress(&ids)?;
        let (min, max) = (self.min_stages.unwrap_or(1), self.max_stages.unwrap_or(usize::MAX));
        if min == 0 || max == 0 || min > max {
            return Err(ProblemError::StageCounts { min, max });
        }
        self.pin.as_ref().map_or(Ok(()), |pin| validate_pin(pin, self.blocks.len(), self.replication, &ids))
    }

    fn validate_sizes(&self) -> Result<(), ProblemError> {
        let blocks = self.blocks.len();
        if blocks == 0 {
            return Err(ProblemError::NoBlocks);
        }
        if self.devices.is_empty() {
            return Err(ProblemError::NoDevices);
        }
        let sizes = [("blocks", blocks, MAX_BLOCKS), ("devices", self.devices.len(), MAX_DEVICES)];
        for (what, got, limit) in sizes {
            if got > limit {
                return Err(ProblemError::TooMany { what, got, limit });
            }
        }
        if self.cuts.len() != blocks + 1 {
            return Err(ProblemError::CutCount { got: self.cuts.len(), blocks });
        }
        Ok(())
    }

    fn validate_blocks(&self) -> Result<(), ProblemError> {
        let mut weight_bytes = 0u64;
        for (index, block) in self.blocks.iter().enumerate() {
            for (class, &value) in &block.seconds {
                let what = || format!("block {index}'s seconds on {class:?}");
                not_negative(what, value)?;
                if value > MAX_SECONDS {
                    let must = "at most 1e7 (leave a class out that cannot run the model)";
                    return Err(ProblemError::Number { what: what(), value, must });
                }
            }
            weight_bytes = weight_bytes.saturating_add(block.weight_bytes);
        }
        if weight_bytes > MAX_WEIGHT_BYTES {
            let (what, value) = ("the sum of all weights in bytes".to_owned(), weight_bytes as f64);
            return Err(ProblemError::Number { what, value, must: "at most 2^60" });
        }
        Ok(())
    }

    fn validate_devices(&self) -> Result<BTreeSet<&str>, ProblemError> {
        let mut ids = BTreeSet::new();
        for device in &self.devices {
            let id = &device.id;
            if !ids.insert(id.as_str()) {
                return Err(ProblemError::Duplicate { what: format!("the device {id:?}") });
            }
            positive(|| format!("the speed of {id:?}"), device.speed)?;
            if let Some(rate) = device.card_bytes_per_s {
                positive(|| format!("the network card rate of {id:?}"), rate)?;
            }
            validate_transfer(device)?;
        }
        Ok(ids)
    }

    fn validate_links(&self, ids: &BTreeSet<&str>) -> Result<(), ProblemError> {
        not_negative(|| "the default link rate".into(), self.links.default.bytes_per_s)?;
        not_negative(|| "the default link latency".into(), self.links.default.latency_s)?;
        let mut seen = BTreeSet::new();
        for link in &self.links.pairs {
            known("`links`", &link.from, ids)?;
            known("`links`", &link.to, ids)?;
            let what = || format!("the link from {:?} to {:?}", link.from, link.to);
            if !seen.insert((&link.from, &link.to)) {
                return Err(ProblemError::Duplicate { what: what() });
            }
            not_negative(|| format!("the rate of {}", what()), link.bytes_per_s)?;
            not_negative(|| format!("the latency of {}", what()), link.latency_s)?;
        }
        Ok(())
    }

    fn validate_ingress(&self, ids: &BTreeSet<&str>) -> Result<(), ProblemError> {
        let Some(ingress) = &self.ingress else { return Ok(()) };
        let mut sum = 0.0;
        for (id, &share) in ingress {
            known("`ingress`", id, ids)?;
            not_negative(|| format!("the ingress share of {id:?}"), share)?;
            sum += share;
        }
        if (sum - 1.0).abs() > 1e-6 { Err(ProblemError::IngressSum { sum }) } else { Ok(()) }
    }
}

fn validate_transfer(device: &Device) -> Result<(), ProblemError> {
    let (id, cost) = (&device.id, &device.transfer);
    not_negative(|| format!("`send_s_per_byte` of {id:?}"), cost.send_s_per_byte)?;
    not_negative(|| format!("`receive_s_per_byte` of {id:?}"), cost.receive_s_per_byte)?;
    not_negative(|| format!("`request_s` of {id:?}"), cost.request_s)?;
    not_negative(|| format!("`entry_s_per_byte` of {id:?}"), cost.entry_s_per_byte)?;
    let value = cost.rest_share;
    if !(0.0..1.0).contains(&value) {
        let what = format!("`rest_share` of {id:?}");
        return Err(ProblemError::Number { what, value, must: "from 0 up to, but not, 1" });
    }
    let value = cost.compute_share;
    if value > 0.0 && value <= 1.0 {
        return Ok(());
    }
    let what = format!("`compute_share` of {id:?}");
    Err(ProblemError::Number { what, value, must: "above 0 and at most 1" })
}

fn validate_pin(
    pin: &[PinnedStage],
    blocks: usize,
    replication: bool,
    ids: &BTreeSet<&str>,
) -> Result<(), ProblemError> {
    let refuse = |stage, reason: String| Err(ProblemError::Pin { stage, reason });
    let mut next = 0;
    for (index, stage) in pin.iter().enumerate() {
        let (first, last) = (stage.first_block, stage.last_block);
        if first != next || last < first || last >= blocks {
            return refuse(
                index,
                format!("blocks {first} to {last} do not carry on at block {next} of {blocks}"),
            );
        }
        if stage.devices.is_empty() || (!replication && stage.devices.len() > 1) {
            return refuse(index, format!("it names {} devices", stage.devices.len()));
        }
        let mut seen = BTreeSet::new();
        for id in &stage.devices {
            known("`pin`", id, ids)?;
            if !seen.insert(id) {
                return refuse(index, format!("it names {id:?} twice"));
            }
        }
        next = last + 1;
    }
    if next == blocks {
        Ok(())
    } else {
        refuse(pin.len(), format!("the pinned stages end before block {next} of {blocks}"))
    }
}

fn known(place: &'static str, id: &str, ids: &BTreeSet<&str>) -> Result<(), ProblemError> {
    if ids.contains(id) { Ok(()) } else { Err(ProblemError::UnknownDevice { place, id: id.to_owned() }) }
}

fn not_negative(what: impl Fn() -> String, value: f64) -> Result<(), ProblemError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(ProblemError::Number { what: what(), value, must: "a finite number, 0 or more" })
}

fn positive(what: impl Fn() -> String, value: f64) -> Result<(), ProblemError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(ProblemError::Number { what: what(), value, must: "a finite number above 0" })
}
