//! A server that can be seen: lines of the log, a line a second of what goes on, and the metrics for Prometheus.
//!
//! ```text
//! cargo run --example observe --features tracing,metrics
//! curl http://127.0.0.1:9464/metrics
//! ```

#[path = "shared/seconds.rs"]
mod seconds;
mod shared;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tower::ServiceBuilder;
use tower_challenge::admission::{Admission, Penalties};
use tower_challenge::handshake::Accept;
use tower_challenge::mechanism::{self, Mechanism, PeerOf};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, Authenticated, ChallengeLayer, Connection, KeyRing, mutual, observe, one_way, serve,
};
use tracing::{Level, error, info};

use self::seconds::seconds;

#[derive(Parser)]
#[command(about = "Lets in who holds a key, sends back what they send, and shows what happens")]
struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8888", value_name = "ADDR")]
    listen: String,

    /// Where to serve the metrics. They are nobody's secret and everybody's business: keep it off the Internet
    #[arg(long, default_value = "127.0.0.1:9464", value_name = "ADDR")]
    metrics: String,

    /// What to log: error, warn, info, debug or trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log: Level,

    #[command(flatten)]
    credentials: shared::Credentials,

    /// How long a handshake may take
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    tracing_subscriber::fmt().with_max_level(args.log).with_ansi(false).init();
    // Without buckets the exporter makes a summary of the histogram: quantiles of the last minute.
    let prometheus = Prometheus {
        handle: PrometheusBuilder::new().install_recorder()?,
        admission: Admission::builder().penalties(Penalties::new()).build(),
    };
    observe::describe();

    let credentials = &args.credentials;
    match credentials.mechanism {
        shared::Mechanism::OneWay => {
            run(&args, one_way::Server::new(KeyRing::new(credentials.load()?)?), prometheus).await
        }
        shared::Mechanism::Mutual => {
            let keys = KeyRing::new(credentials.load()?)?;
            run(&args, mutual::Server::new(keys, credentials.audience()?), prometheus).await
        }
        #[cfg(feature = "multiprocessing")]
        shared::Mechanism::Multiprocessing => {
            use tower_challenge::multiprocessing::Server;

            let mechanism = Server::new(KeyRing::new(credentials.load()?)?);
            let mechanism = if credentials.legacy_md5 { mechanism.allow_legacy_md5() } else { mechanism };
            run(&args, mechanism, prometheus).await
        }
    }
}

async fn run<M>(args: &Args, mechanism: M, prometheus: Prometheus) -> Result<(), Box<dyn Error>>
where
    M: Mechanism<Role = mechanism::Server> + Send + Sync + 'static,
    PeerOf<M>: Send + 'static,
    Accept<Connection<TcpStream>, M>: Send + 'static,
{
    let listener = TcpListener::bind(&args.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let metrics = TcpListener::bind(&args.metrics).await?;
    println!("metrics on http://{}/metrics", metrics.local_addr()?);
    tokio::spawn(export(metrics, prometheus.clone()));
    tokio::spawn(live(prometheus.clone()));

    let layer = ChallengeLayer::new(mechanism).timeout(args.timeout).admission(prometheus.admission);
    let service = ServiceBuilder::new().layer(layer).service_fn(session);
    serve(listener, service)
        .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .shutdown_timeout(Duration::from_secs(1))
        .on_error(log_error)
        .await?;
    println!("stopped");
    Ok(())
}

/// Whatever is logged here is inside the span of the connection, with its address and its key.
async fn session<P>(mut stream: Authenticated<Connection<TcpStream>, P>) -> io::Result<()> {
    info!("session begins");
    let mut buf = [0; 4096];
    let mut echoed = 0;
    loop {
        let len = match stream.read(&mut buf).await {
            // A peer that goes without a word has gone all the same.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            read => read?,
        };
        if len == 0 {
            break;
        }
        stream.write_all(&buf[..len]).await?;
        echoed += len;
    }
    info!(echoed, "session over");
    Ok(())
}

fn log_error(error: ServeError<AcceptError<io::Error>, SocketAddr>) {
    match error {
        // In the log already, or counted there.
        ServeError::Connection { error: AcceptError::Handshake(_), .. } => {}
        error => error!(error = &error as &dyn Error),
    }
}

#[derive(Clone)]
struct Prometheus {
    handle: PrometheusHandle,
    admission: Admission,
}

impl Prometheus {
    /// The metrics in Prometheus' text format.
    fn render(&self) -> String {
        // Changes by time alone, so it is looked up when somebody looks.
        let penalized = u32::try_from(self.admission.penalized()).unwrap_or(u32::MAX);
        metrics::gauge!("observe_sources_penalized").set(penalized);
        self.handle.render()
    }
}

/// Serves the metrics over HTTP, whatever is asked for.
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
                error!(%error, "metrics: no connection accepted");
                sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn respond(mut stream: TcpStream, prometheus: &Prometheus) -> io::Result<()> {
    // To the empty line after the head, so that nothing unread makes the close a reset.
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

/// Prints what goes on, once a second, from what Prometheus would be told.
async fn live(prometheus: Prometheus) {
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
        println!(
            "pending {pending}, sessions {}, accepted {}/s, refused {}/s, handshake p50 {:.2} ms, p99 {:.2} ms",
            (open - pending).max(0.0),
            now.accepted - last.accepted,
            now.refused - last.refused,
            quantile("outcome=\"success\",quantile=\"0.5\""),
            quantile("outcome=\"success\",quantile=\"0.99\""),
        );
        last = now;
    }
}

#[derive(Default)]
struct Totals {
    accepted: f64,
    refused: f64,
}

/// The values of a metric, of those series that have this among their labels.
fn samples<'a>(text: &'a str, name: &'a str, label: &'a str) -> impl Iterator<Item = f64> + 'a {
    text.lines().filter_map(move |line| {
        let (series, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        // Not of another metric whose name goes on.
        let is_this = series.is_empty() || series.starts_with('{');
        (is_this && series.contains(label)).then(|| value.parse().ok())?
    })
}
