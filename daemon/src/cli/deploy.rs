//! `mesh deploy`: sends a model's files to the daemon and follows the deployment until it serves.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use mesh_planner::Plan;

use super::{
    args::{Deploy, Global, Objective},
    client::{self, Client, ClientError, file_error},
    exit::CliError,
    external, output, plan,
    progress::{Progress, Unit},
};
use crate::{
    api::check_deployment_name,
    app::{DeployEvent, DeployRequest},
    status::Status,
};

pub(super) fn run(global: &Global, args: &Deploy) -> Result<(), CliError> {
    // What is wrong here is said before anything is sent.
    check_deployment_name(&args.name).map_err(CliError::usage)?;
    let files = files(&args.file)?;
    let pin = args.pin.as_deref().map(read_plan).transpose()?;
    let client = Client::new(global)?;
    let status: Status = client.get("/api/status")?;
    let upload = format!("cli-{:016x}", rand::random::<u64>());
    let uploaded = format!("/api/uploads/{upload}");
    let forget = || drop(client.delete(&uploaded, std::time::Duration::from_secs(10)));
    send(&client, &upload, &files).inspect_err(|_| forget())?;
    let request = DeployRequest {
        name: args.name.clone(),
        upload,
        file: files[0].0.clone(),
        objective: match args.objective {
            Objective::Throughput => mesh_planner::Objective::Throughput,
            Objective::Latency => mesh_planner::Objective::Latency,
        },
        shapes: args.shapes.clone(),
        stages: args.stages.map(|n| n as usize),
        pin,
        dry_run: args.dry_run,
    };
    let mut follow = Follow { args, status, progress: Progress::default(), end: None };
    client.deploy(&request, |event| follow.event(event)).inspect_err(|_| forget())?;
    follow.progress.finish();
    follow.end.unwrap_or_else(|| {
        Err(CliError::unreachable(format!(
            "the daemon at {} ended the answer early; the deployment may go on: see mesh status",
            client.base()
        )))
    })
}

/// The model and its data files, by their names in the upload; the model first.
fn files(model: &Path) -> Result<Vec<(String, PathBuf)>, CliError> {
    let data = external::data_files(model)?;
    let name = model.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| CliError::usage(format!("{} names no file", model.display())))?;
    let mut files = vec![(name.to_owned(), model.to_owned())];
    files.extend(data);
    Ok(files)
}

fn read_plan(path: &Path) -> Result<Plan, CliError> {
    let file = File::open(path).map_err(|error| file_error(path, &error))?;
    serde_json::from_reader(BufReader::new(file)).map_err(|error| {
        CliError::failed(format!("{} is no plan as `mesh plan --json` writes it: {error}", path.display()))
    })
}

fn send(client: &Client, upload: &str, files: &[(String, PathBuf)]) -> Result<(), CliError> {
    let mut progress = Progress::default();
    for (name, path) in files {
        let file = File::open(path).map_err(|error| file_error(path, &error))?;
        let len = file.metadata().map_err(|error| file_error(path, &error))?.len();
        let step = format!("sending {name}");
        let mut reader = Counted { from: BufReader::new(file), done: 0, len, step, progress: &mut progress };
        let target: Vec<String> = name.split('/').filter(|part| *part != ".").map(client::segment).collect();
        let url = format!("/api/uploads/{upload}/{}", target.join("/"));
        client.put(&url, &mut reader, len).map_err(|error| match error {
            ClientError::NoDaemon { base, why } => CliError::unreachable(format!(
                "the daemon at {base} went away while {name} was sent ({why}): try again"
            )),
            other @ (ClientError::Refused { .. } | ClientError::Strange { .. }) => other.into(),
        })?;
    }
    progress.finish();
    Ok(())
}

/// A file that shows how much of it has been read. It never gives more than it had at first.
struct Counted<'p> {
    from: BufReader<File>,
    done: u64,
    len: u64,
    step: String,
    progress: &'p mut Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.len - self.done).unwrap_or(usize::MAX).min(target.len());
        let count = self.from.read(&mut target[..room])?;
        if count == 0 && room > 0 {
            return Err(io::Error::other("the file became shorter while it was sent"));
        }
        self.done += count as u64;
        self.progress.show(&self.step, self.done, self.len, Unit::Bytes);
        Ok(count)
    }
}

/// What to do with the events of a deployment.
struct Follow<'a> {
    args: &'a Deploy,
    status: Status,
    progress: Progress,
    end: Option<Result<(), CliError>>,
}

impl Follow<'_> {
    /// Whether to go on listening.
    fn event(&mut self, event: DeployEvent) -> bool {
        let name = &self.args.name;
        match event {
            DeployEvent::Progress { step, done, total } => {
                let unit = match step.as_str() {
                    "importing" | "spreading" => Unit::Bytes,
                    _ => Unit::Items,
                };
                self.progress.show(&step, done, total, unit);
                return true;
            }
            DeployEvent::Planned { plan, lifts } => {
                self.progress.finish();
                let text = plan::describe(&plan, &lifts, &self.status);
                if self.args.dry_run {
                    self.end = output::print(&text).err().map(Err);
                } else {
                    output::note(&text);
                }
                if self.args.no_wait {
                    output::note(&format!("{name} is being prepared. Next: mesh status"));
                    self.end = Some(Ok(()));
                    return false;
                }
                return true;
            }
            DeployEvent::Serving { epoch } => {
                self.progress.finish();
                output::note(&format!(
                    "{name} is serving with plan {epoch}. Next: mesh infer {name} --input FILE"
                ));
                self.end = Some(Ok(()));
            }
            DeployEvent::DryRun => {
                self.progress.finish();
                output::note("nothing was changed (--dry-run)");
                self.end.get_or_insert(Ok(()));
            }
            DeployEvent::Failed { status, error } => {
                self.progress = Progress::default();
                self.end = Some(Err(ClientError::Refused { status, message: error }.into()));
            }
        }
        false
    }
}
