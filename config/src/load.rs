//! From file and environment to a checked `Config`.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::checks::{
    NAME, do_clash, is_host_and_port, is_interface, is_name, is_provider, name_from_host, parse_size,
};
use crate::error::{ConfigErrors, Defect, Place};
use crate::raw::{Value, parse};
use crate::reader::{Given, Reader, boolean, integer, list, text};
use crate::secret::{DENIED, Unread, read_key, read_token};
use crate::{Api, ClientConfig, Cluster, Config, Inference, Limits, Network, Node};

/// Larger files are no config files.
const MAX_BYTES: u64 = 1 << 20;
/// Most devices that a cluster is founded with.
pub const MAX_DEVICES: u32 = 1_000;
/// More threads than any small computer has processors.
const MAX_THREADS: i64 = 1_024;

/// Reads and checks a config file, with the variables `MESH_<SECTION>_<KEY>` on top.
///
/// Relative paths, also those from variables, are relative to the config file.
///
/// # Errors
/// All defects together, each with file and line or with the variable's name.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    let mut reader = reader(path, env)?;
    let values = values(&mut reader);
    let key = values.key_file.and_then(|given| secret(&mut reader, given, read_key));
    let token = values.api.token_file.and_then(|given| secret(&mut reader, given, read_token));
    if !reader.defects.is_empty() {
        return Err(ConfigErrors::all(reader.defects));
    }
    let (node, limits, inference) = (values.node, values.limits, values.inference);
    let grpc_listen = values.api.grpc_listen;
    match (values.name, key, values.devices, values.network, values.api.listen) {
        (Some(name), Some(key), Some(devices), Some(network), Some(listen)) => {
            let (cluster, api) = (Cluster { name, key, devices }, Api { listen, grpc_listen, token });
            Ok(Config { file: path.to_owned(), cluster, node, network, api, limits, inference })
        }
        (..) => Err(incomplete(path)),
    }
}

/// Reads and checks a config file as [`load`] does, for a client of the daemon: the cluster key is not opened, and a
/// token that cannot be had is no failure. Only the daemon's user may read them.
///
/// # Errors
/// All defects together, each with file and line or with the variable's name.
pub fn load_client(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<ClientConfig, ConfigErrors> {
    let mut reader = reader(path, env)?;
    let values = values(&mut reader);
    if !reader.defects.is_empty() {
        return Err(ConfigErrors::all(reader.defects));
    }
    let Some(listen) = values.api.listen else { return Err(incomplete(path)) };
    let read = |given: Given<PathBuf>| read_token(&given.value).map_err(|unread| unread.at(given.place));
    let (token, token_defect) = match values.api.token_file.map(read) {
        None => (None, None),
        Some(Ok(token)) => (Some(token), None),
        Some(Err(defect)) => (None, Some(defect)),
    };
    let (limits, inference) = (values.limits, values.inference);
    Ok(ClientConfig { file: path.to_owned(), listen, token, token_defect, limits, inference })
}

fn incomplete(path: &Path) -> ConfigErrors {
    ConfigErrors::one(Place::File(path.to_owned()), "required values are missing")
}

/// The values of a file, none where one is missing or wrong. The secrets that it names have not been opened.
struct Values {
    name: Option<String>,
    devices: Option<u32>,
    key_file: Option<Given<PathBuf>>,
    node: Node,
    network: Option<Network>,
    api: ApiValues,
    limits: Limits,
    inference: Inference,
}

/// Where the API listens, and the file of its token.
struct ApiValues {
    listen: Option<SocketAddr>,
    grpc_listen: Option<SocketAddr>,
    token_file: Option<Given<PathBuf>>,
}

fn reader<'a>(path: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Result<Reader<'a>, ConfigErrors> {
    let content = read_file(path)?;
    let mut defects = Vec::new();
    let entries = parse(path, &content, &mut defects)?;
    Ok(Reader { file: path, entries, env, defects })
}

fn values(reader: &mut Reader<'_>) -> Values {
    let given = reader.read("cluster", "name", name);
    let name = reader.require("cluster", "name", given);
    let given = reader.read("cluster", "devices", integer(1, i64::from(MAX_DEVICES)));
    let devices = reader.require("cluster", "devices", given);
    let devices = devices.and_then(|devices| u32::try_from(devices).ok());
    let key_file = key_file(reader);
    let (node, network) = (node(reader), network(reader));
    let api = api(reader, network.as_ref());
    let (limits, inference) = (limits(reader), inference(reader));
    Values { name, devices, key_file, node, network, api, limits, inference }
}

/// Opens a file with a secret.
fn secret<T>(
    reader: &mut Reader<'_>,
    given: Given<PathBuf>,
    read: fn(&Path) -> Result<T, Unread>,
) -> Option<T> {
    read(&given.value).map_err(|unread| reader.defects.push(unread.at(given.place))).ok()
}

fn read_file(path: &Path) -> Result<String, ConfigErrors> {
    let failed = |error: std::io::Error| {
        let is_denied = error.kind() == std::io::ErrorKind::PermissionDenied;
        let message = if error.kind() == std::io::ErrorKind::NotFound {
            "the config file does not exist; write one with `mesh init`, or name another with --config FILE"
                .to_owned()
        } else if error.kind() == std::io::ErrorKind::InvalidData {
            "the config file is not UTF-8 text; save it as UTF-8".to_owned()
        } else if is_denied {
            format!("the config file {DENIED}")
        } else {
            format!("the config file cannot be read: {error}")
        };
        ConfigErrors { defects: vec![Defect { place: Place::File(path.to_owned()), message, is_denied }] }
    };
    let mut content = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1).read_to_string(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_BYTES {
        let message = "the config file is larger than 1 MiB; it is some other file";
        return Err(ConfigErrors::one(Place::File(path.to_owned()), message));
    }
    Ok(content)
}

fn name(value: &Value, from_environment: bool) -> Result<String, String> {
    text(value, from_environment).ok().filter(|name| is_name(name)).ok_or_else(|| NAME.to_owned())
}

fn key_file(reader: &mut Reader<'_>) -> Option<Given<PathBuf>> {
    let given = reader.read("cluster", "key_file", file_name);
    reader.require("cluster", "key_file", given.clone())?;
    given.map(|given| Given { value: reader.path(&given.value), place: given.place })
}

fn file_name(value: &Value, from_environment: bool) -> Result<String, String> {
    let path = text(value, from_environment).ok().filter(|path| !path.is_empty());
    path.ok_or_else(|| "the path of a file".to_owned())
}

fn node(reader: &mut Reader<'_>) -> Node {
    let given = reader.read("node", "name", name);
    let host = || name_from_host(&gethostname::gethostname().to_string_lossy());
    let name = given.map_or_else(host, |given| given.value);
    let data_dir = reader.read("node", "data_dir", |value, from_environment| {
        file_name(value, from_environment).map_err(|_| "the path of a directory".to_owned())
    });
    let data_dir = data_dir.map_or_else(|| PathBuf::from("/var/lib/mesh"), |given| reader.path(&given.value));
    Node { name, data_dir }
}

fn address(value: &Value, from_environment: bool) -> Result<SocketAddr, String> {
    let given = text(value, from_environment).ok().and_then(|text| text.trim().parse().ok());
    given.ok_or_else(|| "an IP address of this device and a port".to_owned())
}

/// The address of a section's `listen`; none when it was given and wrong.
fn listen(reader: &mut Reader<'_>, section: &str, port: u16, default: [u8; 4]) -> Option<Given<SocketAddr>> {
    let before = reader.defects.len();
    let given = reader.read(section, "listen", address);
    if reader.defects.len() > before {
        return None;
    }
    let place = Place::File(reader.file.to_owned());
    Some(given.unwrap_or(Given { value: SocketAddr::from((default, port)), place }))
}

/// A list whose items all follow a rule.
fn items(
    reader: &mut Reader<'_>,
    section: &str,
    name: &str,
    rule: impl Fn(&str) -> bool,
    expected: &str,
) -> Vec<String> {
    let Some(given) = reader.read(section, name, list) else { return Vec::new() };
    for (index, item) in given.value.iter().enumerate() {
        if !rule(item) {
            reader.defect(
                given.place.clone(),
                format!("{item:?} in `{name}` of [{section}] must be {expected}"),
            );
        } else if given.value[..index].contains(item) {
            reader.defect(
                given.place.clone(),
                format!("{item:?} stands twice in `{name}` of [{section}]; remove one"),
            );
        }
    }
    given.value
}

fn network(reader: &mut Reader<'_>) -> Option<Network> {
    let listen = listen(reader, "network", 7400, [0, 0, 0, 0]);
    let mdns = reader.read("network", "mdns", boolean).is_none_or(|given| given.value);
    let peer = "a host and a port, for example \"10.0.0.2:7400\" or \"[fd00::2]:7400\"";
    let peers = items(reader, "network", "peers", is_host_and_port, peer);
    let interfaces = items(
        reader,
        "network",
        "interfaces",
        is_interface,
        "a network interface's name, for example \"eth0\"",
    );
    Some(Network { listen: listen?.value, mdns, peers, interfaces })
}

fn api(reader: &mut Reader<'_>, network: Option<&Network>) -> ApiValues {
    let listen = listen(reader, "api", 7401, [127, 0, 0, 1]);
    let grpc = grpc_listen(reader);
    let token_file = reader.read("api", "token_file", text).filter(|given| !given.value.is_empty());
    let token_file = token_file.map(|given| Given { value: reader.path(&given.value), place: given.place });
    for (what, given) in [("API", &listen), ("gRPC API", &grpc)] {
        check_reach(reader, what, given.as_ref(), token_file.is_some());
    }
    let (peers, http) = (network.map(|network| network.listen), listen.as_ref().map(|given| given.value));
    check_clash(reader, "`listen` in [api] and in [network]", listen.as_ref(), peers);
    check_clash(reader, "`grpc_listen` in [api] and `listen` in [network]", grpc.as_ref(), peers);
    check_clash(reader, "`grpc_listen` and `listen` in [api]", grpc.as_ref(), http);
    ApiValues { listen: http, grpc_listen: grpc.map(|given| given.value), token_file }
}

/// Where gRPC is spoken; nowhere when it is empty or not given.
fn grpc_listen(reader: &mut Reader<'_>) -> Option<Given<SocketAddr>> {
    let given = reader.read("api", "grpc_listen", |value, from_environment| match value {
        Value::Text(text) if text.trim().is_empty() => Ok(None),
        Value::Text(_) | Value::Integer(_) | Value::Boolean(_) | Value::List(_) | Value::Other(_) => {
            address(value, from_environment).map(Some)
        }
    })?;
    given.value.map(|value| Given { value, place: given.place })
}

/// Whom others can reach must have a token.
fn check_reach(reader: &mut Reader<'_>, what: &str, given: Option<&Given<SocketAddr>>, has_token: bool) {
    let Some(given) = given.filter(|given| !given.value.ip().is_loopback() && !has_token) else { return };
    let message = format!(
        "the {what} listens on {}, which others can reach, without a token; set `token_file` in [api] to a file with \
         one, or listen on 127.0.0.1",
        given.value
    );
    reader.defect(given.place.clone(), message);
}

/// Two keys must not take one port.
fn check_clash(
    reader: &mut Reader<'_>,
    both: &str,
    given: Option<&Given<SocketAddr>>,
    other: Option<SocketAddr>,
) {
    let (Some(given), Some(other)) = (given, other) else { return };
    if do_clash(other, given.value) {
        let port = given.value.port();
        let message = format!("{both} both take port {port}; give one of them another port");
        reader.defect(given.place.clone(), message);
    }
}

fn limits(reader: &mut Reader<'_>) -> Limits {
    let memory = reader.read("limits", "memory", size).and_then(|given| given.value);
    let disk = reader.read("limits", "disk", size).and_then(|given| given.value);
    let threads = reader.read("limits", "threads", integer(0, MAX_THREADS));
    let threads = threads.and_then(|given| usize::try_from(given.value).ok()).unwrap_or(0);
    Limits { memory, threads, disk }
}

/// "auto" as none, or bytes.
fn size(value: &Value, _: bool) -> Result<Option<u64>, String> {
    let bytes = match value {
        Value::Text(text) if text.trim() == "auto" => return Ok(None),
        Value::Text(text) => parse_size(text),
        Value::Integer(number) => {
            number.and_then(|number| u64::try_from(number).ok()).filter(|bytes| *bytes > 0)
        }
        Value::Boolean(_) | Value::List(_) | Value::Other(_) => None,
    };
    bytes.map(Some).ok_or_else(|| "\"auto\" or a size above 0 with KiB, MiB, GiB, KB, MB or GB".to_owned())
}

fn inference(reader: &mut Reader<'_>) -> Inference {
    let library = reader.read("inference", "onnxruntime", |value, from_environment| {
        file_name(value, from_environment)
            .map_err(|_| "\"auto\" or the path of ONNX Runtime's library".to_owned())
    });
    let library = library.filter(|given| given.value != "auto");
    let onnxruntime = library.map(|given| reader.path(&given.value));
    let provider = "an execution provider's name in small letters, for example \"cpu\"";
    let mut execution_providers = items(reader, "inference", "execution_providers", is_provider, provider);
    if execution_providers.is_empty() {
        execution_providers.push("cpu".to_owned());
    }
    Inference { onnxruntime, execution_providers }
}
