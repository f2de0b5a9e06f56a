//! The flags for admission control.

use ipnet::IpNet;
use tower_challenge::admission::{Admission, AdmissionError, Penalties};

use super::capacity::Capacity;
use super::values::prefix;

/// The smallest default of `--max-per-source`. The sidecar `challenge-proxy` has 64 handshakes in flight at the same time, so a
/// burst of its sessions is within the limit of every server.
const MIN_PER_SOURCE: usize = 128;

#[derive(clap::Args)]
pub(crate) struct AdmissionArgs {
    /// Maximum number of in-flight handshakes from one IPv4 address or IPv6 /64 while three quarters of all are in use
    /// [default: a quarter of all, at least 128]
    #[arg(long, value_name = "N")]
    max_per_source: Option<std::num::NonZeroUsize>,

    /// Refuse addresses for a while after too many failed handshakes
    #[arg(long)]
    penalties: bool,

    /// Exempt addresses from penalties and from --max-per-source, such as a load balancer's; can be repeated
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    exempt: Vec<IpNet>,
}

impl AdmissionArgs {
    pub(crate) fn build(&self, capacity: Capacity) -> Result<Admission, AdmissionError> {
        let quarter = capacity.max_pending.div_ceil(4).max(MIN_PER_SOURCE);
        let admission = Admission::builder()
            .max_pending(capacity.max_pending)
            .max_per_source(self.max_per_source.map_or(quarter, std::num::NonZeroUsize::get));
        let admission = self.exempt.iter().fold(admission, |admission, &prefix| admission.exempt(prefix));
        if self.penalties { admission.penalties(Penalties::new()) } else { admission }.build()
    }
}
