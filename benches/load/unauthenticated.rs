//! Peers without a key, which reconnect as soon as they are dropped.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    addr: SocketAddr,
    /// The number of peers
    #[arg(long)]
    count: u32,
    /// The number of source addresses
    #[arg(long)]
    sources: u32,
    #[arg(long, value_enum, default_value = "silent")]
    behaviour: Behaviour,
    /// How many connections to make in total
    #[arg(long, default_value_t = u64::MAX)]
    connections: u64,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub(crate) enum Behaviour {
    /// Send nothing
    Silent,
    /// Send a wrong answer and never close
    Linger,
    /// Close at once
    HangUp,
    /// Alternate: send nothing, send a wrong answer byte by byte, close after a while, send too much
    Mixed,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    errors: AtomicU64,
    /// The lifetime of the longest connection, in milliseconds.
    longest: AtomicU64,
}

static COUNTS: Counts =
    Counts { connections: AtomicU64::new(0), errors: AtomicU64::new(0), longest: AtomicU64::new(0) };

pub(crate) fn run(args: &Args) -> ExitCode {
    // One thread, so that the flood does not use more than its processor.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    std::thread::spawn(|| {
        for _ in io::stdin().lines().map_while(Result::ok) {
            println!(
                "connections={} errors={} longest={}",
                COUNTS.connections.load(Ordering::Relaxed),
                COUNTS.errors.load(Ordering::Relaxed),
                COUNTS.longest.swap(0, Ordering::Relaxed),
            );
        }
        std::process::exit(0);
    });
    runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for i in 0..args.count {
            // Starting at 127.1.0.0.
            let source = Ipv4Addr::from(0x7f01_0000 + i % args.sources);
            all.spawn(peer(args.addr, source, args.behaviour, args.connections, i));
        }
        all.join_all().await;
    });
    println!("done");
    std::thread::park();
    ExitCode::SUCCESS
}

async fn peer(addr: SocketAddr, source: Ipv4Addr, behaviour: Behaviour, limit: u64, mut turn: u32) {
    while COUNTS.connections.fetch_add(1, Ordering::Relaxed) < limit {
        turn = turn.wrapping_add(1);
        let Ok(stream) = connect(addr, source).await else {
            COUNTS.errors.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let begin = Instant::now();
        // Every outcome is fine.
        let _ = behave(stream, behaviour, turn).await;
        let lifetime = begin.elapsed().as_millis().try_into().expect("a short time");
        COUNTS.longest.fetch_max(lifetime, Ordering::Relaxed);
    }
}

pub(crate) async fn connect(addr: SocketAddr, source: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((source, 0).into())?;
    socket.connect(addr).await
}

async fn behave(mut stream: TcpStream, behaviour: Behaviour, turn: u32) -> io::Result<()> {
    match behaviour {
        Behaviour::Silent => until_closed(&mut stream).await,
        Behaviour::Linger => {
            stream.read_exact(&mut [0; 32]).await?;
            stream.write_all(&[0; 16]).await?;
            // Reads the verdict up to the end of the stream, and keeps the connection open.
            until_closed(&mut stream).await?;
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.write_all(&[0]).await?;
            }
        }
        Behaviour::HangUp => Ok(()),
        Behaviour::Mixed => match turn % 4 {
            0 => until_closed(&mut stream).await,
            1 => {
                for _ in 0..16 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    stream.write_all(&[0]).await?;
                }
                until_closed(&mut stream).await
            }
            2 => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(())
            }
            _ => {
                stream.write_all(&[0; 4096]).await?;
                until_closed(&mut stream).await
            }
        },
    }
}

async fn until_closed(stream: &mut TcpStream) -> io::Result<()> {
    let mut buf = [0; 64];
    while stream.read(&mut buf).await? > 0 {}
    Ok(())
}
