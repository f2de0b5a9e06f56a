//! Calls and their replies in JSON, each with its length in front, over one stream whose peer is known; many calls
//! may be under way at a time.
//!
//! ```text
//! cargo run --example rpc
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

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
use tower_challenge::{
    Authenticated, ChallengeLayer, Connection, Connector, Identity, Key, KeyEntry, KeyRing, serve,
};

/// The longest message, in bytes.
pub(crate) const MAX_LEN: usize = 64 * 1024;

/// How many calls of one peer may be under way; more are not read before one of these is answered.
pub(crate) const MAX_CALLS: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    WhoAmI,
    Reverse(String),
}

pub(crate) type Reply = Result<String, String>;

/// A call or a reply with the number of the call, which tells whose reply it is.
#[derive(Serialize, Deserialize)]
pub(crate) struct Numbered<T>(pub(crate) u64, pub(crate) T);

/// JSON with its length in front; what it decodes to.
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

/// A session of the server: answers each call when its reply is there, until the peer has no more.
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

/// The client of one session. Cheap to clone; the session ends with the last of its clones.
#[derive(Clone)]
pub(crate) struct Client {
    // Unbounded, but what is in it are calls that somebody waits for.
    calls: mpsc::UnboundedSender<Numbered<Call>>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Who waits for the reply to which call. None once there will be no more replies.
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
        let waiting = Arc::new(Mutex::new(Waiting { next: 0, callers: Some(HashMap::new()) }));
        tokio::spawn({
            let waiting = Arc::clone(&waiting);
            async move {
                let sending = queue.map(Ok).forward(sink);
                let receiving = async {
                    while let Some(Numbered(number, reply)) = replies.try_next().await? {
                        let mut waiting = waiting.lock().expect("nobody panics with it");
                        if let Some(caller) = waiting.callers.as_mut().and_then(|all| all.remove(&number)) {
                            // Whoever has lost interest in it is gone.
                            let _ = caller.send(reply);
                        }
                    }
                    // The server has closed: a call that is still to be sent would have no reply.
                    Err::<(), _>(io::Error::from(io::ErrorKind::UnexpectedEof))
                };
                let _: io::Result<_> = futures::future::try_join(sending, receiving).await;
                waiting.lock().expect("nobody panics with it").callers = None;
            }
        });
        Self { calls, waiting }
    }

    /// # Errors
    ///
    /// If the connection is closed before the reply is there; whether the call was carried out is then not known.
    ///
    /// # Cancel safety
    ///
    /// Once it was polled the call is made, and when it is dropped nobody hears the reply.
    pub(crate) async fn call(&self, call: Call) -> io::Result<Reply> {
        let closed = || io::Error::from(io::ErrorKind::NotConnected);
        let (caller, reply) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock().expect("nobody panics with it");
            let number = waiting.next;
            waiting.callers.as_mut().ok_or_else(closed)?.insert(number, caller);
            waiting.next += 1;
            // If it fails, nobody is left to send the reply.
            let _ = self.calls.unbounded_send(Numbered(number, call));
        }
        reply.await.map_err(|_| closed())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let key = Key::generate()?;
    let keys = KeyRing::new([KeyEntry::new("alice", key.clone())?])?;
    let service = ServiceBuilder::new()
        .layer(ChallengeLayer::new(mutual::Server::new(keys, Audience::new("rpc")?)))
        .service_fn(|stream: Authenticated<Connection<TcpStream>, mutual::Peer>| answer(stream, handle));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(serve(listener, service).into_future());

    let connector = Connector::new(mutual::Client::new("alice", &key, Audience::new("rpc")?)?);
    let client = Client::new(connector.connect(TcpStream::connect(addr).await?).await?);
    let calls = ["desserts", "", "drawer"].map(|text| client.call(Call::Reverse(text.to_owned())));
    let (who, replies) = tokio::join!(client.call(Call::WhoAmI), futures::future::try_join_all(calls));
    println!("I am {:?}", who?);
    println!("reversed: {:?}", replies?);
    Ok(())
}
