use std::error::Error;
use std::fmt;

use ipnet::IpNet;

use super::source::{Sources, canonical};
use super::table::Table;
use super::{Admission, Penalties};
use crate::error::debug_as_display;

/// A builder of an [`Admission`], from [`Admission::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct AdmissionBuilder {
    max_pending: usize,
    max_per_source: Option<usize>,
    sources: Sources,
    penalties: Option<Penalties>,
}

impl AdmissionBuilder {
    /// The default of `max_pending`: room for several hundred legitimate clients behind one address at the same moment, in
    /// two megabytes of memory.
    const MAX_PENDING: usize = 1024;

    pub(super) fn new() -> Self {
        let sources = Sources { v4_len: 32, v6_len: 64, exempt: Vec::new() };
        Self { max_pending: Self::MAX_PENDING, max_per_source: None, sources, penalties: None }
    }

    /// Sets the maximum of handshakes in flight. Default: 1,024.
    ///
    /// Each handshake takes a file descriptor. Keep the sum of this limit, the number of sessions and 20 for the
    /// program itself below the limit of the process (`ulimit -n`): raise that limit, whose default of 1,024 is too low
    /// on many systems, or lower this one. Without a free descriptor no connection can be accepted, so that nothing is
    /// evicted, and legitimate clients have to wait until unauthenticated peers time out.
    pub fn max_pending(mut self, max: usize) -> Self {
        self.max_pending = max;
        self
    }

    /// Sets the maximum of handshakes in flight from one source while at least three quarters of
    /// [`max_pending`](Self::max_pending) are in use. Default: a quarter of `max_pending`.
    ///
    /// At the limit new handshakes of the source fail with [`SourceLimit`](crate::HandshakeErrorKind::SourceLimit).
    /// Nothing distinguishes newer connections of a source from older ones, so newer ones are rejected, and none is
    /// evicted. While most of `max_pending` is free, the limit does not apply: a burst of legitimate clients that share
    /// an address then harms no other source.
    pub fn max_per_source(mut self, max: usize) -> Self {
        self.max_per_source = Some(max);
        self
    }

    /// Sets the prefix lengths that define a source. Default: 32 bits of an IPv4 address and 64 bits of an IPv6
    /// address, since an IPv6 subscriber has at least a /64, and often a /56 or /48.
    ///
    /// IPv4-mapped IPv6 addresses (`::ffff:192.0.2.1`) count as IPv4. Behind a NAT64 (`64:ff9b::/96`, RFC 6052) all
    /// IPv4 addresses are in one /64, so use a longer prefix there.
    pub fn prefix_lengths(mut self, v4: u8, v6: u8) -> Self {
        (self.sources.v4_len, self.sources.v6_len) = (v4, v6);
        self
    }

    /// Exempts the addresses in `net` from the limit for each source and from penalties, e.g. a load balancer or a
    /// health checker. The cap applies to them too, and their handshakes can be evicted.
    ///
    /// Can be called several times. Every connection is compared with every exempt network, so this is meant for a few
    /// networks.
    pub fn exempt(mut self, net: IpNet) -> Self {
        self.sources.exempt.push(canonical(net));
        self
    }

    /// Throttles sources that fail too often. Default: no source is throttled.
    pub fn penalties(mut self, penalties: Penalties) -> Self {
        self.penalties = Some(penalties);
        self
    }

    /// Creates the [`Admission`].
    ///
    /// # Errors
    ///
    /// Returns an [`AdmissionError`] if a limit is 0 or a prefix length exceeds the length of an address.
    pub fn build(self) -> Result<Admission, AdmissionError> {
        if self.max_pending == 0 {
            return Err(AdmissionError::ZeroLimit("max_pending"));
        }
        if self.max_per_source == Some(0) {
            return Err(AdmissionError::ZeroLimit("max_per_source"));
        }
        if self.penalties.as_ref().is_some_and(|penalties| penalties.max_sources == 0) {
            return Err(AdmissionError::ZeroLimit("Penalties::max_sources"));
        }
        if self.sources.v4_len > 32 || self.sources.v6_len > 128 {
            return Err(AdmissionError::PrefixLengths { v4: self.sources.v4_len, v6: self.sources.v6_len });
        }
        Ok(self.build_checked())
    }

    pub(super) fn build_checked(self) -> Admission {
        let max_per_source = self.max_per_source.unwrap_or_else(|| self.max_pending.div_ceil(4));
        Admission::new(self.sources, Table::new(self.max_pending, max_per_source), self.penalties)
    }
}

/// An error for settings that [`AdmissionBuilder::build`] rejects.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdmissionError {
    /// The limit with this name is 0, so that no handshake could be admitted or no failure be recorded.
    ZeroLimit(&'static str),
    /// A prefix length exceeds the length of an address: 32 bits for IPv4, 128 bits for IPv6.
    PrefixLengths {
        /// The prefix length for IPv4 addresses.
        v4: u8,
        /// The prefix length for IPv6 addresses.
        v6: u8,
    },
}

impl fmt::Display for AdmissionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroLimit(name) => {
                write!(f, "invalid admission settings: `{name}` is 0; set it to at least 1")
            }
            Self::PrefixLengths { v4, v6 } => {
                write!(
                    f,
                    "invalid admission settings: `prefix_lengths` is {v4} for IPv4 and {v6} for IPv6; "
                )?;
                f.write_str("set it to at most 32 and 128")
            }
        }
    }
}

debug_as_display!(AdmissionError);

impl Error for AdmissionError {}
