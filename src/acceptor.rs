use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::DEFAULT_TIMEOUT;
use crate::handshake::Accept;
use crate::mechanism::{Mechanism, Server};
use crate::transport::{AskStream, Inspect};

/// The server's side of handshakes, without any tower: mechanism and deadline in one value. Cheap to clone.
///
/// [`ChallengeLayer`](crate::ChallengeLayer) is this as a tower layer; `serve` and `Incoming` bring an accept loop.
///
/// ```
/// use std::time::Duration;
/// use tower_challenge::{Acceptor, Key, KeyEntry, KeyRing, one_way};
///
/// # async fn example(io: tokio::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
/// let keys = KeyRing::new([KeyEntry::new("alice", Key::generate()?)?])?;
/// let acceptor = Acceptor::new(one_way::Server::new(keys)).timeout(Duration::from_secs(3));
///
/// let stream = acceptor.accept(io).await?;
/// println!("{} is there", stream.peer().key_id());
/// # Ok(())
/// # }
/// ```
pub struct Acceptor<M, X = AskStream> {
    mechanism: Arc<M>,
    timeout: Duration,
    inspect: X,
}

impl<M> Acceptor<M> {
    /// Accepts with this mechanism, within [10 seconds](DEFAULT_TIMEOUT).
    pub fn new(mechanism: M) -> Self {
        Self { mechanism: Arc::new(mechanism), timeout: DEFAULT_TIMEOUT, inspect: AskStream }
    }
}

impl<M, X> Acceptor<M, X> {
    /// Sets how long a whole handshake may take, writes and the reading of a refused peer's last words included, from
    /// [`accept`](Self::accept) on. No message starts it anew.
    ///
    /// An outer tower `Timeout` is something else: it bounds handshake and session together.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how to learn what surrounds a stream, for streams that are no [`Transport`](crate::transport::Transport).
    ///
    /// It takes the place of what the stream says itself: of one that is a `Transport`, begin with its
    /// [`transport_info`](crate::transport::Transport::transport_info), or its channel binding and the word that it
    /// is time to shut down are lost.
    #[must_use]
    pub fn inspect<Y>(self, inspect: Y) -> Acceptor<M, Y> {
        Acceptor { mechanism: self.mechanism, timeout: self.timeout, inspect }
    }

    /// Runs a handshake on `io`. The challenge is made and the clock starts at this call, not at the first poll.
    ///
    /// A peer that is refused is told so if the mechanism has a word for it; the connection is then shut down for
    /// writing, and what the peer still sends (up to 64 KiB, until it closes, within the deadline) is thrown away, so
    /// that the verdict is not lost to a reset.
    ///
    /// # Errors
    ///
    /// The future resolves to a [`HandshakeError`](crate::HandshakeError) if the peer has not proven itself. The
    /// connection is closed by then.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime that has its timer enabled.
    pub fn accept<IO>(&self, io: IO) -> Accept<IO, M>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
        M: Mechanism<Role = Server>,
        X: Inspect<IO>,
    {
        let info = self.inspect.inspect(&io);
        Accept::start(io, &*self.mechanism, self.timeout, info)
    }
}

impl<M, X: Clone> Clone for Acceptor<M, X> {
    fn clone(&self) -> Self {
        Self { mechanism: Arc::clone(&self.mechanism), timeout: self.timeout, inspect: self.inspect.clone() }
    }
}

impl<M: fmt::Debug, X> fmt::Debug for Acceptor<M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("mechanism", &self.mechanism)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
