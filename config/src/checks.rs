//! What single values must look like.

use std::net::{Ipv6Addr, SocketAddr};

/// 1 to 63 letters, digits, `-`, `_` and `.`.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Words for `is_name`.
pub(crate) const NAME: &str = "1 to 63 letters, digits, `-`, `_` and `.`";

/// A name from a host's name, whatever that contains.
pub(crate) fn name_from_host(host: &str) -> String {
    let clean: String = host
        .chars()
        .take(63)
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .collect();
    if clean.is_empty() { "unnamed".to_owned() } else { clean }
}

/// `host:port`, `address:port` or `[v6 address]:port` with a port above 0.
pub(crate) fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().map_or(true, |port| port == 0) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(is_label)
}

/// A network interface's name as Linux allows it.
pub(crate) fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// An execution provider's name.
pub(crate) fn is_provider(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Both would take the same port of one address.
pub(crate) fn do_clash(a: SocketAddr, b: SocketAddr) -> bool {
    let is_same = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && is_same
}

/// Bytes of "512MiB", "1.5 GiB", "750MB" or plain digits; none when it is not a size above 0.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("b", 1),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
    ];
    let text = text.trim().to_ascii_lowercase();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let factor = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 9 || (factor == 1 && number.contains('.')) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor) / scale;
    let bytes = whole.checked_mul(factor)?.checked_add(u64::try_from(part).ok()?)?;
    (bytes > 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good = [
            ("1", 1),
            ("512MiB", 512 << 20),
            ("2GiB", 2 << 30),
            ("750MB", 750_000_000),
            ("1.5 gib", 3 << 29),
            (" 64kib ", 64 << 10),
            ("0.001MB", 1_000),
            ("17b", 17),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "0",
            "MiB",
            "-1",
            "1.5",
            "1.MiB",
            ".5MiB",
            "1e3",
            "1 2",
            "9999999999TiB",
            "5 parsecs",
            "1..2MB",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn peers() {
        for text in ["10.0.0.2:7400", "camera-1:7400", "camera-1.local.:1", "[fe80::1]:65535", "a_b:7"] {
            assert!(is_host_and_port(text), "{text}");
        }
        for text in [
            "10.0.0.2",
            "10.0.0.2:",
            ":7400",
            "a:0",
            "a:65536",
            "fe80::1:7400",
            "a b:1",
            "http://a:1",
            "[a]:1",
            "a:+7",
            "a..b:1",
        ] {
            assert!(!is_host_and_port(text), "{text}");
        }
    }

    #[test]
    fn clashes() {
        let clash = |a: &str, b: &str| do_clash(a.parse().unwrap(), b.parse().unwrap());
        assert!(clash("0.0.0.0:7400", "127.0.0.1:7400"));
        assert!(clash("127.0.0.1:7400", "127.0.0.1:7400"));
        assert!(!clash("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!clash("127.0.0.2:7400", "127.0.0.1:7400"));
    }
}
