use std::convert::Infallible;
use std::process::ExitCode;

use tokio::net::TcpStream;
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::{AnswerLayer, Connection};

use super::log::Event;
use super::run::{Target, forward, run};
use super::shared::BoxError;
use super::shared::capacity::Demand;
use super::shared::program::Stopping;
use super::shared::shutdown_signal::shutdown_signal;
use super::{Settings, keys};

/// A handshake is part of a session. The server sees all handshakes as one source, and never more of them at once than
/// it admits from one source.
const DEMAND: Demand = Demand { session: 2, handshake: 0, max_pending: 100 };

/// Accepts plain connections and forwards each to an authenticated server.
pub(crate) async fn run_client(settings: &Settings, key_id: Option<&str>) -> Result<ExitCode, BoxError> {
    let mut stopping: Stopping = Box::pin(shutdown_signal());
    let current = keys::connector(settings, key_id, &mut stopping).await?;
    let capacity = settings.capacity.fit(DEMAND)?;
    let target = Target::new(settings);
    let connector = ServiceBuilder::new()
        // Sessions over the limit wait here.
        .concurrency_limit(capacity.max_pending)
        .layer(AnswerLayer::with_connector_fn(move |_: &Target| {
            Ok::<_, Infallible>(current.borrow().clone())
        }))
        .service_fn(|target: Target| async move { target.connect().await });
    let service = ServiceBuilder::new()
        // Connections over the limit wait in the kernel's queue: all of them come from local clients.
        .concurrency_limit(capacity.max_sessions)
        .service_fn(move |plain: Connection<TcpStream>| {
            let connecting = connector.clone().oneshot(target.clone());
            async move {
                let server = connecting.await?;
                let addr = *plain.addr();
                Event::Opened(addr, None).log();
                Ok::<_, BoxError>(forward(addr, plain, server).await?)
            }
        });
    run(settings, capacity, stopping, service).await
}
