use ipnet::IpNet;

use super::source::{Sources, canonical};
use super::table::Table;
use super::{Admission, Penalties};

/// The settings of an [`Admission`].
#[derive(Clone, Debug)]
#[must_use = "it does nothing before `build`"]
pub struct AdmissionBuilder {
    max_pending: usize,
    max_per_source: Option<usize>,
    sources: Sources,
    penalties: Option<Penalties>,
}

impl AdmissionBuilder {
    /// How many may be pending unless told otherwise: half of the file descriptors that a process has by default on
    /// many systems, and less than a megabyte.
    const MAX_PENDING: usize = 500;

    pub(super) fn new() -> Self {
        let sources = Sources { v4_len: 32, v6_len: 64, exempt: Vec::new() };
        Self { max_pending: Self::MAX_PENDING, max_per_source: None, sources, penalties: None }
    }

    /// Sets how many handshakes may be pending together. Default: 500.
    ///
    /// Each takes a file descriptor. Shedding needs some to be left, so keep this, the number of sessions and 20 for
    /// the program itself below what the process may have (`ulimit -n`, often 1,024): without any nobody is accepted,
    /// and friends wait behind strangers.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn max_pending(mut self, max: usize) -> Self {
        assert!(max > 0, "at least one handshake must be able to go on");
        self.max_pending = max;
        self
    }

    /// Sets how many of them one source may have. Default: a quarter of [`max_pending`](Self::max_pending).
    ///
    /// What is beyond is refused, and not shed: among the connections of one source, those that came first can tell
    /// by nothing that others are more honest.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn max_per_source(mut self, max: usize) -> Self {
        assert!(max > 0, "at least one handshake of each source must be able to go on");
        self.max_per_source = Some(max);
        self
    }

    /// Sets how much of an address makes a source, in bits. Default: 32 of an IPv4 address, 64 of an IPv6 address: a
    /// subscriber has at least a /64 of the latter, many a /56 or /48.
    ///
    /// IPv6 addresses that stand for an IPv4 address (`::ffff:192.0.2.1`) are IPv4. Behind a NAT64 (`64:ff9b::/96`, RFC
    /// 6052) all of IPv4 is one /64: use longer prefixes there.
    ///
    /// # Panics
    ///
    /// If they are more than an address has: 32 and 128.
    pub fn prefix_lengths(mut self, v4: u8, v6: u8) -> Self {
        assert!(v4 <= 32 && v6 <= 128, "no more bits than an address has");
        (self.sources.v4_len, self.sources.v6_len) = (v4, v6);
        self
    }

    /// Exempts the sources within `net` from share and penalties: a load balancer, the machine that checks whether
    /// the server is alive. The cap holds for them too, and where it is full they are shed like others.
    ///
    /// Can be called several times. Each is looked at for each connection: a handful is what it is made for.
    pub fn exempt(mut self, net: IpNet) -> Self {
        self.sources.exempt.push(canonical(net));
        self
    }

    /// Keeps sources out that fail too often. Default: nobody is.
    pub fn penalties(mut self, penalties: Penalties) -> Self {
        self.penalties = Some(penalties);
        self
    }

    /// An admission with these settings, in which nothing is pending.
    #[must_use]
    pub fn build(self) -> Admission {
        let max_per_source = self.max_per_source.unwrap_or_else(|| self.max_pending.div_ceil(4));
        Admission::new(self.sources, Table::new(self.max_pending, max_per_source), self.penalties)
    }
}
