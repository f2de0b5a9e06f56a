//! A server with observability: log lines, a summary line per second, and metrics for Prometheus.
//!
//! ```text
//! (umask 077; echo "alice:$(openssl rand -hex 32)" > keys)
//! cargo run -p example-observe -- --key-file keys
//! curl http://127.0.0.1:9464/metrics
//! ```

#[path = "../../programs/shared/mod.rs"]
mod shared;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ipnet::IpNet;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tower::ServiceBuilder;
use tower_challenge::admission::{Admission, Penalties};
use tower_challenge::handshake::Accept;
use tower_challenge::key::PrepareKey;
use tower_challenge::mechanism::{Mechanism, PeerOf, ServerRole, StreamOf};
#[cfg(feature = "noise")]
use tower_challenge::noise;
use tower_challenge::{
    Authenticated, ChallengeLayer, Connection, KeyRing, multiprocessing, mutual, observe, one_way, serve,
};
use tracing::{Level, error, info};

use self::shared::BoxError;
use self::shared::capacity::CapacityArgs;
use self::shared::credentials::{self, Credentials};
use self::shared::output::{LineWriter, out};
use self::shared::program::{self, Stopping};
use self::shared::shutdown_signal::shutdown_signal;
use self::shared::values::{host_port, prefix, seconds};

#[derive(Parser)]
#[command(about = "Accepts clients that hold a key, sends back what they send, and shows what happens")]
#[command(after_help = credentials::HELP)]
struct Args {
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1:8888", value_name = "ADDR", value_parser = host_port)]
    listen: String,

    /// The address to serve the metrics on. They contain no secret, but do not belong on the internet
    #[arg(long, default_value = "127.0.0.1:9464", value_name = "ADDR", value_parser = host_port)]
    metrics: String,

    /// The log level: error, warn, info, debug or trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log: Level,

    #[command(flatten)]
    credentials: Credentials,

    /// The deadline of a handshake
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,

    #[command(flatten)]
    capacity: CapacityArgs,

    /// Exempt addresses from penalties and from the limit for each source, such as a load balancer's; can be repeated
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    exempt: Vec<IpNet>,
}

fn main() -> ExitCode {
    program::run(run(&Args::parse()))
}

async fn run(args: &Args) -> Result<ExitCode, BoxError> {
    let mut stopping: Stopping = Box::pin(shutdown_signal());
    // The default writer blocks if the reader of the output has stopped.
    tracing_subscriber::fmt().with_max_level(args.log).with_ansi(false).with_writer(|| LineWriter).init();

    let credentials = &args.credentials;
    match credentials.mechanism() {
        credentials::Mechanism::Mutual => {
            let audience = credentials.audience()?;
            let mechanism = mutual::Server::new(ring(credentials, &mut stopping).await?, audience);
            serve_with(args, stopping, mechanism).await
        }
        #[cfg(feature = "noise")]
        credentials::Mechanism::Noise => {
            let audience = credentials.audience()?;
            let mechanism = noise::Server::new(ring(credentials, &mut stopping).await?, audience);
            let mechanism = match credentials.suite() {
                Some(suite) => mechanism.suites([suite]),
                None => mechanism,
            };
            serve_with(args, stopping, mechanism).await
        }
        #[cfg(not(feature = "noise"))]
        credentials::Mechanism::Noise => Err(credentials::WITHOUT_NOISE.into()),
        credentials::Mechanism::OneWay => {
            let mechanism = one_way::Server::new(ring(credentials, &mut stopping).await?);
            serve_with(args, stopping, mechanism).await
        }
        credentials::Mechanism::Multiprocessing => {
            let mechanism = multiprocessing::Server::new(ring(credentials, &mut stopping).await?);
            let mechanism = if credentials.legacy_md5 { mechanism.allow_legacy_md5() } else { mechanism };
            serve_with(args, stopping, mechanism).await
        }
    }
}

async fn ring<K>(credentials: &Credentials, stopping: &mut Stopping) -> Result<KeyRing<K>, BoxError>
where
    K: PrepareKey,
{
    let entries = credentials.load(stopping).await?;
    Ok(KeyRing::new(entries).map_err(|error| credentials.explain(error))?)
}

async fn serve_with<M>(args: &Args, stopping: Stopping, mechanism: M) -> Result<ExitCode, BoxError>
where
    M: Mechanism<Role = ServerRole> + Send + Sync + 'static,
    // The connection itself, or a stream that encrypts it.
    StreamOf<M, Connection<TcpStream>>: Send + 'static,
    PeerOf<M>: Send + 'static,
    Accept<Connection<TcpStream>, M>: Send + 'static,
{
    let capacity = args.capacity.fit()?;
    let admission = Admission::builder().max_pending(capacity.max_pending).penalties(Penalties::new());
    let admission = args.exempt.iter().fold(admission, |admission, &prefix| admission.exempt(prefix));
    // Without buckets the exporter turns the histogram into a summary: quantiles of the last minute.
    let handle = PrometheusBuilder::new().install_recorder()?;
    let prometheus = Prometheus { handle, admission: admission.build()? };
    observe::describe();

    let listener = bind("--listen", &args.listen).await?;
    out(format_args!("listening on {}", listener.local_addr()?));
    let metrics = bind("--metrics", &args.metrics).await?;
    out(format_args!("metrics on http://{}/metrics", metrics.local_addr()?));
    tokio::spawn(export(metrics, prometheus.clone()));
    tokio::spawn(print_summaries(prometheus.clone()));

    let challenge = ChallengeLayer::new(mechanism)
        .timeout(args.timeout)
        .ready_timeout(args.timeout)
        .admission(prometheus.admission);
    let service = ServiceBuilder::new()
        .layer(challenge)
        // Inside the challenge, so that unauthenticated peers do not count.
        .concurrency_limit(capacity.max_sessions)
        .service_fn(session::<StreamOf<M, _>, PeerOf<M>>);
    // Without `on_error`: the feature `tracing` logs the errors.
    serve(listener, service)
        .max_connections(capacity.max_connections())
        .graceful_shutdown(stopping)
        .shutdown_timeout(Duration::from_secs(1))
        .await?;
    out("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn bind(flag: &str, addr: &str) -> Result<TcpListener, String> {
    TcpListener::bind(addr).await.map_err(|error| format!("{flag} {addr}: {error}"))
}

/// Runs a session. Its log lines are inside the span of the connection, with the peer's address and key id.
async fn session<IO, P>(mut stream: Authenticated<IO, P>) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    info!("session begins");
    let shutdown = stream.shutdown_token().cloned().expect("`serve` sets one");
    let mut buf = [0; 4096];
    let mut echoed = 0;
    let mut closed = false;
    loop {
        let len = tokio::select! {
            read = stream.read(&mut buf) => read?,
            () = shutdown.cancelled(), if !closed => {
                // The client then closes, too. Until then, it can be read.
                stream.shutdown().await?;
                closed = true;
                continue;
            }
        };
        if len == 0 {
            break;
        }
        if !closed {
            stream.write_all(&buf[..len]).await?;
            echoed += len;
        }
    }
    if !closed {
        // Dropping the stream of `noise` would look to the client like a connection that was cut.
        stream.shutdown().await?;
    }
    info!(echoed, "session over");
    Ok(())
}

#[derive(Clone)]
struct Prometheus {
    handle: PrometheusHandle,
    admission: Admission,
}

impl Prometheus {
    /// Returns the metrics in Prometheus' text format.
    fn render(&self) -> String {
        // Changes over time without an event, so it is updated when the metrics are read.
        let throttled = u32::try_from(self.admission.throttled()).unwrap_or(u32::MAX);
        metrics::gauge!("observe_sources_throttled").set(throttled);
        self.handle.render()
    }
}

/// Serves the metrics over HTTP, on any path.
async fn export(listener: TcpListener, prometheus: Prometheus) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let prometheus = prometheus.clone();
                tokio::spawn(timeout(
                    Duration::from_secs(5),
                    async move { respond(stream, &prometheus).await },
                ));
            }
            Err(error) => {
                error!(%error, "metrics: accept failed");
                sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn respond(mut stream: TcpStream, prometheus: &Prometheus) -> io::Result<()> {
    // Reads the whole head: closing with unread data would reset the connection.
    let mut head = BufReader::new((&mut stream).take(8 * 1024)).lines();
    while head.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    let body = prometheus.render();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Prints a summary once per second, from the metrics that Prometheus reads.
async fn print_summaries(prometheus: Prometheus) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Totals::default();
    loop {
        ticks.tick().await;
        prometheus.handle.run_upkeep();
        let text = prometheus.render();
        let sum = |name, label| samples(&text, name, label).fold(0.0, |sum, value| sum + value);
        let quantile =
            |label| samples(&text, observe::HANDSHAKE_DURATION, label).fold(0.0, f64::max) * 1000.0;

        let pending = sum(observe::HANDSHAKES_PENDING, "");
        let open = sum(observe::CONNECTIONS_OPEN, "");
        let all = sum(observe::HANDSHAKES, "") + sum(observe::NOT_ADMITTED, "");
        let accepted = sum(observe::HANDSHAKES, "outcome=\"success\"");
        let now = Totals { accepted, refused: all - accepted };
        out(format_args!(
            "pending {pending}, sessions {}, accepted {}/s, refused {}/s, handshake p50 {:.2} ms, p99 {:.2} ms",
            (open - pending).max(0.0),
            now.accepted - last.accepted,
            now.refused - last.refused,
            quantile("outcome=\"success\",quantile=\"0.5\""),
            quantile("outcome=\"success\",quantile=\"0.99\""),
        ));
        last = now;
    }
}

#[derive(Default)]
struct Totals {
    accepted: f64,
    refused: f64,
}

/// Returns the values of a metric, for the series whose labels contain `label`.
fn samples<'a>(text: &'a str, name: &'a str, label: &'a str) -> impl Iterator<Item = f64> + 'a {
    text.lines().filter_map(move |line| {
        let (series, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        // Excludes other metrics whose names begin with this one.
        let is_this = series.is_empty() || series.starts_with('{');
        (is_this && series.contains(label)).then(|| value.parse().ok())?
    })
}
