use std::process::ExitCode;

use tokio::net::TcpStream;
use tower::ServiceBuilder;
use tower_challenge::mutual::{Peer, Server};
use tower_challenge::{Authenticated, ChallengeLayer, Connection};

use super::log::{Event, SessionError};
use super::run::{connect, hand_on, run};
use super::{BoxError, Settings, keys};

/// Challenged connections in, plain ones out.
pub(crate) async fn run_server(settings: Settings) -> Result<ExitCode, BoxError> {
    let mechanism = Server::new(keys::ring(&settings)?, settings.audience.clone());
    let challenge = ChallengeLayer::new(mechanism)
        .timeout(settings.timeout)
        .ready_timeout(settings.timeout)
        .admission(settings.limits.admission());
    let (target, timeout) = (settings.target.clone(), settings.timeout);
    let service = ServiceBuilder::new()
        .map_err(SessionError::from)
        .layer(challenge)
        // Within the challenge, so that strangers hold none of these places.
        .concurrency_limit(settings.limits.max_sessions.get())
        .service_fn(move |peer: Authenticated<Connection<TcpStream>, Peer>| {
            let target = target.clone();
            async move {
                let addr = *peer.get_ref().addr();
                Event::Opened(addr, Some(peer.peer().identity().key_id().clone())).log();
                hand_on(addr, peer, connect(target, timeout).await?).await
            }
        });
    run(&settings, service).await
}
