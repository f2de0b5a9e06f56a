use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The source of a handshake, for limits and penalties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Source {
    /// A stream without an address. All of them are one source.
    Unknown,
    /// A prefix that is exempt from the limit for each source and from penalties. Its handshakes can be evicted.
    Exempt(IpNet),
    /// A prefix that all limits apply to.
    Limited(IpNet),
}

impl Source {
    /// Returns the prefix, if all limits apply to it.
    pub(super) fn limited(self) -> Option<IpNet> {
        match self {
            Self::Limited(net) => Some(net),
            Self::Unknown | Self::Exempt(_) => None,
        }
    }
}

/// The prefix lengths that define a source, and the exempt networks.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    pub(super) v4_len: u8,
    pub(super) v6_len: u8,
    pub(super) exempt: Vec<IpNet>,
}

impl Sources {
    pub(super) fn of(&self, ip: Option<IpAddr>) -> Source {
        // A dual-stack listener reports IPv4 peers in ::ffff:0:0/96, which must not be one source.
        let Some(ip) = ip.map(|ip| ip.to_canonical()) else { return Source::Unknown };
        let net = match ip {
            IpAddr::V4(ip) => Ipv4Net::new(ip, self.v4_len).map(|net| IpNet::V4(net.trunc())),
            IpAddr::V6(ip) => Ipv6Net::new(ip, self.v6_len).map(|net| IpNet::V6(net.trunc())),
        }
        .expect("the builder checks the lengths");
        if self.exempt.iter().any(|exempt| exempt.contains(&ip)) {
            Source::Exempt(net)
        } else {
            Source::Limited(net)
        }
    }
}

/// Converts a prefix of IPv4-mapped IPv6 addresses to the prefix of the IPv4 addresses.
pub(crate) fn canonical(net: IpNet) -> IpNet {
    let IpAddr::V4(ip) = net.addr().to_canonical() else { return net };
    let len = if net.addr().is_ipv6() { net.prefix_len().checked_sub(96) } else { Some(net.prefix_len()) };
    len.and_then(|len| Ipv4Net::new(ip, len).ok()).map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sources: &Sources, ip: &str) -> String {
        match sources.of(Some(ip.parse().unwrap())) {
            Source::Unknown => unreachable!("it has an address"),
            Source::Exempt(net) => format!("exempt {net}"),
            Source::Limited(net) => net.to_string(),
        }
    }

    #[test]
    fn canonical_maps_ipv4_mapped_prefixes() {
        let net = |net: &str| net.parse::<IpNet>().unwrap();
        assert_eq!(canonical(net("::ffff:10.0.0.0/104")), net("10.0.0.0/8"));
        for same in ["10.0.0.0/8", "fd00::/8", "::/0", "::ffff:0:0/90"] {
            assert_eq!(canonical(net(same)), net(same));
        }
    }

    #[test]
    fn sources_are_prefixes() {
        let exempt = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).to_vec();
        let sources = Sources { v4_len: 32, v6_len: 64, exempt };
        assert_eq!(of(&sources, "192.0.2.7"), "192.0.2.7/32");
        assert_eq!(of(&sources, "::ffff:192.0.2.7"), "192.0.2.7/32");
        assert_eq!(of(&sources, "2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(of(&sources, "10.1.2.3"), "exempt 10.1.2.3/32");
        assert_eq!(of(&sources, "::ffff:10.1.2.3"), "exempt 10.1.2.3/32");
        assert_eq!(of(&sources, "fd12::1"), "exempt fd12::/64");
        assert_eq!(sources.of(None), Source::Unknown);
        let coarse = Sources { v4_len: 24, v6_len: 48, exempt: Vec::new() };
        assert_eq!(of(&coarse, "192.0.2.7"), "192.0.2.0/24");
        assert_eq!(of(&coarse, "2001:db8:1:2::5"), "2001:db8:1::/48");
    }
}
