//! Connections to Redis.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, PushInfo};

use crate::error::Error;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long Redis may take to answer a command.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Checks a URL: `redis://`, `rediss://` or `redis+unix://`. Nothing is connected.
pub(crate) fn client(url: &str) -> Result<Client, Error> {
    #[cfg(feature = "tls")]
    choose_provider();
    let info = url.into_connection_info()?;
    // Pushes need version 3 of the protocol.
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    // It would need a right of its own, and be refused in the log of a Redis that does not give it.
    let settings = settings.set_skip_set_lib_name();
    // With Nagle's algorithm, the last segment of a long command waits 40 ms for an acknowledgment.
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Ok(Client::open(info.set_redis_settings(settings).set_tcp_settings(tcp))?)
}

/// Chooses the cryptography of TLS, unless the program has chosen it.
#[cfg(feature = "tls")]
fn choose_provider() {
    use rustls::crypto::{CryptoProvider, ring};

    if CryptoProvider::get_default().is_none() {
        // Another thread may have been first.
        let _ = ring::default_provider().install_default();
    }
}

/// Connects. `push` is called with what Redis sends by itself.
pub(crate) async fn connect(
    client: &Client,
    push: impl Fn(PushInfo) + Send + Sync + 'static,
) -> Result<MultiplexedConnection, Error> {
    let push = Arc::new(push);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_push_sender(move |info| {
            push(info);
            Ok::<_, std::convert::Infallible>(())
        });
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}
