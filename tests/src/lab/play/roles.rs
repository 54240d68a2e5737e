//! Who does what in a lab now: whom a fault has to hit.

use mesh_daemon::status::Status;

use super::Player;

impl Player {
    /// Name of the leader; `None` while there is none.
    pub fn leader(&self) -> Option<String> {
        let status = self.status()?;
        name_of(&status, &status.cluster.leader)
    }

    /// Names of the devices that run stages of a deployment, in the order of its stages.
    pub fn on_route(&self, deployment: &str) -> Vec<String> {
        let Some(status) = self.status() else { return Vec::new() };
        let deployed = status.deployments.iter().find(|deployed| deployed.name == deployment);
        let replicas = deployed.into_iter().flat_map(|deployed| &deployed.stages).flat_map(|s| &s.replicas);
        replicas.filter_map(|replica| name_of(&status, &replica.node)).collect()
    }

    /// Name of the device that sets a deployment's rate.
    pub fn bottleneck(&self, deployment: &str) -> Option<String> {
        let status = self.status()?;
        let deployed = status.deployments.iter().find(|deployed| deployed.name == deployment)?;
        name_of(&status, &deployed.bottleneck.as_ref()?.node)
    }

    /// What a deployment's plan is predicted to answer per second.
    pub fn predicted(&self, deployment: &str) -> Option<f64> {
        let status = self.status()?;
        status.deployments.iter().find(|d| d.name == deployment).map(|deployed| deployed.predicted_rps)
    }

    /// Whether no device that is gone has a vote: the next loss cannot take the quorum with it.
    pub fn is_repaired(&self) -> bool {
        self.status().is_some_and(|status| {
            status.cluster.quorum
                && !status.nodes.iter().any(|node| node.state == "down" && node.role != "learner")
        })
    }
}

fn name_of(status: &Status, id: &str) -> Option<String> {
    status.nodes.iter().find(|node| node.id == id).map(|node| node.name.clone())
}
