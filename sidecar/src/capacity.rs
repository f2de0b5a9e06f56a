//! Limits on sessions and handshakes, within the limit of the process on open files.

use std::num::NonZeroUsize;

use tracing::info;

use crate::args::CommonArgs;
use crate::splice;

/// The maximum number of sessions by default.
const SESSIONS: usize = 1024;

/// The smallest default. With less room than this, a service is not worth starting.
const MIN: usize = 128;

/// File descriptors for the program itself: standard streams, listeners, the runtime, key files, name resolution, and
/// connections that have just been accepted or evicted.
const RESERVED: usize = 58;

/// The file descriptors that a side needs.
#[derive(Clone, Copy)]
pub(crate) struct Demand {
    /// File descriptors of a session.
    session: usize,
    /// File descriptors of an in-flight handshake that is not a session yet.
    handshake: usize,
    /// The maximum number of in-flight handshakes by default.
    max_pending: usize,
}

impl Demand {
    /// A session has a connection to the target, too.
    pub(crate) const SERVER: Self = Self { session: 2, handshake: 1, max_pending: 1024 };

    /// A handshake is part of a session. The server sees all handshakes as one source, and never more of them at once
    /// than it admits from one source.
    pub(crate) const CLIENT: Self = Self { session: 2, handshake: 0, max_pending: 64 };
}

/// The limits of a service.
#[derive(Clone, Copy)]
pub(crate) struct Capacity {
    pub(crate) max_sessions: usize,
    pub(crate) max_pending: usize,
}

/// Raises the soft limit on open files to the hard limit, and returns the share of each of this many services.
///
/// A server without free file descriptors cannot even accept a connection to evict another one for it.
pub(crate) fn share_of_open_files(services: usize) -> Result<usize, String> {
    let limit = rlimit::increase_nofile_limit(u64::MAX);
    let limit = limit.map_err(|error| format!("cannot raise the limit of open files: {error}"))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let pipes = splice::set_limit(limit);
    Ok(limit.saturating_sub(RESERVED + pipes) / services.max(1))
}

impl Capacity {
    /// Returns the limits of a service that fit into its share of open files.
    ///
    /// # Errors
    ///
    /// Returns the arithmetic if the flags ask for more, or if less fits than a service needs.
    pub(crate) fn fit(args: &CommonArgs, share: usize, demand: Demand) -> Result<Self, String> {
        let capacity = Self::within(args, share, demand);
        let needed = capacity.descriptors(demand);
        let Self { max_sessions, max_pending } = capacity;
        if needed > share {
            let Demand { session, handshake, .. } = demand;
            return Err(format!(
                "{max_sessions} sessions and {max_pending} in-flight handshakes need {needed} file descriptors \
                 ({max_sessions} x {session} + {max_pending} x {handshake}), but the share of this service is {share}: \
                 raise the hard limit (`ulimit -Hn`), or lower --max-sessions or --max-pending"
            ));
        }
        if Self::within(args, usize::MAX, demand).descriptors(demand) > share {
            info!(service = args.name(), max_sessions, max_pending, "limited by the number of open files");
        }
        Ok(capacity)
    }

    /// Returns the values of the flags, and what fits into the limit where there is none.
    fn within(args: &CommonArgs, free: usize, Demand { session, handshake, max_pending }: Demand) -> Self {
        let fitting = |free: usize, each: usize, max: usize| {
            free.checked_div(each).map_or(max, |count| count.max(MIN).min(max))
        };
        let without = |count: usize, each: usize| free.saturating_sub(count.saturating_mul(each));
        let max_pending = match (args.max_pending, args.max_sessions) {
            (Some(pending), _) => pending.get(),
            (None, Some(sessions)) => fitting(without(sessions.get(), session), handshake, max_pending),
            (None, None) => fitting(free, session + handshake, max_pending),
        };
        let max_sessions = args
            .max_sessions
            .map_or_else(|| fitting(without(max_pending, handshake), session, SESSIONS), NonZeroUsize::get);
        Self { max_sessions, max_pending }
    }

    /// More than the handshakes and the sessions together, so that neither uses up the places of the other.
    pub(crate) fn max_connections(self) -> usize {
        self.max_sessions.saturating_add(self.max_pending).saturating_add(1)
    }

    fn descriptors(self, demand: Demand) -> usize {
        let sessions = self.max_sessions.saturating_mul(demand.session);
        sessions.saturating_add(self.max_pending.saturating_mul(demand.handshake))
    }
}
