//! The metrics for Prometheus and the health check, over HTTP on an address of their own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};
use tokio_util::net::Listener as _;
use tracing::warn;

use crate::listener::RetiringListener;
use crate::socket::Socket;

/// How long a client may take for its request and the response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// How many clients are served at the same time. A further one ends the oldest, which is probably silent.
const MAX_CONNECTIONS: usize = 64;

/// How often the exporter drops what it keeps for quantiles and was not read.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// Whether the process accepts connections.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<AtomicBool>);

impl Health {
    pub(crate) fn set(&self, is_serving: bool) {
        self.0.store(is_serving, Ordering::Relaxed);
    }

    fn is_serving(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Answers requests until it is dropped.
///
/// Not by `serve`, whose metrics would then count these connections, too.
pub(crate) async fn run(mut listener: RetiringListener, prometheus: PrometheusHandle, health: Health) {
    let mut upkeep = interval(UPKEEP_PERIOD);
    let mut connections = JoinSet::new();
    let mut order = VecDeque::new();
    loop {
        tokio::select! {
            accepted = poll_fn(|cx| listener.poll_accept(cx)) => match accepted {
                Ok((socket, _)) => {
                    if order.len() == MAX_CONNECTIONS {
                        if let Some(oldest) = order.pop_front() {
                            AbortHandle::abort(&oldest);
                        }
                    }
                    order.push_back(connections.spawn(answer(socket, prometheus.clone(), health.clone())));
                }
                Err(error) => {
                    warn!(%error, "metrics: accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => order.retain(|connection| !connection.is_finished()),
            _ = upkeep.tick() => prometheus.run_upkeep(),
        }
    }
}

/// Answers one request.
async fn answer(socket: Socket, prometheus: PrometheusHandle, health: Health) {
    let respond = service_fn(|request| {
        let response = respond(&request, &prometheus, &health);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(socket), respond);
    // Errors are those of the client.
    let _ = timeout(REQUEST_TIMEOUT, connection).await;
}

fn respond(
    request: &Request<Incoming>,
    prometheus: &PrometheusHandle,
    health: &Health,
) -> Response<Full<Bytes>> {
    let (status, body) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, prometheus.render()),
        "/healthz" if health.is_serving() => (StatusCode::OK, "ok\n".to_owned()),
        "/healthz" => (StatusCode::SERVICE_UNAVAILABLE, "not serving\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "not found: try /metrics or /healthz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let text = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}
