//! What the two sides have in common: the accept loop, its end, and sessions.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::Service;
use tower_challenge::{Connection, serve};

use super::log::{Event, SessionError};
use super::{BoxError, Settings, signals};

/// Serves until a signal, and then until the sessions have ended, their time is up, or a second signal comes.
pub(crate) async fn run<S>(settings: &Settings, service: S) -> Result<ExitCode, BoxError>
where
    S: Service<Connection<TcpStream>, Error = SessionError, Future: Send> + Clone + Send + 'static,
{
    let [first, second] = signals::first_and_second()?;
    let forced = second.clone();
    let listener = TcpListener::bind(&settings.listen).await?;
    Event::Listening(listener.local_addr()?).log();
    let stopping = async move {
        first.cancelled().await;
        Event::Stopping.log();
    };
    let stopped = serve(listener, service)
        .max_connections(settings.limits.max_connections())
        .with_graceful_shutdown(stopping)
        .with_forced_shutdown(async move { second.cancelled().await })
        .shutdown_timeout(settings.shutdown_timeout)
        .on_error(|error| Event::Failed(error).log())
        .await;
    Event::Stopped(stopped.map_err(|error| error.to_string())?).log();
    Ok(if forced.is_cancelled() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub(crate) async fn connect(target: String, within: Duration) -> Result<TcpStream, SessionError> {
    let connecting = async {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let connected = timeout(within, connecting).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
    connected.map_err(SessionError::Unreachable)
}

/// Hands on in both directions what comes, the end of either included, until both have ended.
pub(crate) async fn hand_on(
    addr: SocketAddr,
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), SessionError> {
    let bytes = copy_bidirectional(&mut near, &mut far).await.map_err(SessionError::Broken)?;
    Event::Closed(addr, bytes).log();
    Ok(())
}
