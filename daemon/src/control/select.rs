//! What a person means by the name of a device or a model. Pure.

use std::path::Path;

use mesh_consensus::{ClusterState, Deployment, Member, ModelRecord};

use crate::app::AppError;

/// More are counted and not named.
const NAMED_MAX: usize = 8;
/// Stands for the beginning of an id where people read one.
const REST: char = '…';
/// Characters at the end of an id that are shown: PeerIds of ed25519 keys all start alike.
const ID_END: usize = 8;
/// Characters at the start of a hash that are shown.
const HASH_START: usize = 12;

/// Enough of a device's id to tell it from others.
pub fn short_id(id: &str) -> String {
    let count = id.chars().count();
    if count <= ID_END + 4 {
        return id.to_owned();
    }
    format!("{REST}{}", id.chars().skip(count - ID_END).collect::<String>())
}

/// Whether a text is the start or the end of an id, with or without a `…` before.
pub fn is_part_of(id: &str, text: &str) -> bool {
    let end = text.strip_prefix(REST).unwrap_or(text);
    !end.is_empty() && (id.starts_with(text) || id.ends_with(end))
}

/// The one member that is meant by its name, its id, or the start or the end of its id, with or without a `…` before.
pub fn member<'s>(state: &'s ClusterState, text: &str) -> Result<&'s Member, AppError> {
    let members = || state.members.values();
    let exact: Vec<&Member> = members().filter(|m| m.device.0 == text || m.name == text).collect();
    let is_part = |m: &&Member| is_part_of(&m.device.0, text);
    let found = if exact.is_empty() { members().filter(is_part).collect() } else { exact };
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(AppError::NotFound(format!("no device `{text}`; `mesh node list` shows all"))),
        several => {
            let named = several.iter().map(|m| format!("{} ({})", m.name, short_id(&m.device.0)));
            let names = list(named, several.len());
            Err(AppError::Invalid(format!("`{text}` means several devices: {names}; give one of these ids")))
        }
    }
}

/// The one model to remove that is meant by its hash, the start of its hash, the file that it came from, or that file's
/// name without its ending. The name of a deployment is understood: its model is in use.
pub fn model<'s>(state: &'s ClusterState, text: &str) -> Result<&'s ModelRecord, AppError> {
    let models = || state.models.values();
    let stem = |m: &ModelRecord| Path::new(&m.source).file_stem().is_some_and(|stem| stem == text);
    let is_meant = |m: &ModelRecord| m.hash.starts_with(text) || m.source == text || stem(m);
    let found: Vec<&ModelRecord> = match state.models.get(text) {
        Some(exact) => vec![exact],
        None => models().filter(|m| !text.is_empty() && is_meant(m)).collect(),
    };
    match found.as_slice() {
        [one] => match users(state, &one.hash).as_slice() {
            [] => Ok(*one),
            names => Err(in_use(text, names)),
        },
        [] if state.deployments.contains_key(text) => Err(in_use(text, &[text])),
        [] => Err(AppError::NotFound(format!("no model `{text}`; `mesh models` shows all"))),
        several => {
            let named = several.iter().map(|m| {
                let used = if users(state, &m.hash).is_empty() { "" } else { ", in use" };
                format!("{} ({}{used})", m.source, m.hash.chars().take(HASH_START).collect::<String>())
            });
            let names = list(named, several.len());
            Err(AppError::Invalid(format!(
                "`{text}` means several models: {names}; give the start of a hash"
            )))
        }
    }
}

/// Deployments that a model serves or is to serve.
fn users<'s>(state: &'s ClusterState, hash: &str) -> Vec<&'s str> {
    let uses = |d: &&Deployment| {
        d.model == hash || d.active.iter().chain(&d.preparing).any(|plan| plan.model == hash)
    };
    let deployments = state.deployments.values().filter(uses);
    deployments.map(|d| d.name.as_str()).collect()
}

fn in_use(text: &str, names: &[&str]) -> AppError {
    let remedy: Vec<String> = names.iter().map(|name| format!("`mesh undeploy {name}`")).collect();
    AppError::Conflict(format!(
        "the model `{text}` is in use by {}: {} first",
        names.join(" and "),
        remedy.join(" and ")
    ))
}

fn list(named: impl Iterator<Item = String>, count: usize) -> String {
    let names: Vec<String> = named.take(NAMED_MAX).collect();
    match count.saturating_sub(NAMED_MAX) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests;
