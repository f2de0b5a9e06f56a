//! The options of accepted sockets, and what happens if the system rejects them.
#![cfg(feature = "net")]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::net::Listener;
use tower::ServiceBuilder;
use tower_challenge::serve::ServeError;
use tower_challenge::transport::SocketOptions;
use tower_challenge::{ChallengeLayer, Connection, Incoming, Transport, one_way, serve};

use crate::support::{connector, ring};

#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    /// What a socket has: nodelay, and the time and interval of keep-alive if it is on.
    type Found = (bool, Option<(Duration, Duration, u32)>);

    fn found(stream: &TcpStream) -> Found {
        let socket = SockRef::from(stream);
        let keepalive = socket.keepalive().unwrap().then(|| {
            (
                socket.tcp_keepalive_time().unwrap(),
                socket.tcp_keepalive_interval().unwrap(),
                socket.tcp_keepalive_retries().unwrap(),
            )
        });
        (stream.nodelay().unwrap(), keepalive)
    }

    const fn keepalive(time: u64, interval: u64) -> (Duration, Duration, u32) {
        (Duration::from_secs(time), Duration::from_secs(interval), 6)
    }

    /// The options, and what a socket has after they were set.
    fn cases() -> [(Option<SocketOptions>, Found); 8] {
        let after = |time| Some(SocketOptions::new().keepalive(Some(time)));
        [
            (None, (true, Some(keepalive(60, 10)))),
            (Some(SocketOptions::default()), (true, Some(keepalive(60, 10)))),
            (Some(SocketOptions::new().nodelay(false)), (false, Some(keepalive(60, 10)))),
            (Some(SocketOptions::new().keepalive(None)), (true, None)),
            (after(Duration::from_secs(90)), (true, Some(keepalive(90, 15)))),
            // The shortest and the longest.
            (after(Duration::ZERO), (true, Some(keepalive(1, 1)))),
            (after(Duration::from_secs(24 * 60 * 60)), (true, Some(keepalive(32_767, 5_461)))),
            (after(Duration::MAX), (true, Some(keepalive(32_767, 5_461)))),
        ]
    }

    #[tokio::test]
    async fn serve_sets_the_options_of_each_connection() {
        for (options, expected) in cases() {
            let (report, mut reports) = mpsc::unbounded_channel();
            let service = tower::service_fn(move |connection: Connection<TcpStream>| {
                report.send(found(connection.get_ref())).unwrap();
                async { Ok::<_, io::Error>(()) }
            });
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let mut server = serve(listener, service);
            if let Some(options) = options {
                server = server.socket_options(options);
            }
            let server = tokio::spawn(server.into_future());
            let _client = TcpStream::connect(addr).await.unwrap();
            assert_eq!(reports.recv().await.unwrap(), expected, "{options:?}");
            server.abort();
        }
    }

    #[tokio::test]
    async fn incoming_sets_the_options_of_each_connection() {
        for (options, expected) in cases() {
            let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
            let mut builder = Incoming::builder(TcpListener::bind("127.0.0.1:0").await.unwrap(), layer);
            if let Some(options) = options {
                builder = builder.socket_options(options);
            }
            let mut incoming = builder.start().unwrap();
            let client = TcpStream::connect(*incoming.local_addr()).await.unwrap();
            let (client, accepted) = tokio::join!(connector("key").connect(client), incoming.accept());
            assert_eq!(found(accepted.unwrap().get_ref().get_ref()), expected, "{options:?}");
            client.unwrap();
        }
    }
}

/// The options can be set on any stream with a socket, and streams without one ignore them.
#[tokio::test]
async fn options_are_set_through_wrappers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (client, server) = (TcpStream::connect(addr).await.unwrap(), listener.accept().await.unwrap().0);
    let client = Connection::new(Box::new(client), addr, &tokio_util::sync::CancellationToken::new());
    client.set_socket_options(&SocketOptions::new()).unwrap();
    let socket = SockRef::from(&**client.get_ref());
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    client.set_socket_options(&SocketOptions::new().nodelay(false).keepalive(None)).unwrap();
    assert!(!socket.tcp_nodelay().unwrap() && !socket.keepalive().unwrap());
    drop(server);
    duplex(1).0.set_socket_options(&SocketOptions::new()).unwrap();
}

/// A stream whose socket may reject options, as that of macOS does after the peer has closed the connection.
struct Rejects {
    io: DuplexStream,
    error: Option<i32>,
}

impl Transport for Rejects {
    fn set_socket_options(&self, _: &SocketOptions) -> io::Result<()> {
        self.error.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code)))
    }
}

impl AsyncRead for Rejects {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rejects {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A listener with these connections, all of which are ready at once.
struct Ready(VecDeque<(Rejects, SocketAddr)>);

impl Listener for Ready {
    type Io = Rejects;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<io::Result<(Rejects, SocketAddr)>> {
        self.0.pop_front().map_or(Poll::Pending, |accepted| Poll::Ready(Ok(accepted)))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([192, 0, 2, 254], 80).into())
    }
}

const EINVAL: i32 = 22;

/// Creates a listener with 20 connections, of which every second one has a socket that rejects the options, and the
/// clients.
fn half_of_them_reject() -> (Ready, Vec<(SocketAddr, DuplexStream)>) {
    let mut accepts = VecDeque::new();
    let mut clients = Vec::new();
    for last in 0..20 {
        let addr = ([192, 0, 2, last], 4711).into();
        let (client, io) = duplex(64);
        accepts.push_back((Rejects { io, error: (last % 2 == 0).then_some(EINVAL) }, addr));
        clients.push((addr, client));
    }
    (Ready(accepts), clients)
}

/// Asserts what the clients and `on_error` see.
async fn assert_half_of_them_end(
    clients: Vec<(SocketAddr, DuplexStream)>,
    mut errors: mpsc::UnboundedReceiver<ServeError<SocketAddr>>,
) {
    let begin = Instant::now();
    let mut rejected = Vec::new();
    for (at, (addr, mut client)) in clients.into_iter().enumerate() {
        if at % 2 == 0 {
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "closed");
            rejected.push(addr);
        } else {
            connector("key").connect(client).await.unwrap();
        }
    }
    assert_eq!(begin.elapsed(), Duration::ZERO, "the loop did not pause");
    for addr in rejected {
        match errors.recv().await.unwrap() {
            ServeError::Connection { addr: from, error } => {
                assert_eq!(from, addr);
                assert_eq!(error.downcast_ref::<io::Error>().unwrap().raw_os_error(), Some(EINVAL));
            }
            other => panic!("{other}"),
        }
    }
    assert!(errors.try_recv().is_err());
}

/// With paused time, so that a pause of the loop would be seen.
#[tokio::test(start_paused = true)]
async fn rejected_options_end_that_connection_alone() {
    let layer = || ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
    let (listener, clients) = half_of_them_reject();
    let (report, errors) = mpsc::unbounded_channel();
    let service = ServiceBuilder::new().layer(layer()).service_fn(|_| async { Ok::<_, io::Error>(()) });
    let server = serve(listener, service).on_error(move |error| report.send(error).unwrap());
    // A connection that was closed no longer counts.
    let server = tokio::spawn(server.max_connections(1).into_future());
    assert_half_of_them_end(clients, errors).await;
    server.abort();

    let (listener, clients) = half_of_them_reject();
    let (report, errors) = mpsc::unbounded_channel();
    let _incoming = Incoming::builder(listener, layer())
        .on_error(move |error| report.send(error).unwrap())
        .start()
        .unwrap();
    assert_half_of_them_end(clients, errors).await;
}
