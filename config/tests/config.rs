//! Whole files in, configs or exact messages out.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh_config::{Config, ConfigErrors, GenerateError, find, generate, load, load_client};
use proptest::prelude::*;
use tempfile::TempDir;

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF\n";
const GOOD: &str = "[cluster]\nname = \"shop\"\nkey_file = \"cluster.key\"\ndevices = 3\n";

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: TempDir::new().unwrap() };
        place.put("cluster.key", KEY, 0o600);
        place.put("api.token", "0123456789abcdef\n", 0o400);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, content: &str, mode: u32) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.path(name)).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn load(&self, content: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
        self.put("mesh.toml", content, 0o644);
        load(&self.path("mesh.toml"), &variables(env))
    }

    /// The messages, with this directory written as `DIR`.
    fn messages(&self, content: &str, env: &[(&str, &str)]) -> String {
        let errors = self.load(content, env).unwrap_err();
        errors.to_string().replace(&self.dir.path().display().to_string(), "DIR")
    }
}

fn variables(env: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> + use<> {
    let map: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    move |name| map.get(name).cloned()
}

#[test]
fn the_least_file_gets_the_defaults() {
    let place = Place::new();
    let config = place.load(GOOD, &[]).unwrap();
    assert_eq!(config.cluster.name, "shop");
    assert_eq!(config.cluster.devices, 3);
    assert_eq!(config.cluster.key.as_bytes()[..3], [0, 0x11, 0x22]);
    assert_eq!(config.cluster.key.as_bytes()[31], 0xff);
    assert!(!config.node.name.is_empty());
    assert_eq!(config.node.data_dir, Path::new("/var/lib/mesh"));
    assert_eq!(config.network.listen, "0.0.0.0:7400".parse().unwrap());
    assert!(config.network.mdns && config.network.peers.is_empty() && config.network.interfaces.is_empty());
    assert_eq!(config.api.listen, "127.0.0.1:7401".parse().unwrap());
    assert!(config.api.token.is_none() && config.api.grpc_listen.is_none());
    assert_eq!((config.limits.memory, config.limits.threads, config.limits.disk), (None, 0, None));
    assert_eq!(config.inference.onnxruntime, None);
    assert_eq!(config.inference.execution_providers, ["cpu"]);
    assert_eq!(config.file, place.path("mesh.toml"));
}

#[test]
fn a_full_file_is_taken_as_it_stands() {
    let place = Place::new();
    let text = r#"
        [cluster]
        name = "Shop.1"
        key_file = "cluster.key"
        devices = 1000
        [node]
        name = "camera-1"
        data_dir = "state"
        [network]
        listen = "[::]:0"
        mdns = false
        peers = ["10.0.0.2:7400", "attic:7400"]
        interfaces = ["eth0"]
        [api]
        listen = "0.0.0.0:80"
        grpc_listen = "[::]:81"
        token_file = "api.token"
        [limits]
        memory = "512MiB"
        threads = 2
        disk = 5_000
        [inference]
        onnxruntime = "lib/ort.so"
        execution_providers = ["cuda", "cpu"]
    "#;
    let config = place.load(text, &[]).unwrap();
    assert_eq!(config.node.data_dir, place.path("state"));
    assert_eq!(config.network.listen, "[::]:0".parse().unwrap());
    assert_eq!(config.network.peers, ["10.0.0.2:7400", "attic:7400"]);
    assert_eq!(config.api.grpc_listen, Some("[::]:81".parse().unwrap()));
    assert!(config.api.token.as_ref().unwrap().matches("0123456789abcdef"));
    assert!(!config.api.token.as_ref().unwrap().matches("0123456789abcdeX"));
    assert!(!config.api.token.as_ref().unwrap().matches("0123456789abcdef0"));
    assert_eq!(
        (config.limits.memory, config.limits.threads, config.limits.disk),
        (Some(512 << 20), 2, Some(5000))
    );
    assert_eq!(config.inference.onnxruntime, Some(place.path("lib/ort.so")));
    assert_eq!(config.inference.execution_providers, ["cuda", "cpu"]);
    let shown = format!("{config:?}");
    assert!(!shown.contains("0123456789abcdef") && !shown.contains("17, 34, 51"), "{shown}");
}

#[test]
fn every_key_can_come_from_the_environment() {
    let place = Place::new();
    let env = [
        ("MESH_CLUSTER_NAME", "other"),
        ("MESH_CLUSTER_KEY_FILE", "cluster.key"),
        ("MESH_CLUSTER_DEVICES", "5"),
        ("MESH_NODE_NAME", "n"),
        ("MESH_NODE_DATA_DIR", "/data"),
        ("MESH_NETWORK_LISTEN", "127.0.0.1:1"),
        ("MESH_NETWORK_MDNS", "false"),
        ("MESH_NETWORK_PEERS", "a:1, b:2"),
        ("MESH_NETWORK_INTERFACES", "eth0,wlan0"),
        ("MESH_API_LISTEN", "127.0.0.1:2"),
        ("MESH_API_GRPC_LISTEN", "127.0.0.1:3"),
        ("MESH_API_TOKEN_FILE", "api.token"),
        ("MESH_LIMITS_MEMORY", "1GiB"),
        ("MESH_LIMITS_THREADS", "3"),
        ("MESH_LIMITS_DISK", "2GB"),
        ("MESH_INFERENCE_ONNXRUNTIME", "/lib/x.so"),
        ("MESH_INFERENCE_EXECUTION_PROVIDERS", "cuda,cpu"),
    ];
    for content in ["", GOOD, "[cluster]\nname = 3\ndevices = \"x\"\n[network]\nmdns = 7\n"] {
        let config = place.load(content, &env).unwrap();
        assert_eq!((config.cluster.name.as_str(), config.cluster.devices), ("other", 5));
        assert_eq!((config.node.name.as_str(), config.node.data_dir.to_str()), ("n", Some("/data")));
        assert_eq!(config.network.listen, "127.0.0.1:1".parse().unwrap());
        assert!(!config.network.mdns);
        assert_eq!(config.network.peers, ["a:1", "b:2"]);
        assert_eq!(config.network.interfaces, ["eth0", "wlan0"]);
        assert_eq!(config.api.listen, "127.0.0.1:2".parse().unwrap());
        assert_eq!(config.api.grpc_listen, Some("127.0.0.1:3".parse().unwrap()));
        assert!(config.api.token.is_some());
        assert_eq!((config.limits.memory, config.limits.threads), (Some(1 << 30), 3));
        assert_eq!(config.limits.disk, Some(2_000_000_000));
        assert_eq!(config.inference.onnxruntime.as_deref(), Some(Path::new("/lib/x.so")));
        assert_eq!(config.inference.execution_providers, ["cuda", "cpu"]);
    }
}

/// Case by case: what follows the least good file, and the exact messages.
const BAD: &[(&str, &str)] = &[
    ("devces = 3\n", "DIR/mesh.toml:5: unknown key `devces` in [cluster]; did you mean `devices`?"),
    (
        "listen = \"0.0.0.0:7400\"\n",
        "DIR/mesh.toml:5: unknown key `listen` in [cluster]; it belongs in [network]",
    ),
    (
        "colour = 1\n",
        "DIR/mesh.toml:5: unknown key `colour` in [cluster]; its keys are `name`, `key_file`, `devices`",
    ),
    ("[netwrk]\nmdns = true\n", "DIR/mesh.toml:5: unknown section [netwrk]; did you mean [network]?"),
    (
        "[database]\n",
        "DIR/mesh.toml:5: unknown section [database]; the sections are `cluster`, `node`, `network`, `api`, \
         `limits`, `inference`",
    ),
    (
        "[node]\nname = \"my node\"\n",
        "DIR/mesh.toml:6: `name` in [node] is \"my node\"; it must be 1 to 63 letters, digits, `-`, `_` and `.`, for \
         example `name = \"camera-1\"`",
    ),
    (
        "[node]\ndata_dir = 1.5\n",
        "DIR/mesh.toml:6: `data_dir` in [node] is a number with a fraction; it must be the path of a directory, for \
         example `data_dir = \"/var/lib/mesh\"`",
    ),
    (
        "[network]\nlisten = \"7400\"\nmdns = \"yes\"\n",
        "DIR/mesh.toml:6: `listen` in [network] is \"7400\"; it must be an IP address of this device and a port, for \
         example `listen = \"0.0.0.0:7400\"`\n\
         DIR/mesh.toml:7: `mdns` in [network] is \"yes\"; it must be true or false, for example `mdns = true`",
    ),
    (
        "[network]\npeers = \"a:1\"\n",
        "DIR/mesh.toml:6: `peers` in [network] is \"a:1\"; it must be a list of texts, for example \
         `peers = [\"10.0.0.2:7400\"]`",
    ),
    (
        "[network]\npeers = [\"attic\", \"a:1\", \"a:1\"]\n",
        "DIR/mesh.toml:6: \"a:1\" stands twice in `peers` of [network]; remove one\n\
         DIR/mesh.toml:6: \"attic\" in `peers` of [network] must be a host and a port, for example \"10.0.0.2:7400\" \
         or \"[fd00::2]:7400\"",
    ),
    (
        "[api]\nlisten = \"0.0.0.0:7401\"\n",
        "DIR/mesh.toml:6: the API listens on 0.0.0.0:7401, which others can reach, without a token; set `token_file` \
         in [api] to a file with one, or listen on 127.0.0.1",
    ),
    (
        "[api]\nlisten = \"127.0.0.1:7400\"\n",
        "DIR/mesh.toml:6: `listen` in [api] and in [network] both take port 7400; give one of them another port",
    ),
    (
        "[api]\ngrpc_listen = \"192.168.1.7:7402\"\n",
        "DIR/mesh.toml:6: the gRPC API listens on 192.168.1.7:7402, which others can reach, without a token; set \
         `token_file` in [api] to a file with one, or listen on 127.0.0.1",
    ),
    (
        "[api]\ngrpc_listen = \"127.0.0.1:7401\"\n",
        "DIR/mesh.toml:6: `grpc_listen` and `listen` in [api] both take port 7401; give one of them another port",
    ),
    (
        "[api]\ngrpc_listen = \"127.0.0.1:7400\"\n",
        "DIR/mesh.toml:6: `grpc_listen` in [api] and `listen` in [network] both take port 7400; give one of them \
         another port",
    ),
    (
        "[api]\ngrpc_listen = 7402\n",
        "DIR/mesh.toml:6: `grpc_listen` in [api] is 7402; it must be an IP address of this device and a port, for \
         example `grpc_listen = \"127.0.0.1:7402\"`",
    ),
    (
        "[api]\ntoken_file = \"gone\"\n",
        "DIR/mesh.toml:6: DIR/gone does not exist; write a long random text into it, for example with `openssl rand \
         -hex 32`",
    ),
    (
        "[limits]\nmemory = \"much\"\nthreads = -1\ndisk = 0\n",
        "DIR/mesh.toml:6: `memory` in [limits] is \"much\"; it must be \"auto\" or a size above 0 with KiB, MiB, GiB, \
         KB, MB or GB, for example `memory = \"512MiB\"`\n\
         DIR/mesh.toml:7: `threads` in [limits] is -1; it must be a whole number from 0 to 1024, for example \
         `threads = 4`\n\
         DIR/mesh.toml:8: `disk` in [limits] is 0; it must be \"auto\" or a size above 0 with KiB, MiB, GiB, KB, MB \
         or GB, for example `disk = \"8GiB\"`",
    ),
    (
        "[inference]\nexecution_providers = [\"CUDA\"]\n",
        "DIR/mesh.toml:6: \"CUDA\" in `execution_providers` of [inference] must be an execution provider's name in \
         small letters, for example \"cpu\"",
    ),
];

#[test]
fn bad_files_are_refused_with_these_words() {
    let place = Place::new();
    for (addition, expected) in BAD {
        assert_eq!(place.messages(&format!("{GOOD}{addition}"), &[]), *expected, "{addition}");
    }
}

#[test]
fn missing_values_and_sections_are_named() {
    let place = Place::new();
    let missing = "DIR/mesh.toml: `devices` is missing in [cluster]; add for example `devices = 3`, or set \
                   MESH_CLUSTER_DEVICES\n\
                   DIR/mesh.toml: `key_file` is missing in [cluster]; add for example `key_file = \"cluster.key\"`, or \
                   set MESH_CLUSTER_KEY_FILE\n\
                   DIR/mesh.toml: `name` is missing in [cluster]; add for example `name = \"shop-floor\"`, or set \
                   MESH_CLUSTER_NAME";
    assert_eq!(place.messages("", &[]), missing);
    let outside = "name = \"x\"\n";
    let expected = format!(
        "DIR/mesh.toml:1: `name` stands outside any section; put it under [cluster] or [node]\n{missing}"
    );
    assert_eq!(place.messages(outside, &[]), expected);
    let flat = place.messages("cluster = 3\n", &[]);
    assert!(
        flat.starts_with(
            "DIR/mesh.toml:1: `cluster` must be a section, written as [cluster] on a line of its own"
        ),
        "{flat}"
    );
}

#[test]
fn text_that_is_no_toml_is_refused_with_its_line() {
    let place = Place::new();
    let messages = place.messages("[cluster]\nname = \n\nname = = 3\n", &[]);
    assert!(messages.starts_with("DIR/mesh.toml:2: this is not TOML: "), "{messages}");
    assert!(messages.contains("DIR/mesh.toml:4: this is not TOML: "), "{messages}");
    let twice = place.messages("[cluster]\nname = \"a\"\nname = \"b\"\n", &[]);
    assert!(twice.starts_with("DIR/mesh.toml:3: this is not TOML: duplicate key"), "{twice}");
}

#[test]
fn a_bad_variable_is_named() {
    let place = Place::new();
    let env = [("MESH_CLUSTER_DEVICES", "0"), ("MESH_NETWORK_MDNS", "1"), ("MESH_NETWORK_PEERS", "a")];
    let expected = "MESH_CLUSTER_DEVICES: is \"0\"; it must be a whole number from 1 to 1000, for example \
                    MESH_CLUSTER_DEVICES=3\n\
                    MESH_NETWORK_MDNS: is \"1\"; it must be true or false, for example MESH_NETWORK_MDNS=true\n\
                    MESH_NETWORK_PEERS: \"a\" in `peers` of [network] must be a host and a port, for example \
                    \"10.0.0.2:7400\" or \"[fd00::2]:7400\"";
    assert_eq!(place.messages(GOOD, &env), expected);
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let place = Place::new();
    for mode in [0o640, 0o604, 0o666, 0o620] {
        place.put("cluster.key", KEY, mode);
        let expected = format!(
            "DIR/mesh.toml:3: DIR/cluster.key can be used by others than its owner (mode {mode:04o}); run: chmod 600 \
             DIR/cluster.key"
        );
        assert_eq!(place.messages(GOOD, &[]), expected);
    }
    place.put("api.token", "0123456789abcdef\n", 0o644);
    place.put("cluster.key", KEY, 0o600);
    let messages = place.messages(&format!("{GOOD}[api]\ntoken_file = \"api.token\"\n"), &[]);
    assert!(messages.ends_with("run: chmod 600 DIR/api.token"), "{messages}");
}

#[test]
fn broken_secrets_are_refused_and_not_shown() {
    let place = Place::new();
    for content in ["", "00112233", &KEY[..60], &format!("{}zz", &KEY[..62]), &format!("{KEY}00")] {
        place.put("cluster.key", content, 0o600);
        let messages = place.messages(GOOD, &[]);
        assert!(
            messages.starts_with("DIR/mesh.toml:3: DIR/cluster.key must hold 64 hexadecimal digits"),
            "{messages}"
        );
        assert!(!messages.contains("0011"), "{messages}");
    }
    std::fs::remove_file(place.path("cluster.key")).unwrap();
    let missing =
        "DIR/mesh.toml:3: DIR/cluster.key does not exist; copy it from the device that ran `mesh init`";
    assert_eq!(place.messages(GOOD, &[]), missing);
    std::fs::create_dir(place.path("cluster.key")).unwrap();
    assert!(place.messages(GOOD, &[]).contains("DIR/cluster.key is not a file"));
    place.put("api.token", "short\n", 0o600);
    let messages = place.messages(&format!("{GOOD}[api]\ntoken_file = \"api.token\"\n"), &[]);
    assert!(messages.contains("at least 16") && !messages.contains("short"), "{messages}");
}

#[test]
fn a_client_needs_no_secret() {
    let place = Place::new();
    let client = |content: &str| {
        place.put("mesh.toml", content, 0o644);
        load_client(&place.path("mesh.toml"), &|_| None)
    };
    let with_token = format!("{GOOD}[api]\nlisten = \"127.0.0.1:9\"\ntoken_file = \"api.token\"\n");
    let read = client(&with_token).unwrap();
    assert_eq!((read.listen, read.file), ("127.0.0.1:9".parse().unwrap(), place.path("mesh.toml")));
    assert!(read.token.unwrap().matches("0123456789abcdef") && read.token_defect.is_none());
    // The key is never opened; a token that cannot be had is told, and fails nothing.
    std::fs::remove_file(place.path("cluster.key")).unwrap();
    std::fs::remove_file(place.path("api.token")).unwrap();
    assert!(place.load(GOOD, &[]).is_err());
    let read = client(&with_token).unwrap();
    let defect = read.token_defect.unwrap();
    assert!(read.token.is_none() && defect.message.contains("api.token does not exist"), "{defect}");
    let read = client(GOOD).unwrap();
    assert!(read.listen == "127.0.0.1:7401".parse().unwrap() && read.token_defect.is_none());
    // All the rest is checked.
    for (addition, says) in [
        ("devces = 3\n", "did you mean `devices`?"),
        ("[api]\nlisten = \"0.0.0.0:7401\"\n", "without a token"),
        ("[limits]\nmemory = \"much\"\n", "`memory` in [limits]"),
    ] {
        let errors = client(&format!("{GOOD}{addition}")).unwrap_err().to_string();
        assert!(errors.contains(says), "{errors}");
    }
    let errors = client("[cluster]\nname = \"a\"\ndevices = 1\n").unwrap_err().to_string();
    assert!(errors.contains("`key_file` is missing"), "{errors}");
}

#[test]
fn the_written_file_loads() {
    let place = Place::new();
    let dir = place.path("new/dir");
    let written = generate(&dir, "shop-floor", 4).unwrap();
    let mode = std::fs::metadata(&written.key).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let config = load(&written.config, &|_| None).unwrap();
    assert_eq!((config.cluster.name.as_str(), config.cluster.devices), ("shop-floor", 4));
    assert_ne!(config.cluster.key.as_bytes(), &[0; 32]);
    let least = place.load(GOOD, &[]).unwrap();
    assert_eq!(config.network, least.network);
    assert_eq!(config.limits, least.limits);
    assert_eq!(config.inference, least.inference);
    assert_eq!(config.node, least.node);
    // Every default that stands as a comment is the real default.
    let text = std::fs::read_to_string(&written.config).unwrap();
    let open: String =
        text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).fold(String::new(), |all, l| {
            if l.contains(" = ") || l.starts_with('[') { all + l + "\n" } else { all }
        });
    let opened = place.load(&open.replace("\"camera-1\"", "\"x\""), &[]).unwrap();
    assert_eq!(opened.network, least.network);
    assert_eq!(opened.limits, least.limits);
    assert_eq!(opened.inference, least.inference);
    assert_eq!((opened.api.listen, opened.api.grpc_listen), (least.api.listen, None));
    assert_eq!(opened.node.data_dir, least.node.data_dir);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
}

#[test]
fn nothing_is_overwritten() {
    let place = Place::new();
    for name in ["mesh.toml", "cluster.key"] {
        let dir = TempDir::new().unwrap();
        std::fs::File::create(dir.path().join(name)).unwrap();
        let error = generate(dir.path(), "a", 1).unwrap_err();
        assert!(matches!(&error, GenerateError::Exists { path } if path.ends_with(name)), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    assert!(matches!(generate(&place.path("x"), "a b", 1), Err(GenerateError::Name { .. })));
    assert!(matches!(generate(&place.path("x"), "a", 0), Err(GenerateError::Devices { .. })));
    assert!(!place.path("x").exists());
}

#[test]
fn the_file_is_searched_in_order() {
    let place = Place::new();
    let home = place.dir.path().display().to_string();
    let env = [("MESH_CONFIG", "named.toml"), ("HOME", home.as_str())];
    assert_eq!(find(Some(Path::new("given.toml")), &variables(&env)).unwrap(), Path::new("given.toml"));
    assert_eq!(find(None, &variables(&env)).unwrap(), Path::new("named.toml"));
    std::fs::create_dir_all(place.path(".config/mesh")).unwrap();
    place.put(".config/mesh/mesh.toml", GOOD, 0o644);
    let found = find(None, &variables(&env[1..])).unwrap();
    assert_eq!(found, place.path(".config/mesh/mesh.toml"));
    let error = load(&place.path("gone.toml"), &|_| None).unwrap_err().to_string();
    assert!(
        error.contains("gone.toml: the config file does not exist; write one with `mesh init`"),
        "{error}"
    );
    place.put("binary.toml", "\u{0}", 0o644);
    std::fs::copy("/proc/self/exe", place.path("binary.toml")).unwrap();
    let error = load(&place.path("binary.toml"), &|_| None).unwrap_err().to_string();
    assert!(error.contains("not UTF-8") || error.contains("larger than"), "{error}");
}

proptest! {
    #[test]
    fn no_text_is_too_strange(pieces in prop::collection::vec(
        prop_oneof![
            Just("[cluster]\n".to_owned()), Just("[api]\n".to_owned()), Just("name = ".to_owned()),
            Just("devices = ".to_owned()), Just("peers = [".to_owned()), Just("memory = \"".to_owned()),
            Just("\"\n".to_owned()), "\\PC{0,12}", any::<i64>().prop_map(|n| format!("{n}\n")),
        ], 0..12))
    {
        let place = Place::new();
        let errors = place.load(&pieces.concat(), &[]).unwrap_err();
        prop_assert!(!errors.defects.is_empty());
    }
}
