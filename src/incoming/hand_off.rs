use std::convert::Infallible;
use std::future::{Ready, ready as ready_future};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tower_layer::Layer as _;
use tower_service::Service;

use crate::mechanism::{Mechanism, PeerOf, ServerRole, StreamOf};
use crate::prepare::Prepare;
use crate::serve::Connection;
use crate::server::{AcceptError, ChallengeLayer, ResponseFuture};
use crate::stream::Authenticated;
use crate::transport::{PeerAddr, Transport, TransportInfo};

/// The innermost service: sends a connection and its address to the channel that `Incoming` receives from. Ready if the
/// channel has room.
pub(super) struct HandOff<T, A> {
    sender: PollSender<(T, A)>,
    addr: A,
}

impl<T: Transport + Send + 'static, A: PeerAddr + Clone + Send + 'static> Service<T> for HandOff<T, A> {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // If the receiver was dropped, this is ready at once, and `call` drops the connection.
        self.sender.poll_reserve(cx).map(|_| Ok(()))
    }

    fn call(&mut self, stream: T) -> Self::Future {
        let addr = match TransportInfo::from_stream(&stream).peer_addr {
            Some(addr) => self.addr.clone().with_socket_addr(addr),
            None => self.addr.clone(),
        };
        // `poll_ready` has reserved room, so this fails only if the receiver was dropped.
        let _ = self.sender.send_item((stream, addr));
        ready_future(Ok(()))
    }
}

impl<T, A: Clone> Clone for HandOff<T, A> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), addr: self.addr.clone() }
    }
}

/// The outermost service: runs the handshake and hands the connection off. Not ready while the channel is full, so that
/// no connection is accepted that could only wait.
pub(super) struct Handshakes<M, S, T, A> {
    layer: ChallengeLayer<M, S>,
    sender: PollSender<(T, A)>,
}

impl<M, S, T: Send + 'static, A: Send + 'static> Handshakes<M, S, T, A> {
    pub(super) fn new(layer: ChallengeLayer<M, S>, sender: mpsc::Sender<(T, A)>) -> Self {
        Self { layer, sender: PollSender::new(sender) }
    }
}

impl<M, S: Clone, T, A> Clone for Handshakes<M, S, T, A> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), sender: self.sender.clone() }
    }
}

/// A stream that has completed the handshake.
type Done<M, S, IO, A> = Authenticated<StreamOf<M, <S as Prepare<Connection<IO, A>>>::Stream>, PeerOf<M>>;

impl<M, S, IO, A> Service<Connection<IO, A>> for Handshakes<M, S, Done<M, S, IO, A>, A>
where
    M: Mechanism<Role = ServerRole>,
    S: Prepare<Connection<IO, A>, Stream: AsyncRead + AsyncWrite + Transport + Unpin + Send + 'static>
        + Clone,
    IO: Transport,
    A: PeerAddr + Clone + Send + 'static,
    StreamOf<M, S::Stream>: Transport + Send + 'static,
    PeerOf<M>: Send + 'static,
{
    type Response = ();
    type Error = AcceptError;
    type Future = ResponseFuture<HandOff<Done<M, S, IO, A>, A>, Connection<IO, A>, M, S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AcceptError>> {
        // If the receiver was dropped, this is ready: the server is about to shut down.
        let _ = ready!(self.sender.poll_reserve(cx));
        // This only checks for room and releases the reservation. Otherwise an unauthenticated peer could hold it for
        // the duration of its handshake.
        self.sender.abort_send();
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, connection: Connection<IO, A>) -> Self::Future {
        let hand_off = HandOff { sender: self.sender.clone(), addr: connection.addr().clone() };
        self.layer.layer(hand_off).call(connection)
    }
}
