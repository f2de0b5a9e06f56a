use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::DEFAULT_TIMEOUT;
use crate::handshake::Connect;
use crate::mechanism::{Client, Mechanism};
use crate::transport::{AskStream, Inspect};

/// The client's side of handshakes, without any tower: mechanism and deadline in one value. Cheap to clone.
///
/// [`AnswerLayer`](crate::AnswerLayer) is this as a tower layer over a connector service.
///
/// ```no_run
/// use tokio::net::TcpStream;
/// use tower_challenge::{Connector, Key, one_way};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let connector = Connector::new(one_way::Client::new(&Key::new("This is key!")?));
/// let stream = connector.connect(TcpStream::connect("127.0.0.1:8888").await?).await?;
/// # Ok(())
/// # }
/// ```
pub struct Connector<M, X = AskStream> {
    mechanism: Arc<M>,
    timeout: Duration,
    inspect: X,
}

impl<M> Connector<M> {
    /// Answers with this mechanism, within [10 seconds](DEFAULT_TIMEOUT).
    pub fn new(mechanism: M) -> Self {
        Self { mechanism: Arc::new(mechanism), timeout: DEFAULT_TIMEOUT, inspect: AskStream }
    }
}

impl<M, X> Connector<M, X> {
    /// Sets how long a whole handshake may take, from [`connect`](Self::connect) on. No message starts it anew. The
    /// time to establish the connection is not part of it.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how to learn what surrounds a stream, for streams that are no [`Transport`](crate::transport::Transport).
    ///
    /// It takes the place of what the stream says itself: of one that is a `Transport`, begin with its
    /// [`TransportInfo::of`](crate::transport::TransportInfo::of), or its channel binding and the word that it
    /// is time to shut down are lost.
    #[must_use]
    pub fn inspect<Y>(self, inspect: Y) -> Connector<M, Y> {
        Connector { mechanism: self.mechanism, timeout: self.timeout, inspect }
    }

    /// Runs a handshake on `io`. The clock starts at this call, not at the first poll.
    ///
    /// # Errors
    ///
    /// The future resolves to a [`HandshakeError`](crate::HandshakeError): `Refused` if the server says no, also where
    /// it says so without having read the answer; `ClosedEarly` if it closes instead; `Malformed` if it speaks another
    /// wire. The connection is closed by then.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime that has its timer enabled.
    pub fn connect<IO>(&self, io: IO) -> Connect<IO, M>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
        M: Mechanism<Role = Client>,
        X: Inspect<IO>,
    {
        let info = self.inspect.inspect(&io);
        Connect::start(io, &*self.mechanism, self.timeout, info)
    }
}

impl<M, X: Clone> Clone for Connector<M, X> {
    fn clone(&self) -> Self {
        Self { mechanism: Arc::clone(&self.mechanism), timeout: self.timeout, inspect: self.inspect.clone() }
    }
}

impl<M: fmt::Debug, X> fmt::Debug for Connector<M, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("mechanism", &self.mechanism)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
