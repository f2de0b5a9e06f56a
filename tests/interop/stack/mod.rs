//! tower's own layers outside and inside the handshake, over real sockets, as described in `docs/cookbook/tower.md`;
//! and the example `stack`.

#[path = "../../../examples/stack.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example has a `main`")]
mod example;

mod client;
mod errors;
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
use tower::{Service, ServiceExt as _};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, BoxError, ChallengeLayer, Connection, Connector, HandshakeError, HandshakeErrorKind, Key,
    KeyEntry, serve,
};

use crate::process;

/// A timeout that no test waits for.
const LONG: Duration = Duration::from_secs(60);

/// A timeout that tests wait for.
const SHORT: Duration = Duration::from_millis(300);

fn key() -> Key {
    Key::new("a key of sixteen bytes and more").unwrap()
}

fn mechanism() -> mutual::Server<mutual::KeyRing> {
    let keys = mutual::KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap();
    mutual::Server::new(keys, Audience::new("stack").unwrap())
}

fn challenge() -> ChallengeLayer<mutual::Server<mutual::KeyRing>> {
    ChallengeLayer::new(mechanism()).timeout(LONG).ready_timeout(LONG)
}

fn client_of(key: &Key) -> mutual::Client {
    mutual::Client::new("alice", key, Audience::new("stack").unwrap()).unwrap()
}

fn connector() -> Connector<mutual::Client> {
    Connector::new(client_of(&key())).timeout(LONG)
}

/// A session that sends a greeting, waits until the peer shuts down its side, and sends a goodbye.
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
        .graceful_shutdown(async { stopped.await.unwrap_or_default() })
        .on_error(move |error| {
            let ServeError::Connection { error, .. } = error else { panic!("unexpected: {error}") };
            errors.send(error).unwrap_or_default();
        });
    tokio::spawn(server.into_future());
    Server { addr, error, connections, stop }
}

impl Server {
    /// Waits for the next error of a connection, which must be of this type.
    async fn failed<E: Error + 'static>(&mut self) -> E {
        *self.error.recv().await.unwrap().downcast().expect("an error of this type")
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

fn kind(error: &AcceptError) -> HandshakeErrorKind {
    let AcceptError::Handshake(error) = error else { panic!("{error}") };
    error.kind()
}

/// Connects, reads the challenge and sends nothing.
async fn silent_peer(addr: SocketAddr) -> TcpStream {
    let mut peer = TcpStream::connect(addr).await.unwrap();
    peer.read_exact(&mut [0; 35]).await.unwrap();
    peer
}

/// Connects and completes the handshake.
async fn authenticated_peer(addr: SocketAddr) -> Result<ClientStream, HandshakeError> {
    connector().connect(TcpStream::connect(addr).await.unwrap()).await
}

/// Reads the greeting: the session has started.
async fn greeted(mut stream: ClientStream) -> ClientStream {
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
    stream
}

/// Ends the session, which must have been alive until now.
async fn leave(mut stream: ClientStream) {
    stream.shutdown().await.unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, "goodbye");
}

async fn session(addr: SocketAddr) -> ClientStream {
    greeted(authenticated_peer(addr).await.unwrap()).await
}

async fn assert_closed(mut stream: impl AsyncRead + Unpin) {
    assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap(), 0);
}

/// A policy that retries every error, as long as `clone` returns a request.
#[derive(Clone)]
struct RetryAll<F> {
    left: usize,
    clone: F,
}

impl<Req, Res, E, F: Fn(&Req) -> Option<Req>> Policy<Req, Res, E> for RetryAll<F> {
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
fn example_output() {
    process::succeeds_and_says(
        "stack",
        &[
            "client: hello alice, you are number 1",
            "client with a wrong key: handshake refused",
            "server: connection from 127.0.0.1:",
            "handshake refused: the proof does not match: wrong key, audience or channel binding",
            "silent client: the one after 8 others got 0 bytes",
            "service overloaded",
        ],
    );
}
