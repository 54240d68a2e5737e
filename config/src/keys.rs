//! The keys that exist, and the nearest one to a key that does not.

/// A key with an example of its value, as it would stand in the file.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    pub(crate) example: &'static str,
}

const fn key(section: &'static str, name: &'static str, example: &'static str) -> Key {
    Key { section, name, example }
}

/// Every key of the file.
pub(crate) const KEYS: &[Key] = &[
    key("cluster", "name", r#""shop-floor""#),
    key("cluster", "key_file", r#""cluster.key""#),
    key("cluster", "devices", "3"),
    key("node", "name", r#""camera-1""#),
    key("node", "data_dir", r#""/var/lib/mesh""#),
    key("network", "listen", r#""0.0.0.0:7400""#),
    key("network", "mdns", "true"),
    key("network", "peers", r#"["10.0.0.2:7400"]"#),
    key("network", "interfaces", r#"["eth0"]"#),
    key("api", "listen", r#""127.0.0.1:7401""#),
    key("api", "grpc_listen", r#""127.0.0.1:7402""#),
    key("api", "token_file", r#""api.token""#),
    key("limits", "memory", r#""512MiB""#),
    key("limits", "threads", "4"),
    key("limits", "disk", r#""8GiB""#),
    key("inference", "onnxruntime", r#""/usr/lib/libonnxruntime.so""#),
    key("inference", "execution_providers", r#"["cpu"]"#),
];

impl Key {
    /// The environment variable that overrides this key.
    pub(crate) fn variable(&self) -> String {
        format!("MESH_{}_{}", self.section, self.name).to_uppercase()
    }
}

pub(crate) fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.section == name)
}

pub(crate) fn is_key(section: &str, name: &str) -> bool {
    KEYS.iter().any(|key| key.section == section && key.name == name)
}

fn names(section: &str) -> Vec<&'static str> {
    KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect()
}

fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = KEYS.iter().map(|key| key.section).collect();
    sections.dedup();
    sections
}

/// What is meant by a word that is misspelt by a few letters.
fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let word = word.to_lowercase();
    let distance = |candidate: &&str| strsim::damerau_levenshtein(&word, candidate);
    let best = known.iter().copied().min_by_key(distance)?;
    (distance(&best) <= (best.len() / 3).max(2)).then_some(best)
}

/// What to say about a key that does not exist in its section.
pub(crate) fn unknown_key(section: &str, name: &str) -> String {
    let known = names(section);
    if let Some(meant) = nearest(name, &known) {
        return format!("unknown key `{name}` in [{section}]; did you mean `{meant}`?");
    }
    if let Some(home) = KEYS.iter().find(|key| key.name == name) {
        return format!("unknown key `{name}` in [{section}]; it belongs in [{}]", home.section);
    }
    format!("unknown key `{name}` in [{section}]; its keys are {}", listed(&known))
}

/// What to say about a section that does not exist.
pub(crate) fn unknown_section(name: &str) -> String {
    match nearest(name, &sections()) {
        Some(meant) => format!("unknown section [{name}]; did you mean [{meant}]?"),
        None => format!("unknown section [{name}]; the sections are {}", listed(&sections())),
    }
}

/// What to say about a key before the first section.
pub(crate) fn outside_any_section(name: &str) -> String {
    let homes: Vec<String> =
        KEYS.iter().filter(|key| key.name == name).map(|key| format!("[{}]", key.section)).collect();
    if homes.is_empty() {
        return format!("unknown key `{name}` outside any section; the sections are {}", listed(&sections()));
    }
    format!("`{name}` stands outside any section; put it under {}", homes.join(" or "))
}

fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
