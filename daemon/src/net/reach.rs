//! Which networks may be used, when the config names interfaces.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use if_addrs::{IfAddr, Interface};

use super::NetStartError;

/// The networks behind the named interfaces, as they were when they were last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reach {
    /// Empty for all.
    names: Vec<String>,
    interfaces: Vec<Interface>,
}

impl Reach {
    /// Looks the interfaces up; an empty list stands for all.
    pub(super) fn new(names: &[String]) -> Result<Self, NetStartError> {
        let reach = Self { names: names.to_vec(), interfaces: Vec::new() };
        let reach = reach.now().map_err(NetStartError::Interfaces)?;
        match names.iter().find(|name| !reach.has_address(name) && !exists(name)) {
            Some(name) => Err(NetStartError::UnknownInterface { name: name.clone() }),
            None => Ok(reach),
        }
    }

    /// The same interfaces with the addresses that they have now.
    pub(super) fn now(&self) -> io::Result<Self> {
        let all = if self.is_bounded() { if_addrs::get_if_addrs()? } else { Vec::new() };
        Ok(self.among(all))
    }

    fn among(&self, all: Vec<Interface>) -> Self {
        let mut interfaces: Vec<_> = all.into_iter().filter(|i| self.names.contains(&i.name)).collect();
        interfaces.sort_by(|a, b| (&a.name, a.ip()).cmp(&(&b.name, b.ip())));
        Self { names: self.names.clone(), interfaces }
    }

    /// Whether interfaces are named: their addresses may change.
    pub(super) fn is_bounded(&self) -> bool {
        !self.names.is_empty()
    }

    fn has_address(&self, name: &str) -> bool {
        self.interfaces.iter().any(|interface| interface.name == name)
    }

    /// Where to listen when the config says `wanted`. Nowhere yet, where interfaces that may get addresses have none.
    pub(super) fn listen_ips(&self, wanted: IpAddr) -> Result<Vec<IpAddr>, NetStartError> {
        if !self.is_bounded() {
            return Ok(vec![wanted]);
        }
        let ips = self.covered(wanted);
        if ips.is_empty() && !wanted.is_unspecified() {
            return Err(NetStartError::Interface { name: self.names.join(", ") });
        }
        Ok(ips.into_iter().collect())
    }

    /// The addresses of the interfaces that `wanted` covers.
    fn covered(&self, wanted: IpAddr) -> BTreeSet<IpAddr> {
        let covered = |ip: &IpAddr| {
            ip.is_ipv4() == wanted.is_ipv4() && (wanted.is_unspecified() || *ip == wanted) && can_be_bound(ip)
        };
        self.interfaces.iter().map(Interface::ip).filter(covered).collect()
    }

    /// What to do so that this device listens where it may, when it listens at `listening`.
    pub(super) fn changes(&self, wanted: IpAddr, listening: &BTreeSet<IpAddr>) -> Changes {
        let covered = self.covered(wanted);
        Changes {
            begin: covered.difference(listening).copied().collect(),
            end: listening.difference(&covered).copied().collect(),
        }
    }

    /// The interfaces that have no address that `wanted` covers, for people.
    pub(super) fn without_address(&self, wanted: IpAddr) -> Vec<&str> {
        let alone = |name: &&String| {
            let interfaces = self.interfaces.iter().filter(|i| i.name == **name).cloned().collect();
            Self { names: self.names.clone(), interfaces }.covered(wanted).is_empty()
        };
        let names = self.names.iter().filter(alone);
        names.map(String::as_str).collect()
    }

    /// Whether an announced address may be dialled: it lies in the network of an interface that may be used.
    pub(super) fn allows(&self, ip: IpAddr) -> bool {
        if !self.is_bounded() {
            return true;
        }
        self.interfaces.iter().any(|interface| match (&interface.addr, ip) {
            (IfAddr::V4(own), IpAddr::V4(ip)) => {
                let mask = own.netmask.to_bits();
                own.ip.to_bits() & mask == ip.to_bits() & mask
            }
            (IfAddr::V6(own), IpAddr::V6(ip)) => {
                let mask = own.netmask.to_bits();
                own.ip.to_bits() & mask == ip.to_bits() & mask
            }
            (IfAddr::V4(_), IpAddr::V6(_)) | (IfAddr::V6(_), IpAddr::V4(_)) => false,
        })
    }
}

/// Where to begin and to end listening.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) begin: Vec<IpAddr>,
    pub(super) end: Vec<IpAddr>,
}

/// The interfaces of a list that this device does not have, or not yet.
pub fn missing_interfaces(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).filter(|name| !exists(name)).collect()
}

/// An interface may be there and have no address yet.
fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Addresses that are good on one link only are no use without its number, which a listen address does not hold.
fn can_be_bound(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    }
}

/// A port that nobody listens at, for a device that has nothing to bind it at yet.
pub(super) fn free_port(wanted: IpAddr) -> io::Result<u16> {
    let probe = std::net::TcpListener::bind(SocketAddr::new(wanted, 0))?;
    Ok(probe.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use if_addrs::{IfOperStatus, Ifv4Addr, Ifv6Addr};
    use std::net::{Ipv4Addr, Ipv6Addr};

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn interface(name: &str, address: &str) -> Interface {
        let addr = match ip(address) {
            IpAddr::V4(ip) => {
                let netmask = Ipv4Addr::new(255, 255, 255, 0);
                IfAddr::V4(Ifv4Addr { ip, netmask, prefixlen: 24, broadcast: None })
            }
            IpAddr::V6(ip) => {
                let netmask = Ipv6Addr::from_bits(u128::MAX << 64);
                IfAddr::V6(Ifv6Addr { ip, netmask, prefixlen: 64, broadcast: None })
            }
        };
        let oper_status = IfOperStatus::Up;
        Interface { name: name.to_owned(), addr, index: None, oper_status, is_p2p: false }
    }

    fn reach(all: &[(&str, &str)]) -> Reach {
        let names = vec!["wlan0".to_owned(), "eth0".to_owned()];
        let all = all.iter().map(|(name, address)| interface(name, address)).collect();
        Reach { names, interfaces: Vec::new() }.among(all)
    }

    #[test]
    fn the_named_interface_bounds_where_to_listen_and_dial() {
        let reach = Reach::new(&["lo".to_owned()]).unwrap();
        assert_eq!(reach.listen_ips(ANY).unwrap(), [ip("127.0.0.1")]);
        assert!(reach.allows(ip("127.3.2.1")));
        assert!(!reach.allows(ip("10.0.0.1")));
        assert!(reach.listen_ips(ip("10.0.0.1")).is_err());
        assert_eq!(reach, reach.now().unwrap());
    }

    #[test]
    fn unknown_interfaces_are_named() {
        let error = Reach::new(&["nonsense0".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("nonsense0"), "{error}");
    }

    #[test]
    fn no_names_mean_all() {
        let reach = Reach::new(&[]).unwrap();
        assert!(reach.allows(ip("10.0.0.1")));
        assert_eq!(reach.listen_ips(ANY).unwrap(), [ANY]);
        assert!(!reach.is_bounded());
    }

    #[test]
    fn listening_follows_the_addresses() {
        let before = reach(&[("wlan0", "fe80::1"), ("docker0", "172.17.0.1")]);
        assert_eq!(before.listen_ips(ANY).unwrap(), Vec::<IpAddr>::new());
        assert_eq!(before.changes(ANY, &BTreeSet::new()), Changes::default());
        assert_eq!(before.without_address(ANY), ["wlan0", "eth0"]);
        assert!(!before.allows(ip("10.0.1.7")));

        let first = reach(&[("wlan0", "fe80::1"), ("wlan0", "10.0.1.2"), ("docker0", "172.17.0.1")]);
        assert_ne!(before, first);
        let (old, new) = (ip("10.0.1.2"), ip("10.0.2.9"));
        assert_eq!(first.changes(ANY, &BTreeSet::new()), Changes { begin: vec![old], end: vec![] });
        assert_eq!(first.changes(ANY, &BTreeSet::from([old])), Changes::default());
        assert_eq!(first.without_address(ANY), ["eth0"]);
        assert!(first.allows(ip("10.0.1.7")));

        let moved = reach(&[("wlan0", "10.0.2.9")]);
        let changes = Changes { begin: vec![new], end: vec![old] };
        assert_eq!(moved.changes(ANY, &BTreeSet::from([old])), changes);
        assert!(moved.allows(ip("10.0.2.7")) && !moved.allows(ip("10.0.1.7")));

        let gone = reach(&[]).changes(ANY, &BTreeSet::from([new]));
        assert_eq!(gone, Changes { begin: vec![], end: vec![new] });
    }

    #[test]
    fn one_wanted_address_is_listened_at_while_it_is_there() {
        let (wanted, other) = (ip("10.0.1.2"), reach(&[("eth0", "10.0.1.3")]));
        let both = reach(&[("eth0", "10.0.1.3"), ("eth0", "10.0.1.2")]);
        assert_eq!(both.changes(wanted, &BTreeSet::new()), Changes { begin: vec![wanted], end: vec![] });
        let changes = Changes { begin: vec![], end: vec![wanted] };
        assert_eq!(other.changes(wanted, &BTreeSet::from([wanted])), changes);
    }

    #[test]
    fn the_order_of_interfaces_is_no_change() {
        let addresses = [("eth0", "10.0.1.3"), ("wlan0", "10.0.2.2"), ("eth0", "fe80::3")];
        let mut turned = addresses;
        turned.reverse();
        assert_eq!(reach(&addresses), reach(&turned));
    }
}
