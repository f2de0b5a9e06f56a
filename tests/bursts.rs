//! Many handshakes at once: legitimate clients that share an address are all admitted, and no source can use the limits
//! against another one. All with the default settings of admission control.
#![cfg(feature = "net")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use HandshakeErrorKind::{Evicted, Refused, SourceLimit};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex,
    split,
};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, advance, sleep, sleep_until};
use tokio_util::net::Listener;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_challenge::admission::{Admission, Slot};
use tower_challenge::{
    Acceptor, Authenticated, ChallengeLayer, Connection, HandshakeError, HandshakeErrorKind, Identity,
    one_way, serve,
};

use crate::support::{REFUSED, acceptor, answer_by_hand, connector, hmac_md5, read_verdict, ring};

type Io = Connection<DuplexStream>;
type Accepted = Result<Authenticated<Io, Identity>, HandshakeError>;

/// The default of `max_pending`.
const CAP: usize = 1024;
/// The default of `max_per_source`, a quarter of it.
const SHARE: usize = 256;

/// The address of the clients that share one.
const SHARED: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn guarded() -> (Acceptor<one_way::Server>, Admission) {
    let admission = Admission::default();
    (acceptor(&["key"]).admission(admission.clone()), admission)
}

/// Creates both ends of a connection.
fn from(ip: IpAddr) -> (DuplexStream, Io) {
    let (client, server) = duplex(256);
    (client, Connection::new(server, SocketAddr::new(ip, 4711), &CancellationToken::new()))
}

/// An address of another source.
fn other(number: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap()).into()
}

/// Starts a handshake from `ip`, whose client has read the challenge.
async fn challenged(acceptor: &Acceptor<one_way::Server>, ip: IpAddr) -> Option<Challenged> {
    let (mut client, io) = from(ip);
    let accept = tokio::spawn(acceptor.accept(io));
    let mut nonce = [0; 32];
    // A connection that is not admitted is closed.
    client.read_exact(&mut nonce).await.ok()?;
    Some(Challenged { client, nonce, accept })
}

struct Challenged {
    client: DuplexStream,
    nonce: [u8; 32],
    accept: JoinHandle<Accepted>,
}

impl Challenged {
    async fn answer(mut self) -> Accepted {
        self.client.write_all(&hmac_md5(b"key", &self.nonce)).await.unwrap();
        self.accept.await.unwrap()
    }
}

/// Runs a legitimate handshake. Fails if it has to wait for another one to end.
async fn connects(acceptor: &Acceptor<one_way::Server>, ip: IpAddr) {
    let begin = Instant::now();
    let handshake = challenged(acceptor, ip).await.expect("admitted");
    handshake.answer().await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO, "at once");
}

/// Starts `count` handshakes from `ip`, and returns those that are admitted.
async fn burst(acceptor: &Acceptor<one_way::Server>, ip: IpAddr, count: usize) -> Vec<Challenged> {
    let mut admitted = Vec::new();
    for _ in 0..count {
        admitted.extend(challenged(acceptor, ip).await);
    }
    admitted
}

/// A silent peer: waits until it is evicted.
fn silent(admission: &Admission, ip: IpAddr) -> Result<JoinHandle<()>, HandshakeErrorKind> {
    let mut slot = admission.admit(Some(ip)).map_err(|error| error.kind())?;
    Ok(tokio::spawn(async move {
        slot.evicted().await;
        slot.failed(Evicted);
    }))
}

/// Starts `count` refused peers from `ip`, which read their verdict and stay.
async fn refused_peers_that_stay(
    acceptor: &Acceptor<one_way::Server>,
    ip: IpAddr,
    count: usize,
) -> Vec<(DuplexStream, JoinHandle<Accepted>)> {
    let mut refused = Vec::new();
    for _ in 0..count {
        let (mut client, io) = from(ip);
        let accept = tokio::spawn(acceptor.accept(io));
        answer_by_hand(&mut client, "wrong").await;
        assert_eq!(read_verdict(&mut client).await, REFUSED);
        refused.push((client, accept));
    }
    refused
}

/// Passes bytes on, each after a delay, as a long cable does.
async fn delay(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, time: Duration) {
    let (arrive, mut arrivals) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reads = async move {
        let mut buf = [0; 256];
        while let Ok(len @ 1..) = from.read(&mut buf).await {
            let _ = arrive.send((Instant::now() + time, buf[..len].to_vec()));
        }
    };
    let writes = async move {
        while let Some((at, bytes)) = arrivals.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The end of the stream takes the same time.
        sleep(time).await;
        let _ = to.shutdown().await;
    };
    tokio::join!(reads, writes);
}

/// Creates both ends of a connection over a network with this time for a round trip.
fn distant(round_trip: Duration) -> (DuplexStream, DuplexStream) {
    let (client, near) = duplex(256);
    let (far, server) = duplex(256);
    let ((near_reads, near_writes), (far_reads, far_writes)) = (split(near), split(far));
    tokio::spawn(delay(near_reads, far_writes, round_trip / 2));
    tokio::spawn(delay(far_reads, near_writes, round_trip / 2));
    (client, server)
}

/// A listener that accepts what the test sends.
struct Accepts(mpsc::UnboundedReceiver<(DuplexStream, SocketAddr)>);

impl Listener for Accepts {
    type Io = DuplexStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(DuplexStream, SocketAddr)>> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(accepted)) => Poll::Ready(Ok(accepted)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((SHARED, 8888).into())
    }
}

async fn echo(mut stream: Authenticated<Io, Identity>) -> io::Result<()> {
    let byte = stream.read_u8().await?;
    stream.write_u8(byte).await
}

async fn is_echoed<IO: AsyncRead + AsyncWrite + Unpin>(mut stream: IO) -> io::Result<bool> {
    stream.write_u8(7).await?;
    Ok(stream.read_u8().await? == 7)
}

/// A sidecar opens all its sessions at once, after a restart for example.
#[tokio::test(start_paused = true)]
async fn four_hundred_distant_sessions_of_one_address_succeed_at_once() {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])));
    let service = ServiceBuilder::new().layer(layer).service_fn(echo);
    let (accepts, listener) = mpsc::unbounded_channel();
    let server = tokio::spawn(serve(Accepts(listener), service).into_future());
    let begin = Instant::now();
    let mut sessions = JoinSet::new();
    for port in 0..400 {
        let (client, io) = distant(Duration::from_millis(80));
        accepts.send((io, SocketAddr::new(SHARED, 10_000 + port))).unwrap();
        sessions.spawn(async move {
            let stream = connector("key").connect(client).await.map_err(|error| error.to_string())?;
            is_echoed(stream).await.map_err(|error| error.to_string())
        });
    }
    assert_eq!(sessions.join_all().await, vec![Ok(true); 400]);
    // The challenge arrives, the answer and its verdict, and the echo: half a round trip and two whole ones.
    let took = begin.elapsed().as_millis();
    assert!((200..220).contains(&took), "{took} ms");
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn six_hundred_clients_of_one_address_are_in_flight_at_once() {
    let (acceptor, admission) = guarded();
    let clients = burst(&acceptor, SHARED, 600).await;
    assert_eq!((clients.len(), admission.pending()), (600, 600));
    for client in clients {
        client.answer().await.unwrap();
    }
    assert_eq!(admission.pending(), 0);
}

/// For example clients with a key that was replaced, which leak their sockets.
#[tokio::test(start_paused = true)]
async fn refused_peers_that_stay_do_not_keep_out_their_own_address() {
    for count in [125, SHARE, CAP] {
        let (acceptor, admission) = guarded();
        let refused = refused_peers_that_stay(&acceptor, SHARED, count).await;
        assert_eq!(admission.pending(), count);
        let clients = burst(&acceptor, SHARED, 600).await;
        assert_eq!(clients.len(), 600);
        for client in clients {
            client.answer().await.unwrap();
        }
        // Some were evicted if there was no room for all. They are still reported as refused.
        let evicted = (count + 600).saturating_sub(CAP);
        assert_eq!(admission.pending(), count - evicted);
        let mut ended = 0;
        for (_client, accept) in refused {
            if accept.is_finished() {
                assert_eq!(accept.await.unwrap().unwrap_err().kind(), Refused);
                ended += 1;
            }
        }
        assert_eq!(ended, evicted);
    }
}

/// A slot of a refused peer is as good as free. Otherwise one source could have the limit applied to all others.
#[tokio::test(start_paused = true)]
async fn refused_peers_that_stay_do_not_limit_other_sources() {
    let (acceptor, admission) = guarded();
    let refused = refused_peers_that_stay(&acceptor, SHARED, CAP).await;
    assert_eq!(admission.pending(), CAP);
    let clients = burst(&acceptor, other(1), 600).await;
    assert_eq!(clients.len(), 600);
    for client in clients {
        client.answer().await.unwrap();
    }
    drop(refused);
}

#[tokio::test(start_paused = true)]
async fn one_source_gets_three_quarters_and_others_connect_at_once() {
    let (acceptor, admission) = guarded();
    let mut attack = JoinSet::new();
    let mut fill = |admission: &Admission| {
        let mut admitted = 0;
        loop {
            match admission.admit(Some(SHARED)) {
                Ok(mut slot) => {
                    admitted += 1;
                    attack.spawn(async move { slot.evicted().await });
                }
                Err(error) => {
                    assert_eq!(error.kind(), SourceLimit);
                    return admitted;
                }
            }
        }
    };
    assert_eq!(fill(&admission), CAP - SHARE);
    for number in 0..1_000 {
        advance(Duration::from_millis(1)).await;
        connects(&acceptor, other(number)).await;
        assert_eq!(fill(&admission), 0);
    }
    // A burst of another source has the rest, and its limit.
    let clients = burst(&acceptor, other(0), 600).await;
    assert_eq!((clients.len(), admission.pending()), (SHARE, CAP));
    // Beyond the cap, the attacker loses its handshakes.
    for number in 1..=1_000 {
        connects(&acceptor, other(number)).await;
        assert_eq!(fill(&admission), 0);
    }
    for client in clients {
        client.answer().await.unwrap();
    }
}

/// Four sources can take all slots. Then a newcomer takes one of theirs.
#[tokio::test(start_paused = true)]
async fn several_sources_that_fill_the_cap_are_evicted() {
    let (acceptor, admission) = guarded();
    let mut attack = Vec::new();
    for round in 0..2 * CAP {
        match silent(&admission, other(round % 4)) {
            Ok(peer) => attack.push(peer),
            Err(kind) => assert_eq!(kind, SourceLimit),
        }
    }
    assert_eq!((attack.len(), admission.pending()), (CAP, CAP));
    for number in 4..500 {
        advance(Duration::from_millis(10)).await;
        connects(&acceptor, other(number)).await;
        // The attackers try to take the slot back.
        for attacker in 0..4 {
            attack.extend(silent(&admission, other(attacker)));
        }
        assert!(admission.pending() <= CAP);
    }
    for peer in attack {
        peer.abort();
    }
}

/// While three quarters are in use, a source keeps its limit, whoever uses them.
#[tokio::test(start_paused = true)]
async fn source_limit_applies_under_attack() {
    let (acceptor, admission) = guarded();
    let attack: Vec<JoinHandle<()>> =
        (0..CAP - SHARE).map(|number| silent(&admission, other(number)).unwrap()).collect();
    let clients = burst(&acceptor, SHARED, 600).await;
    assert_eq!(clients.len(), SHARE);
    // When the attack ends, so does the limit.
    for peer in &attack {
        peer.abort();
    }
    for peer in attack {
        peer.await.unwrap_err();
    }
    assert_eq!(burst(&acceptor, SHARED, 400).await.len(), 400);
}

/// 1,000 silent peers a second, each from another address, while clients need 100 ms for a handshake.
#[tokio::test(start_paused = true)]
async fn clients_connect_while_ten_thousand_sources_attack() {
    let (acceptor, admission) = guarded();
    let mut attack = Vec::new();
    let mut clients: Vec<Challenged> = Vec::new();
    for number in 0..10_000 {
        attack.push(silent(&admission, other(number)).expect("each source is below its limit"));
        advance(Duration::from_millis(1)).await;
        if number % 100 == 0 {
            for client in clients.drain(..) {
                client.answer().await.unwrap();
            }
            // Several behind one address, and one on its own.
            for ip in [SHARED, SHARED, SHARED, Ipv4Addr::new(192, 0, 2, 2).into()] {
                clients.push(challenged(&acceptor, ip).await.expect("admitted"));
            }
        }
        assert!(admission.pending() <= CAP);
    }
    for peer in attack {
        peer.abort();
    }
}

/// Slots are released however many come and go.
#[tokio::test(start_paused = true)]
async fn nothing_is_in_flight_after_the_bursts() {
    let admission = Admission::default();
    for round in 0..3 {
        let slots: Vec<Slot> = (0..3 * CAP)
            .filter_map(|number| admission.admit(Some(other(number % (10 << round)))).ok())
            .collect();
        assert_eq!(admission.pending(), CAP);
        drop(slots);
        assert_eq!(admission.pending(), 0);
    }
}
