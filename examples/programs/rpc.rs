//! Calls and replies as length-prefixed JSON, over one stream whose peer is authenticated. Many calls can be in flight
//! at the same time.
//!
//! ```text
//! cargo run --example rpc
//! ```

#[macro_use]
#[path = "../shared/print.rs"]
mod print;
#[path = "../shared/shutdown_signal.rs"]
mod shutdown_signal;

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::channel::{mpsc, oneshot};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};
use tower::ServiceBuilder;
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Authenticated, ChallengeLayer, Connection, Connector, Identity, Key, KeyEntry, serve};

use self::shutdown_signal::shutdown_signal;

/// The maximum length of a message, in bytes.
pub(crate) const MAX_LEN: usize = 64 * 1024;

/// How many calls of one peer may be in flight. Further calls are read when one of these has been answered.
pub(crate) const MAX_CALLS: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    WhoAmI,
    Reverse(String),
}

pub(crate) type Reply = Result<String, String>;

/// A call or a reply with the number of the call, which matches a reply to its call.
#[derive(Serialize, Deserialize)]
pub(crate) struct Numbered<T>(pub(crate) u64, pub(crate) T);

/// A codec for length-prefixed JSON. It decodes to `T`.
pub(crate) struct Json<T>(LengthDelimitedCodec, PhantomData<fn() -> T>);

impl<T> Json<T> {
    pub(crate) fn new() -> Self {
        Self(LengthDelimitedCodec::builder().max_frame_length(MAX_LEN).new_codec(), PhantomData)
    }
}

impl<T: DeserializeOwned> Decoder for Json<T> {
    type Item = T;
    type Error = io::Error;

    fn decode(&mut self, buf: &mut BytesMut) -> io::Result<Option<T>> {
        let frame = self.0.decode(buf)?;
        Ok(frame.map(|frame| serde_json::from_slice(&frame)).transpose()?)
    }
}

impl<T, M: Serialize> Encoder<M> for Json<T> {
    type Error = io::Error;

    fn encode(&mut self, message: M, buf: &mut BytesMut) -> io::Result<()> {
        self.0.encode(Bytes::from(serde_json::to_vec(&message)?), buf)
    }
}

/// Runs a session of the server: sends the reply to each call as soon as it is available, until the peer closes.
pub(crate) async fn answer<IO, A, F>(
    stream: Authenticated<IO, mutual::Peer<A>>,
    handler: impl Fn(Identity<A>, Call) -> F,
) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Reply>,
{
    let peer = stream.peer().identity().clone();
    let (replies, calls) = stream.into_framed(Json::<Numbered<Call>>::new()).split();
    calls
        .map_ok(|Numbered(number, call)| {
            let replying = handler(peer.clone(), call);
            async move { Ok(Numbered(number, replying.await)) }
        })
        .try_buffer_unordered(MAX_CALLS)
        .forward(replies)
        .await
}

pub(crate) async fn handle(peer: Identity, call: Call) -> Reply {
    match call {
        Call::WhoAmI => Ok(peer.key_id().to_string()),
        Call::Reverse(text) if text.is_empty() => Err("nothing to reverse".to_owned()),
        Call::Reverse(text) => Ok(text.chars().rev().collect()),
    }
}

/// The client of one session. Cheap to clone; the session ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Client {
    // Unbounded, but each call in it has a caller that waits for its reply.
    calls: mpsc::UnboundedSender<Numbered<Call>>,
    waiting: Arc<Mutex<Waiting>>,
}

/// The callers that wait for a reply, by the number of the call. `None` after the session has ended.
struct Waiting {
    next: u64,
    callers: Option<HashMap<u64, oneshot::Sender<Reply>>>,
}

impl Client {
    pub(crate) fn new<IO, P>(stream: Authenticated<IO, P>) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        P: Send + 'static,
    {
        let (sink, mut replies) = stream.into_framed(Json::<Numbered<Reply>>::new()).split();
        let (calls, queue) = mpsc::unbounded();
        let client =
            Self { calls, waiting: Arc::new(Mutex::new(Waiting { next: 0, callers: Some(HashMap::new()) })) };
        let waiting = Arc::clone(&client.waiting);
        tokio::spawn(async move {
            let sending = queue.map(Ok).forward(sink);
            let receiving = async {
                while let Some(Numbered(number, reply)) = replies.try_next().await? {
                    let caller = lock(&waiting).callers.as_mut().and_then(|callers| callers.remove(&number));
                    if let Some(caller) = caller {
                        // Fails if the caller has dropped its future.
                        let _ = caller.send(reply);
                    }
                }
                // The server has closed: a call that is still to be sent would get no reply.
                Err::<(), _>(io::Error::from(io::ErrorKind::UnexpectedEof))
            };
            let _: io::Result<_> = futures::future::try_join(sending, receiving).await;
            lock(&waiting).callers = None;
        });
        client
    }

    /// Sends a call and waits for its reply.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection is closed before the reply arrives. Whether the server executed the call is
    /// then unknown.
    ///
    /// # Cancel safety
    ///
    /// The call is sent when the future is first polled. If the future is dropped after that, the reply is discarded.
    pub(crate) async fn call(&self, call: Call) -> io::Result<Reply> {
        let closed = || io::Error::from(io::ErrorKind::NotConnected);
        let (caller, reply) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            let number = waiting.next;
            waiting.callers.as_mut().ok_or_else(closed)?.insert(number, caller);
            waiting.next += 1;
            // If it fails, the session has ended, and `reply` fails as well.
            let _ = self.calls.unbounded_send(Numbered(number, call));
        }
        reply.await.map_err(|_| closed())
    }
}

/// Locks the mutex. No code panics while it holds the lock, so it cannot be poisoned.
fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = Key::generate()?;
    let keys = mutual::KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
    let service = ServiceBuilder::new()
        .layer(ChallengeLayer::new(mutual::Server::new(keys, Audience::new("rpc")?)))
        .service_fn(|stream: Authenticated<Connection<TcpStream>, mutual::Peer>| answer(stream, handle));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let server = serve(listener, service)
        .graceful_shutdown(shutdown_signal())
        .on_error(|error| eprintln!("server: {error}"));
    tokio::spawn(server.into_future());

    let connector = Connector::new(mutual::Client::new("alice", &key, Audience::new("rpc")?)?);
    let client = Client::new(connector.connect(TcpStream::connect(addr).await?).await?);
    let calls = ["desserts", "", "drawer"].map(|text| client.call(Call::Reverse(text.to_owned())));
    let (id, replies) = tokio::join!(client.call(Call::WhoAmI), futures::future::try_join_all(calls));
    println!("I am {:?}", id?);
    println!("reversed: {:?}", replies?);
    Ok(())
}
