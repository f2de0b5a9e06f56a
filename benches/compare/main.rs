//! Compares the cost of an authenticated connection with alternatives to this crate: over TCP loopback, from connect to
//! the first byte that the service sends, and close. They do not prove and protect the same, see `COMPARE.md`.
//!
//! ```text
//! cargo bench -p benches-compare --bench compare
//! cargo bench -p benches-compare --bench compare -- --quick
//! ```
//!
//! Both sides run in one process and one thread, with `TCP_NODELAY` and a deadline on each side. There is one connection
//! at a time, and then 16. The candidates alternate many times, so that other work of the machine affects all of them. Compare the ratios, not the absolute
//! numbers. Before the measurement, each candidate must refuse a client with another key.

mod bare;
mod bore;
mod report;
mod scram;
mod snow;
mod this_crate;
mod tls;
mod way;

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use report::{Quartiles, print_instructions};
use tokio::io;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use way::{Key, Result, Way};

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let has = |name| args.iter().any(|arg| arg == name);
    // `cargo test --benches` passes no `--bench` and does not optimize: everything runs once, without a report.
    let (rounds, slice) = match (has("--bench"), has("--quick")) {
        (false, _) => (1, Duration::ZERO),
        (true, true) => (5, Duration::from_millis(50)),
        (true, false) => (31, Duration::from_millis(250)),
    };

    let candidates = [
        Candidate::new("no handshake", bare::Bare),
        Candidate::refusing("one_way", this_crate::one_way),
        Candidate::refusing("mutual", this_crate::mutual),
        Candidate::refusing("bore", bore::Bore::new),
        Candidate::refusing("SCRAM-SHA-256, rsasl, cached keys", scram::Scram::with_cached_keys),
        Candidate::refusing("SCRAM-SHA-256, rsasl, 4096 iterations", scram::Scram::with_password),
        Candidate::refusing(NOISE, this_crate::noise),
        Candidate::refusing(SNOW, snow::Snow::new),
        Candidate::refusing("TLS 1.3, client certificates", tls::Tls::full),
        // Last, since it is left out with several at a time: rustls keeps 8 tickets for each server.
        Candidate::refusing("TLS 1.3, client certificates, resumed", tls::Tls::resumed),
    ];
    if has("--bench") {
        print_instructions();
    }
    for (at_a_time, candidates) in [(1, &candidates[..]), (16, &candidates[..candidates.len() - 1])] {
        let mut rates = vec![Vec::new(); candidates.len()];
        for _ in 0..rounds {
            for (candidate, rates) in candidates.iter().zip(&mut rates) {
                rates.push((candidate.run)(slice, at_a_time));
            }
        }
        if has("--bench") {
            report(candidates, &rates, at_a_time);
        }
    }
}

/// The two that implement the same protocol.
const NOISE: &str = "noise";
const SNOW: &str = "Noise NNpsk0, snow";

fn report(candidates: &[Candidate], rates: &[Vec<f64>], at_a_time: usize) {
    println!(
        "\nconnections per second, {at_a_time} at a time, relative to no handshake: median and quartiles"
    );
    for (candidate, own) in candidates.iter().zip(rates) {
        println!("{:<42} {}", candidate.name, Quartiles::of_ratios(own, &rates[0]));
    }
    let of = |name| candidates.iter().zip(rates).find(|(candidate, _)| candidate.name == name);
    if let (Some((_, noise)), Some((_, snow))) = (of(NOISE), of(SNOW)) {
        println!("{:<42} {}", "noise relative to snow", Quartiles::of_ratios(noise, snow));
    }
}

struct Candidate {
    name: &'static str,
    /// Connects repeatedly for at least this time, with so many connections at a time. Returns the connections per second.
    run: Box<dyn Fn(Duration, usize) -> f64>,
}

impl Candidate {
    fn new(name: &'static str, way: impl Way) -> Self {
        let run = move |slice, at_a_time| {
            block_on(connections(&way, slice, at_a_time)).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        Self { name, run: Box::new(run) }
    }

    /// Checks first that a client with another key is refused: otherwise the candidate is no authentication.
    fn refusing<W: Way>(name: &'static str, with_key: fn(&Key) -> W) -> Self {
        let way = with_key(&[1; 32]);
        let (accepted, connected) = block_on(once(way.clone(), with_key(&[2; 32])));
        assert!(accepted.is_err() && connected.is_err(), "{name} accepts a client with another key");
        Self::new(name, way)
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, future)
}

async fn once(server: impl Way, client: impl Way) -> (Result<()>, Result<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let io = connect(&listener).await.expect("a connection");
    let (accepted, _) = listener.accept().await.expect("a connection");
    tokio::join!(server.accept(accepted), client.connect(io))
}

/// Makes so many connections at a time. The server handles each in its own task.
async fn connections(way: &impl Way, slice: Duration, at_a_time: usize) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let begin = Instant::now();
    let lanes = (0..at_a_time).map(|_| in_sequence(way, &listener, begin, slice));
    let counts = try_join_all(lanes).await?;
    Ok(counts.into_iter().sum::<f64>() / begin.elapsed().as_secs_f64())
}

async fn in_sequence(way: &impl Way, listener: &TcpListener, begin: Instant, slice: Duration) -> Result<f64> {
    let mut count = 0.0;
    loop {
        let io = connect(listener).await?;
        // With several at a time, this may be the connection of another lane. Each accepts as many as it makes.
        let (accepted, _) = listener.accept().await?;
        accepted.set_nodelay(true)?;
        let session = spawn_local(way.clone().accept(accepted));
        let connected = way.clone().connect(io).await;
        // If both sides fail, the server's error has the reason.
        session.await??;
        connected?;
        count += 1.0;
        if begin.elapsed() >= slice {
            return Ok(count);
        }
    }
}

async fn connect(listener: &TcpListener) -> io::Result<TcpStream> {
    let io = TcpStream::connect(listener.local_addr()?).await?;
    io.set_nodelay(true)?;
    // Closes with a reset. Otherwise connections in TIME_WAIT would use up the ports.
    io.set_zero_linger()?;
    Ok(io)
}
