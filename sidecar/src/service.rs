//! A running service: prepared first, so that a reload with an error changes nothing, and then started.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower::Service as TowerService;
use tower_challenge::serve::{ServeError, Shutdown, serve};
use tower_challenge::transport::SocketOptions;
use tower_challenge::{AcceptError, BoxError, Connection};
use tracing::{error, info, warn};

use crate::args::CommonArgs;
use crate::capacity::Capacity;
use crate::config::Service;
use crate::listener::RetiringListener;
use crate::socket::{Peer, Socket};
use crate::{client, server};

/// A service that is ready to run.
pub(crate) type Prepared =
    Box<dyn FnOnce(RetiringListener, Lifetime) -> BoxFuture<'static, io::Result<Shutdown>> + Send>;

/// Reads the keys of a service and checks its settings.
pub(crate) async fn prepare(service: &Service, share_of_open_files: usize) -> Result<Prepared, BoxError> {
    match service {
        Service::Server(args) => server::prepare(args, share_of_open_files).await,
        Service::Client(args) => client::prepare(args, share_of_open_files).await,
    }
}

/// The signals that end a service.
#[derive(Clone)]
pub(crate) struct Lifetime {
    /// The next generation accepts now. Sessions of this one continue.
    pub(crate) retired: CancellationToken,
    /// The process stops: in-flight handshakes end, and sessions may continue for a while.
    pub(crate) stopping: CancellationToken,
    /// Sessions end.
    pub(crate) forced: CancellationToken,
}

impl CommonArgs {
    pub(crate) fn socket_options(&self) -> SocketOptions {
        SocketOptions::new().keepalive(self.keepalive.unless_zero())
    }
}

/// A session that has failed, which was logged.
#[derive(Debug)]
pub(crate) struct SessionFailed;

impl fmt::Display for SessionFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the session failed")
    }
}

impl Error for SessionFailed {}

/// Logs errors that were not logged elsewhere.
fn report(error: ServeError<Peer>) {
    match error {
        ServeError::Accept(error) => warn!(%error, "accept failed"),
        ServeError::Connection { addr, error } => match error.downcast_ref() {
            // Failed handshakes are logged with a limit on their rate, and sessions at their end.
            Some(AcceptError::Handshake(_) | AcceptError::Service(_)) => {}
            None if error.is::<SessionFailed>() => {}
            _ => info!(peer = %addr, %error, "connection failed"),
        },
        error => error!(%error, "session panicked"),
    }
}

/// Calls `service` with each connection, until the end of the lifetime and of the sessions.
pub(crate) async fn run<S>(
    args: &CommonArgs,
    capacity: Capacity,
    listener: RetiringListener,
    lifetime: Lifetime,
    service: S,
) -> io::Result<Shutdown>
where
    S: TowerService<Connection<Socket, Peer>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
{
    let Lifetime { retired, stopping, forced } = lifetime;
    // The handshake, and the wait for the service or for the target.
    let handshakes = 2 * args.timeout.0.max(args.connect_timeout.0);
    let graceful = async move {
        let retirement = async {
            retired.cancelled().await;
            // A shutdown ends in-flight handshakes. After this time there are none.
            sleep(handshakes).await;
        };
        tokio::select! {
            () = retirement => {}
            () = stopping.cancelled() => {}
        }
    };
    serve(listener, service)
        .max_connections(capacity.max_connections())
        .socket_options(args.socket_options())
        .graceful_shutdown(graceful)
        .forced_shutdown(async move { forced.cancelled().await })
        // Sessions of a retired generation have no deadline. That of the process ends in `forced`.
        .shutdown_timeout(Duration::MAX)
        .on_error(report)
        .await
}
