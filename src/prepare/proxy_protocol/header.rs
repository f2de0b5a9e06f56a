use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use ppp::{v1, v2};

/// The longest header of version 1, with its line end, in bytes.
const MAX_V1_LEN: usize = 107;

/// What precedes the length in a header of version 2, and the length.
const V2_PREFIX_LEN: usize = 16;

/// The longest rest of a header of version 2 that is accepted, in bytes.
const MAX_V2_REST: usize = 536;

/// The longest header that is accepted, in bytes.
pub(super) const MAX_LEN: usize = V2_PREFIX_LEN + MAX_V2_REST;

/// Version 2 with the command LOCAL.
const LOCAL: u8 = v2::Version::Two as u8 | v2::Command::Local as u8;

/// The type of the checksum in a header of version 2.
const CRC32C: u8 = v2::Type::CRC32C as u8;

/// A PROXY protocol header: what a load balancer reported about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    source: Option<SocketAddr>,
    destination: Option<SocketAddr>,
    tlvs: Vec<(u8, Bytes)>,
}

impl ProxyHeader {
    /// Returns the address of the client. `None` if the connection is one of the load balancer itself, such as a health
    /// check, or if the client is not connected over IP.
    #[must_use]
    pub const fn source(&self) -> Option<SocketAddr> {
        self.source
    }

    /// Returns the address that the client connected to. `None` if [`source`](Self::source) is.
    #[must_use]
    pub const fn destination(&self) -> Option<SocketAddr> {
        self.destination
    }

    /// Returns the value of the first additional field of this type (section 2.2 of the specification). Type 2, for
    /// example, is the host name that the client requested in TLS (`PP2_TYPE_AUTHORITY`). Always `None` in version 1, and
    /// if [`source`](Self::source) is `None` because the connection is one of the load balancer itself.
    #[must_use]
    pub fn tlv(&self, kind: u8) -> Option<&Bytes> {
        self.tlvs.iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// Takes a header from the beginning of `buf`. `None` if it is not complete yet.
    pub(super) fn take(buf: &mut BytesMut) -> Result<Option<Self>, &'static str> {
        let Some((version, len)) = find_end(buf)? else { return Ok(None) };
        let header = buf.split_to(len).freeze();
        match version {
            Version::V1 => Self::parse_v1(&header),
            Version::V2 => Self::parse_v2(&header),
        }
        .map(Some)
    }

    fn parse_v1(header: &[u8]) -> Result<Self, &'static str> {
        const INVALID: &str = "an invalid PROXY protocol header (version 1)";

        // What follows UNKNOWN is to be ignored (section 2.1), and need not even be addresses.
        if let Some(b' ' | b'\r') = header.strip_prefix(b"PROXY UNKNOWN").and_then(|rest| rest.first()) {
            return Ok(Self { source: None, destination: None, tlvs: Vec::new() });
        }
        let (source, destination) = match v1::Header::try_from(header).map_err(|_| INVALID)?.addresses {
            v1::Addresses::Unknown => return Err(INVALID),
            v1::Addresses::Tcp4(ip) => ip_v4(&ip),
            v1::Addresses::Tcp6(ip) => ip_v6(&ip),
        };
        Ok(Self { source: Some(source), destination: Some(destination), tlvs: Vec::new() })
    }

    fn parse_v2(bytes: &Bytes) -> Result<Self, &'static str> {
        const INVALID: &str = "an invalid PROXY protocol header (version 2)";

        // What follows LOCAL, the family included, is to be ignored (section 2.2).
        if bytes[v2::PROTOCOL_PREFIX.len()] == LOCAL {
            return Ok(Self { source: None, destination: None, tlvs: Vec::new() });
        }
        let header = v2::Header::try_from(&bytes[..]).map_err(|_| INVALID)?;
        let mut tlvs = Vec::new();
        for tlv in header.tlvs() {
            let tlv = tlv.map_err(|_| INVALID)?;
            tlvs.push((tlv.kind, bytes.slice_ref(&tlv.value)));
        }
        if let Some((_, checksum)) = tlvs.iter().find(|(kind, _)| *kind == CRC32C) {
            verify_checksum(bytes, checksum)?;
        }
        let addresses = match header.addresses {
            v2::Addresses::IPv4(ip) => Some(ip_v4(&ip)),
            v2::Addresses::IPv6(ip) => Some(ip_v6(&ip)),
            v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
        };
        if addresses.is_some() && header.protocol != v2::Protocol::Stream {
            return Err("a PROXY protocol header of another protocol than TCP");
        }
        let (source, destination) = addresses.unzip();
        Ok(Self { source, destination, tlvs })
    }
}

enum Version {
    V1,
    V2,
}

/// Finds the version and the length of the header, as soon as all of it is there.
fn find_end(buf: &[u8]) -> Result<Option<(Version, usize)>, &'static str> {
    const NONE: &str = "no PROXY protocol header, which is required from this address";

    let signature = v2::PROTOCOL_PREFIX;
    let common = buf.len().min(signature.len());
    if buf[..common] == signature[..common] {
        let Some(prefix) = buf.get(..V2_PREFIX_LEN) else { return Ok(None) };
        let rest = usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
        if rest > MAX_V2_REST {
            return Err("a PROXY protocol header of more than 552 bytes");
        }
        let len = V2_PREFIX_LEN + rest;
        return Ok((buf.len() >= len).then_some((Version::V2, len)));
    }
    let start = b"PROXY ";
    let common = buf.len().min(start.len());
    if buf[..common] != start[..common] {
        return Err(NONE);
    }
    let line = &buf[..buf.len().min(MAX_V1_LEN)];
    match line.windows(2).position(|end| end == b"\r\n") {
        Some(at) => Ok(Some((Version::V1, at + 2))),
        None if line.len() == MAX_V1_LEN => Err("a PROXY protocol header of more than 107 bytes"),
        None => Ok(None),
    }
}

/// Verifies the checksum over the header, in which the checksum itself counts as zero (section 2.2.3).
fn verify_checksum(header: &Bytes, checksum: &Bytes) -> Result<(), &'static str> {
    let expected: [u8; 4] =
        checksum[..].try_into().map_err(|_| "a PROXY protocol checksum that is not of 4 bytes")?;
    let at = checksum.as_ptr() as usize - header.as_ptr() as usize;
    let mut zeroed = header.to_vec();
    zeroed[at..at + expected.len()].fill(0);
    if crc32c::crc32c(&zeroed) == u32::from_be_bytes(expected) {
        Ok(())
    } else {
        Err("a PROXY protocol header with a wrong checksum")
    }
}

fn ip_v4(ip: &v1::IPv4) -> (SocketAddr, SocketAddr) {
    ((ip.source_address, ip.source_port).into(), (ip.destination_address, ip.destination_port).into())
}

fn ip_v6(ip: &v1::IPv6) -> (SocketAddr, SocketAddr) {
    ((ip.source_address, ip.source_port).into(), (ip.destination_address, ip.destination_port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command_and_family: [u8; 2], rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &command_and_family, &len, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 192, 0, 2, 1, 0x30, 0x39, 0, 80];

    /// Takes a header that arrives byte by byte, and what follows it.
    fn take(bytes: &[u8]) -> Result<(ProxyHeader, Vec<u8>), &'static str> {
        let mut whole = BytesMut::from(bytes);
        let at_once = ProxyHeader::take(&mut whole);
        let mut buf = BytesMut::new();
        for (at, byte) in bytes.iter().enumerate() {
            buf.extend_from_slice(&[*byte]);
            match ProxyHeader::take(&mut buf) {
                Ok(None) => {}
                Ok(Some(header)) => {
                    assert!(buf.is_empty(), "nothing was read past the header");
                    assert_eq!(at_once, Ok(Some(header.clone())));
                    assert_eq!(&whole[..], &bytes[at + 1..], "nothing is lost");
                    return Ok((header, whole.to_vec()));
                }
                Err(error) => {
                    assert!(at_once.is_err());
                    return Err(error);
                }
            }
        }
        Err("incomplete")
    }

    #[test]
    fn version_1() {
        let (header, rest) = take(b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 80\r\nHELLO").unwrap();
        assert_eq!(header.source(), Some(([192, 0, 2, 7], 12345).into()));
        assert_eq!(header.destination(), Some(([192, 0, 2, 1], 80).into()));
        assert_eq!(rest, b"HELLO");
        let (header, _) = take(b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 80\r\n").unwrap();
        assert_eq!(header.source().unwrap().to_string(), "[2001:db8::7]:12345");
        for unknown in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN 1 2 3 4 5 6 7 8 9\r\n"] {
            assert_eq!(take(unknown.as_bytes()).unwrap().0.source(), None, "{unknown}");
        }
    }

    #[test]
    fn version_2() {
        let tlvs = [&V4[..], &[0x02, 0, 3, b'f', b'o', b'o', 0xe0, 0, 1, 9]].concat();
        let (header, rest) = take(&[&v2([0x21, 0x11], &tlvs)[..], b"HELLO"].concat()).unwrap();
        assert_eq!(header.source(), Some(([192, 0, 2, 7], 12345).into()));
        assert_eq!(header.tlv(2).unwrap(), "foo");
        assert_eq!(header.tlv(0xe0).unwrap()[..], [9]);
        assert_eq!(header.tlv(3), None);
        assert_eq!(rest, b"HELLO");
        // LOCAL: the addresses are those of a health check.
        assert_eq!(take(&v2([0x20, 0x11], &V4)).unwrap().0.source(), None);
        assert_eq!(take(&v2([0x20, 0x00], &[])).unwrap().0.source(), None);
        for ignored in [&[][..], &[1, 2, 3, 4]] {
            assert_eq!(take(&v2([0x20, 0xff], ignored)).unwrap().0.source(), None);
        }
        assert_eq!(take(&v2([0x21, 0x31], &[0; 216])).unwrap().0.source(), None, "a Unix socket");
    }

    #[test]
    fn checksum_is_verified() {
        let tlvs = [&V4[..], &[CRC32C, 0, 4, 0, 0, 0, 0]].concat();
        let mut header = v2([0x21, 0x11], &tlvs);
        let checksum = crc32c::crc32c(&header).to_be_bytes();
        let at = header.len() - 4;
        header[at..].copy_from_slice(&checksum);
        take(&header).unwrap();
        // After the command: with LOCAL, everything else is ignored.
        for place in 13..header.len() {
            let mut changed = header.clone();
            changed[place] ^= 1;
            // Not the type of the field, which would then be another one.
            if place != at - 3 {
                assert!(take(&changed).is_err(), "byte {place}");
            }
        }
    }

    #[test]
    fn invalid_headers_are_errors() {
        for (bytes, part) in [
            (&b"GET / HTTP/1.1\r\n"[..], "no PROXY protocol header"),
            (b"\x16\x03\x01", "no PROXY protocol header"),
            (b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 99999\r\n", "version 1"),
            (b"PROXY TCP4 192.0.2 192.0.2.1 12345 80\r\n", "version 1"),
            (b"PROXY UDP4 192.0.2.7 192.0.2.1 12345 80\r\n", "version 1"),
            (b"PROXY UNKNOWNER\r\n", "version 1"),
            (&[b'P'; 1], "incomplete"),
            (&[&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(), "107 bytes"),
            (&v2([0x21, 0x11], &[0; 537]), "552 bytes"),
            (&v2([0x31, 0x11], &V4), "version 2"),
            (&v2([0x22, 0x11], &V4), "version 2"),
            (&v2([0x21, 0x11], &V4[..11]), "version 2"),
            (&v2([0x21, 0x12], &V4), "another protocol than TCP"),
            (&v2([0x21, 0x11], &[&V4[..], &[1, 0, 9, 0]].concat()), "version 2"),
        ] {
            let error = take(bytes).unwrap_err();
            assert!(error.contains(part), "{bytes:?}: {error}");
        }
        take(&v2([0x21, 0x11], &[&V4[..], &[4, 2, 9], &[0; 521]].concat())).unwrap();
    }
}
