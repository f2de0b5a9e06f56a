//! tower's own layers around ours, on both sides of a connection: what to put outside the handshake, and what inside.
//! `docs/cookbook/tower.md` says why.
//!
//! ```text
//! cargo run --example stack
//! ```

use std::error::Error;
use std::io;
use std::net::SocketAddr;
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
use tower_challenge::mutual::{self, Audience, Peer, PreparedKey, ProvenServer};
use tower_challenge::{
    AnswerLayer, Authenticated, ChallengeLayer, ConnectError, Connection, HandshakeErrorKind, Key, KeyEntry,
    KeyRing, serve,
};

/// How many connections may be open, those of strangers included.
pub(crate) const CONNECTIONS: usize = 8;

/// How many sessions of peers that have proven themselves.
const SESSIONS: usize = 4;

pub(crate) type Stream = Authenticated<Connection<TcpStream>, Peer>;
pub(crate) type ServerStack = BoxCloneService<Connection<TcpStream>, (), BoxError>;
pub(crate) type ClientStream = Authenticated<TcpStream, ProvenServer>;
pub(crate) type ClientStack = BoxCloneService<SocketAddr, ClientStream, BoxError>;

pub(crate) fn server_stack(mechanism: mutual::Server<KeyRing<PreparedKey>>) -> ServerStack {
    let challenge = ChallengeLayer::new(mechanism)
        .timeout(Duration::from_secs(5)) // of a handshake
        .ready_timeout(Duration::from_secs(1)); // until there is a place for a session
    let stack = ServiceBuilder::new()
        .load_shed() // who finds no place here is closed at once
        .concurrency_limit(CONNECTIONS)
        .layer(challenge)
        .map_err(io::Error::other::<BoxError>) // a `BoxError` is no `Error`
        .concurrency_limit(SESSIONS)
        .timeout(Duration::from_secs(60)) // of a session
        .buffer(SESSIONS) // a greeter can't be cloned
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

/// Connects again, after a pause that grows, where that may help.
#[derive(Clone)]
pub(crate) struct Reconnect {
    left: usize,
    pauses: ExponentialBackoff,
}

impl Reconnect {
    pub(crate) fn up_to(attempts: usize) -> Self {
        let (shortest, longest) = (Duration::from_millis(50), Duration::from_secs(5));
        // With chance in it, so that the clients of a server that is back do not all come at the same moment.
        let mut pauses = ExponentialBackoffMaker::new(shortest, longest, 0.5, HasherRng::default())
            .expect("the shortest is shorter than the longest");
        Self { left: attempts.saturating_sub(1), pauses: pauses.make_backoff() }
    }
}

impl<Target: Copy, IO> Policy<Target, IO, ConnectError<io::Error>> for Reconnect {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Target, outcome: &mut Result<IO, ConnectError<io::Error>>) -> Option<Sleep> {
        let may_pass = outcome.as_ref().is_err_and(may_pass);
        self.left = self.left.checked_sub(1).filter(|_| may_pass)?;
        Some(self.pauses.next_backoff())
    }

    fn clone_request(&mut self, target: &Target) -> Option<Target> {
        Some(*target)
    }
}

/// Whether another attempt may find things otherwise: a network may, a key that is refused is refused again.
fn may_pass(error: &ConnectError<io::Error>) -> bool {
    use HandshakeErrorKind::{ClosedEarly, Io, TimedOut};
    match error {
        ConnectError::Connect(_) => true,
        ConnectError::Handshake(error) => matches!(error.kind(), ClosedEarly | Io | TimedOut),
        _ => false,
    }
}

/// A handler with a state of its own, and no lock around it.
pub(crate) struct Greeter {
    greeted: u64,
}

impl Service<Stream> for Greeter {
    type Response = ();
    type Error = io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

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

async fn greeting(mut stream: ClientStream) -> io::Result<String> {
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).await?;
    Ok(greeting)
}

/// An error with all that lies beneath.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let sources = std::iter::successors(Some(error), |&error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let key = Key::generate()?;
    let keys = KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
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
        serve(listener, server).on_error(move |error| errors.send(error).unwrap_or_default()).await
    });

    println!("client: {}", greeting(client.clone().oneshot(addr).await?).await?);
    println!("client: {}", greeting(client.clone().oneshot(addr).await?).await?);

    let refused = wrong.oneshot(addr).await.expect_err("its key is another");
    println!("wrong key: {}", chain(&*refused));
    println!("server: {}", error.recv().await.expect("it tells"));

    let strangers: Vec<_> =
        futures::future::try_join_all((0..CONNECTIONS).map(|_| TcpStream::connect(addr))).await?;
    let mut one_more = TcpStream::connect(addr).await?;
    let len = one_more.read_to_end(&mut Vec::new()).await?;
    println!("stranger: the one beyond the {} that wait got {len} bytes", strangers.len());
    println!("server: {}", error.recv().await.expect("it tells"));
    Ok(())
}
