//! `mesh node`: the devices, and moving work off them.

use std::time::Duration;

use super::{
    args::{Global, Node, NodeAction},
    client::{self, Client},
    exit::CliError,
    output, status,
};
use crate::status::Status;

/// Draining moves stages, which fetches weights and prepares them elsewhere first.
const DRAIN_LIMIT: Duration = Duration::from_secs(600);

pub(super) fn run(global: &Global, args: &Node) -> Result<(), CliError> {
    let client = Client::new(global)?;
    match &args.action {
        NodeAction::List { json } => {
            let status: Status = client.get("/api/status")?;
            match json {
                true => client::print_json(&status.nodes),
                false => output::print(&status::devices(&status, 0)),
            }
        }
        NodeAction::Drain { node } => {
            act(&client, node, "drain")?;
            output::note(&format!("{node} gets no work any more; what it ran has been moved"));
            Ok(())
        }
        NodeAction::Undrain { node } => {
            act(&client, node, "undrain")?;
            output::note(&format!("{node} takes work again"));
            Ok(())
        }
        NodeAction::Remove { node } => {
            act(&client, node, "remove")?;
            output::note(&format!("{node} is removed, and refused from now on"));
            Ok(())
        }
    }
}

fn act(client: &Client, node: &str, action: &str) -> Result<(), CliError> {
    Ok(client.post(&format!("/api/nodes/{}/{action}", client::segment(node)), DRAIN_LIMIT)?)
}
