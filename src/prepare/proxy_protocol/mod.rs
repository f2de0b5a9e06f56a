//! The PROXY protocol, versions 1 and 2, by which load balancers pass on the address of the client. Specification:
//! `doc/proxy-protocol.txt` in the sources of `HAProxy`.

mod header;
mod progress;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::AsyncRead;

pub use self::header::ProxyHeader;
use self::progress::ReadHeader;
pub use self::stream::Proxied;
use super::{Prepare, Start, sealed};
use crate::admission::canonical;
use crate::transport::{Transport, TransportInfo};

/// A [step](super) that reads a PROXY protocol header (version 1 or 2) from load balancers.
///
/// A connection from a trusted prefix must begin with a header; without one it is closed. No header is read on a
/// connection from any other address: its first bytes belong to the handshake, which fails if they are a header. So
/// only a trusted load balancer can claim another address, and nothing is guessed.
///
/// The stream becomes a [`Proxied`] stream that reports the client's address.
/// [Admission control](crate::admission) limits and throttles that address, and never the load balancer. Until the
/// header is complete, the connection counts towards the cap alone and can be evicted.
///
/// Some connections have no client address: those of the load balancer itself, such as health checks (`LOCAL` in
/// version 2, `UNKNOWN` or the load balancer's side of the same connection in version 1), and clients on a Unix socket.
/// They keep the address of the socket, but count towards the cap alone, and no source is charged. If such a connection
/// ends during a further step, that is a [`Probe`](crate::HandshakeErrorKind::Probe).
///
/// # Errors
///
/// No error charges a source:
///
/// - [`TimedOut`](crate::HandshakeErrorKind::TimedOut) if the header is not complete in [time](Self::timeout);
/// - [`Malformed`](crate::HandshakeErrorKind::Malformed) if there is no valid header, if it is longer than 107 bytes
///   (version 1) or 552 bytes (version 2), or if its CRC32C checksum is wrong;
/// - [`Probe`](crate::HandshakeErrorKind::Probe) if the connection is closed or reset before its first byte, as by health
///   checks without a header;
/// - [`UnexpectedEof`](crate::HandshakeErrorKind::UnexpectedEof) if it is closed or reset after that.
///
/// # Panics
///
/// Panics outside a tokio runtime with the time driver enabled, like the handshake itself.
///
/// # Example
///
/// ```
/// use tower_challenge::prepare::ProxyProtocol;
/// use tower_challenge::{ChallengeLayer, mutual};
///
/// # fn example(
/// #     server: mutual::Server<mutual::KeyRing>,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let proxies = ProxyProtocol::from_trusted(["10.0.0.0/8".parse()?]);
/// let layer = ChallengeLayer::new(server).prepare(proxies);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ProxyProtocol {
    trusted: Arc<[IpNet]>,
    trusts_unix_sockets: bool,
    timeout: Duration,
}

impl ProxyProtocol {
    /// How long a trusted peer may take to send its header, by default.
    const TIMEOUT: Duration = Duration::from_secs(3);

    /// Creates a step that requires a header from peers within these prefixes.
    pub fn from_trusted(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let trusted = prefixes.into_iter().map(canonical).collect();
        Self { trusted, trusts_unix_sockets: false, timeout: Self::TIMEOUT }
    }

    /// Requires a header also on streams without an IP address, such as Unix sockets that only the load balancer can
    /// connect to. Default: no header is read on them.
    ///
    /// A bare `TcpStream` no longer knows its address after the peer has reset the connection, and would then be trusted
    /// as well. Wrap it in a `Connection`, as `serve` and `Incoming` do.
    #[must_use]
    pub fn trust_unix_sockets(mut self) -> Self {
        self.trusts_unix_sockets = true;
        self
    }

    /// Sets how long a trusted peer may take to send its header. Default: 3 seconds, and never longer than the deadline
    /// of the handshake.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn requires_header(&self, info: &TransportInfo) -> bool {
        let Some(addr) = info.peer_addr else { return self.trusts_unix_sockets };
        let ip = addr.ip().to_canonical();
        self.trusted.iter().any(|prefix| prefix.contains(&ip))
    }
}

impl<IO> sealed::Sealed<IO> for ProxyProtocol {}

impl<IO: AsyncRead + Transport + Unpin> Prepare<IO> for ProxyProtocol {
    type Stream = Proxied<IO>;
    type Progress = ReadHeader<IO>;

    fn start(&self, io: IO, info: &TransportInfo) -> Start<Proxied<IO>, ReadHeader<IO>> {
        if self.requires_header(info) {
            Start::InProgress(ReadHeader::new(io, self.timeout))
        } else {
            Start::Ready(Proxied::direct(io))
        }
    }

    fn defers_source(&self, info: &TransportInfo) -> bool {
        self.requires_header(info)
    }
}

impl fmt::Debug for ProxyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyProtocol")
            .field("trusted", &self.trusted)
            .field("trusts_unix_sockets", &self.trusts_unix_sockets)
            .field("timeout", &self.timeout)
            .finish()
    }
}
