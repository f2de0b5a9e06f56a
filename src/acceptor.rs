use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::DEFAULT_TIMEOUT;
use crate::admission::{Admission, Slot};
use crate::error::HandshakeError;
use crate::handshake::Accept;
use crate::mechanism::{Mechanism, ServerRole};
use crate::prepare::{NoPrepare, Prepare, Then};
use crate::transport::{Transport, TransportInfo};

/// The server's side of a handshake without tower: mechanism, deadline and admission control in one value.
///
/// [`ChallengeLayer`](crate::ChallengeLayer) is the same as a tower layer; `serve` and `Incoming` add an accept loop.
/// Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use tower_challenge::{Acceptor, Key, KeyEntry, one_way};
///
/// # async fn example(
/// #     io: tokio::net::TcpStream,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let keys = one_way::KeyRing::new([KeyEntry::new("alice", Key::generate()?)?])?;
/// let acceptor = Acceptor::new(one_way::Server::new(keys))
///     .timeout(Duration::from_secs(3));
///
/// let stream = acceptor.accept(io).await?;
/// println!("authenticated: {}", stream.peer().key_id());
/// # Ok(())
/// # }
/// ```
pub struct Acceptor<M, P = NoPrepare> {
    mechanism: Arc<M>,
    timeout: Duration,
    admission: Admission,
    revoked_grace: Option<Duration>,
    prepare: P,
}

impl<M> Acceptor<M> {
    /// Creates an acceptor with a deadline of [10 seconds](DEFAULT_TIMEOUT) and the default [`Admission`].
    pub fn new(mechanism: M) -> Self
    where
        M: Mechanism<Role = ServerRole>,
    {
        let (mechanism, admission) = (Arc::new(mechanism), Admission::default());
        Self { mechanism, timeout: DEFAULT_TIMEOUT, admission, revoked_grace: None, prepare: NoPrepare }
    }

    /// Sets a step that runs before the handshake, such as a TLS handshake: a `Fn(IO) -> Future` that returns the stream
    /// for the handshake, or the header of the PROXY protocol.
    ///
    /// The step runs in the handshake's slot and within its deadline, see [`prepare`](crate::prepare).
    #[must_use]
    pub fn prepare<S>(self, step: S) -> Acceptor<M, S> {
        let Self { mechanism, timeout, admission, revoked_grace, prepare: NoPrepare } = self;
        Acceptor { mechanism, timeout, admission, revoked_grace, prepare: step }
    }
}

impl<M, P> Acceptor<M, P> {
    /// Sets the deadline of the whole handshake. Default: 10 seconds.
    ///
    /// The time runs from the call of [`accept`](Self::accept). It covers all reads and writes and the time that a
    /// refused peer has to read the verdict; no message restarts it.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the admission control: how many handshakes may be in flight, in total and for each source, and which
    /// sources are refused. Several acceptors can share one [`Admission`].
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// Ends the sessions of a key `grace` after it is [revoked](crate::key::Revocation). Default: they continue, and can
    /// observe the revocation through [`Authenticated::revocation`](crate::Authenticated::revocation).
    ///
    /// Reads and writes of the [`Authenticated`](crate::Authenticated) stream then fail with
    /// [`ConnectionAborted`](std::io::ErrorKind::ConnectionAborted). With a [`ChallengeLayer`](crate::ChallengeLayer) the
    /// inner service's response is dropped as well. With `Duration::ZERO` they end at once.
    #[must_use]
    pub fn end_revoked_sessions(mut self, grace: Duration) -> Self {
        self.revoked_grace = Some(grace);
        self
    }

    pub(crate) const fn revoked_grace(&self) -> Option<Duration> {
        self.revoked_grace
    }

    /// Sets a further step, which runs after those that were set before it.
    #[must_use]
    pub fn then_prepare<S>(self, step: S) -> Acceptor<M, Then<P, S>> {
        let Self { mechanism, timeout, admission, revoked_grace, prepare: first } = self;
        Acceptor { mechanism, timeout, admission, revoked_grace, prepare: Then { first, second: step } }
    }

    /// Takes a slot for a handshake before there is a stream to run it on. Continue with
    /// [`accept_admitted`](Self::accept_admitted).
    ///
    /// # Errors
    ///
    /// Those of [`Admission::admit`].
    pub fn admit(&self, ip: Option<IpAddr>) -> Result<Slot, HandshakeError> {
        self.admission.admit(ip)
    }

    /// Runs a handshake on `io`, if [admission control](crate::admission) admits its source.
    ///
    /// The source is the peer address that `io` reports. A bare `TcpStream` no longer knows it after the peer has reset
    /// the connection, and then counts as a stream without an address; a `Connection` has what `accept` returned.
    ///
    /// The challenge is created and the deadline starts at this call, not at the first poll.
    ///
    /// If the mechanism has a message for it, a refused peer is told so. The connection is then shut down for writing,
    /// and up to 64 KiB of further input is discarded until the peer closes or the deadline passes. Without that, a
    /// reset could overtake the verdict.
    ///
    /// # Errors
    ///
    /// The future resolves to a [`HandshakeError`] if the peer did not prove itself. The connection is closed by then.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with the time driver enabled.
    pub fn accept<IO>(&self, io: IO) -> Accept<IO, M, P>
    where
        IO: Transport,
        P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Transport + Unpin>,
        M: Mechanism<Role = ServerRole>,
    {
        let info = TransportInfo::from_stream(&io);
        let source = if self.prepare.defers_source(&info) { None } else { info.peer_addr };
        let slot = self.admission.admit(source.map(|addr| addr.ip()));
        Accept::start(io, &self.mechanism, &self.prepare, self.timeout, info, slot)
            .end_revoked_sessions(self.revoked_grace)
    }

    /// Runs a handshake on `io` in a slot that was taken already by [`admit`](Self::admit) or
    /// [`Admission::admit`], because another handshake, such as that of TLS, came before. Otherwise like
    /// [`accept`](Self::accept).
    ///
    /// # Errors
    ///
    /// Those of [`accept`](Self::accept).
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with the time driver enabled.
    pub fn accept_admitted<IO>(&self, io: IO, mut slot: Slot) -> Accept<IO, M, P>
    where
        IO: Transport,
        P: Prepare<IO, Stream: AsyncRead + AsyncWrite + Transport + Unpin>,
        M: Mechanism<Role = ServerRole>,
    {
        let info = TransportInfo::from_stream(&io);
        let slot =
            if self.prepare.defers_source(&info) { slot.set_source(None).map(|()| slot) } else { Ok(slot) };
        Accept::start(io, &self.mechanism, &self.prepare, self.timeout, info, slot)
            .end_revoked_sessions(self.revoked_grace)
    }
}

impl<M, P: Clone> Clone for Acceptor<M, P> {
    fn clone(&self) -> Self {
        Self {
            mechanism: Arc::clone(&self.mechanism),
            timeout: self.timeout,
            admission: self.admission.clone(),
            revoked_grace: self.revoked_grace,
            prepare: self.prepare.clone(),
        }
    }
}

impl<M: fmt::Debug, P> fmt::Debug for Acceptor<M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("mechanism", &self.mechanism)
            .field("timeout", &self.timeout)
            .field("admission", &self.admission)
            .finish_non_exhaustive()
    }
}
