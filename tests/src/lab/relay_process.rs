//! The relay as a process of its own: it reads what each card does from a file, again and again.

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use super::relay::{Impairment, Relay, RelayError, RelaySpec};

/// How often the file is read.
const LOOK: Duration = Duration::from_millis(50);

/// What the relay does for one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Where the device's card `eth0` is made.
    pub device_namespace: String,
    /// Where its other end is made.
    pub switch_namespace: String,
    /// Name of the other end.
    pub port: String,
    /// What happens to that which the device sends.
    pub impairment: Impairment,
}

/// Why the relay ends.
#[derive(Debug, thiserror::Error)]
pub enum RelayProcessError {
    /// A card or an impairment.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The file of orders.
    #[error("the relay's orders in {path}: {problem}")]
    Orders {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// Relays as the file says, which is replaced as a whole when something changes. Runs until the process is killed.
///
/// # Errors
/// When a card cannot be made, or the file cannot be read: a lab without its relay is noticed at once.
pub fn run(orders: &Path) -> Result<(), RelayProcessError> {
    let mut relays: BTreeMap<String, (Relay, Impairment)> = BTreeMap::new();
    loop {
        for order in read(orders)? {
            match relays.get_mut(&order.port) {
                Some((_, impairment)) if *impairment == order.impairment => {}
                Some((relay, impairment)) => {
                    relay.handle().set(order.impairment)?;
                    *impairment = order.impairment;
                }
                None => {
                    let spec = RelaySpec::new(&order.device_namespace, &order.switch_namespace, &order.port);
                    let relay = Relay::start(&RelaySpec { impairment: order.impairment, ..spec })?;
                    relays.insert(order.port, (relay, order.impairment));
                }
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn read(path: &Path) -> Result<Vec<Order>, RelayProcessError> {
    let failed = |problem: String| RelayProcessError::Orders { path: path.display().to_string(), problem };
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))
}
