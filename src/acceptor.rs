use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::DEFAULT_TIMEOUT;
use crate::admission::{Admission, Slot};
use crate::error::HandshakeError;
use crate::handshake::Accept;
use crate::mechanism::{Mechanism, Server};
use crate::transport::{AskStream, Inspect};

/// The server's side of handshakes, without any tower: mechanism, deadline and admission in one value. Cheap to clone.
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
    admission: Admission,
    inspect: X,
}

impl<M> Acceptor<M> {
    /// Accepts with this mechanism, within [10 seconds](DEFAULT_TIMEOUT), and as many handshakes side by side as the
    /// default [`Admission`] lets in.
    pub fn new(mechanism: M) -> Self {
        let mechanism = Arc::new(mechanism);
        Self { mechanism, timeout: DEFAULT_TIMEOUT, admission: Admission::default(), inspect: AskStream }
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

    /// Sets who is admitted: how many handshakes may be pending, how many of one source, and who is kept out. Several
    /// acceptors can share one.
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// Sets how to learn what surrounds a stream, for streams that are no [`Transport`](crate::transport::Transport).
    ///
    /// It takes the place of what the stream says itself: of one that is a `Transport`, begin with its
    /// [`TransportInfo::of`](crate::transport::TransportInfo::of), or its channel binding and the word that it
    /// is time to shut down are lost.
    #[must_use]
    pub fn inspect<Y>(self, inspect: Y) -> Acceptor<M, Y> {
        Acceptor { mechanism: self.mechanism, timeout: self.timeout, admission: self.admission, inspect }
    }

    /// Admits a handshake before there is a stream to run it on, to go on with [`accept_admitted`]. See
    /// [`Admission::admit`].
    ///
    /// [`accept_admitted`]: Self::accept_admitted
    ///
    /// # Errors
    ///
    /// Those of [`Admission::admit`].
    pub fn admit(&self, ip: Option<IpAddr>) -> Result<Slot, HandshakeError> {
        self.admission.admit(ip)
    }

    /// Runs a handshake on `io`, if it is [admitted](crate::admission): by what `io` says of where it comes from. A
    /// bare `TcpStream` does not know that any more once its peer has reset it, and is then of an unknown source; a
    /// `Connection` has what `accept` said. The challenge is made and the clock starts at this call, not at the first
    /// poll.
    ///
    /// A peer that is refused is told so if the mechanism has a word for it; the connection is then shut down for
    /// writing, and what the peer still sends (up to 64 KiB, until it closes, within the deadline) is thrown away, so
    /// that the verdict is not lost to a reset.
    ///
    /// # Errors
    ///
    /// The future resolves to a [`HandshakeError`] if the peer has not proven itself. The connection is closed by then.
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
        let slot = self.admission.admit(info.peer_addr.map(|addr| addr.ip()));
        Accept::start(io, &*self.mechanism, self.timeout, info, slot)
    }

    /// Runs a handshake on `io` that has been admitted already, by this acceptor's [`admit`](Self::admit) or by any
    /// [`Admission`]: where another handshake, of TLS say, came before. In all else it is [`accept`](Self::accept).
    ///
    /// # Errors
    ///
    /// Those of [`accept`](Self::accept).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime that has its timer enabled.
    pub fn accept_admitted<IO>(&self, io: IO, slot: Slot) -> Accept<IO, M>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
        M: Mechanism<Role = Server>,
        X: Inspect<IO>,
    {
        let info = self.inspect.inspect(&io);
        Accept::start(io, &*self.mechanism, self.timeout, info, Ok(slot))
    }
}

impl<M, X: Clone> Clone for Acceptor<M, X> {
    fn clone(&self) -> Self {
        Self {
            mechanism: Arc::clone(&self.mechanism),
            timeout: self.timeout,
            admission: self.admission.clone(),
            inspect: self.inspect.clone(),
        }
    }
}

impl<M: fmt::Debug, X> fmt::Debug for Acceptor<M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("mechanism", &self.mechanism)
            .field("timeout", &self.timeout)
            .field("admission", &self.admission)
            .finish_non_exhaustive()
    }
}
