//! A listener whose connections have completed the handshake, for frameworks with an accept loop of their own.
//!
//! [`serve`](crate::serve()) has an accept loop and calls a service with each connection: use it if the server is
//! yours. Use [`Incoming`] if a framework such as axum or tonic takes a listener or a [`Stream`] of connections and
//! accepts them one at a time. A handshake within its `accept` would let one slow peer delay all others. `Incoming`
//! runs the handshakes concurrently, in tasks of its own, and returns a connection when its handshake is complete.
//!
//! ```
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//! use tokio::net::{TcpListener, TcpStream};
//! use tower_challenge::{
//!     ChallengeLayer, Connector, Incoming, Key, KeyEntry, one_way,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::generate()?;
//! let keys = one_way::KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
//! let layer = ChallengeLayer::new(one_way::Server::new(keys));
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let mut incoming = Incoming::builder(listener, layer)
//!     .on_error(|error| eprintln!("{error}"))
//!     .start()?;
//! let addr = *incoming.local_addr();
//!
//! // This peer sends nothing, and delays no other.
//! let _silent = TcpStream::connect(addr).await?;
//!
//! let connector = Connector::new(one_way::Client::new(&key));
//! let mut client = connector.connect(TcpStream::connect(addr).await?).await?;
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
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::net::Listener;
use tokio_util::sync::DropGuard;

pub use self::builder::IncomingBuilder;
use crate::key::Revocation;
use crate::serve::Shutdown;
use crate::server::ChallengeLayer;
use crate::stream::Authenticated;

/// A listener whose connections have completed the handshake.
///
/// `T` is the stream that the handshake ran on: a [`Connection`](crate::Connection) of the listener's stream, or what a
/// [step before the handshake](crate::prepare) made of it. `P` is the peer type of the mechanism, and `A` the address
/// type of the listener.
///
/// Connections are returned by [`accept`](Self::accept), by the [`Stream`] implementation, and by that of tokio-util's
/// [`Listener`]; with the feature `axum`, by that of axum's `Listener` too. See the [module](self) for an example.
///
/// # Backpressure
///
/// Handshakes run whether or not a caller waits in `accept`. A connection that completed its handshake waits to be
/// accepted. When [`capacity`](IncomingBuilder::capacity) connections wait, no more are taken from the kernel's queue.
/// Handshakes that were in flight at that time still complete; their connections wait too, for at most the layer's
/// [`ready_timeout`](ChallengeLayer::ready_timeout). Their number is limited by the layer's
/// [`Admission`](crate::Admission).
///
/// # Shutdown
///
/// The signal of [`graceful_shutdown`](IncomingBuilder::graceful_shutdown) closes the listener and ends in-flight
/// handshakes. Connections that wait can still be accepted. Dropping the `Incoming` does the same, and also closes the
/// connections that wait.
///
/// Connections that were accepted continue. They can observe the shutdown through their
/// [`shutdown_token`](Authenticated::shutdown_token), and [`closed`](Self::closed) waits for them.
#[must_use = "dropping it closes the listener"]
pub struct Incoming<T, P, A = SocketAddr> {
    // The first field, so that on drop the shutdown begins before the waiting connections are closed.
    _dropped: DropGuard,
    ready: mpsc::Receiver<(Authenticated<T, P>, A)>,
    local_addr: A,
    closed: watch::Receiver<Option<Shutdown>>,
}

impl Incoming<(), ()> {
    /// Creates a builder for an `Incoming` that accepts connections of `listener` and runs the handshake of `layer` on
    /// them. Call [`start`](IncomingBuilder::start) to create the `Incoming`.
    pub fn builder<L: Listener, M, S>(listener: L, layer: ChallengeLayer<M, S>) -> IncomingBuilder<L, M, S> {
        IncomingBuilder::new(listener, layer)
    }
}

impl<T, P, A> Incoming<T, P, A> {
    /// Returns the local address of the listener.
    pub fn local_addr(&self) -> &A {
        &self.local_addr
    }

    /// Waits for the next connection that completes its handshake.
    ///
    /// Failed handshakes and accept errors do not end the `Incoming`. They are reported to
    /// [`on_error`](IncomingBuilder::on_error). A connection whose key is revoked while it waits to be returned is closed
    /// instead.
    ///
    /// # Errors
    ///
    /// Returns an error after a shutdown, when no connection waits any more, and after the accepting task has ended
    /// because the runtime shut down.
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe. If the future is dropped, no connection is lost: the next call returns it.
    pub async fn accept(&mut self) -> io::Result<Authenticated<T, P>> {
        self.accept_with_addr().await.map(|(stream, _)| stream)
    }

    /// Like [`accept`](Self::accept), and also returns the peer's address: the one that the listener returned, or the one
    /// that a [step](crate::prepare) such as a PROXY protocol header reported, if the address type can hold it.
    ///
    /// # Errors
    ///
    /// Those of [`accept`](Self::accept).
    ///
    /// # Cancel safety
    ///
    /// This method is cancel safe.
    pub async fn accept_with_addr(&mut self) -> io::Result<(Authenticated<T, P>, A)> {
        poll_fn(|cx| self.poll_accept_authenticated(cx)).await
    }

    /// Returns a future that waits for the end of a shutdown and resolves to what happened to the connections. It
    /// resolves to `None` if the accepting task ended without a shutdown, because the runtime shut down.
    ///
    /// The future does not borrow the `Incoming`. Call this method before you pass the `Incoming` to a framework, and
    /// await the future after the framework has returned, so that the process does not exit before its sessions end.
    pub fn closed(&self) -> impl Future<Output = Option<Shutdown>> + Send + use<T, P, A> {
        let mut closed = self.closed.clone();
        async move { closed.wait_for(Option::is_some).await.map_or(None, |shutdown| *shutdown) }
    }

    /// Returns whether there are no more connections because of a shutdown. If not, the accepting task has ended.
    fn is_shut_down(&self) -> bool {
        self.closed.borrow().is_some() || self.closed.has_changed().is_ok()
    }

    fn poll_accept_authenticated(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Authenticated<T, P>, A)>> {
        let closed = || io::Error::new(io::ErrorKind::NotConnected, "the listener is closed");
        self.poll_recv(cx).map(|accepted| accepted.ok_or_else(closed))
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Authenticated<T, P>, A)>> {
        loop {
            match ready!(self.ready.poll_recv(cx)) {
                // Its key was revoked while it waited here. It is closed.
                Some((stream, _)) if stream.revocation().is_some_and(Revocation::is_revoked) => {}
                accepted => return Poll::Ready(accepted),
            }
        }
    }
}

// No field is ever pinned.
impl<T, P, A> Unpin for Incoming<T, P, A> {}

impl<T, P, A> Stream for Incoming<T, P, A> {
    type Item = io::Result<Authenticated<T, P>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_recv(cx).map(|accepted| accepted.map(|(stream, _)| Ok(stream)))
    }
}

/// Accepts connections that have completed the handshake.
///
/// A loop over a `Listener` has no end. After a shutdown, when no connection waits any more, `poll_accept` therefore
/// remains pending and returns no error: the loop must observe the same shutdown signal. If the accepting task has
/// ended without a shutdown, `poll_accept` returns an error.
impl<T, P, A> Listener for Incoming<T, P, A>
where
    T: AsyncRead + AsyncWrite + Unpin,
    A: Clone,
{
    type Io = Authenticated<T, P>;
    type Addr = A;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, A)>> {
        match self.poll_accept_authenticated(cx) {
            Poll::Ready(Err(_)) if self.is_shut_down() => Poll::Pending,
            accepted => accepted,
        }
    }

    fn local_addr(&self) -> io::Result<A> {
        Ok(self.local_addr.clone())
    }
}

impl<T, P, A: fmt::Debug> fmt::Debug for Incoming<T, P, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}
