//! `mesh node`: the devices, and moving work off them.

use std::time::Duration;

use super::{
    args::{Global, Node, NodeAction},
    client::{self, Client},
    drain,
    exit::CliError,
    output, status,
};
use crate::status::Status;

/// A change has to be agreed on. Removing a device that votes takes longest: its vote is given to another one first.
pub(super) const CHANGE_LIMIT: Duration = Duration::from_secs(120);

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
        NodeAction::Drain { node, no_wait } => drain::run(&client, node, *no_wait),
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
    Ok(client.post(&format!("/api/nodes/{}/{action}", client::segment(node)), CHANGE_LIMIT)?)
}
