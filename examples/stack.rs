//! tower's own layers outside and inside of the handshake, on both sides of a connection. `docs/cookbook/tower.md`
//! explains the positions.
//!
//! ```text
//! cargo run --example stack
//! ```

#[macro_use]
#[path = "shared/print.rs"]
mod print;
#[path = "shared/shutdown_signal.rs"]
mod shutdown_signal;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tower::retry::Policy;
use tower::retry::backoff::{Backoff as _, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff as _};
use tower::util::{BoxCloneService, rng::HasherRng};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt as _};
use tower_challenge::mutual::{self, Audience, Peer, ServerPeer};
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, ConnectError, Connection, HandshakeErrorKind, Key, KeyEntry,
    serve,
};

use self::shutdown_signal::shutdown_signal;

/// Maximum number of open connections, unauthenticated ones included.
pub(crate) const CONNECTIONS: usize = 8;

/// Maximum number of sessions of authenticated peers.
const SESSIONS: usize = 4;

pub(crate) type Stream = Authenticated<Connection<TcpStream>, Peer>;
pub(crate) type ServerStack = BoxCloneService<Connection<TcpStream>, (), BoxError>;
pub(crate) type ClientStream = Authenticated<TcpStream, ServerPeer>;
pub(crate) type ClientStack = BoxCloneService<SocketAddr, ClientStream, BoxError>;

pub(crate) fn server_stack(mechanism: mutual::Server<mutual::KeyRing>) -> ServerStack {
    let challenge = ChallengeLayer::new(mechanism)
        .timeout(Duration::from_secs(5)) // of a handshake
        .ready_timeout(Duration::from_secs(1)); // for the wait for a session
    let stack = ServiceBuilder::new()
        .load_shed() // closes connections over the limit at once
        .concurrency_limit(CONNECTIONS)
        .layer(challenge)
        .concurrency_limit(SESSIONS)
        .timeout(Duration::from_secs(60)) // of a session
        .buffer(SESSIONS) // the greeter is not `Clone`
        .service(Greeter { greeted: 0 });
    BoxCloneService::new(stack)
}

pub(crate) fn client_stack(mechanism: mutual::Client) -> ClientStack {
    let stack = ServiceBuilder::new()
        .timeout(Duration::from_secs(20)) // of all attempts
        .retry(Reconnect::up_to(5))
        .layer(AnswerLayer::new(mechanism))
        .service_fn(TcpStream::connect::<SocketAddr>);
    BoxCloneService::new(stack)
}

/// A retry policy that connects again after an increasing pause, if another attempt may succeed.
#[derive(Clone)]
pub(crate) struct Reconnect {
    left: usize,
    pauses: ExponentialBackoff,
}

impl Reconnect {
    pub(crate) fn up_to(attempts: usize) -> Self {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(5));
        // The jitter keeps the clients of a restarted server from returning all at the same moment.
        let mut pauses = ExponentialBackoffMaker::new(min, max, 0.5, HasherRng::default())
            .expect("the minimum is less than the maximum");
        Self { left: attempts.saturating_sub(1), pauses: pauses.make_backoff() }
    }
}

impl<Target: Copy, IO> Policy<Target, IO, ConnectError> for Reconnect {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Target, outcome: &mut Result<IO, ConnectError>) -> Option<Sleep> {
        let may_pass = outcome.as_ref().is_err_and(is_transient);
        self.left = self.left.checked_sub(1).filter(|_| may_pass)?;
        Some(self.pauses.next_backoff())
    }

    fn clone_request(&mut self, target: &Target) -> Option<Target> {
        Some(*target)
    }
}

/// Whether another attempt may succeed. A key that was refused will be refused again.
fn is_transient(error: &ConnectError) -> bool {
    use HandshakeErrorKind::{Io, Probe, TimedOut, UnexpectedEof};
    match error {
        ConnectError::Connect(_) => true,
        ConnectError::Handshake(error) => matches!(error.kind(), Probe | UnexpectedEof | Io | TimedOut),
        _ => false,
    }
}

/// A handler with a state of its own and without a lock.
pub(crate) struct Greeter {
    greeted: u64,
}

impl Service<Stream> for Greeter {
    type Response = ();
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut stream: Stream) -> Self::Future {
        self.greeted += 1;
        let greeting =
            format!("hello {}, you are number {}", stream.peer().identity().key_id(), self.greeted);
        Box::pin(async move { stream.write_all(greeting.as_bytes()).await })
    }
}

async fn read_greeting(mut stream: ClientStream) -> io::Result<String> {
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).await?;
    Ok(greeting)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Key::generate()?;
    let keys = mutual::KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
    let audience = Audience::new("stack")?;
    let server = server_stack(mutual::Server::new(keys, audience.clone()));
    let client = client_stack(mutual::Client::new("alice", &key, audience.clone())?);
    let wrong = client_stack(mutual::Client::new("alice", &Key::generate()?, audience)?);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (errors, mut error) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        drop(listener.accept().await);
        println!("server: the first connection breaks");
        serve(listener, server)
            .graceful_shutdown(shutdown_signal())
            .on_error(move |error| errors.send(error).unwrap_or_default())
            .await
    });

    println!("client: {}", read_greeting(client.clone().oneshot(addr).await?).await?);
    println!("client: {}", read_greeting(client.clone().oneshot(addr).await?).await?);

    let refused = wrong.oneshot(addr).await.expect_err("the server has another key");
    println!("client with a wrong key: {refused}");
    println!("server: {}", error.recv().await.ok_or("the server has stopped")?);

    let silent: Vec<_> =
        futures::future::try_join_all((0..CONNECTIONS).map(|_| TcpStream::connect(addr))).await?;
    let mut one_more = TcpStream::connect(addr).await?;
    let len = one_more.read_to_end(&mut Vec::new()).await?;
    println!("silent client: the one after {} others got {len} bytes", silent.len());
    println!("server: {}", error.recv().await.ok_or("the server has stopped")?);
    Ok(())
}
