//! The PROXY protocol header for the target: `doc/proxy-protocol.txt` in the sources of `HAProxy`.

use std::net::{IpAddr, SocketAddr};

use ppp::v1;
use ppp::v2::{Addresses, Builder, Command, Protocol, Version};

/// The type of the TLV that has the key id: the first of those that the specification leaves to applications
/// (`PP2_TYPE_MIN_CUSTOM`).
const KEY_ID: u8 = 0xE0;

/// Returns a header of version 1, which has the source and the destination only.
pub(crate) fn v1(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let addresses = addresses.map_or(v1::Addresses::Unknown, |addresses| same_family(addresses).into());
    format!("{addresses}").into_bytes()
}

/// Returns a header of version 2, with the key id.
pub(crate) fn v2(addresses: Option<(SocketAddr, SocketAddr)>, key_id: &[u8]) -> Vec<u8> {
    let addresses = addresses.map_or(Addresses::Unspecified, |addresses| same_family(addresses).into());
    let protocol = if addresses == Addresses::Unspecified { Protocol::Unspecified } else { Protocol::Stream };
    let builder = Builder::with_addresses(Version::Two | Command::Proxy, protocol, addresses);
    let header = builder.write_tlv(KEY_ID, key_id).and_then(Builder::build);
    header.unwrap_or_else(|_| unreachable!("a key id has at most 255 bytes"))
}

/// A header has addresses of one family. IPv4-mapped addresses become IPv4, and IPv4 becomes mapped if the other address is IPv6.
fn same_family((source, destination): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let [source, destination] =
        [source, destination].map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()));
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |addr: SocketAddr| match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    };
    (mapped(source), mapped(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1() {
        let addresses = ("192.0.2.1:5".parse().unwrap(), "[::ffff:192.0.2.9]:80".parse().unwrap());
        assert_eq!(v1(Some(addresses)), b"PROXY TCP4 192.0.2.1 192.0.2.9 5 80\r\n");
        assert_eq!(v1(None), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_has_the_key_id() {
        let addresses = ("[2001:db8::1]:5".parse().unwrap(), "192.0.2.9:80".parse().unwrap());
        let header = v2(Some(addresses), b"alice");
        let parsed = ppp::v2::Header::try_from(&header[..]).unwrap();
        let Addresses::IPv6(addresses) = parsed.addresses else { panic!("{parsed:?}") };
        assert_eq!(addresses.destination_address.to_string(), "::ffff:192.0.2.9");
        let tlv = parsed.tlvs().next().unwrap().unwrap();
        assert_eq!((tlv.kind, &*tlv.value), (0xE0, &b"alice"[..]));
        // Without addresses: the TLV follows the fixed part.
        let header = v2(None, &[b'i'; 255]);
        assert_eq!(header[12..16], [0x21, 0, 1, 2]);
        assert_eq!((header[16..19].to_vec(), header.len()), (vec![0xE0, 0, 255], 16 + 3 + 255));
    }
}
