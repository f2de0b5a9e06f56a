//! Addresses to listen on and to connect to.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// The end of every error of [`Address`].
const EXPECTED: &str = "expected HOST:PORT, such as 127.0.0.1:6379 or [::1]:6379, the path of a Unix socket, such as \
                        /run/redis.sock, or @NAME for an abstract one";

/// The address of a stream socket.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Address {
    /// `HOST:PORT`. The host may be a name.
    Tcp(String),
    /// A path.
    Unix(PathBuf),
    /// A name in Linux' abstract namespace.
    Abstract(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("unix:").unwrap_or(text);
        if let Some(name) = text.strip_prefix('@') {
            if name.is_empty() {
                return Err(format!("the name is missing; {EXPECTED}"));
            }
            return Ok(Self::Abstract(name.to_owned()));
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        check_host_port(text).map_err(|problem| format!("{problem}; {EXPECTED}"))?;
        Ok(Self::Tcp(text.to_owned()))
    }
}

fn check_host_port(text: &str) -> Result<(), &'static str> {
    if text.contains('/') {
        return Err("a relative path or a URL is not an address");
    }
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    if let Some(addr) = host.strip_prefix('[') {
        let addr = addr.strip_suffix(']').and_then(|addr| addr.parse::<Ipv6Addr>().ok());
        addr.ok_or("there is no IPv6 address in the brackets")?;
    } else if host.contains(':') {
        return Err("an IPv6 address must be in brackets");
    }
    if host.is_empty() {
        return Err("the host is missing");
    }
    port.parse::<u16>().map(drop).map_err(|_| "the port is not a number from 0 to 65535")
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => f.write_str(host_port),
            Self::Unix(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

/// An address to connect to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TargetAddress(pub(crate) Address);

impl FromStr for TargetAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.parse()?;
        match &address {
            Address::Tcp(host_port) if host_port.ends_with(":0") => {
                Err("port 0 is not a port to connect to".to_owned())
            }
            _ => Ok(Self(address)),
        }
    }
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ListenAddress {
    Bind(Address),
    /// A socket that systemd passes on, by its `FileDescriptorName=`. Without a name it is the only one.
    Systemd(Option<String>),
}

impl ListenAddress {
    /// Returns whether the system chooses the port.
    pub(crate) fn is_any_port(&self) -> bool {
        matches!(self, Self::Bind(Address::Tcp(host_port)) if host_port.ends_with(":0"))
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("systemd") {
            Some("") => Ok(Self::Systemd(None)),
            Some(name) if name.starts_with(':') && name.len() > 1 && name[1..].parse::<u16>().is_err() => {
                Ok(Self::Systemd(Some(name[1..].to_owned())))
            }
            _ => text.parse().map(Self::Bind).map_err(|error: String| format!("{error}, or systemd[:NAME]")),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(address) => address.fmt(f),
            Self::Systemd(None) => f.write_str("systemd"),
            Self::Systemd(Some(name)) => write!(f, "systemd:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_printed() {
        for text in ["127.0.0.1:6379", "[::1]:0", "localhost:80", "/run/a.sock", "@name"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        assert_eq!("unix:/run/a.sock".parse(), Ok(Address::Unix("/run/a.sock".into())));
        assert_eq!("systemd".parse(), Ok(ListenAddress::Systemd(None)));
        assert_eq!("systemd:redis".parse(), Ok(ListenAddress::Systemd(Some("redis".to_owned()))));
        // A host.
        assert_eq!("systemd:80".parse(), Ok(ListenAddress::Bind(Address::Tcp("systemd:80".to_owned()))));
    }

    #[test]
    fn errors_say_what_is_expected() {
        for (text, problem) in [
            ("", "the port is missing"),
            ("host", "the port is missing"),
            (":80", "the host is missing"),
            ("::1:80", "must be in brackets"),
            ("[host]:80", "no IPv6 address in the brackets"),
            ("host:http", "the port is not a number"),
            ("run/a.sock", "a relative path or a URL"),
            ("http://host:80", "a relative path or a URL"),
            ("@", "the name is missing"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(problem) && error.contains("HOST:PORT"), "{text}: {error}");
        }
        assert!("host:0".parse::<TargetAddress>().unwrap_err().contains("port 0"));
    }
}
