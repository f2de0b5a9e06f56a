use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::DEFAULT_TIMEOUT;
use crate::handshake::Connect;
use crate::mechanism::{ClientRole, Mechanism};
use crate::observe::Failures;
use crate::transport::{Transport, TransportInfo};

/// The client's side of a handshake without tower: mechanism and deadline in one value.
///
/// Like `TlsConnector` of tokio-rustls, it runs on a stream that is connected already.
/// [`AnswerLayer`](crate::AnswerLayer) is the same as a tower layer over a service that connects. Cheap to clone.
///
/// ```no_run
/// use tokio::net::TcpStream;
/// use tower_challenge::{Connector, KeyFile, mutual};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = KeyFile::new("keys").read()?;
/// let connector = Connector::new(mutual::Client::from_entry(&keys[0], "orders")?);
/// let stream = connector.connect(TcpStream::connect("127.0.0.1:8888").await?).await?;
/// # Ok(())
/// # }
/// ```
pub struct Connector<M> {
    mechanism: Arc<M>,
    timeout: Duration,
    // Limits the rate of log events; shared by all clones.
    failures: Failures,
}

impl<M> Connector<M> {
    /// Creates a connector with a deadline of [10 seconds](DEFAULT_TIMEOUT).
    pub fn new(mechanism: M) -> Self
    where
        M: Mechanism<Role = ClientRole>,
    {
        Self { mechanism: Arc::new(mechanism), timeout: DEFAULT_TIMEOUT, failures: Failures::new() }
    }

    /// Sets the deadline of the whole handshake. Default: 10 seconds.
    ///
    /// The time runs from the call of [`connect`](Self::connect), and no message restarts it. Establishing the
    /// connection is not part of it.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs a handshake on `io`. The deadline starts at this call, not at the first poll.
    ///
    /// # Errors
    ///
    /// The future resolves to a [`HandshakeError`](crate::HandshakeError). The connection is closed by then. The most
    /// frequent kinds are
    /// [`Refused`](crate::HandshakeErrorKind::Refused) if the server rejected the proof, or said so without reading it;
    /// [`UnexpectedEof`](crate::HandshakeErrorKind::UnexpectedEof) if it closed the connection instead; and
    /// [`Malformed`](crate::HandshakeErrorKind::Malformed) if it uses another mechanism or another protocol.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with the time driver enabled.
    pub fn connect<IO>(&self, io: IO) -> Connect<IO, M>
    where
        IO: AsyncRead + AsyncWrite + Transport + Unpin,
        M: Mechanism<Role = ClientRole>,
    {
        let info = TransportInfo::from_stream(&io);
        Connect::start(io, &*self.mechanism, self.timeout, info, &self.failures)
    }
}

impl<M> Clone for Connector<M> {
    fn clone(&self) -> Self {
        Self {
            mechanism: Arc::clone(&self.mechanism),
            timeout: self.timeout,
            failures: self.failures.clone(),
        }
    }
}

impl<M: fmt::Debug> fmt::Debug for Connector<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("mechanism", &self.mechanism)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
