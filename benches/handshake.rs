//! The cost of a handshake over TCP loopback, from connect to close, compared with the same bytes without cryptography
//! and with hand-written code for the same wire. Also the cost of the state machines without a stream.
//!
//! ```text
//! cargo bench -p benches --bench handshake
//! ```
//!
//! Both sides run in one process and one thread, with `TCP_NODELAY`. Compare the ratios, not the absolute times.

use std::hint::black_box;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;
use tower::{Service as _, ServiceBuilder, service_fn};
use tower_challenge::mechanism::{self, Context, Handshake as _, Input, Mechanism, Step};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{AnswerLayer, ChallengeLayer, Connector, Key, KeyEntry, multiprocessing, one_way};

const KEY: &[u8] = b"This is key!";

/// The accepting verdict of the classic wire, "authentication succeeded".
const ACCEPTED: &[u8] = "验证成功".as_bytes();

fn entry(key: &Key) -> KeyEntry {
    KeyEntry::new("k", key.clone()).unwrap()
}

fn ring() -> one_way::KeyRing {
    one_way::KeyRing::new([entry(&Key::new(KEY).unwrap())]).unwrap()
}

/// Both sides of one kind of handshake. Each gets a socket, and closes it when it returns.
trait Way: Clone + 'static {
    fn accept(&mut self, io: TcpStream) -> impl Future<Output = io::Result<()>> + 'static;
    fn connect(&mut self, addr: SocketAddr) -> impl Future<Output = io::Result<()>>;
}

async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let io = TcpStream::connect(addr).await?;
    io.set_nodelay(true)?;
    // Closes with a reset. Otherwise connections in TIME_WAIT would use up the ports.
    io.set_zero_linger()?;
    Ok(io)
}

/// The same number of bytes in the same order, without cryptography.
#[derive(Clone)]
struct Bare;

impl Way for Bare {
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would borrow from `self`")]
    fn accept(&mut self, mut io: TcpStream) -> impl Future<Output = io::Result<()>> + 'static {
        async move {
            io.write_all(&[7; 32]).await?;
            io.read_exact(&mut [0; 16]).await?;
            io.write_all(ACCEPTED).await
        }
    }

    async fn connect(&mut self, addr: SocketAddr) -> io::Result<()> {
        let mut io = connect(addr).await?;
        io.read_exact(&mut [0; 32]).await?;
        io.write_all(&[7; 16]).await?;
        io.read_exact(&mut [0; 12]).await?;
        Ok(())
    }
}

/// Hand-written code for this wire: one key, no deadline, no layers.
#[derive(Clone)]
struct ByHand(Hmac<Md5>);

impl Way for ByHand {
    fn accept(&mut self, mut io: TcpStream) -> impl Future<Output = io::Result<()>> + 'static {
        let mac = self.0.clone();
        async move {
            let mut nonce = [0; 32];
            SysRng.try_fill_bytes(&mut nonce).map_err(io::Error::other)?;
            io.write_all(&nonce).await?;
            let mut answer = [0; 16];
            io.read_exact(&mut answer).await?;
            mac.chain_update(nonce).verify_slice(&answer).map_err(io::Error::other)?;
            io.write_all(ACCEPTED).await
        }
    }

    async fn connect(&mut self, addr: SocketAddr) -> io::Result<()> {
        let io = connect(addr).await?;
        self.answer(io).await
    }
}

impl ByHand {
    async fn answer(&self, mut io: TcpStream) -> io::Result<()> {
        let mut nonce = [0; 32];
        io.read_exact(&mut nonce).await?;
        io.write_all(&self.0.clone().chain_update(nonce).finalize().into_bytes()).await?;
        let mut verdict = [0; 12];
        io.read_exact(&mut verdict).await?;
        if verdict == ACCEPTED { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

/// [`ByHand`] with a deadline on both sides.
#[derive(Clone)]
struct ByHandInTime(ByHand);

const DEADLINE: Duration = Duration::from_secs(10);

impl Way for ByHandInTime {
    fn accept(&mut self, io: TcpStream) -> impl Future<Output = io::Result<()>> + 'static {
        let accepted = timeout(DEADLINE, self.0.accept(io));
        async move { accepted.await? }
    }

    async fn connect(&mut self, addr: SocketAddr) -> io::Result<()> {
        let io = connect(addr).await?;
        timeout(DEADLINE, self.0.answer(io)).await?
    }
}

/// `ChallengeLayer` on one side, `AnswerLayer` on the other, with their deadlines.
struct Layers<S, C> {
    challenge: ChallengeLayer<S>,
    answer: AnswerLayer<Connector<C>>,
}

impl<S, C> Layers<S, C>
where
    S: Mechanism<Role = mechanism::ServerRole>,
    C: Mechanism<Role = mechanism::ClientRole>,
{
    fn new(server: S, client: C) -> Self {
        Self { challenge: ChallengeLayer::new(server), answer: AnswerLayer::new(client) }
    }
}

impl<S, C> Clone for Layers<S, C> {
    fn clone(&self) -> Self {
        Self { challenge: self.challenge.clone(), answer: self.answer.clone() }
    }
}

impl<S, C> Way for Layers<S, C>
where
    S: Mechanism<Role = mechanism::ServerRole> + 'static,
    C: Mechanism<Role = mechanism::ClientRole> + 'static,
{
    fn accept(&mut self, io: TcpStream) -> impl Future<Output = io::Result<()>> + 'static {
        let mut service = ServiceBuilder::new().layer(self.challenge.clone()).service(service_fn(
            async |stream| -> io::Result<()> {
                drop(black_box(stream));
                Ok(())
            },
        ));
        let response = service.call(io);
        async move { response.await.map_err(io::Error::other) }
    }

    async fn connect(&mut self, addr: SocketAddr) -> io::Result<()> {
        let mut service = ServiceBuilder::new().layer(self.answer.clone()).service(service_fn(connect));
        service.call(addr).await.map(drop).map_err(io::Error::other)
    }
}

/// Runs `count` handshakes in sequence. The server handles each connection in its own task.
async fn handshakes(way: impl Way, count: u64) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut server = way.clone();
    let server = spawn_local(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            io.set_nodelay(true).unwrap();
            let accepted = server.accept(io);
            spawn_local(async move { accepted.await.unwrap() });
        }
    });
    let mut client = way;
    let begin = Instant::now();
    for _ in 0..count {
        client.connect(addr).await.unwrap();
    }
    let elapsed = begin.elapsed();
    server.abort();
    elapsed
}

fn over_tcp(c: &mut Criterion) {
    let mut group = c.benchmark_group("tcp");
    group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(8));
    bench(&mut group, "bare", &Bare);
    let by_hand = ByHand(Hmac::new_from_slice(KEY).unwrap());
    bench(&mut group, "by hand", &by_hand);
    bench(&mut group, "by hand, with deadlines", &ByHandInTime(by_hand.clone()));
    let key = Key::new(KEY).unwrap();
    bench(&mut group, "layers", &Layers::new(one_way::Server::new(ring()), one_way::Client::new(&key)));
    bench(&mut group, "layers, mutual", &{
        let entry = entry(&Key::generate().unwrap());
        let client = mutual::Client::from_entry(&entry, "orders").unwrap();
        let ring = mutual::KeyRing::new([entry]).unwrap();
        Layers::new(mutual::Server::new(ring, Audience::new("orders").unwrap()), client)
    });
    bench(&mut group, "layers, multiprocessing", &{
        let ring = multiprocessing::KeyRing::new([entry(&key)]).unwrap();
        Layers::new(multiprocessing::Server::new(ring), multiprocessing::Client::new(&key))
    });
    group.finish();
}

fn bench(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, way: &impl Way) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    group.bench_function(name, |b| {
        b.iter_custom(|count| LocalSet::new().block_on(&runtime, handshakes(way.clone(), count)));
    });
}

/// Both state machines from start to acceptance, without a stream. The nonce comes from the operating system.
fn state_machines(c: &mut Criterion) {
    let server = one_way::Server::new(ring());
    let client = one_way::Client::new(&Key::new(KEY).unwrap());
    let mut system = |out: &mut [u8]| SysRng.try_fill_bytes(out).map_err(Into::into);
    c.bench_function("state machines", |b| {
        b.iter(|| {
            let cx = &mut Context::with_random(&mut system);
            let start = server.start(cx).unwrap();
            let mut client = client.start(cx).unwrap().handshake;
            let challenge = Input::Frame(start.send.unwrap());
            let Ok(Step::Continue { send: Some(answer) }) = client.step(challenge) else { unreachable!() };
            let mut server = start.handshake;
            let Ok(Step::Complete { send: Some(verdict), .. }) = server.step(Input::Frame(answer)) else {
                unreachable!()
            };
            client.step(Input::Frame(verdict)).unwrap();
        });
    });
}

criterion_group!(benches, over_tcp, state_machines);
criterion_main!(benches);
