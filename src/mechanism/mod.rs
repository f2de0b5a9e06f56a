//! The traits that a handshake mechanism implements.
//!
//! A mechanism is a wire format and a state machine for each of its two sides. It is sans-IO: it sees no stream, no
//! clock and no executor, so it can be tested, fuzzed and measured as a function. `mutual`, `multiprocessing` and
//! [`one_way`](crate::one_way) implement the traits of this module, and a mechanism of your own can do the same. To use
//! one of the existing mechanisms, you do not need this module.
//!
//! The counterpart is the driver, the futures of the module [`handshake`](crate::handshake). It runs a mechanism on a
//! stream.
//!
//! ```text
//!   ┌───────────┐  1. start   ┌────────┐
//!   │ Mechanism │ ◀───────────┤ driver ├──── 2. writes, reads ──▶ stream
//!   └───────────┘             └┬──────▲┘
//!                      3. step │      │ 4. Step or Reject
//!                             ┌▼──────┴───┐
//!                             │ Handshake │
//!                             └───────────┘
//! ```
//!
//! 1. [`Mechanism`] is the configuration: settings and keys, one value for all connections of a layer. For each
//!    connection the driver calls [`Mechanism::start`], which returns the codec, the state machine and, on the side
//!    that speaks first, the first message.
//! 2. The driver writes this message and reads the peer's next one. It owns the
//!    [`Framed`](tokio_util::codec::Framed) with the mechanism's codec, the deadline and the order of reads and writes.
//! 3. [`Handshake`] is the state machine of one handshake. Its method [`step`](Handshake::step) takes a message.
//! 4. The result says how to continue: send a message, look up a key, complete, or reject the peer. The driver then
//!    repeats steps 2 and 3, or drops the state machine. It cannot call `step` after the end.
//!
//! # Writing a mechanism
//!
//! 1. Define a message type for each direction, and a codec that frames the messages. The codec must wait for whole
//!    messages and must check a length that the peer sent before it allocates memory. Its `decode_eof` should return
//!    the result of [`decode_eof_strict`]. If its error type is [`HandshakeError`], no conversion is needed.
//! 2. For each side, define a type for settings and keys that implements [`Mechanism`], and a state machine that
//!    implements [`Handshake`]. [`Mechanism::Role`] declares the side: [`Acceptor`](crate::Acceptor) takes only
//!    [`ServerRole`], [`Connector`](crate::Connector) only [`ClientRole`]. [`Mechanism::NAME`] is the name in logs and
//!    metrics.
//! 3. Compare secrets in constant time. Keep keys in a form that is overwritten when it is dropped.
//! 4. If the peer names its key, look the key up in a [`KeySource`](crate::key::KeySource) with [`Step::LookUp`].
//!    Keys can then be in memory, derived, or in a database. Implement [`PrepareKey`](crate::key::PrepareKey) for the
//!    form in which the mechanism uses a key.
//! 5. Test it over [`tokio::io::duplex`]`(1)`, where every message arrives byte by byte.
//!
//! `examples/programs/bore.rs` implements a real protocol, both sides in about 100 lines: the handshake of `bore-cli`,
//! tested against that crate.
//!
//! # Example
//!
//! A complete mechanism with one message in each direction: the server sends a random byte, and the client returns it
//! plus a secret number. It is too weak for any use.
//!
//! ```
//! use bytes::{BufMut as _, BytesMut};
//! use tokio::io::{AsyncRead, AsyncWrite};
//! use tokio_util::codec::{Decoder, Encoder};
//! use tower_challenge::mechanism::{
//!     ClientRole, Context, Handshake, Input, Mechanism, NoLookup, Reject,
//!     ServerRole, Start, Step,
//! };
//! use tower_challenge::{Acceptor, Connector, HandshakeError};
//!
//! /// The codec of both sides: every message is one byte.
//! #[derive(Debug)]
//! struct OneByte;
//!
//! impl Decoder for OneByte {
//!     type Item = u8;
//!     type Error = HandshakeError;
//!
//!     fn decode(
//!         &mut self,
//!         buf: &mut BytesMut,
//!     ) -> Result<Option<u8>, HandshakeError> {
//!         Ok((!buf.is_empty()).then(|| buf.split_to(1)[0]))
//!     }
//! }
//!
//! impl Encoder<u8> for OneByte {
//!     type Error = HandshakeError;
//!
//!     fn encode(
//!         &mut self,
//!         byte: u8,
//!         buf: &mut BytesMut,
//!     ) -> Result<(), HandshakeError> {
//!         buf.put_u8(byte);
//!         Ok(())
//!     }
//! }
//!
//! struct Server {
//!     secret: u8,
//! }
//!
//! struct ServerHandshake {
//!     expected: u8,
//! }
//!
//! impl Mechanism for Server {
//!     type Role = ServerRole;
//!     type Handshake = ServerHandshake;
//!     const NAME: &'static str = "plus_secret";
//!
//!     fn start(
//!         &self,
//!         cx: &mut Context<'_>,
//!     ) -> Result<Start<ServerHandshake>, HandshakeError> {
//!         let mut challenge = [0];
//!         cx.fill_random(&mut challenge)?;
//!         let expected = challenge[0].wrapping_add(self.secret);
//!         Ok(Start {
//!             codec: OneByte,
//!             handshake: ServerHandshake { expected },
//!             send: Some(challenge[0]),
//!         })
//!     }
//! }
//!
//! impl Handshake for ServerHandshake {
//!     type Codec = OneByte;
//!     type Message = u8;
//!     type Peer = ();
//!     type Lookup = NoLookup;
//!     type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;
//!     const MAX_RECV_LEN: usize = 1;
//!     const MAX_SEND_LEN: usize = 1;
//!
//!     fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
//!         let Input::Frame(answer) = input;
//!         // A real mechanism compares in constant time.
//!         if answer == self.expected {
//!             Ok(Step::Complete { send: None, peer: () })
//!         } else {
//!             // A real mechanism sends a verdict: `Reject::with_message`.
//!             Err(HandshakeError::refused().into())
//!         }
//!     }
//!
//!     fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
//!         (io, read_ahead)
//!     }
//! }
//!
//! struct Client {
//!     secret: u8,
//! }
//!
//! struct ClientHandshake {
//!     secret: u8,
//! }
//!
//! impl Mechanism for Client {
//!     type Role = ClientRole;
//!     type Handshake = ClientHandshake;
//!     const NAME: &'static str = "plus_secret";
//!
//!     fn start(
//!         &self,
//!         _: &mut Context<'_>,
//!     ) -> Result<Start<ClientHandshake>, HandshakeError> {
//!         let handshake = ClientHandshake { secret: self.secret };
//!         Ok(Start { codec: OneByte, handshake, send: None })
//!     }
//! }
//!
//! impl Handshake for ClientHandshake {
//!     type Codec = OneByte;
//!     type Message = u8;
//!     type Peer = ();
//!     type Lookup = NoLookup;
//!     type Stream<IO: AsyncRead + AsyncWrite + Unpin> = IO;
//!     const MAX_RECV_LEN: usize = 1;
//!     const MAX_SEND_LEN: usize = 1;
//!
//!     fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
//!         let Input::Frame(challenge) = input;
//!         let answer = challenge.wrapping_add(self.secret);
//!         Ok(Step::Complete { send: Some(answer), peer: () })
//!     }
//!
//!     fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(self, io: IO, read_ahead: BytesMut) -> (IO, BytesMut) {
//!         (io, read_ahead)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), HandshakeError> {
//! let acceptor = Acceptor::new(Server { secret: 7 });
//! let connector = Connector::new(Client { secret: 7 });
//!
//! let (client, server) = tokio::io::duplex(64);
//! let (accepted, connected) =
//!     tokio::join!(acceptor.accept(server), connector.connect(client));
//! accepted?;
//! connected?;
//! # Ok(())
//! # }
//! ```

mod context;
mod eof;
mod first_match;
mod hmac;
mod step;
mod wipe;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Decoder, Encoder};

pub use self::context::Context;
pub use self::eof::decode_eof_strict;
pub(crate) use self::first_match::first_match;
pub(crate) use self::hmac::new_hmac;
pub use self::step::{Input, NoLookup, Reject, Start, Step};
#[cfg(all(test, target_os = "linux", feature = "noise"))]
pub(crate) use self::wipe::DEPTH as WIPED_STACK;
pub(crate) use self::wipe::wiping_stack;
#[cfg(feature = "noise")]
pub(crate) use self::wipe::wiping_stack_by;
use crate::error::HandshakeError;
use crate::key::{KeyId, Revocation};

/// One side of a challenge-response, with its settings and keys. All handshakes of a layer share one value.
pub trait Mechanism {
    /// The side that this mechanism implements: [`ServerRole`] or [`ClientRole`].
    type Role: Role;

    /// The state machine of one handshake.
    type Handshake: Handshake;

    /// The name of this mechanism in [spans, logs and metrics](crate::observe): in `snake_case`, the same on both
    /// sides.
    const NAME: &'static str;

    /// Begins a handshake on a new connection.
    ///
    /// # Errors
    ///
    /// Returns an error if the handshake cannot begin, e.g. if there are no random bytes. Nothing has been sent, and
    /// the connection is closed.
    fn start(&self, cx: &mut Context<'_>) -> Result<Start<Self::Handshake>, HandshakeError>;
}

/// The state machine of one handshake on one connection. It is given one message at a time.
pub trait Handshake: Sized {
    /// The codec that frames the messages of this wire. The items of its decoder are the messages that
    /// [`step`](Self::step) takes.
    ///
    /// The codec must wait for whole messages. Bytes that it leaves in the buffer after the last message are passed on
    /// to the inner service.
    type Codec: Decoder<Error: Into<HandshakeError>> + Encoder<Self::Message, Error: Into<HandshakeError>>;

    /// The messages that this side sends.
    type Message;

    /// What a successful handshake proves about the peer, e.g. an [`Identity`](crate::Identity).
    type Peer;

    /// A question that must be answered during the handshake, usually a lookup of keys. [`NoLookup`] if there is none,
    /// [`Ready`](std::future::Ready) if the answer is in memory.
    type Lookup: Future;

    /// The stream after the handshake. Most mechanisms leave the stream as it is: `IO`. One that encrypts yields a stream
    /// of its own, so that the service cannot get the plain one.
    type Stream<IO: AsyncRead + AsyncWrite + Unpin>: AsyncRead + AsyncWrite + Unpin;

    /// The length of the longest message that this side receives, in bytes and with its framing.
    ///
    /// The driver's read buffer is slightly larger. It grows for a longer message, as long as the codec asks for more.
    const MAX_RECV_LEN: usize;

    /// The length of the longest message that this side sends, in bytes and with its framing. It is the size of the
    /// driver's write buffer.
    const MAX_SEND_LEN: usize;

    /// Takes the next message, or the output of a lookup, and returns how to continue.
    ///
    /// # Errors
    ///
    /// Returns a [`Reject`] to end the handshake, with an error for this side's log and, optionally, a message for the
    /// peer.
    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>>;

    /// Makes the stream for the service, after the last message. `read_ahead` are the bytes that were read after it;
    /// those that are returned are read first from the returned stream.
    ///
    /// A mechanism that leaves the stream as it is returns `(io, read_ahead)`.
    fn wrap<IO: AsyncRead + AsyncWrite + Unpin>(
        self,
        io: IO,
        read_ahead: BytesMut,
    ) -> (Self::Stream<IO>, BytesMut);

    /// Returns the id of the key that `peer` proved to hold, if this mechanism has key ids. It is the field `user.id`
    /// of the handshake's [span](crate::observe). The default is `None`.
    fn key_id(_peer: &Self::Peer) -> Option<&KeyId> {
        None
    }

    /// Returns the revocation of the key that `peer` has proven to hold, if the mechanism's keys can be revoked. It
    /// becomes that of the [`Authenticated`](crate::Authenticated) stream. The default is `None`.
    fn revocation(_peer: &Self::Peer) -> Option<&Revocation> {
        None
    }
}

/// The side of a connection that a mechanism implements. Sealed: [`ServerRole`] and [`ClientRole`] are the only roles.
pub trait Role: sealed::Sealed {
    /// The role in logs and metrics.
    #[doc(hidden)]
    const NAME: &'static str;

    /// Whether this is the server's side.
    #[doc(hidden)]
    const IS_SERVER: bool;

    /// Whether to read on after a failed write: the peer may have sent a refusal before it closed the connection.
    #[doc(hidden)]
    const READS_ON_AFTER_FAILED_WRITE: bool;
}

/// The role of the side that accepts connections and sends the challenge. [`Acceptor`](crate::Acceptor) requires it.
#[derive(Debug)]
pub enum ServerRole {}

/// The role of the side that connects and answers the challenge. [`Connector`](crate::Connector) requires it.
#[derive(Debug)]
pub enum ClientRole {}

impl Role for ServerRole {
    const NAME: &'static str = "server";
    const IS_SERVER: bool = true;
    const READS_ON_AFTER_FAILED_WRITE: bool = false;
}

impl Role for ClientRole {
    const NAME: &'static str = "client";
    const IS_SERVER: bool = false;
    const READS_ON_AFTER_FAILED_WRITE: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ServerRole {}
    impl Sealed for super::ClientRole {}
}

/// The stream after a successful handshake of the mechanism `M` on a stream `IO`.
pub type StreamOf<M, IO> = <<M as Mechanism>::Handshake as Handshake>::Stream<IO>;

/// What a successful handshake of the mechanism `M` proves about its peer.
pub type PeerOf<M> = <<M as Mechanism>::Handshake as Handshake>::Peer;
