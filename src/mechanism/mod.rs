//! What a challenge-response is, without any input or output: the traits that a mechanism implements.
//!
//! A mechanism is a wire and the two state machines on its ends. This crate brings `mutual`, `multiprocessing` and
//! [`one_way`]; another crate can bring its own with what is public here.
//!
//! ```text
//!                    start(context)                    Start { codec, handshake, send }
//!     Mechanism  ───────────────────▶  Handshake  ─────────────────────────────────────▶  driver
//!                                          ▲                                                │  writes, reads,
//!                                          │  step(Input::Frame | Input::Found)             │  one deadline
//!                                          └────────────────────────────────────────────────┘
//!                                             Step::Continue | LookUp | Complete, or Reject
//! ```
//!
//! - [`Mechanism`] is the configuration: one value for all connections of a layer. It starts a handshake.
//! - [`Handshake`] is one run of it on one connection. It takes a message and says what to do next. It sees no stream,
//!   no clock and no executor, so that it can be tested, fuzzed and measured as a function.
//! - The driver, [`Acceptor`](crate::Acceptor) and [`Connector`](crate::Connector), does all the rest: one
//!   [`Framed`](tokio_util::codec::Framed) with the handshake's codec, one deadline, the order of things. It drops the
//!   state machine when it is done, so a step after the end can't happen.
//!
//! # Writing one
//!
//! 1. Give the messages types, one for each direction, and write the codec that frames them. The codec must wait for
//!    whole messages, must not allocate on a length that the peer sent before it has checked it, and should return
//!    what [`whole_or_truncated`] makes of it from `decode_eof`. With [`HandshakeError`] as
//!    its error type nothing has to be converted.
//! 2. For each side, write the type that holds the settings and the keys ([`Mechanism`]), and the state machine
//!    ([`Handshake`]). Say in [`Mechanism::Role`] which side it is: an `Acceptor` takes only [`Server`]s; and in
//!    [`Mechanism::NAME`] what logs and metrics call it.
//! 3. Compare secrets in constant time; keep keys in a form that is overwritten when dropped.
//!
//! 4. Where the peer names its key, ask a source of [`Keys`](crate::key::Keys) with [`Step::LookUp`]: keys can then be in
//!    memory, derived, or anywhere. Say what you make of a key with [`PrepareKey`](crate::key::PrepareKey).
//! 5. Test it over [`tokio::io::duplex`]`(1)`, where every message arrives byte by byte.
//!
//! `examples/bore.rs` is a real one, for both sides, in about 100 lines: the handshake of the `bore-cli` crate,
//! tested against that crate itself. The one here has one message in each direction: a byte, and the same byte plus a
//! secret number.
//!
//! ```
//! use std::convert::Infallible;
//!
//! use bytes::{BufMut as _, BytesMut};
//! use tokio_util::codec::{Decoder, Encoder};
//! use tower_challenge::mechanism::{Client, Context, Handshake, Input, Mechanism, NoLookup, Reject, Server, Start, Step};
//! use tower_challenge::{Acceptor, Connector, HandshakeError};
//!
//! /// Both sides send single bytes.
//! #[derive(Debug)]
//! struct OneByte;
//!
//! impl Decoder for OneByte {
//!     type Item = u8;
//!     type Error = HandshakeError;
//!
//!     fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<u8>, HandshakeError> {
//!         Ok((!buf.is_empty()).then(|| buf.split_to(1)[0]))
//!     }
//! }
//!
//! impl Encoder<u8> for OneByte {
//!     type Error = HandshakeError;
//!
//!     fn encode(&mut self, byte: u8, buf: &mut BytesMut) -> Result<(), HandshakeError> {
//!         buf.put_u8(byte);
//!         Ok(())
//!     }
//! }
//!
//! struct Ask(u8); // the secret
//! struct Asked { expected: u8 }
//!
//! impl Mechanism for Ask {
//!     type Role = Server;
//!     type Handshake = Asked;
//!     const NAME: &'static str = "plus_secret";
//!
//!     fn start(&self, cx: &mut Context<'_>) -> Result<Start<Asked>, HandshakeError> {
//!         let mut challenge = [0];
//!         cx.fill_random(&mut challenge)?;
//!         let handshake = Asked { expected: challenge[0].wrapping_add(self.0) };
//!         Ok(Start { codec: OneByte, handshake, send: Some(challenge[0]) })
//!     }
//! }
//!
//! impl Handshake for Asked {
//!     type Codec = OneByte;
//!     type Message = u8;
//!     type Peer = ();
//!     type Lookup = NoLookup;
//!     const LONGEST_RECEIVED: usize = 1;
//!     const LONGEST_SENT: usize = 1;
//!
//!     fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
//!         let Input::Frame(answer) = input;
//!         if answer == self.expected {
//!             Ok(Step::Complete { send: None, peer: () }) // a real one compares in constant time
//!         } else {
//!             Err(HandshakeError::refused().into()) // a real one tells the peer: `Reject::telling`
//!         }
//!     }
//! }
//!
//! struct Answer(u8); // the secret
//!
//! impl Mechanism for Answer {
//!     type Role = Client;
//!     type Handshake = Answer;
//!     const NAME: &'static str = "plus_secret";
//!
//!     fn start(&self, _: &mut Context<'_>) -> Result<Start<Answer>, HandshakeError> {
//!         Ok(Start { codec: OneByte, handshake: Answer(self.0), send: None })
//!     }
//! }
//!
//! impl Handshake for Answer {
//!     type Codec = OneByte;
//!     type Message = u8;
//!     type Peer = ();
//!     type Lookup = NoLookup;
//!     const LONGEST_RECEIVED: usize = 1;
//!     const LONGEST_SENT: usize = 1;
//!
//!     fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>> {
//!         let Input::Frame(challenge) = input;
//!         Ok(Step::Complete { send: Some(challenge.wrapping_add(self.0)), peer: () })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), HandshakeError> {
//! let (client, server) = tokio::io::duplex(64);
//! let (accepted, connected) =
//!     tokio::join!(Acceptor::new(Ask(7)).accept(server), Connector::new(Answer(7)).connect(client));
//! accepted?;
//! connected?;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "multiprocessing")]
pub mod multiprocessing;
#[cfg(feature = "mutual")]
pub mod mutual;
pub mod one_way;

mod context;
mod eof;
mod first_match;
mod keyed;
mod step;

use tokio_util::codec::{Decoder, Encoder};

pub use self::context::Context;
pub use self::eof::whole_or_truncated;
use self::first_match::first_match;
use self::keyed::keyed;
pub use self::step::{Input, NoLookup, Reject, Start, Step};
use crate::error::HandshakeError;
use crate::key::KeyId;

/// One side's half of a challenge-response, with its settings and keys: what all handshakes of a layer share.
pub trait Mechanism {
    /// Which side this is, [`Server`] or [`Client`].
    type Role: Role;

    /// One run of the handshake.
    type Handshake: Handshake;

    /// What it is called where handshakes are [counted and logged](crate::observe): in `snake_case`, the same on both
    /// sides.
    const NAME: &'static str;

    /// Begins a handshake on a new connection.
    ///
    /// # Errors
    ///
    /// What keeps a handshake from beginning at all, before anything is sent: no random bytes, say. The connection is
    /// then closed.
    fn start(&self, cx: &mut Context<'_>) -> Result<Start<Self::Handshake>, HandshakeError>;
}

/// One run of a handshake: a state machine that is given one message after the other.
pub trait Handshake: Sized {
    /// How this wire frames its messages. Its decoder's items are the messages that [`step`](Self::step) is given.
    ///
    /// It must wait for whole messages. What it leaves in the buffer behind the last message goes to the inner service.
    type Codec: Decoder<Error: Into<HandshakeError>> + Encoder<Self::Message, Error: Into<HandshakeError>>;

    /// What this side sends.
    type Message;

    /// What success proves about the peer: an [`Identity`](crate::Identity), say.
    type Peer;

    /// A question that has to be asked in the middle of the handshake, of a store of keys mostly.
    /// [`NoLookup`] where there is none, a [`Ready`](std::future::Ready) where the answer is in memory.
    type Lookup: Future;

    /// The length in bytes of the longest message that this side receives, framing included. The driver's read buffer
    /// is a little larger; a longer message makes it grow, as far as the codec waits for more.
    const LONGEST_RECEIVED: usize;

    /// The length in bytes of the longest message that this side sends, framing included: the driver's write buffer.
    const LONGEST_SENT: usize;

    /// Takes the next message, or the outcome of a lookup, and says how to go on.
    ///
    /// # Errors
    ///
    /// A [`Reject`] ends the handshake. It says what the peer is told, if anything, and what the log is told.
    fn step(&mut self, input: Input<Self>) -> Result<Step<Self>, Reject<Self>>;

    /// The id of the key that `peer` has proven to hold, if this mechanism proves that: the `user.id` of its
    /// [span](crate::observe). None by default.
    fn key_id(_peer: &Self::Peer) -> Option<&KeyId> {
        None
    }
}

/// Which side of the connection a mechanism is for. Sealed: there are two.
pub trait Role: sealed::Sealed {
    /// Whether a failed write is not the end: the peer may have said why before it closed.
    #[doc(hidden)]
    const READS_ON_AFTER_FAILED_WRITE: bool;
}

/// The side that accepts connections and challenges. For [`Acceptor`](crate::Acceptor).
#[derive(Debug)]
pub enum Server {}

/// The side that connects and answers. For [`Connector`](crate::Connector).
#[derive(Debug)]
pub enum Client {}

impl Role for Server {
    const READS_ON_AFTER_FAILED_WRITE: bool = false;
}

impl Role for Client {
    const READS_ON_AFTER_FAILED_WRITE: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Server {}
    impl Sealed for super::Client {}
}

/// What success of a mechanism proves about its peer.
pub type PeerOf<M> = <<M as Mechanism>::Handshake as Handshake>::Peer;
