//! Values of command line flags.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

/// Checks that `text` is `HOST:PORT`. The host may be a name, which is resolved later, or an address; an IPv6 address is
/// in brackets.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    let Err(problem) = check_host_port(text) else { return Ok(text.to_owned()) };
    Err(format!("{problem}; expected HOST:PORT, such as 127.0.0.1:8888 or [::1]:8888"))
}

/// The same for an address to connect to, where port 0 does not exist.
pub(crate) fn target(text: &str) -> Result<String, String> {
    if text.ends_with(":0") {
        return Err("port 0 is not a port to connect to".to_owned());
    }
    host_port(text)
}

fn check_host_port(text: &str) -> Result<(), &'static str> {
    if text.contains('/') {
        return Err("neither Unix sockets nor URLs are supported");
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

/// Parses a number of seconds, which may have a fraction.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Parses a range of addresses, such as `10.0.0.0/8`, or one address.
pub(crate) fn prefix(text: &str) -> Result<IpNet, String> {
    let address = || text.parse().map(|address: IpAddr| address.into());
    let prefix = text.parse().or_else(|_| address());
    prefix.map_err(|_| "expected an IP address or a range such as 10.0.0.0/8".to_owned())
}
