use std::process::ExitCode;

use tokio::net::TcpStream;
use tower::ServiceBuilder;
use tower_challenge::mutual::{Peer, Server};
use tower_challenge::{Authenticated, ChallengeLayer, Connection};

use super::log::Event;
use super::run::{Target, forward, run};
use super::shared::BoxError;
use super::shared::admission::AdmissionArgs;
use super::shared::capacity::Demand;
use super::shared::program::Stopping;
use super::shared::shutdown_signal::shutdown_signal;
use super::{Settings, keys};

/// A session has a connection to the service, too.
const DEMAND: Demand = Demand { session: 2, ..Demand::SERVER };

/// Accepts connections with a handshake and forwards each to the plain service.
pub(crate) async fn run_server(settings: &Settings, admission: &AdmissionArgs) -> Result<ExitCode, BoxError> {
    let mut stopping: Stopping = Box::pin(shutdown_signal());
    let mechanism = Server::new(keys::ring(settings, &mut stopping).await?, settings.audience()?);
    let capacity = settings.capacity.fit(DEMAND)?;
    let challenge = ChallengeLayer::new(mechanism)
        .timeout(settings.timeout)
        .ready_timeout(settings.timeout)
        .admission(admission.build(capacity)?);
    let target = Target::new(settings);
    let service = ServiceBuilder::new()
        .layer(challenge)
        // Inside the challenge, so that unauthenticated peers do not count.
        .concurrency_limit(capacity.max_sessions)
        .service_fn(move |peer: Authenticated<Connection<TcpStream>, Peer>| {
            let target = target.clone();
            async move {
                let addr = *peer.get_ref().addr();
                Event::Opened(addr, Some(peer.peer().identity().key_id().clone())).log();
                forward(addr, peer, target.connect().await?).await
            }
        });
    run(settings, capacity, stopping, service).await
}
