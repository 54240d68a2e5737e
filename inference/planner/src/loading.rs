//! How long a plan takes until its devices have their weights.

use std::collections::{BTreeMap, BTreeSet};

use crate::instance::Instance;
use crate::plan::Plan;
use crate::problem::Problem;

/// Seconds that a device's fastest link, and its card, take to bring the weights that the device does not hold for the
/// `running` plan, by device; without devices that need nothing. Standbys are not waited for. Who keeps weights on disk
/// needs less, and a link that carries activations as well takes longer. Pure.
pub fn loading_s(problem: &Problem, running: &Plan, plan: &Plan) -> BTreeMap<String, f64> {
    let instance = Instance::new(problem);
    let held = blocks_by_device(&instance, running, true);
    let wanted = blocks_by_device(&instance, plan, false);
    let mut loading = BTreeMap::new();
    for device in 0..instance.devices() {
        let id = instance.id(device);
        let none = BTreeSet::new();
        let wanted = wanted.get(id).unwrap_or(&none);
        let missing = wanted.difference(held.get(id).unwrap_or(&none));
        let bytes: u64 = missing.map(|&block| instance.weight(block, block + 1)).sum();
        if bytes == 0 {
            continue;
        }
        let others = (0..instance.devices()).filter(|&other| other != device);
        let fastest = others.map(|other| instance.link_s(other, device, bytes as f64));
        let seconds = fastest.fold(f64::INFINITY, f64::min).max(instance.card_s(device, bytes as f64));
        loading.insert(id.to_owned(), seconds);
    }
    loading
}

/// The blocks that each device of a plan runs, and those that it stands by for.
fn blocks_by_device<'a>(
    instance: &Instance<'_>,
    plan: &'a Plan,
    standbys: bool,
) -> BTreeMap<&'a str, BTreeSet<usize>> {
    let mut blocks: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for stage in &plan.stages {
        let range = stage.first_block..(stage.last_block + 1).min(instance.blocks);
        let runs = stage.replicas.iter().map(|replica| replica.device.as_str());
        let stands_by = stage.standbys.iter().map(String::as_str).filter(|_| standbys);
        for device in runs.chain(stands_by) {
            blocks.entry(device).or_default().extend(range.clone());
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Replica, Stage};

    fn problem(links: &str, card: &str) -> Problem {
        let block = r#"{"weight_bytes": 100, "peak_bytes": 0, "seconds": {"x": 0.01}}"#;
        let device =
            |id| format!(r#"{{"id": "{id}", "class": "x", "speed": 1.0, "memory_bytes": 999, {card}}}"#);
        let text = format!(
            r#"{{"blocks": [{block}, {block}, {block}], "cuts": [1, 1, 1, 1], "devices": [{}, {}, {}],
                "links": {{"default": {{"bytes_per_s": 50.0, "latency_s": 0.0}}, "pairs": [{links}]}}}}"#,
            device("a"),
            device("b"),
            device("c")
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Stages that end before these blocks, each on one device.
    fn plan(stages: &[(usize, &str, &[&str])]) -> Plan {
        let mut plan = crate::solve(&problem("", r#""card_bytes_per_s": null"#), 1000).unwrap();
        let model = plan.stages[0].clone();
        plan.stages.clear();
        let mut first = 0;
        for (end, device, standbys) in stages {
            plan.stages.push(Stage {
                first_block: first,
                last_block: end - 1,
                replicas: vec![Replica { device: (*device).to_owned(), share: 1.0 }],
                standbys: standbys.iter().map(|&id| id.to_owned()).collect(),
                ..model.clone()
            });
            first = *end;
        }
        plan
    }

    #[test]
    fn what_is_held_needs_no_loading_and_the_fastest_link_brings_the_rest() {
        let running = plan(&[(1, "a", &[]), (3, "b", &["c"])]);
        let next = plan(&[(2, "a", &["c"]), (3, "b", &["c"])]);
        let no_card = r#""card_bytes_per_s": null"#;
        let times = |links: &str, card: &str| loading_s(&problem(links, card), &running, &next);
        assert_eq!(times("", no_card), BTreeMap::from([("a".to_owned(), 2.0)]), "one block at 50 bytes/s");
        let faster = r#"{"from": "c", "to": "a", "bytes_per_s": 200.0, "latency_s": 0.0}"#;
        assert_eq!(times(faster, no_card)["a"], 0.5);
        assert_eq!(times(faster, r#""card_bytes_per_s": 10.0"#)["a"], 10.0);
        assert!(loading_s(&problem("", no_card), &next, &next).is_empty());
        let other = plan(&[(2, "c", &[]), (3, "b", &[])]);
        let loading = loading_s(&problem("", no_card), &running, &other);
        assert_eq!(loading["c"], 2.0, "it stands by for the block after these two, and holds one of them");
    }

    #[test]
    fn what_no_link_brings_takes_very_long() {
        let none = |from| format!(r#"{{"from": "{from}", "to": "a", "bytes_per_s": 0.0, "latency_s": 0.0}}"#);
        let links = format!("{}, {}", none("b"), none("c"));
        let (running, next) = (plan(&[(3, "b", &[])]), plan(&[(3, "a", &[])]));
        let loading = loading_s(&problem(&links, r#""card_bytes_per_s": null"#), &running, &next);
        assert!(loading["a"] > 1e6, "{loading:?}");
    }
}
