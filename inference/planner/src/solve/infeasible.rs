//! Why no plan can hold a model, in words and bytes.

use crate::evaluate::{Draft, memory};
use crate::instance::Instance;
use crate::problem::ProblemError;
use crate::size::size;

/// No plan fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Infeasible {
    /// What is short, and what to do.
    pub reason: String,
    /// Bytes that are needed, where memory is short; else 0.
    pub needed_bytes: u64,
    /// Bytes that are on offer, where memory is short; else 0.
    pub available_bytes: u64,
}

impl Infeasible {
    pub(super) fn senseless(error: &ProblemError) -> Self {
        Self::because(format!("the planning problem is not valid: {error}"))
    }

    fn because(reason: String) -> Self {
        Self { reason, needed_bytes: 0, available_bytes: 0 }
    }

    pub(super) fn unlinked(instance: &Instance<'_>) -> Self {
        let count = instance.usable().len();
        Self::because(format!(
            "the {count} devices lack a link that the plan needs; connect them or change the plan"
        ))
    }

    /// The bytes would do, but not where they are.
    pub(super) fn no_arrangement(instance: &Instance<'_>) -> Self {
        let (needed_bytes, available_bytes) = totals(instance);
        let (min, max) = instance.stage_limits();
        let limits = if min > 1 || instance.problem.max_stages.is_some() {
            format!(" in {min} to {max} stages")
        } else {
            String::new()
        };
        let links =
            if instance.lacks_links() { "; some have no link to each other: connect them" } else { "" };
        let reason = format!(
            "no division of the model into consecutive blocks{limits} fits the devices and their links: the model \
             needs {} for weights and activations, the {} offer {} together{}{links}; raise limits.memory or add a device",
            size(needed_bytes),
            devices(instance.usable().len()),
            size(available_bytes),
            left_out(instance),
        );
        Self { reason, needed_bytes, available_bytes }
    }
}

fn devices(count: usize) -> String {
    if count == 1 { "1 device".to_owned() } else { format!("{count} devices") }
}

/// Words on a device that nothing is counted on, as its class has no profile; with more of them on their number.
fn left_out(instance: &Instance<'_>) -> String {
    let left: Vec<usize> = (0..instance.devices()).filter(|&device| !instance.is_profiled(device)).collect();
    match left[..] {
        [] => String::new(),
        [only] => format!(" ({} is left out: its class has no profile)", instance.id(only)),
        _ => format!(" ({} are left out: their classes have no profile)", devices(left.len())),
    }
}

/// What the model needs at least, spread over devices, and what they offer together.
fn totals(instance: &Instance<'_>) -> (u64, u64) {
    let needed = instance.held(0, instance.blocks).saturating_add(instance.peak(0, instance.blocks));
    let offered = instance.usable().into_iter().fold(0u64, |sum, d| sum.saturating_add(instance.memory(d)));
    (needed, offered)
}

/// Finds the plain reasons before any search.
pub(super) fn rule_out(instance: &Instance<'_>) -> Result<(), Infeasible> {
    let usable = instance.usable();
    if usable.is_empty() {
        return Err(Infeasible::because(
            "no device's class has a profile for every block; let one device of each class profile the model"
                .into(),
        ));
    }
    let (min, max) = instance.stage_limits();
    if min > max {
        let blocks = instance.blocks;
        let reason =
            format!("{min} stages were asked for; the model has {blocks} blocks, ask for at most that many");
        return Err(Infeasible::because(reason));
    }
    let largest = usable.iter().copied().max_by_key(|&device| instance.memory(device)).unwrap_or(usable[0]);
    let available = instance.memory(largest);
    for block in 0..instance.blocks {
        let needed = instance.block_bytes(block);
        if needed > available {
            let reason = format!(
                "block {block} alone needs {} for weights and activations; the largest device ({}) offers {}{}; \
                 raise limits.memory there or add a larger device",
                size(needed),
                instance.id(largest),
                size(available),
                left_out(instance)
            );
            return Err(Infeasible { reason, needed_bytes: needed, available_bytes: available });
        }
    }
    let (needed_bytes, available_bytes) = totals(instance);
    if needed_bytes > available_bytes {
        let verb = if usable.len() == 1 { "offers" } else { "offer" };
        let reason = format!(
            "the model needs {} for weights and activations; the {} {verb} {} together{}; raise limits.memory or add \
             a device",
            size(needed_bytes),
            devices(usable.len()),
            size(available_bytes),
            left_out(instance)
        );
        return Err(Infeasible { reason, needed_bytes, available_bytes });
    }
    Ok(())
}

pub(super) fn rule_out_unprofiled(instance: &Instance<'_>, devices: &[usize]) -> Result<(), Infeasible> {
    match devices.iter().find(|&&device| !instance.is_profiled(device)) {
        None => Ok(()),
        Some(&device) => Err(Infeasible::because(format!(
            "the pinned device {} is of a class without a profile; let it profile the model first",
            instance.id(device)
        ))),
    }
}

pub(super) fn rule_out_draft(instance: &Instance<'_>, draft: &Draft) -> Result<(), Infeasible> {
    for (device, needed) in memory(instance, draft).into_iter().enumerate() {
        let available = instance.memory(device);
        if needed > available {
            let reason = format!(
                "the pinned stages need {} on {}, which offers {}; move blocks to another device",
                size(needed),
                instance.id(device),
                size(available)
            );
            return Err(Infeasible { reason, needed_bytes: needed, available_bytes: available });
        }
    }
    Ok(())
}
