//! What the two sides share: the accept loop, the shutdown, and sessions.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::Service;
use tower_challenge::transport::SocketOptions;
use tower_challenge::{Connection, serve};

use super::Settings;
use super::log::{Event, SessionError};
use super::shared::BoxError;
use super::shared::capacity::Capacity;
use super::shared::probes::Probes;
use super::shared::program::Stopping;
use super::shared::shutdown_signal::shutdown_signal;

/// Serves until the first signal, then until all sessions have ended, the shutdown timeout has passed, or the second
/// signal arrives.
pub(crate) async fn run<S>(
    settings: &Settings,
    capacity: Capacity,
    stopping: Stopping,
    service: S,
) -> Result<ExitCode, BoxError>
where
    S: Service<Connection<TcpStream>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
{
    let listener = TcpListener::bind(&settings.listen).await;
    let listener = listener.map_err(|error| format!("--listen {}: {error}", settings.listen))?;
    Event::Listening(listener.local_addr()?).log();
    let stopping = async {
        stopping.await;
        Event::Stopping.log();
    };
    let forced = Arc::new(AtomicBool::new(false));
    let force = {
        let forced = Arc::clone(&forced);
        async move {
            shutdown_signal().await;
            forced.store(true, Ordering::Relaxed);
        }
    };
    let mut probes = Probes::default();
    let stopped = serve(listener, service)
        .max_connections(capacity.max_connections())
        .socket_options(settings.socket_options())
        .graceful_shutdown(stopping)
        .forced_shutdown(force)
        .shutdown_timeout(settings.shutdown_timeout)
        .on_error(move |error| {
            if !probes.count(&error) {
                Event::Failed(error).log();
            }
        })
        .await?;
    Event::Stopped(stopped).log();
    Ok(if forced.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where sessions go.
#[derive(Clone)]
pub(crate) struct Target {
    addr: String,
    deadline: Duration,
    options: SocketOptions,
}

impl Target {
    pub(crate) fn new(settings: &Settings) -> Self {
        let (addr, deadline) = (settings.target.clone(), settings.timeout);
        Self { addr, deadline, options: settings.socket_options() }
    }

    /// Connects before the deadline.
    pub(crate) async fn connect(self) -> Result<TcpStream, SessionError> {
        let connecting = async {
            let stream = TcpStream::connect(&self.addr).await?;
            self.options.apply(&stream)?;
            Ok(stream)
        };
        let connected = timeout(self.deadline, connecting).await;
        let connected = connected.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|error| SessionError::Unreachable(self.addr, error))
    }
}

/// Copies in both directions, and passes on the end of each, until both have ended.
pub(crate) async fn forward(
    addr: SocketAddr,
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), SessionError> {
    let bytes = copy_bidirectional(&mut near, &mut far).await.map_err(SessionError::Broken)?;
    Event::Closed(addr, bytes).log();
    Ok(())
}
