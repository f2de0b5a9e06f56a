use std::convert::Infallible;
use std::process::ExitCode;

use tokio::net::TcpStream;
use tower::{ServiceBuilder, ServiceExt as _};
use tower_challenge::{AnswerLayer, Connection, KeyId};

use super::log::{Event, SessionError};
use super::run::{connect, hand_on, run};
use super::{BoxError, Settings, keys};

/// Plain connections in, connections to a server that has proven itself out.
pub(crate) async fn run_client(settings: Settings, key_id: Option<KeyId>) -> Result<ExitCode, BoxError> {
    let current = keys::connector(&settings, key_id)?;
    let (target, timeout) = (settings.target.clone(), settings.timeout);
    let connector = ServiceBuilder::new()
        .layer(AnswerLayer::by_target(move |_: &String| Ok::<_, Infallible>(current.borrow().clone())))
        .service_fn(move |target| connect(target, timeout));
    let service = ServiceBuilder::new()
        // Who is beyond it is not accepted yet: there are no strangers here.
        .concurrency_limit(settings.limits.max_sessions.get())
        .service_fn(move |plain: Connection<TcpStream>| {
            let connecting = connector.clone().oneshot(target.clone());
            async move {
                let server = connecting.await.map_err(SessionError::from)?;
                let addr = *plain.addr();
                Event::Opened(addr, None).log();
                hand_on(addr, plain, server).await
            }
        });
    run(&settings, service).await
}
