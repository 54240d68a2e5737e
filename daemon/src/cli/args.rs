//! What can be typed.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  mesh init --name shop-floor --devices 3    Write mesh.toml and cluster.key for every device
  mesh run                                   Run the daemon on this device
  mesh deploy resnet50.onnx --name resnet50  Cut a model over the devices and serve it
  mesh infer resnet50 --input cat.jpg        Ask it something
  mesh status                                See what runs where, and what needs you

Exit codes: 0 done, 1 failed, 64 wrong usage, 69 daemon or cluster unreachable, 78 bad config.";

/// Run neural networks over several small computers.
#[derive(Debug, Parser)]
#[command(name = "mesh", bin_name = "mesh", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// Config file [default: MESH_CONFIG, else ./mesh.toml, ~/.config/mesh/mesh.toml or /etc/mesh/mesh.toml]
    #[arg(long, global = true, help_heading = "Everywhere", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Daemon to talk to, such as http://10.0.0.7:7401 [default: MESH_API, else the config's api.listen]
    #[arg(long, global = true, help_heading = "Everywhere", value_name = "URL")]
    pub(super) api: Option<String>,
}

impl Global {
    /// With what `MESH_CONFIG` and `MESH_API` say where nothing was typed. A variable that is empty says nothing, which
    /// clap would not let pass.
    pub(super) fn or_environment(self, env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let given = |name: &str| env(name).filter(|value| !value.is_empty());
        Self {
            config: self.config.or_else(|| given("MESH_CONFIG").map(PathBuf::from)),
            api: self.api.or_else(|| given("MESH_API").and_then(|value| value.into_string().ok())),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write a config file and a cluster key
    Init(Init),
    /// Run the daemon
    Run(Run),
    /// Show the cluster, its devices and what it serves
    Status(Status),
    /// Import a model, cut it over the devices and serve it
    Deploy(Deploy),
    /// Show how a model is cut and placed, and why
    Plan(Plan),
    /// Send one request
    Infer(Infer),
    /// Load a model with requests and measure
    Bench(Bench),
    /// List the imported models
    Models(Models),
    /// Stop serving a model
    Undeploy(Undeploy),
    /// Remove imported models
    Model(Model),
    /// List, drain and remove devices
    Node(Node),
    /// Check what could keep this device from working, with remedies
    Doctor(Doctor),
    /// Show a mesh of four daemons on this machine survive a loss
    Demo(Demo),
    /// Go on with this device's copy after most devices that vote are lost for good
    Recover(Recover),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Write man pages
    Man(Man),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesh init --name shop-floor --devices 3
  mesh init --name shop-floor --devices 3 --out /etc/mesh")]
pub(super) struct Init {
    /// Name of the cluster
    #[arg(long, default_value = "mesh")]
    pub(super) name: String,
    /// How many devices there will be when the cluster is first formed
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) devices: u32,
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(super) out: PathBuf,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesh run --config /etc/mesh/mesh.toml
  RUST_LOG=mesh_daemon=debug mesh run --log-format json

Logs go to stderr. Under systemd (Type=notify) it says when it is ready and feeds the watchdog.")]
pub(super) struct Run {
    /// How log lines look
    #[arg(long, value_enum, default_value = "text")]
    pub(super) log_format: LogFormat,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mesh status\n  mesh status --watch\n  mesh status --json | jq '.nodes[].name'"
)]
pub(super) struct Status {
    /// Print the status document
    #[arg(long)]
    pub(super) json: bool,
    /// Show it again every second until it is interrupted; with --json a document per line
    #[arg(long)]
    pub(super) watch: bool,
}

/// What a deployment is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Objective {
    /// The highest rate of requests.
    Throughput,
    /// The shortest time of one request.
    Latency,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesh deploy resnet50.onnx --name resnet50
  mesh deploy bert.onnx --name bert --shape input_ids=1x128 --objective latency
  mesh deploy vit.onnx --name vit --stages 4 --dry-run
  mesh plan vit --json > plan.json; mesh deploy vit.onnx --name vit --pin plan.json

External data files that the model names are found next to it and sent along.")]
pub(super) struct Deploy {
    /// The ONNX model
    #[arg(value_name = "FILE.onnx")]
    pub(super) file: PathBuf,
    /// Name to serve it under
    #[arg(long)]
    pub(super) name: String,
    /// What to plan for
    #[arg(long, value_enum, default_value = "throughput")]
    pub(super) objective: Objective,
    /// Extents of an input with dynamic axes, used to measure; once per input
    #[arg(long = "shape", value_name = "INPUT=1x3x224x224", value_parser = parse_shape)]
    pub(super) shapes: Vec<(String, Vec<i64>)>,
    /// Cut into exactly this many stages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) stages: Option<u32>,
    /// Use this plan, written by `mesh plan --json`
    #[arg(long, value_name = "FILE", conflicts_with = "stages")]
    pub(super) pin: Option<PathBuf>,
    /// Print the plan and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Return when the plan is made instead of waiting until it serves
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) no_wait: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mesh plan resnet50\n  mesh plan resnet50 --svg plan.svg\n  mesh plan resnet50 --json > plan.json\n  mesh plan resnet50 --problem > problem.json"
)]
pub(super) struct Plan {
    /// Deployment
    pub(super) name: String,
    /// Print the plan for programs and for `mesh deploy --pin`
    #[arg(long)]
    pub(super) json: bool,
    /// Print what the plan was made from (blocks, devices, links) as the planner reads it
    #[arg(long, conflicts_with = "json")]
    pub(super) problem: bool,
    /// Draw the plan as an SVG picture
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "problem"])]
    pub(super) svg: Option<PathBuf>,
}

/// Explains `--input` in the same words wherever it is taken.
const INPUT_HELP: &str = "\
Input: X.npy, or NAME=X.npy for each input of a model with several; PNG and JPEG work for image inputs. Images are \
resized to the model's height and width, laid out as its input is (channels first or last), in colour for 3 channels \
and grey for 1; float inputs get values from 0 to 1 and UINT8 inputs from 0 to 255, with no other normalisation";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesh infer digits --input digit.npy
  mesh infer resnet50 --input cat.jpg --output logits.npz
  mesh infer bert --input input_ids=ids.npy --input attention_mask=mask.npy")]
pub(super) struct Infer {
    /// Deployment
    pub(super) name: String,
    #[arg(long = "input", value_name = "[NAME=]FILE", required = true, help = INPUT_HELP)]
    pub(super) inputs: Vec<String>,
    /// Write all outputs to this NumPy archive
    #[arg(long, value_name = "OUT.npz")]
    pub(super) output: Option<PathBuf>,
    /// Give up after this long
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub(super) timeout: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesh bench resnet50 --seconds 30 --concurrency 8
  mesh bench digits --requests 1000 --input digit.npy --json

Each of the concurrent clients sends its next request when the answer to its last one is there. Without --input the \
values are random within the model's types and shapes. Answers that differ from the first one for the same input by \
more than 1e-5 of its largest magnitude count as errors.")]
pub(super) struct Bench {
    /// Deployment
    pub(super) name: String,
    /// Stop after this many requests
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) requests: Option<u64>,
    /// Stop after this long [default: 10]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    pub(super) seconds: Option<Duration>,
    /// Clients at once
    #[arg(long, value_name = "C", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) concurrency: u32,
    #[arg(long = "input", value_name = "[NAME=]FILE", help = INPUT_HELP)]
    pub(super) inputs: Vec<String>,
    /// Extents of an input with dynamic axes; each is 1 otherwise
    #[arg(long = "shape", value_name = "INPUT=1x3x224x224", value_parser = parse_shape, conflicts_with = "inputs")]
    pub(super) shapes: Vec<(String, Vec<i64>)>,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mesh models\n  mesh models --json")]
pub(super) struct Models {
    /// Print a JSON list
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mesh undeploy resnet50\n\nThe model stays imported: see mesh model rm.")]
pub(super) struct Undeploy {
    /// Deployment
    pub(super) name: String,
}

#[derive(Debug, Args)]
#[command(subcommand_required = true, after_help = "Examples:\n  mesh models\n  mesh model rm resnet50.onnx")]
pub(super) struct Model {
    #[command(subcommand)]
    pub(super) action: ModelAction,
}

#[derive(Debug, Subcommand)]
pub(super) enum ModelAction {
    /// Forget a model that no deployment uses
    #[command(after_help = "Examples:\n  mesh model rm resnet50.onnx\n  mesh model rm 3f9a2c")]
    Rm {
        /// Hash, start of a hash, or file name with or without its ending, as `mesh models` lists them
        model: String,
    },
}

#[derive(Debug, Args)]
#[command(
    subcommand_required = true,
    after_help = "\
Examples:
  mesh node list
  mesh node drain camera-1      Before it is switched off
  mesh node undrain camera-1    When it is back
  mesh node drain camera-1 && mesh node remove camera-1"
)]
pub(super) struct Node {
    #[command(subcommand)]
    pub(super) action: NodeAction,
}

/// Explains how a device is named in the same words wherever one is.
const NODE_HELP: &str = "Name, id, or start or end of an id";

#[derive(Debug, Subcommand)]
pub(super) enum NodeAction {
    /// List the devices
    #[command(
        after_help = "Examples:\n  mesh node list\n  mesh node list --json | jq -r '.[] | select(.state == \"down\").name'"
    )]
    List {
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Move work off a device, for example before it is switched off
    #[command(after_help = "\
Examples:
  mesh node drain camera-1
  mesh node drain camera-1 && sudo poweroff
  mesh node drain camera-1 --no-wait

It ends when nothing runs on the device any more, and fails when something cannot be moved. The device gets no new work \
until `mesh node undrain`.")]
    Drain {
        #[arg(help = NODE_HELP)]
        node: String,
        /// Return at once instead of waiting until its work is moved
        #[arg(long)]
        no_wait: bool,
    },
    /// Let a drained device take work again
    #[command(after_help = "Examples:\n  mesh node undrain camera-1")]
    Undrain {
        #[arg(help = NODE_HELP)]
        node: String,
    },
    /// Remove a device for good: its identity is refused from now on
    #[command(after_help = "Examples:\n  mesh node drain camera-1 && mesh node remove camera-1")]
    Remove {
        #[arg(help = NODE_HELP)]
        node: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mesh doctor\n  mesh doctor --config /etc/mesh/mesh.toml --json")]
pub(super) struct Doctor {
    /// Print a JSON list of findings
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Run it with the daemon of this device stopped, on one device only, and only when most voters will never come back.

Examples:
  mesh recover            Say what would be done
  mesh recover --force    Do it, after a question")]
pub(super) struct Recover {
    /// Do it; without this it is only said what would be done
    #[arg(long)]
    pub(super) force: bool,
    /// Do not ask
    #[arg(long, requires = "force")]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mesh demo
  mesh demo --keep

Four daemons on loopback form a cluster. A network that reads digits fits none of them, so that it is cut over them; \
360 images go through it from several devices while one device is killed. Needs ONNX Runtime (see mesh doctor).")]
pub(super) struct Demo {
    /// Leave the cluster running and print the dashboard's address
    #[arg(long)]
    pub(super) keep: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mesh completions bash > /etc/bash_completion.d/mesh\n  \
    mesh completions zsh > ~/.zfunc/_mesh")]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mesh man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// Folder to write them to
    pub(super) dir: PathBuf,
}

/// `NAME=1x3x224x224`.
fn parse_shape(text: &str) -> Result<(String, Vec<i64>), String> {
    let (name, extents) = text.rsplit_once('=').ok_or("write it as INPUT=1x3x224x224")?;
    let extents: Result<Vec<i64>, _> = extents.split(['x', ',']).map(str::parse).collect();
    match extents {
        Ok(extents) if !name.is_empty() && extents.iter().all(|&extent| extent > 0) => {
            Ok((name.to_owned(), extents))
        }
        Ok(_) | Err(_) => Err("write it as INPUT=1x3x224x224, with every extent at least 1".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| "this is no number of seconds")?;
    match seconds > 0.0 && seconds <= 86_400.0 {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err("between 0 and 86400 seconds".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, path::Path};

    use clap::CommandFactory;

    use super::{Arguments, Global, parse_seconds, parse_shape};

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// Every command's help ends with examples of it.
    fn check_examples(command: &clap::Command, path: &str) {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(
            after.contains("Examples:") && after.contains(path),
            "{path} --help has no examples: {after:?}"
        );
        for command in command.get_subcommands() {
            check_examples(command, &format!("{path} {}", command.get_name()));
        }
    }

    #[test]
    fn all_help_has_examples() {
        check_examples(&Arguments::command(), "mesh");
    }

    #[test]
    fn an_empty_variable_says_nothing() {
        let global = |config: Option<&str>, api: Option<&str>| Global {
            config: config.map(Into::into),
            api: api.map(Into::into),
        };
        let set = |name: &str| Some(OsString::from(format!("of {name}")));
        let from = global(None, None).or_environment(&set);
        assert_eq!(from.config.as_deref(), Some(Path::new("of MESH_CONFIG")));
        assert_eq!(from.api.as_deref(), Some("of MESH_API"));
        let typed = global(Some("a.toml"), Some("http://a")).or_environment(&set);
        assert_eq!(
            (typed.config.as_deref(), typed.api.as_deref()),
            (Some(Path::new("a.toml")), Some("http://a"))
        );
        for none in [None, Some(OsString::new())] {
            let from = global(None, None).or_environment(&|_| none.clone());
            assert!(from.config.is_none() && from.api.is_none(), "{none:?}");
        }
    }

    #[test]
    fn shapes_and_seconds() {
        assert_eq!(parse_shape("a=1x3"), Ok(("a".into(), vec![1, 3])));
        assert_eq!(parse_shape("x=y=2,4"), Ok(("x=y".into(), vec![2, 4])));
        for bad in ["a", "a=", "=1", "a=0", "a=-1", "a=1xx2", "a=99999999999999999999"] {
            assert!(parse_shape(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_seconds("1.5").map(|d| d.as_millis()), Ok(1500));
        for bad in ["0", "-1", "nan", "inf", "x", "1e9"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
