//! The rack's network: a bridge in a namespace of its own, a port per device, and what slows the ports down.

use std::{net::Ipv4Addr, process::Command};

use super::{
    relay,
    scenario::Hardware,
    units::{Rate, Span},
};
use crate::rack::Namespace;

/// What waits for a slow card at most, before it is dropped: as long as home routers keep it.
const QUEUE_MS: u32 = 50;

/// The switch.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    bridges: usize,
    /// Whether the kernel can delay and lose frames by itself.
    netem: bool,
}

/// A device's place in the network.
#[derive(Debug)]
pub struct Port {
    /// The card's other end, in the switch.
    pub name: String,
    /// The device's namespace.
    pub namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
    /// Rates to single other devices.
    pub rates: Vec<(Ipv4Addr, Rate)>,
    /// The card as it is now.
    pub card: Card,
}

/// What a card does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Card {
    /// Each direction; `None`: as fast as the host.
    pub rate: Option<Rate>,
    /// Added to what the device sends.
    pub delay: Span,
    /// Spread of the delay.
    pub jitter: Span,
    /// Part of what the device sends that is lost.
    pub loss: f64,
}

impl Card {
    /// The card that a machine starts with.
    pub fn of(hardware: &Hardware) -> Self {
        Self {
            rate: hardware.rate,
            delay: hardware.delay.unwrap_or_default(),
            jitter: hardware.jitter.unwrap_or_default(),
            loss: hardware.loss.unwrap_or(0.0),
        }
    }
}

/// What the network could not do.
#[derive(Debug, thiserror::Error)]
#[error("the lab's network: `{command}` failed: {message}")]
pub struct NetworkError {
    command: String,
    message: String,
}

impl Network {
    /// Makes the switch.
    ///
    /// # Errors
    /// When the kernel refuses, or iproute2 is missing.
    pub fn create(name: &str) -> Result<Self, NetworkError> {
        run("ip", &["netns", "add", name])?;
        let switch = Namespace::existing(name);
        let mut network = Self { switch, bridges: 0, netem: relay::netem_available() };
        network.bridge(0)?;
        Ok(network)
    }

    /// Name of the switch's namespace.
    pub fn name(&self) -> &str {
        self.switch.name()
    }

    /// Whether delays and losses come from the kernel; else from the relay.
    pub fn has_netem(&self) -> bool {
        self.netem
    }

    fn bridge(&mut self, number: usize) -> Result<(), NetworkError> {
        if number >= self.bridges {
            let bridge = format!("br{number}");
            self.switch(&[
                "link",
                "add",
                &bridge,
                "type",
                "bridge",
                "mcast_snooping",
                "0",
                "forward_delay",
                "0",
            ])?;
            self.switch(&["link", "set", &bridge, "up"])?;
            self.bridges = number + 1;
        }
        Ok(())
    }

    /// Makes a device's namespace and plugs it in, unless its card comes from the relay: then [`Network::adopt`]
    /// follows when the relay has made the card.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(
        &mut self,
        namespace: &str,
        port: &str,
        address: Ipv4Addr,
        card: Card,
        relayed: bool,
    ) -> Result<Port, NetworkError> {
        run("ip", &["netns", "add", namespace])?;
        run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
        usual_congestion_control(namespace);
        if !relayed {
            let veth = ["link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace];
            self.switch(&veth)?;
        }
        let namespace = Namespace::existing(namespace);
        Ok(Port { name: port.to_owned(), namespace, address, rates: Vec::new(), card })
    }

    /// Gives a card that is there its address and its place in the bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn adopt(&self, port: &Port) -> Result<(), NetworkError> {
        self.switch(&["link", "set", &port.name, "master", "br0", "up"])?;
        let inside = |args: &[&str]| run("ip", &[&["-n", port.namespace.name()], args].concat());
        inside(&["addr", "add", &format!("{}/16", port.address), "brd", "+", "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "add", "224.0.0.0/4", "dev", "eth0"])?;
        self.shape(port)
    }

    /// Gives a card another address, as a router does that has forgotten the old one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn readdress(&self, port: &Port) -> Result<(), NetworkError> {
        let inside = |args: &[&str]| run("ip", &[&["-n", port.namespace.name()], args].concat());
        inside(&["addr", "flush", "dev", "eth0"])?;
        inside(&["addr", "add", &format!("{}/16", port.address), "brd", "+", "dev", "eth0"])?;
        inside(&["route", "replace", "224.0.0.0/4", "dev", "eth0"])
    }

    /// Sets the rates, and with netem delays and losses, from what the port says.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn shape(&self, port: &Port) -> Result<(), NetworkError> {
        let (inside, card) = (port.namespace.name(), &port.card);
        clear(inside, "eth0");
        clear(self.switch.name(), &port.name);
        if let Some(rate) = card.rate {
            let args = tbf(&port.name, "root", rate);
            tc(self.switch.name(), &args)?;
        }
        let impaired = *card != Card { rate: card.rate, ..Card::default() };
        if self.netem && impaired {
            let netem = format!(
                "qdisc add dev eth0 root handle 1: netem delay {}us {}us loss {}% limit 10000",
                card.delay.0.as_micros(),
                card.jitter.0.as_micros(),
                card.loss * 100.0
            );
            tc(inside, &words(&netem))?;
            return card.rate.map_or(Ok(()), |rate| tc(inside, &tbf("eth0", "parent 1:", rate)));
        }
        if !port.rates.is_empty() {
            return self.shape_links(port);
        }
        card.rate.map_or(Ok(()), |rate| tc(inside, &tbf("eth0", "root", rate)))
    }

    /// A class per receiver.
    fn shape_links(&self, port: &Port) -> Result<(), NetworkError> {
        let inside = port.namespace.name();
        let top = port.card.rate.unwrap_or(Rate(10_000_000_000));
        tc(inside, &words("qdisc add dev eth0 root handle 1: htb default 1"))?;
        tc(inside, &words(&format!("class add dev eth0 parent 1: classid 1:1 htb {}", htb(top))))?;
        for (number, (address, rate)) in port.rates.iter().enumerate() {
            let class = number + 2;
            let rate = top.min(*rate);
            tc(
                inside,
                &words(&format!("class add dev eth0 parent 1: classid 1:{class:x} htb {}", htb(rate))),
            )?;
            // As long a queue as the rate makes of the time: htb has 1,000 packets else, seconds at a slow rate.
            let bytes = queue_bytes(rate);
            tc(inside, &words(&format!("qdisc add dev eth0 parent 1:{class:x} bfifo limit {bytes}")))?;
            let filter = format!(
                "filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dst {address}/32 flowid 1:{class:x}"
            );
            tc(inside, &words(&filter))?;
        }
        Ok(())
    }

    /// Pulls a cable, or puts it back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_connected(&self, port: &Port, connected: bool) -> Result<(), NetworkError> {
        self.switch(&["link", "set", &port.name, if connected { "up" } else { "down" }])
    }

    /// Moves a port to a bridge: only ports of one bridge reach each other.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_group(&mut self, port: &Port, group: usize) -> Result<(), NetworkError> {
        self.bridge(group)?;
        self.switch(&["link", "set", &port.name, "master", &format!("br{group}"), "up"])
    }

    fn switch(&self, args: &[&str]) -> Result<(), NetworkError> {
        run("ip", &[&["-n", self.switch.name()], args].concat())
    }
}

/// Bytes that the card of a device has received and sent.
pub fn traffic(port: &Port) -> (u64, u64) {
    let output =
        Command::new("ip").args(["-n", port.namespace.name(), "-j", "-s", "link", "show", "eth0"]).output();
    let json = output.ok().and_then(|o| serde_json::from_slice::<serde_json::Value>(&o.stdout).ok());
    let bytes =
        |way: &str| json.as_ref().and_then(|json| json[0]["stats64"][way]["bytes"].as_u64()).unwrap_or(0);
    (bytes("rx"), bytes("tx"))
}

/// Devices use cubic, as Linux has it from the start, whatever this host uses: BBR takes what a slow card's queue lets
/// through at once for the rate of the link, and half of what it then sends is lost. A host that allows namespaces no
/// cubic has reno, which is the same on such short ways.
fn usual_congestion_control(namespace: &str) {
    let set =
        "for usual in cubic reno; do echo $usual > /proc/sys/net/ipv4/tcp_congestion_control && break; done";
    let _ = run("ip", &["netns", "exec", namespace, "sh", "-c", set]);
}

fn clear(namespace: &str, card: &str) {
    // There may be nothing to clear.
    let _ = tc(namespace, &words(&format!("qdisc del dev {card} root")));
}

fn tbf(card: &str, parent: &str, rate: Rate) -> Vec<String> {
    words(&format!(
        "qdisc add dev {card} {parent} tbf rate {}bit burst {} latency {QUEUE_MS}ms",
        rate.0,
        burst_bytes(rate)
    ))
}

fn htb(rate: Rate) -> String {
    format!("rate {0}bit ceil {0}bit burst {1} cburst {1} quantum 60000", rate.0, burst_bytes(rate))
}

/// What may pass at once: one segment of the largest kind, or 2 ms of a fast card.
fn burst_bytes(rate: Rate) -> u64 {
    (rate.0 / 8 / 500).max(66_000)
}

fn queue_bytes(rate: Rate) -> u64 {
    (rate.0 / 8 * u64::from(QUEUE_MS) / 1000).max(66_000)
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn tc(namespace: &str, args: &[String]) -> Result<(), NetworkError> {
    let mut all = vec!["-n", namespace];
    all.extend(args.iter().map(String::as_str));
    run("tc", &all)
}

pub(super) fn run(program: &str, args: &[&str]) -> Result<(), NetworkError> {
    let command = || format!("{program} {}", args.join(" "));
    let failed = |message: String| NetworkError { command: command(), message };
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| failed(format!("{error}; install iproute2")))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
