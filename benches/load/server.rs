//! The server: echoes a byte to authenticated peers.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceBuilder;
use tower_challenge::admission::{Admission, Penalties};
use tower_challenge::serve::Shutdown;
use tower_challenge::{Authenticated, ChallengeLayer, Connection, Identity, Key, KeyEntry, one_way, serve};

/// The key of the legitimate client.
pub(crate) const KEY: &str = "the key of the legitimate client";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    max_pending: usize,
    #[arg(long)]
    max_per_source: usize,
    /// In seconds
    #[arg(long)]
    timeout: u64,
    #[arg(long)]
    penalties: bool,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let admission = Admission::builder().max_pending(args.max_pending).max_per_source(args.max_per_source);
    let admission = if args.penalties {
        admission.penalties(Penalties::new().evicted(Duration::from_secs(2)))
    } else {
        admission
    };
    let admission = admission.build().expect("valid settings");
    let ring = one_way::KeyRing::new(keys(0)).expect("valid keys");
    let layer = ChallengeLayer::new(one_way::Server::new(ring.clone()))
        .timeout(Duration::from_secs(args.timeout))
        .admission(admission.clone());
    let _entered = runtime.enter();
    let mut serving = Serving::start(layer.clone());

    let mut rotation = 0;
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            "rotate" => {
                rotation += 1;
                ring.replace(keys(rotation)).expect("valid keys");
                println!("rotated");
            }
            "restart" => {
                println!("{}", runtime.block_on(serving.stop()));
                serving = Serving::start(layer.clone());
            }
            _ => println!(
                "pending={} throttled={} tasks={} bytes={} rss={} fds={}",
                admission.pending(),
                admission.throttled(),
                runtime.metrics().num_alive_tasks(),
                LIVE.load(Ordering::Relaxed),
                resident(),
                std::fs::read_dir("/proc/self/fd").expect("Linux").count(),
            ),
        }
        io::stdout().flush().expect("the main process reads the output");
    }
    ExitCode::SUCCESS
}

/// A server that can be stopped.
struct Serving {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Shutdown>,
}

impl Serving {
    /// Starts a server and prints its address.
    fn start(layer: ChallengeLayer<one_way::Server>) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        // As large as the kernel allows, so that a burst of connections does not overflow the queue.
        let listener = socket.listen(4096).expect("a listener");
        println!("{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel();
        let server = serve(listener, ServiceBuilder::new().layer(layer).service_fn(echo))
            .graceful_shutdown(async { stopped.await.unwrap_or_default() })
            .shutdown_timeout(Duration::from_secs(1));
        let running = tokio::spawn(async move { server.await.expect("the service is always ready") });
        Self { stop, running }
    }

    /// Stops the server. Returns a description of how it ended.
    async fn stop(self) -> String {
        let begin = Instant::now();
        self.stop.send(()).expect("the server runs");
        let shutdown = self.running.await.expect("the server does not panic");
        format!("ended within {:.3} s: {shutdown:?}", begin.elapsed().as_secs_f64())
    }
}

/// Returns the key of the legitimate client, and others that differ in each rotation.
fn keys(rotation: u64) -> Vec<KeyEntry> {
    let others = (0..3).map(|i| (format!("other-{i}"), format!("another key, {i}, {rotation}")));
    let all = others.chain([("legitimate".to_owned(), KEY.to_owned())]);
    all.map(|(id, key)| KeyEntry::new(id, Key::new(key).expect("a valid key")).expect("a valid id")).collect()
}

async fn echo(mut stream: Authenticated<Connection<TcpStream>, Identity>) -> io::Result<()> {
    let byte = stream.read_u8().await?;
    stream.write_u8(byte).await?;
    // The peer closes first, so that the TIME_WAIT state of the connection is on its side.
    stream.read_u8().await.map_or(Ok(()), |_| Err(io::Error::other("more than one byte")))
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    status.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4096
}

/// Counts the allocated bytes.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is forwarded to the system's allocator, and the counter does not affect it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
