//! What needs a person: two clusters that are both worth keeping, configs that differ.

use crate::{ClusterId, DeviceId};

/// Another cluster of the same name and key, or a device whose config differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// Two clusters that are both in use.
    TwoClusters {
        /// A member of the other cluster.
        device: DeviceId,
        /// The other cluster.
        other: ClusterId,
    },
    /// A device without a cluster has another `cluster.devices` in its config.
    DevicesDiffer {
        /// That device.
        device: DeviceId,
        /// `devices` in its config.
        theirs: u32,
        /// `devices` in this device's config.
        ours: u32,
    },
}

impl Conflict {
    /// What is wrong, for people.
    pub fn what(&self) -> String {
        match self {
            Self::TwoClusters { device, other } => {
                format!(
                    "device {device} belongs to another cluster ({other}) with the same name and key; both keep serving"
                )
            }
            Self::DevicesDiffer { device, theirs, ours } => {
                format!(
                    "device {device} is set up with devices = {theirs}, this one with devices = {ours}: they do not form a cluster together"
                )
            }
        }
    }

    /// What to type or change. `data_dir` is the data directory as the config names it.
    pub fn remedy(&self, data_dir: &str) -> String {
        match self {
            Self::TwoClusters { device: _, other: _ } => format!(
                "choose the cluster to give up and, on each of its devices, type: systemctl stop mesh && rm -r {data_dir}/* && systemctl start mesh (its deployments are lost; the devices join the other cluster)"
            ),
            Self::DevicesDiffer { device: _, theirs: _, ours: _ } => {
                "write the same cluster.devices in mesh.toml on every device and restart the daemon there"
                    .to_owned()
            }
        }
    }

    pub(super) fn device(&self) -> &DeviceId {
        match self {
            Self::TwoClusters { device, other: _ } | Self::DevicesDiffer { device, theirs: _, ours: _ } => {
                device
            }
        }
    }
}
