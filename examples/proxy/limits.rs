use std::num::NonZeroUsize;

use clap::Args;
use tower_challenge::admission::{Admission, Penalties};

/// What may be open at a time.
#[derive(Args)]
pub(crate) struct Limits {
    /// How many sessions; of those beyond, a peer of the server waits for up to `--timeout`, a client's in the queue
    #[arg(long, default_value = "1024", value_name = "N")]
    pub(crate) max_sessions: NonZeroUsize,

    /// server: how many handshakes may be pending
    #[arg(long, default_value = "1000", value_name = "N")]
    max_pending: NonZeroUsize,

    /// server: how many of them from one address, or from one /64 of IPv6
    #[arg(long, default_value = "100", value_name = "N")]
    max_per_source: NonZeroUsize,

    /// server: keep addresses out for a while that fail too often
    #[arg(long)]
    penalties: bool,
}

impl Limits {
    pub(crate) fn admission(&self) -> Admission {
        let admission = Admission::builder()
            .max_pending(self.max_pending.get())
            .max_per_source(self.max_per_source.get());
        if self.penalties { admission.penalties(Penalties::new()) } else { admission }.build()
    }

    /// More than can be pending and in session together: neither takes the other's places.
    pub(crate) fn max_connections(&self) -> usize {
        self.max_sessions.get().saturating_add(self.max_pending.get()).saturating_add(1)
    }
}
