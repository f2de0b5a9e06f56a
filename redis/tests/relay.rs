//! A relay between servers and Redis, with faults.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    delay: Mutex<Duration>,
    drop_requests: AtomicBool,
    drop_replies: AtomicBool,
    refuse: AtomicBool,
    /// Bytes that were dropped or delayed.
    affected: AtomicU64,
    injected: AtomicUsize,
    accepted: Mutex<Vec<Instant>>,
    /// Changes when all connections are to be closed.
    epoch: watch::Sender<u64>,
    injections: Mutex<Vec<mpsc::UnboundedSender<Vec<u8>>>>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            delay: Mutex::default(),
            drop_requests: AtomicBool::default(),
            drop_replies: AtomicBool::default(),
            refuse: AtomicBool::default(),
            affected: AtomicU64::default(),
            injected: AtomicUsize::default(),
            accepted: Mutex::default(),
            epoch: watch::Sender::default(),
            injections: Mutex::default(),
        });
        let of_task = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                of_task.accepted.lock().unwrap().push(Instant::now());
                if !of_task.refuse.load(Ordering::Relaxed) {
                    tokio::spawn(relay(Arc::clone(&of_task), client));
                }
            }
        });
        Self { addr, shared, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        self.shared.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Closes new connections at once.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::Relaxed);
    }

    pub(crate) fn set_target(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        *self.shared.delay.lock().unwrap() = delay;
    }

    pub(crate) fn drop_requests(&self, dropped: bool) {
        self.shared.drop_requests.store(dropped, Ordering::Relaxed);
    }

    pub(crate) fn drop_replies(&self, dropped: bool) {
        self.shared.drop_replies.store(dropped, Ordering::Relaxed);
    }

    /// How many bytes were dropped or delayed.
    pub(crate) fn affected(&self) -> u64 {
        self.shared.affected.load(Ordering::Relaxed)
    }

    /// Sends commands to Redis on all connections, as if the clients had sent them.
    pub(crate) fn inject(&self, commands: &str) {
        self.shared.injections.lock().unwrap().retain(|to| to.send(commands.as_bytes().to_vec()).is_ok());
    }

    pub(crate) fn injected(&self) -> usize {
        self.shared.injected.load(Ordering::Relaxed)
    }

    /// When connections have come.
    pub(crate) fn accepted(&self) -> Vec<Instant> {
        self.shared.accepted.lock().unwrap().clone()
    }
}

async fn relay(shared: Arc<Shared>, client: TcpStream) {
    let target = *shared.target.lock().unwrap();
    let mut epoch = shared.epoch.subscribe();
    let Ok(redis) = TcpStream::connect(target).await else { return };
    client.set_nodelay(true).unwrap();
    redis.set_nodelay(true).unwrap();
    let ((from_client, to_client), (from_redis, to_redis)) = (client.into_split(), redis.into_split());
    let (injections, injected) = mpsc::unbounded_channel();
    shared.injections.lock().unwrap().push(injections);
    tokio::select! {
        () = pump(&shared, from_client, to_redis, &shared.drop_requests, Some(injected)) => {}
        () = pump(&shared, from_redis, to_client, &shared.drop_replies, None) => {}
        _ = epoch.changed() => {}
    }
}

async fn pump(
    shared: &Shared,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    dropped: &AtomicBool,
    mut injections: Option<mpsc::UnboundedReceiver<Vec<u8>>>,
) {
    let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async {
        let mut buf = vec![0; 64 * 1024];
        loop {
            let injection = async {
                match &mut injections {
                    Some(injections) => injections.recv().await,
                    None => std::future::pending().await,
                }
            };
            let bytes = tokio::select! {
                Ok(len) = from.read(&mut buf) => match len {
                    0 => return,
                    len => buf[..len].to_vec(),
                },
                Some(injection) = injection => {
                    shared.injected.fetch_add(1, Ordering::Relaxed);
                    injection
                }
                else => return,
            };
            let delay = *shared.delay.lock().unwrap();
            let is_dropped = dropped.load(Ordering::Relaxed);
            if is_dropped || !delay.is_zero() {
                shared.affected.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            if !is_dropped && queue.send((Instant::now() + delay, bytes)).is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((at, bytes)) = queued.recv().await {
            // A timer takes a millisecond, even for a time that has passed.
            if at > Instant::now() {
                sleep_until(at).await;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = read => {}, () = write => {} }
}
