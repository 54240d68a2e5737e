//! Deployments of a script: Mesh's own plans, and pinned ones made by the policies of other systems.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_inference::{blobs::BlobStore, import::import, model::Model};
use mesh_planner::Problem;

use super::{PlayError, Player};
use crate::{
    digits,
    lab::{
        hall::succeeded,
        scenario::{Deploy, Try},
        site,
    },
    models::engine,
    policies::{self, Choices, Policy},
};

/// Most time for weights to arrive and sessions to be made at full speed.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(100);

/// What becomes of the devices that a deployment is not `on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// They are drained.
    Drained,
    /// They stay: only a policy leaves them out of its plan.
    Left,
}

impl From<&Try> for Deploy {
    fn from(cell: &Try) -> Self {
        Self {
            model: cell.model.clone(),
            name: cell.name.clone(),
            device: None,
            objective: cell.objective.clone(),
            stages: cell.stages,
            on: Some(cell.on.clone()),
            policy: cell.policy.clone(),
            hurry: cell.hurry,
        }
    }
}

impl Player {
    pub(super) fn deploy(&mut self, deploy: &Deploy, others: Others) -> Result<(), PlayError> {
        let file = self.model(&deploy.model)?;
        let at = self.operator(deploy)?;
        if others == Others::Drained {
            self.take_part(deploy.on.as_deref(), at)?;
        }
        let policy = match deploy.policy.as_deref() {
            None => Policy::Mesh,
            Some(name) => name.parse().map_err(PlayError::Script)?,
        };
        if policy == Policy::Mesh {
            self.run_deploy(at, &file, deploy, None)?;
        } else {
            if !self.deployed.contains_key(&deploy.name) {
                // The model's profile is needed first.
                self.run_deploy(at, &file, deploy, None)?;
            }
            let pin = self.pin(at, &file, deploy, policy)?;
            self.run_deploy(at, &file, deploy, Some(&pin))?;
        }
        self.deployed.insert(deploy.name.clone(), file);
        self.remember_epoch(&deploy.name);
        Ok(())
    }

    /// The file of a model: `digits`, a name in the folder of models, or a path.
    fn model(&self, model: &Path) -> Result<PathBuf, PlayError> {
        if model == Path::new("digits") {
            return Ok(digits::model());
        }
        let named = self.models.join(model).join("model.onnx");
        let found = [named.clone(), model.to_path_buf()].into_iter().find(|path| path.is_file());
        found.ok_or_else(|| {
            let (model, named) = (model.display(), named.display());
            PlayError::Script(format!(
                "model {model}: neither {named} nor such a file is there (see --models)"
            ))
        })
    }

    /// Position of the device that the commands run on.
    fn operator(&self, deploy: &Deploy) -> Result<usize, PlayError> {
        let mut running = (0..self.hall.devices.len()).filter(|&at| self.hall.devices[at].is_running());
        let found = match &deploy.device {
            Some(name) => running.find(|&at| self.hall.devices[at].name() == name),
            None => running.next(),
        };
        found.ok_or_else(|| PlayError::Script("no device runs that the model could be deployed from".into()))
    }

    /// Drains the devices that are to stay out, and takes back those that are to take part.
    fn take_part(&self, on: Option<&[String]>, at: usize) -> Result<(), PlayError> {
        let chosen = self.hall.named(on.unwrap_or(&["*".to_owned()]));
        let Some(status) = self.hall.devices[at].daemon.status() else {
            return Err(PlayError::Script("the device does not tell its status".into()));
        };
        for (position, device) in self.hall.devices.iter().enumerate() {
            let is_out = status.nodes.iter().any(|n| n.name == device.name() && n.state == "draining");
            let word = match (chosen.contains(&position), is_out) {
                (true, true) => "undrain",
                (false, false) => "drain",
                _ => continue,
            };
            let mut args = vec!["node", word, device.name()];
            if word == "drain" {
                // What it runs may be what is deployed anew next.
                args.push("--no-wait");
            }
            let output = self.hall.devices[at].daemon.mesh(&args);
            succeeded(&format!("mesh {}", args.join(" ")), &output)?;
        }
        Ok(())
    }

    fn run_deploy(
        &mut self,
        at: usize,
        file: &Path,
        deploy: &Deploy,
        pin: Option<&Path>,
    ) -> Result<(), PlayError> {
        let (file, stages) = (file.display().to_string(), deploy.stages.map(|n| n.to_string()));
        let pin = pin.map(|path| path.display().to_string());
        let mut args = vec!["deploy", &file, "--name", &deploy.name];
        for (flag, value) in [("--objective", &deploy.objective), ("--stages", &stages), ("--pin", &pin)] {
            if let Some(value) = value {
                args.extend([flag, value]);
            }
        }
        // The first time the devices' own speed is measured too.
        let hurry = deploy.hurry && self.deployed.contains_key(&deploy.name);
        if hurry {
            args.push("--no-wait");
        }
        let before = self.epoch(&deploy.name);
        let output = self.hall.devices[at].daemon.mesh(&args);
        succeeded("mesh deploy", &output)?;
        if hurry { self.hurried(&deploy.name, before) } else { Ok(()) }
    }

    /// Lifts all limits of processors until a deployment has its new plan.
    fn hurried(&mut self, name: &str, before: Option<u64>) -> Result<(), PlayError> {
        let limits: Vec<Option<f64>> = self.hall.devices.iter().map(|device| device.cpu).collect();
        self.hall.devices.iter_mut().try_for_each(|device| device.set_cpu(None))?;
        let start = Instant::now();
        let mut served = false;
        while !served && start.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
            served = self.epoch(name) > before;
        }
        let restored =
            self.hall.devices.iter_mut().zip(limits).try_for_each(|(device, cpu)| device.set_cpu(cpu));
        restored?;
        if served {
            Ok(())
        } else {
            Err(PlayError::Script(format!("{name} did not serve after {PATIENCE:?}")))
        }
    }

    /// The planning problem as the mesh sees it now.
    pub(super) fn problem(&self, at: usize, name: &str) -> Result<Problem, PlayError> {
        let output = self.hall.devices[at].daemon.mesh(&["plan", name, "--problem"]);
        succeeded("mesh plan --problem", &output)?;
        serde_json::from_slice(&output.stdout)
            .map_err(|error| PlayError::Script(format!("mesh plan --problem printed no problem: {error}")))
    }

    /// A plan file by another system's planning, with Mesh's numbers for it.
    fn pin(&self, at: usize, file: &Path, deploy: &Deploy, policy: Policy) -> Result<PathBuf, PlayError> {
        let mut problem = self.problem(at, &deploy.name)?;
        (problem.pin, problem.min_stages, problem.max_stages, problem.replication) = (None, None, None, true);
        // The list that DEFER and others go through in order is the scenario's.
        let order = self.ids_in_order(at, deploy.on.as_deref());
        only(&mut problem, &order);
        problem.devices.sort_by_key(|device| order.iter().position(|id| *id == device.id));
        let mut choices = Choices { seed: self.hall.scenario.seed, ..Choices::default() };
        if policy == Policy::Defer {
            // Models without residual joins are cut evenly.
            let cuts = model_in(file).and_then(|model| policies::defer_cuts(&model, problem.devices.len()));
            choices.defer_cuts = cuts.ok();
        }
        let plan = policies::plan(policy, &problem, &choices).map_err(PlayError::Script)?;
        let path =
            site::folder(&self.hall.scenario.name).join(format!("{}-{}.json", deploy.name, policy.name()));
        let text = serde_json::to_string_pretty(&plan).unwrap_or_default();
        std::fs::File::create(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .map_err(|error| PlayError::Script(format!("{}: {error}", path.display())))?;
        Ok(path)
    }

    /// Ids of the devices that take part.
    fn ids_in_order(&self, at: usize, on: Option<&[String]>) -> Vec<String> {
        let chosen = self.hall.named(on.unwrap_or(&["*".to_owned()]));
        let nodes = self.hall.devices[at].daemon.status().map(|status| status.nodes).unwrap_or_default();
        let id = |name: &str| nodes.iter().find(|node| node.name == name).map(|node| node.id.clone());
        chosen.into_iter().filter_map(|at| id(self.hall.devices[at].name())).collect()
    }
}

/// Leaves these devices alone in a problem, which may still be of a moment when others took part.
fn only(problem: &mut Problem, ids: &[String]) {
    problem.devices.retain(|device| ids.contains(&device.id));
    problem.links.pairs.retain(|pair| ids.contains(&pair.from) && ids.contains(&pair.to));
    if let Some(ingress) = &mut problem.ingress {
        let share = 1.0 / problem.devices.len().max(1) as f64;
        *ingress = problem.devices.iter().map(|device| (device.id.clone(), share)).collect();
    }
}

/// Imports a model to look at its graph.
fn model_in(file: &Path) -> Result<Arc<Model>, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let folder = tempfile::tempdir().map_err(|error| text(&error))?;
    let store = BlobStore::open(folder.path()).map_err(|error| text(&error))?;
    let engine = engine().map_err(|error| text(&error))?;
    let source = file.parent().unwrap_or(Path::new("."));
    let imported = import(file, source, &store, &engine, &mut |_| {});
    imported.map(|imported| imported.model).map_err(|error| text(&error))
}
