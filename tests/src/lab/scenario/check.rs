//! What is wrong with a scenario beyond its form.

use std::collections::BTreeSet;

use super::{Event, Hardware, Rematch, Scenario, Step, event::Condition};

/// Namespaces and control groups get these names.
const NAME_MAX: usize = 32;
const DEVICES_MAX: usize = 200;

/// Everything that is wrong, a line each.
pub(super) fn problems(scenario: &Scenario) -> Vec<String> {
    let mut found = Vec::new();
    name(&scenario.name, "the scenario's name", &mut found);
    for spec in &scenario.device {
        name(&spec.name, "a device's name", &mut found);
        if spec.count == Some(0) {
            found.push(format!("device {}: count is 0", spec.name));
        }
        if spec.address.is_some() && spec.count.is_some() {
            found.push(format!("device {}: several devices cannot have one address", spec.name));
        }
        hardware(&format!("device {}", spec.name), &spec.hardware, &mut found);
    }
    hardware("defaults", &scenario.defaults, &mut found);
    let count: usize = scenario.device.iter().map(|spec| spec.count.unwrap_or(1)).sum();
    if count == 0 || count > DEVICES_MAX {
        found.push(format!("{count} devices: a rack has 1 to {DEVICES_MAX}"));
        return found;
    }
    let machines = scenario.machines();
    let names: BTreeSet<&str> = machines.iter().map(|machine| machine.name.as_str()).collect();
    if names.len() < machines.len() {
        found.push("two devices have the same name".into());
    }
    let addresses: BTreeSet<_> = machines.iter().map(|machine| machine.address).collect();
    if addresses.len() < machines.len() {
        found.push("two devices have the same address".into());
    }
    addresses.iter().for_each(|address| rack_address(*address, &mut found));
    for link in &scenario.link {
        for end in [&link.from, &link.to] {
            if !names.contains(end.as_str()) {
                found.push(format!("link: no device is called {end:?}"));
            }
        }
    }
    for (number, event) in scenario.event.iter().enumerate() {
        let what = format!("event {}", number + 1);
        for pattern in patterns(&event.step) {
            if !names.iter().any(|name| matches(pattern, name)) {
                found.push(format!("{what}: no device is called {pattern:?}"));
            }
        }
        if let Step::Cpu { cpu, .. } = event.step {
            share(&what, "cpu", cpu, 1000.0, &mut found);
        }
        if let Step::Address { address: Some(address), .. } = &event.step {
            rack_address(*address, &mut found);
        }
        if let Step::Compare(compare) = &event.step {
            let names: BTreeSet<&str> = compare.cell.iter().map(|cell| cell.name.as_str()).collect();
            if compare.rounds == 0 || names.is_empty() || names.len() < compare.cell.len() {
                found.push(format!("{what}: a comparison has rounds, and cells of different names"));
            }
        }
        if let Step::Rematch(again) = &event.step {
            rematch(&what, again, &scenario.event[..number], &mut found);
        }
        if let Step::Load(load) = &event.step
            && load.clients.is_some() == load.rate_per_s.is_some()
        {
            found.push(format!("{what}: a load has either clients (closed loop) or rate_per_s (open loop)"));
        }
    }
    found
}

fn rematch(what: &str, rematch: &Rematch, before: &[Event], found: &mut Vec<String>) {
    let tried = |label: &str| {
        before.iter().any(|event| matches!(&event.step, Step::Try(cell) if cell.label == label))
    };
    for label in rematch.against.iter().chain([&rematch.label]).filter(|label| !tried(label)) {
        found.push(format!("{what}: no cell before it is called {label:?}"));
    }
    if rematch.rounds == 0 {
        found.push(format!("{what}: a rematch has rounds"));
    }
}

fn rack_address(address: std::net::Ipv4Addr, found: &mut Vec<String>) {
    if address.octets()[..2] != [10, 77] {
        found.push(format!("address {address}: the rack's network is 10.77.0.0/16"));
    }
}

fn hardware(what: &str, hardware: &Hardware, found: &mut Vec<String>) {
    if let Some(cpu) = hardware.cpu {
        share(what, "cpu", cpu, 1000.0, found);
    }
    if hardware.loss.is_some_and(|loss| !(0.0..=1.0).contains(&loss)) {
        found.push(format!("{what}: loss is a part, 0 to 1"));
    }
}

fn share(what: &str, key: &str, value: f64, most: f64, found: &mut Vec<String>) {
    // The kernel takes no less than 1 ms of its period of time.
    if !(0.01..=most).contains(&value) {
        found.push(format!(
            "{what}: {key} = {value}: write cores, such as 0.15 for 15 % of one (0.01 at least)"
        ));
    }
}

fn name(name: &str, what: &str, found: &mut Vec<String>) {
    let is_fine = !name.is_empty()
        && name.len() <= NAME_MAX
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !name.starts_with('-');
    if !is_fine {
        found.push(format!("{what} is {name:?}: use 1 to {NAME_MAX} letters, digits and dashes"));
    }
}

/// Names of devices in an event.
fn patterns(step: &Step) -> Vec<&String> {
    match step {
        Step::Start { devices }
        | Step::Stop { devices }
        | Step::Kill { devices }
        | Step::Restart { devices }
        | Step::Freeze { devices }
        | Step::Thaw { devices }
        | Step::Cut { devices }
        | Step::Heal { devices }
        | Step::Link { devices, .. }
        | Step::Cpu { devices, .. }
        | Step::Burn { devices }
        | Step::Cool { devices }
        | Step::FillDisk { devices, .. }
        | Step::FreeDisk { devices }
        | Step::WipeDisk { devices } => devices.iter().collect(),
        Step::Partition { groups } => groups.iter().flatten().collect(),
        Step::Mesh { device, .. } | Step::Address { device, .. } => vec![device],
        Step::Deploy(deploy) => deploy.device.iter().chain(deploy.on.iter().flatten()).collect(),
        Step::Try(cell) => cell.on.iter().collect(),
        Step::Compare(compare) => compare.cell.iter().flat_map(|cell| &cell.on).collect(),
        Step::Load(load) => load.devices.iter().flatten().collect(),
        Step::Wait { until: Condition::State { device, .. }, .. } => vec![device],
        Step::StopLoad { .. } | Step::Measure { .. } | Step::Rematch(_) | Step::Wait { .. } => Vec::new(),
    }
}

/// Whether a name is meant by a pattern: `*` stands for any run of characters, `1..4` at the end for 1, 2, 3 and 4.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    if let Some((start, first, last)) = range(pattern) {
        let number = name.strip_prefix(start).and_then(|rest| rest.parse::<u32>().ok());
        return number.is_some_and(|number| (first..=last).contains(&number));
    }
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => {
            let Some(tail) = name.strip_prefix(start) else { return false };
            (0..=tail.len()).filter(|&at| tail.is_char_boundary(at)).any(|at| matches(rest, &tail[at..]))
        }
    }
}

/// What is before a range at the end, its first and its last number.
fn range(pattern: &str) -> Option<(&str, u32, u32)> {
    let (head, last) = pattern.rsplit_once("..")?;
    let start = head.trim_end_matches(|c: char| c.is_ascii_digit());
    Some((start, head[start.len()..].parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn patterns_match() {
        for (pattern, name, is) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "x-1", true),
            ("pi-*", "pi-12", true),
            ("pi-*", "nuc-1", false),
            ("pi-1..4", "pi-4", true),
            ("pi-1..4", "pi-5", false),
            ("pi-1..4", "pi-x", false),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        let text = r#"
            name = "a b"
            [[device]]
            name = "x"
            cpu = 0.0
            loss = 2.0
            [[device]]
            name = "x"
            address = "192.168.0.1"
            [[event]]
            do = "kill"
            devices = ["y"]
            [[event]]
            do = "rematch"
            label = "z"
            against = []
            within = 0.1
            rounds = 0
            settle = "1s"
            seconds = 1.0
        "#;
        let error = Scenario::parse(text, Path::new("f.toml")).unwrap_err().to_string();
        for part in
            ["scenario's name", "cpu = 0", "loss", "same name", "10.77", "\"y\"", "\"z\"", "has rounds"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn the_scenarios_that_come_with_it_are_right() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/scenarios");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() > 5);
        for file in files {
            Scenario::load(&file).unwrap();
        }
    }

    #[test]
    fn a_typo_is_told_with_its_line() {
        let text = "name = \"a\"\n[[device]]\nname = \"x\"\n[[event]]\ndo = \"kil\"\ndevices = [\"x\"]\n";
        let error = Scenario::parse(text, Path::new("f.toml")).unwrap_err().to_string();
        assert!(error.contains("kil") && error.contains("line 4"), "{error}");
    }
}
