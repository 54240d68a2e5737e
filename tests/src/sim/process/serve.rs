//! The serving half of a simulated daemon, and its clients.

use std::collections::BTreeSet;

use mesh_inference::blobs::Hash;

use super::{Death, Deed, Process};
use crate::sim::{
    packet::Packet,
    serving::{Serving, ServingDeed},
};
use mesh_consensus::Node;

impl Process {
    /// Does what the serving half says.
    pub(super) fn serve(&mut self) -> Result<(), Death> {
        let deeds = self.serving.as_mut().map(Serving::take_deeds).unwrap_or_default();
        for deed in deeds {
            match deed {
                ServingDeed::Tell { to, report } => self.send(to, Packet::Report(report)),
                ServingDeed::Send { to, frame } => self.send(to, Packet::Frame(frame)),
                ServingDeed::Call { to, call } => self.send(to, Packet::Blobs(call)),
                ServingDeed::Propose(request) => self.propose(&request).map(|_| ())?,
                ServingDeed::Answered { deployment, input, answer } => {
                    if let Some(cluster) = self.body.node().map(Node::cluster_id) {
                        self.deeds.push(Deed::Answered { cluster, deployment, input, answer });
                    }
                }
                ServingDeed::Broken(what) => self.deeds.push(Deed::Broken(what)),
                ServingDeed::Note(text) => self.deeds.push(Deed::Note(text)),
            }
        }
        Ok(())
    }

    /// The blobs that it holds, where it serves.
    pub(crate) fn held(&self) -> Option<&BTreeSet<Hash>> {
        self.serving.as_ref().map(Serving::held)
    }

    /// The device cannot load any stage.
    pub(crate) fn spoil(&mut self) {
        if let Some(serving) = &mut self.serving {
            serving.is_spoilt = true;
        }
    }

    /// It knows that the device is up, or does not care: it serves nothing.
    pub(crate) fn hears(&self, device: usize) -> bool {
        self.serving.as_ref().is_none_or(|serving| serving.is_up(device))
    }

    /// A client asks for an answer. Whether the request was accepted.
    pub(crate) fn ask(
        &mut self,
        now_ms: u64,
        deployment: &str,
        input: u64,
        timeout_ms: u64,
    ) -> Result<bool, Death> {
        let Some(serving) = &mut self.serving else { return Ok(false) };
        let is_accepted = serving.ask(now_ms, deployment, input, timeout_ms);
        self.serve()?;
        Ok(is_accepted)
    }
}
