//! What `docs/cookbook/tower.md` says of tower's own layers outside and inside the handshake, over real sockets, and
//! the example `stack`.
#![cfg(all(feature = "net", feature = "mutual"))]

#[path = "../../examples/stack.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example has a `main`")]
mod example;
#[path = "../support/process.rs"]
mod process;

mod client;
mod server;

use std::error::Error;
use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use example::{ClientStream, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tower::retry::Policy;
use tower::{BoxError, Service, ServiceExt as _};
use tower_challenge::mutual::{self, Audience, PreparedKey};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, ChallengeLayer, Connection, Connector, HandshakeError, HandshakeErrorKind, Key, KeyEntry,
    KeyRing, serve,
};

/// Longer than anything here takes: a test that has to wait for it fails.
const LONG: Duration = Duration::from_secs(60);

/// Short, where the end of it is what a test waits for.
const SHORT: Duration = Duration::from_millis(300);

fn key() -> Key {
    Key::new("a key of sixteen bytes and more").unwrap()
}

fn mechanism() -> mutual::Server<KeyRing<PreparedKey>> {
    let keys = KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap();
    mutual::Server::new(keys, Audience::new("stack").unwrap())
}

fn challenge() -> ChallengeLayer<mutual::Server<KeyRing<PreparedKey>>> {
    ChallengeLayer::new(mechanism()).timeout(LONG).ready_timeout(LONG)
}

fn client_of(key: &Key) -> mutual::Client {
    mutual::Client::new("alice", key, Audience::new("stack").unwrap()).unwrap()
}

fn connector() -> Connector<mutual::Client> {
    Connector::new(client_of(&key())).timeout(LONG)
}

/// A session: a greeting, then nothing until the peer has no more to say, and a goodbye.
async fn hold(mut stream: Stream) -> io::Result<()> {
    stream.write_all(b"hello").await?;
    stream.read_to_end(&mut Vec::new()).await?;
    stream.write_all(b"goodbye").await
}

struct Server {
    addr: SocketAddr,
    error: mpsc::UnboundedReceiver<BoxError>,
    connections: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
}

async fn start<S>(service: S) -> Server
where
    S: Service<Connection<TcpStream>, Error: Into<BoxError> + Send, Future: Send> + Clone + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let service = service.map_request({
        let connections = Arc::clone(&connections);
        move |connection: Connection<TcpStream>| {
            connections.fetch_add(1, Ordering::Relaxed);
            connection
        }
    });
    let (errors, error) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = serve(listener, service)
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .on_error(move |error| {
            let ServeError::Connection { error, .. } = error else { panic!("nothing else fails here") };
            errors.send(error.into()).unwrap_or_default();
        });
    tokio::spawn(server.into_future());
    Server { addr, error, connections, stop }
}

impl Server {
    async fn failed<E: Error + 'static>(&mut self) -> E {
        *self.error.recv().await.unwrap().downcast().expect("an error of this kind")
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn kind(error: &AcceptError<io::Error>) -> HandshakeErrorKind {
    let AcceptError::Handshake(error) = error else { panic!("{error}") };
    error.kind()
}

/// One that has been challenged and says nothing.
async fn stranger(addr: SocketAddr) -> TcpStream {
    let mut stranger = TcpStream::connect(addr).await.unwrap();
    stranger.read_exact(&mut [0; 35]).await.unwrap();
    stranger
}

/// One that has proven itself.
async fn peer(addr: SocketAddr) -> Result<ClientStream, HandshakeError> {
    connector().connect(TcpStream::connect(addr).await.unwrap()).await
}

/// One that has proven itself and is in a session.
async fn greeted(mut stream: ClientStream) -> ClientStream {
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
    stream
}

/// The session has been there all the time, and comes to its end.
async fn leave(mut stream: ClientStream) {
    stream.shutdown().await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "goodbye");
}

async fn session(addr: SocketAddr) -> ClientStream {
    greeted(peer(addr).await.unwrap()).await
}

async fn assert_closed(mut stream: impl AsyncRead + Unpin) {
    assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
}

/// Would retry whatever fails, if it had what it was called with.
#[derive(Clone)]
struct Always<F> {
    left: usize,
    clone: F,
}

impl<Req, Res, E, F: Fn(&Req) -> Option<Req>> Policy<Req, Res, E> for Always<F> {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Req, outcome: &mut Result<Res, E>) -> Option<Ready<()>> {
        outcome.as_ref().err()?;
        self.left = self.left.checked_sub(1)?;
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &Req) -> Option<Req> {
        (self.clone)(request)
    }
}

#[test]
fn the_example_succeeds_and_says_so() {
    process::succeeds_and_says(
        "stack",
        &[
            "client: hello alice, you are number 1",
            "wrong key: handshake refused",
            "stranger: the one beyond the 8 that wait got 0 bytes",
            "service overloaded",
        ],
    );
}
