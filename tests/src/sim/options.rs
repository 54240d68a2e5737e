//! What a run is like: everything, the chances of faults too, is drawn from the seed ("swarm testing": Groce et
//! al., ISSTA 2012), so that some runs have no loss but many crashes, others the reverse, some are calm.

use mesh_consensus::{DiskLie, MemoryDisk};

use super::dice::Dice;

/// How devices come into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Story {
    /// Identical configs; `devices` is how many there are at first. Others may come later.
    Together,
    /// Every device is configured to be alone (`devices = 1`); they meet later, and one cluster must stay.
    Strangers,
}

/// A rule of safety that is broken on purpose, to see that the checks find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Disks say that they have synced and have not.
    SkipSync,
    /// What is acknowledged and applied reaches the disk only with what comes after it.
    SyncLate,
    /// Frames reach stages whatever their epoch is.
    AnyEpoch,
    /// Devices drop blobs that models need.
    SweepAll,
}

impl Sabotage {
    /// An empty disk as it is under this sabotage.
    pub(crate) fn disk(sabotage: Option<Self>) -> MemoryDisk {
        match sabotage {
            Some(Self::SkipSync) => MemoryDisk::lying(DiskLie::SkipsSync),
            Some(Self::SyncLate) => MemoryDisk::lying(DiskLie::SyncsLate),
            Some(Self::AnyEpoch | Self::SweepAll) | None => MemoryDisk::new(),
        }
    }
}

/// The parameters of one run. Chances are per thousand; times are in virtual milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct SimOptions {
    pub(crate) story: Story,
    /// Devices that start first.
    pub(crate) founders: usize,
    /// Devices that come later.
    pub(crate) late: usize,
    /// How long things go wrong, before everything is healed.
    pub(crate) chaos_ms: u64,
    /// Of messages.
    pub(crate) loss: u64,
    /// Of messages.
    pub(crate) duplication: u64,
    /// Of messages, that take much longer than others.
    pub(crate) straggler: u64,
    pub(crate) delay_ms: (u64, u64),
    pub(crate) straggler_ms: u64,
    /// Mean times between faults; 0 for never.
    pub(crate) crash_every_ms: u64,
    pub(crate) cut_every_ms: u64,
    pub(crate) one_way_every_ms: u64,
    pub(crate) stall_every_ms: u64,
    pub(crate) disk_failure_every_ms: u64,
    pub(crate) wipe_every_ms: u64,
    pub(crate) remove_every_ms: u64,
    pub(crate) request_every_ms: u64,
    /// Mean time between two requests for answers; 0: nothing is served, and plans are made by clients at random.
    pub(crate) ask_every_ms: u64,
    /// How long a crashed device stays away, at most.
    pub(crate) away_ms: u64,
    /// Of unsynced sectors, that reach the disk in a crash all the same.
    pub(crate) torn: u64,
    /// Entries between snapshots: few, so that snapshots are part of every run.
    pub(crate) snapshot_entries: u64,
    pub(crate) kept_entries: u64,
}

impl SimOptions {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let story = if dice.permille(150) { Story::Strangers } else { Story::Together };
        let founders = match story {
            Story::Together => dice.between(1, 6),
            Story::Strangers => dice.between(2, 4),
        };
        let late = if story == Story::Together && founders > 1 { dice.below(8 - founders) } else { 0 };
        let mut every = |on: u64, low: u64, high: u64| {
            if dice.permille(on) { dice.between(low, high) } else { 0 }
        };
        let crash_every_ms = every(700, 1_000, 20_000);
        let cut_every_ms = every(600, 1_000, 20_000);
        let one_way_every_ms = every(400, 2_000, 20_000);
        let stall_every_ms = every(400, 2_000, 20_000);
        let disk_failure_every_ms = every(400, 3_000, 30_000);
        let wipe_every_ms = every(300, 5_000, 30_000);
        let remove_every_ms = every(200, 10_000, 40_000);
        Self {
            story,
            founders: usize::try_from(founders).unwrap_or(1),
            late: usize::try_from(late).unwrap_or(0),
            chaos_ms: dice.between(5_000, 40_000),
            loss: if dice.permille(600) { dice.below(300) } else { 0 },
            duplication: if dice.permille(500) { dice.below(200) } else { 0 },
            straggler: if dice.permille(500) { dice.below(100) } else { 0 },
            delay_ms: (1, dice.between(1, 60)),
            straggler_ms: dice.between(100, 3_000),
            crash_every_ms,
            cut_every_ms,
            one_way_every_ms,
            stall_every_ms,
            disk_failure_every_ms,
            wipe_every_ms,
            remove_every_ms,
            request_every_ms: dice.between(20, 1_000),
            ask_every_ms: if story == Story::Together && dice.permille(600) {
                dice.between(20, 300)
            } else {
                0
            },
            away_ms: dice.between(100, 10_000),
            torn: dice.below(1001),
            snapshot_entries: dice.between(4, 60),
            kept_entries: dice.below(30),
        }
    }
}
