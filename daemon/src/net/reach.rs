//! Which networks may be used, when the config names interfaces.

use std::net::IpAddr;

use if_addrs::{IfAddr, Interface};

use super::NetStartError;

/// The networks behind the named interfaces.
#[derive(Debug)]
pub(super) struct Reach {
    /// `None` for all.
    interfaces: Option<Vec<Interface>>,
}

impl Reach {
    /// Looks the interfaces up; an empty list stands for all.
    pub(super) fn new(names: &[String]) -> Result<Self, NetStartError> {
        if names.is_empty() {
            return Ok(Self { interfaces: None });
        }
        let all = if_addrs::get_if_addrs().map_err(NetStartError::Interfaces)?;
        for name in names {
            if !all.iter().any(|interface| interface.name == *name) {
                return Err(NetStartError::Interface { name: name.clone() });
            }
        }
        let chosen = all.into_iter().filter(|i| names.contains(&i.name)).collect();
        Ok(Self { interfaces: Some(chosen) })
    }

    /// Where to listen when the config says `wanted`.
    pub(super) fn listen_ips(&self, wanted: IpAddr) -> Result<Vec<IpAddr>, NetStartError> {
        let Some(interfaces) = &self.interfaces else {
            return Ok(vec![wanted]);
        };
        let covered =
            |ip: &IpAddr| ip.is_ipv4() == wanted.is_ipv4() && (wanted.is_unspecified() || *ip == wanted);
        let ips: Vec<_> = interfaces.iter().map(Interface::ip).filter(covered).collect();
        if ips.is_empty() {
            let names: Vec<_> = interfaces.iter().map(|i| i.name.as_str()).collect();
            return Err(NetStartError::Interface { name: names.join(", ") });
        }
        Ok(ips)
    }

    /// Whether an announced address may be dialled: it lies in the network of an interface that may be used.
    pub(super) fn allows(&self, ip: IpAddr) -> bool {
        let Some(interfaces) = &self.interfaces else {
            return true;
        };
        interfaces.iter().any(|interface| match (&interface.addr, ip) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_interface_bounds_where_to_listen_and_dial() {
        let reach = Reach::new(&["lo".to_owned()]).unwrap();
        let any: IpAddr = "0.0.0.0".parse().unwrap();
        assert_eq!(reach.listen_ips(any).unwrap(), ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(reach.allows("127.3.2.1".parse().unwrap()));
        assert!(!reach.allows("10.0.0.1".parse().unwrap()));
        assert!(reach.listen_ips("10.0.0.1".parse().unwrap()).is_err());
    }

    #[test]
    fn unknown_interfaces_are_named() {
        let error = Reach::new(&["nonsense0".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("nonsense0"), "{error}");
    }

    #[test]
    fn no_names_mean_all() {
        let reach = Reach::new(&[]).unwrap();
        assert!(reach.allows("10.0.0.1".parse().unwrap()));
        let any: IpAddr = "0.0.0.0".parse().unwrap();
        assert_eq!(reach.listen_ips(any).unwrap(), [any]);
    }
}
