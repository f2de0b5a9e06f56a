//! The client's side: accepts plain connections, and forwards them to a server that it authenticates.

use std::convert::Infallible;
use std::future::pending;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::handshake::Connect;
use tower_challenge::mechanism::{ClientRole, Mechanism as Mechanisms, PeerOf, StreamOf};
use tower_challenge::transport::TransportInfo;
use tower_challenge::{
    AnswerLayer, Authenticated, BoxError, ConnectError, Connection, Connector, HandshakeErrorKind, mutual,
    noise,
};

use crate::args::{ClientArgs, Mechanism};
use crate::audience;
use crate::capacity::{Capacity, Demand};
use crate::keys::{self, Source, Watched};
use crate::service::{self, Prepared};
use crate::session::{Session, Sessions, reset_on_drop};
use crate::socket::{OverSocket, Peer, Socket};
use crate::target::Targets;

/// Reads the key and checks the settings.
pub(crate) async fn prepare(args: &ClientArgs, share: usize) -> Result<Prepared, BoxError> {
    let audience = audience(&args.common)?;
    let (key_id, timeout) = (args.key_id.as_deref(), args.common.timeout.0);
    let source =
        Source { service: args.common.name(), path: &args.key_file, allow_group_read: args.allow_group_read };
    match args.common.mechanism {
        Mechanism::Noise => {
            let make = move |entry: &_| {
                Ok(Connector::new(noise::Client::from_entry(entry, audience.clone())?).timeout(timeout))
            };
            prepare_with(args, share, keys::client_key(&source, key_id, make).await?)
        }
        Mechanism::Mutual => {
            let make = move |entry: &_| {
                Ok(Connector::new(mutual::Client::from_entry(entry, audience.clone())?).timeout(timeout))
            };
            prepare_with(args, share, keys::client_key(&source, key_id, make).await?)
        }
    }
}

fn prepare_with<M>(
    args: &ClientArgs,
    share: usize,
    key: Watched<watch::Receiver<Connector<M>>>,
) -> Result<Prepared, BoxError>
where
    M: Mechanisms<Role = ClientRole> + Clone + Send + Sync + 'static,
    Authenticated<StreamOf<M, Socket>, PeerOf<M>>: AsyncRead + AsyncWrite + OverSocket + Unpin + Send,
    Connect<Socket, M>: Send,
{
    let common = &args.common;
    let capacity = Capacity::fit(common, share, Demand::CLIENT)?;
    let targets = Targets::new(common.target.clone(), common.connect_timeout.0, common.socket_options());
    let sessions = Sessions::new(common.name(), ["client", "server"], common.idle_timeout.unless_zero());
    let Watched { current, watch } = key;
    let connector = ServiceBuilder::new()
        // Sessions over the limit wait here.
        .concurrency_limit(capacity.max_pending)
        .layer(AnswerLayer::with_connector_fn(move |_: &Targets| {
            Ok::<_, Infallible>(current.borrow().clone())
        }))
        .service_fn(|targets: Targets| async move { targets.connect().await });
    let service = ServiceBuilder::new()
        // Connections over the limit wait in the kernel's queue: all of them come from local clients.
        .concurrency_limit(capacity.max_sessions)
        .service_fn(move |plain: Connection<Socket, Peer>| {
            reset_on_drop(&plain, true);
            let session = Session::begin(&sessions, *plain.addr(), None);
            let connecting = connector.clone().oneshot(targets.clone());
            async move {
                let stopping = TransportInfo::from_stream(&plain).shutdown.unwrap_or_default();
                tokio::select! {
                    connected = connecting => match connected {
                        Ok(server) => session.run(plain, server, pending()).await,
                        Err(error) => session.fail(&explain(&error)),
                    },
                    () = stopping.cancelled() => session.fail(&"shut down before the server was connected"),
                }
            }
        });
    let common = common.clone();
    Ok(Box::new(move |listener, lifetime| {
        Box::pin(async move {
            let ended = service::run(&common, capacity, listener, lifetime, service).await;
            drop(watch);
            ended
        })
    }))
}

fn explain(error: &ConnectError) -> String {
    match error {
        ConnectError::Handshake(error) if error.kind() == HandshakeErrorKind::Refused => {
            format!("server: {error}; its log says why")
        }
        ConnectError::Handshake(error) => format!("server: {error}"),
        error => error.to_string(),
    }
}
