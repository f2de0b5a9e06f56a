//! How much may be open at the same time, within the limit of the process on open files.

use std::num::NonZeroUsize;

use super::output::out;

/// The maximum number of sessions by default.
const SESSIONS: usize = 1024;

/// The maximum number of in-flight handshakes by default.
const PENDING: usize = 1024;

/// The smallest default. With less room than this, a server is not worth starting.
const MIN: usize = 128;

/// File descriptors for the program itself: standard streams, listeners, the runtime, the key file, name resolution, and
/// connections that have just been accepted or evicted.
const RESERVED: usize = 32;

#[derive(clap::Args)]
pub(crate) struct CapacityArgs {
    /// Maximum number of sessions; further clients wait [default: 1024, or less if the limit of open files is low]
    #[arg(long, value_name = "N")]
    max_sessions: Option<NonZeroUsize>,

    /// Maximum number of in-flight handshakes [default: 1024, or less if the limit of open files is low]
    #[arg(long, value_name = "N")]
    max_pending: Option<NonZeroUsize>,
}

/// How much may be open at the same time.
#[derive(Clone, Copy)]
pub(crate) struct Capacity {
    pub(crate) max_sessions: usize,
    pub(crate) max_pending: usize,
}

impl CapacityArgs {
    /// Raises the soft limit on open files to the hard limit, and returns what fits into it.
    ///
    /// A server without free file descriptors cannot even accept a connection to evict another one for it.
    ///
    /// # Errors
    ///
    /// Returns the arithmetic if the flags ask for more, or if less fits than a server needs.
    pub(crate) fn fit(&self) -> Result<Capacity, String> {
        let limit = rlimit::increase_nofile_limit(u64::MAX);
        let limit = limit.map_err(|error| format!("cannot raise the limit of open files: {error}"))?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let capacity = self.within(limit);
        let needed = capacity.descriptors();
        let Capacity { max_sessions, max_pending } = capacity;
        if needed > limit {
            return Err(format!(
                "{max_sessions} sessions and {max_pending} in-flight handshakes need {needed} file descriptors \
                 ({max_sessions} x 1 + {max_pending} x 1 + {RESERVED}), but the limit is {limit}: \
                 raise the hard limit (`ulimit -Hn`), or lower --max-sessions or --max-pending"
            ));
        }
        if self.within(usize::MAX).descriptors() > limit {
            out(format_args!(
                "the limit of {limit} open files allows {max_sessions} sessions and {max_pending} in-flight handshakes"
            ));
        }
        Ok(capacity)
    }

    /// Returns the values of the flags, and what fits into the limit where there is none.
    fn within(&self, limit: usize) -> Capacity {
        let free = limit.saturating_sub(RESERVED);
        let fitting = |free: usize, max: usize| free.max(MIN).min(max);
        let max_pending = match (self.max_pending, self.max_sessions) {
            (Some(pending), _) => pending.get(),
            (None, Some(sessions)) => fitting(free.saturating_sub(sessions.get()), PENDING),
            (None, None) => fitting(free / 2, PENDING),
        };
        let max_sessions = self
            .max_sessions
            .map_or_else(|| fitting(free.saturating_sub(max_pending), SESSIONS), NonZeroUsize::get);
        Capacity { max_sessions, max_pending }
    }
}

impl Capacity {
    /// More than the handshakes and the sessions together, so that neither uses up the places of the other.
    pub(crate) fn max_connections(self) -> usize {
        self.max_sessions.saturating_add(self.max_pending).saturating_add(1)
    }

    /// A session and a handshake have one each.
    fn descriptors(self) -> usize {
        self.max_sessions.saturating_add(self.max_pending).saturating_add(RESERVED)
    }
}
