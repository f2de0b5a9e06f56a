use std::net::SocketAddr;

use crate::admission::Slot;
use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::observe::Observed;

/// The peer that a connection in a step belongs to, as far as it is known.
#[doc(hidden)]
#[derive(Debug)]
pub struct Attribution {
    pub(crate) peer_addr: Option<SocketAddr>,
    // Whether the span has `peer_addr`. A field that is set twice is printed twice by some subscribers.
    is_observed: bool,
    // Whether this is a connection of the load balancer itself.
    is_health_check: bool,
}

/// Access to the connection of a step: to its [`Attribution`] and to what follows from it.
#[doc(hidden)]
pub struct Attribute<'a> {
    pub(crate) attribution: &'a mut Attribution,
    pub(crate) slot: &'a mut Slot,
    pub(crate) observed: &'a mut Observed,
}

impl Attribution {
    pub(crate) const fn new(peer_addr: Option<SocketAddr>, is_observed: bool) -> Self {
        Self { peer_addr, is_observed, is_health_check: false }
    }

    /// Adds the address to the span, if it is not there yet.
    pub(crate) fn observe(&mut self, observed: &mut Observed) {
        if !std::mem::replace(&mut self.is_observed, true) {
            observed.set_peer_addr(self.peer_addr);
        }
    }

    /// Returns the error of a step. A health check that ends early is a probe.
    pub(crate) fn explain(&self, error: HandshakeError) -> HandshakeError {
        if self.is_health_check && error.kind() == HandshakeErrorKind::UnexpectedEof {
            error.into_probe()
        } else {
            error
        }
    }
}

impl Attribute<'_> {
    /// Sets the address that a step reported. If it is another one, the slot moves to its source. A stream that reports
    /// none changes nothing.
    pub(super) fn set_peer_addr(&mut self, reported: Option<SocketAddr>) -> Result<(), HandshakeError> {
        if reported.is_none() || reported == self.attribution.peer_addr {
            return Ok(());
        }
        self.attribution.peer_addr = reported;
        self.attribution.is_observed = true;
        self.observed.set_peer_addr(reported);
        self.slot.set_source(reported.map(|addr| addr.ip()))
    }

    /// Returns whether this is the known address of the peer.
    #[cfg(feature = "proxy-protocol")]
    pub(super) fn is_peer_addr(&self, addr: SocketAddr) -> bool {
        let canonical = |addr: SocketAddr| (addr.ip().to_canonical(), addr.port());
        self.attribution.peer_addr.map(canonical) == Some(canonical(addr))
    }

    /// Takes the slot from its source until a step reports another address.
    pub(super) fn defer_source(&mut self) -> Result<(), HandshakeError> {
        self.slot.set_source(None)
    }

    /// Marks the connection as one of the load balancer itself. It keeps its address, and counts towards no source.
    #[cfg(feature = "proxy-protocol")]
    pub(super) fn set_health_check(&mut self) -> Result<(), HandshakeError> {
        self.attribution.is_health_check = true;
        self.attribution.observe(self.observed);
        self.defer_source()
    }
}

impl std::fmt::Debug for Attribute<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attribute").field("attribution", &self.attribution).finish_non_exhaustive()
    }
}
