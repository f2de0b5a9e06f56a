//! What it costs to let somebody in, this crate beside what else one could take: over TCP loopback, from connect to the
//! first byte that the service sends, and close. What each of them proves, and protects, differs: `COMPARE.md`.
//!
//! ```text
//! cargo bench --all-features --bench compare
//! cargo bench --all-features --bench compare -- --quick
//! ```
//!
//! All run in one process and one thread, both sides together, with `TCP_NODELAY` and a deadline on either side. They
//! take turns, many times, so that whatever else the machine does meets them all; what counts is their ratio.
//! Before anything is measured, each must have refused a client with another key.

mod bare;
mod bore;
mod noise;
mod ours;
mod scram;
mod tls;
mod way;

use std::time::{Duration, Instant};

use tokio::io;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use way::{Key, Result, Way};

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let has = |name| args.iter().any(|arg| arg == name);
    // Without `--bench` it is `cargo test --benches`, unoptimized: all of it runs, and nothing is said of it.
    let (rounds, slice) = match (has("--bench"), has("--quick")) {
        (false, _) => (1, Duration::ZERO),
        (true, true) => (5, Duration::from_millis(100)),
        (true, false) => (31, Duration::from_millis(250)),
    };

    let contestants = [
        Contestant::new("no handshake", bare::Bare),
        Contestant::refusing("one_way", ours::one_way),
        Contestant::refusing("mutual", ours::mutual),
        Contestant::refusing("bore's", bore::Bore::new),
        Contestant::refusing("SCRAM-SHA-256, rsasl, client's keys kept", scram::Scram::with_kept_keys),
        Contestant::refusing("SCRAM-SHA-256, rsasl, 4096 iterations", scram::Scram::with_password),
        Contestant::refusing("Noise NNpsk0, snow", noise::Noise::new),
        Contestant::refusing("TLS 1.3, client certificates, resumed", tls::Tls::resumed),
        Contestant::refusing("TLS 1.3, client certificates", tls::Tls::full),
    ];
    let mut rates: [Vec<f64>; 9] = Default::default();
    for _ in 0..rounds {
        for (contestant, rates) in contestants.iter().zip(&mut rates) {
            rates.push((contestant.run)(slice));
        }
    }

    if !has("--bench") {
        return;
    }
    println!(
        "connections a second, relative to no handshake: median, and the middle half of {rounds} rounds"
    );
    for (contestant, own) in contestants.iter().zip(&rates) {
        let mut ratios: Vec<_> = own.iter().zip(&rates[0]).map(|(own, bare)| own / bare).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
        println!("{:<42} {:.3}   {:.3} to {:.3}", contestant.name, at(2), at(1), at(3));
    }
}

struct Contestant {
    name: &'static str,
    /// Connects for at least so long, and says how often a second.
    run: Box<dyn Fn(Duration) -> f64>,
}

impl Contestant {
    fn new(name: &'static str, way: impl Way) -> Self {
        let run = move |slice| {
            block_on(connections(way.clone(), slice)).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        Self { name, run: Box::new(run) }
    }

    /// One that has been seen to refuse: what lets everybody in is no handshake.
    fn refusing<W: Way>(name: &'static str, of_key: fn(&Key) -> W) -> Self {
        let way = of_key(&[1; 32]);
        let (accepted, connected) = block_on(once(way.clone(), of_key(&[2; 32])));
        assert!(accepted.is_err() && connected.is_err(), "{name} lets in who has another key");
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

/// One connection after the other, each in a task of its own on the server's side.
async fn connections(way: impl Way, slice: Duration) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let begin = Instant::now();
    let mut count = 0.0;
    loop {
        let io = connect(&listener).await?;
        let (accepted, _) = listener.accept().await?;
        accepted.set_nodelay(true)?;
        let session = spawn_local(way.clone().accept(accepted));
        let connected = way.clone().connect(io).await;
        // Where both sides fail, the server knows why.
        session.await??;
        connected?;
        count += 1.0;
        let elapsed = begin.elapsed();
        if elapsed >= slice {
            return Ok(count / elapsed.as_secs_f64());
        }
    }
}

async fn connect(listener: &TcpListener) -> io::Result<TcpStream> {
    let io = TcpStream::connect(listener.local_addr()?).await?;
    io.set_nodelay(true)?;
    // Closed by a reset, or the ports would be used up by connections in TIME_WAIT.
    io.set_zero_linger()?;
    Ok(io)
}
