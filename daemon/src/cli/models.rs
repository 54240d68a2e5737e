//! `mesh models`, `mesh model rm`, `mesh undeploy`.

use std::time::Duration;

use super::{
    args::{Global, Model, ModelAction, Models, Undeploy},
    client::{self, Client},
    exit::CliError,
    output::{self, Table},
};
use crate::app::ModelSummary;

/// A change has to be agreed on and carried out.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn list(global: &Global, args: &Models) -> Result<(), CliError> {
    let client = Client::new(global)?;
    let models: Vec<ModelSummary> = client.get("/api/models")?;
    if args.json {
        return client::print_json(&models);
    }
    if models.is_empty() {
        return output::print("No model is imported. Next: mesh deploy FILE.onnx --name NAME\n");
    }
    let mut table = Table::new(&["MODEL", "SOURCE", "WEIGHTS", "NODES", "BLOCKS", "SERVED AS"]);
    for model in models {
        table.row(vec![
            model.hash.chars().take(12).collect(),
            model.source,
            output::bytes(model.weight_bytes),
            model.nodes.to_string(),
            model.blocks.to_string(),
            if model.deployments.is_empty() { "-".to_owned() } else { model.deployments.join(", ") },
        ]);
    }
    output::print(&table.render(0))
}

pub(super) fn run(global: &Global, args: &Model) -> Result<(), CliError> {
    let ModelAction::Rm { model } = &args.action;
    Client::new(global)?.delete(&format!("/api/models/{}", client::segment(model)), CHANGE_LIMIT)?;
    output::note(&format!("removed model {model}"));
    Ok(())
}

pub(super) fn undeploy(global: &Global, args: &Undeploy) -> Result<(), CliError> {
    let path = format!("/api/deployments/{}", client::segment(&args.name));
    Client::new(global)?.delete(&path, CHANGE_LIMIT)?;
    output::note(&format!("{} is no longer served; its model stays imported (see mesh models)", args.name));
    Ok(())
}
