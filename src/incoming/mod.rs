//! The pulled form: a listener whose connections have proven themselves, for loops that somebody else owns.
//!
//! [`serve`](crate::serve()) pushes connections into a service. Frameworks that accept by themselves want to pull them,
//! one by one, and a handshake within their accept would let a slow stranger delay everybody. [`Incoming`] runs the
//! handshakes side by side, in tasks that it owns, and has what has proven itself ready to be pulled.
//!
//! ```
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//! use tokio::net::{TcpListener, TcpStream};
//! use tower_challenge::{ChallengeLayer, Connector, Incoming, Key, KeyEntry, KeyRing, one_way};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::generate()?;
//! let keys = KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
//! let layer = ChallengeLayer::new(one_way::Server::new(keys));
//! let mut incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await?, layer).start()?;
//!
//! let connector = Connector::new(one_way::Client::new(&key));
//! let _stranger = TcpStream::connect(incoming.local_addr()).await?; // says nothing, and delays nobody
//! let mut client = connector.connect(TcpStream::connect(incoming.local_addr()).await?).await?;
//!
//! let mut stream = incoming.accept().await?;
//! assert_eq!(stream.peer().key_id(), &"alice");
//! stream.write_all(b"hello").await?;
//! drop(stream);
//! let mut greeting = String::new();
//! client.read_to_string(&mut greeting).await?;
//! assert_eq!(greeting, "hello");
//! # Ok(())
//! # }
//! ```

mod builder;
mod hand_off;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::net::Listener;
use tokio_util::sync::DropGuard;

pub use self::builder::IncomingBuilder;
use crate::serve::{Connection, Shutdown};
use crate::server::ChallengeLayer;
use crate::stream::Authenticated;

/// A listener whose connections have proven themselves.
///
/// Handshakes go on while nobody pulls. What has proven itself waits to be pulled: at most
/// [`capacity`](IncomingBuilder::capacity) of them, and beyond that those whose handshakes were under way when so
/// many waited, each for at most the layer's [`ready_timeout`](ChallengeLayer::ready_timeout), and never more than
/// the layer's
/// [`Admission`](crate::Admission) lets be pending. Meanwhile nothing more is accepted: connections stay in the
/// kernel's queue.
///
/// It is pulled by [`accept`](Self::accept), as a [`Stream`], or as a tokio-util [`Listener`]. Dropping it closes the
/// listener, ends the handshakes that are pending and closes what waits, as does the signal of
/// [`with_graceful_shutdown`](IncomingBuilder::with_graceful_shutdown), after which what waits can still be pulled.
/// What has been pulled goes on, can see that it is time by its [`shutdown_token`](Authenticated::shutdown_token),
/// and is waited for by [`ended`](Self::ended).
///
/// See the [module](self) for an example.
#[must_use = "dropping it closes the listener"]
pub struct Incoming<IO, P, A = SocketAddr> {
    // First, so that nobody else is let in.
    _dropped: DropGuard,
    ready: mpsc::Receiver<Authenticated<Connection<IO, A>, P>>,
    local_addr: A,
    ended: watch::Receiver<Option<Shutdown>>,
}

impl Incoming<(), ()> {
    /// An `Incoming` on `listener` with the handshake, the deadlines and the keys of `layer`, to be set further and
    /// [started](IncomingBuilder::start).
    pub fn builder<L: Listener, M, X>(listener: L, layer: ChallengeLayer<M, X>) -> IncomingBuilder<L, M, X> {
        IncomingBuilder::new(listener, layer)
    }
}

impl<IO, P, A> Incoming<IO, P, A> {
    /// The address that it listens on.
    pub fn local_addr(&self) -> &A {
        &self.local_addr
    }

    /// The next connection that has proven itself. Failed handshakes and accept errors are survived, and go to
    /// [`on_error`](IncomingBuilder::on_error).
    ///
    /// # Errors
    ///
    /// After a shutdown, once all that waited has been pulled; and if the task that accepts is gone, since the runtime
    /// shuts down, or the error hook has panicked.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: a connection is either returned or waits for the next call.
    pub async fn accept(&mut self) -> io::Result<Authenticated<Connection<IO, A>, P>> {
        poll_fn(|cx| self.poll_accept_authenticated(cx)).await
    }

    /// Waits until it has shut down, and tells what became of the connections. `None` if the task that accepts is gone
    /// without a word.
    ///
    /// The future is on its own: ask for it before handing the `Incoming` to a framework, and await it afterwards, so
    /// that the process does not end before its sessions.
    pub fn ended(&self) -> impl Future<Output = Option<Shutdown>> + Send + use<IO, P, A> {
        let mut ended = self.ended.clone();
        async move { ended.wait_for(Option::is_some).await.map_or(None, |shutdown| *shutdown) }
    }

    /// Whether nothing more comes because of a shutdown, and not because the task that accepts is gone.
    fn is_shut_down(&self) -> bool {
        self.ended.borrow().is_some() || self.ended.has_changed().is_ok()
    }

    fn poll_accept_authenticated(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Authenticated<Connection<IO, A>, P>>> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "no more connections are accepted");
        self.ready.poll_recv(cx).map(|stream| stream.ok_or_else(gone))
    }
}

// Nothing of it is ever pinned.
impl<IO, P, A> Unpin for Incoming<IO, P, A> {}

impl<IO, P, A> Stream for Incoming<IO, P, A> {
    type Item = io::Result<Authenticated<Connection<IO, A>, P>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|stream| stream.map(Ok))
    }
}

/// There is no end to a listener: after a shutdown nothing more comes, without an error. Whoever loops over it needs
/// the same signal.
impl<IO, P, A> Listener for Incoming<IO, P, A>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    A: Clone,
{
    type Io = Authenticated<Connection<IO, A>, P>;
    type Addr = A;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, A)>> {
        match self.poll_accept_authenticated(cx) {
            Poll::Ready(Ok(stream)) => {
                let addr = stream.get_ref().addr().clone();
                Poll::Ready(Ok((stream, addr)))
            }
            Poll::Ready(Err(_)) if self.is_shut_down() => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<A> {
        Ok(self.local_addr.clone())
    }
}

impl<IO, P, A: fmt::Debug> fmt::Debug for Incoming<IO, P, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}
