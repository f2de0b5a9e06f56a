//! The PROXY protocol: which connections must have a header, what is read, and which address is limited and throttled.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use HandshakeErrorKind::Probe;
use tokio::net::{TcpListener, TcpStream};
use tower_challenge::prepare::{Proxied, ProxyProtocol};

use super::*;
use crate::support::{ACCEPTED, read_array};

/// The load balancer, which is trusted.
const BALANCER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 50_000);

/// Connections of the load balancer itself, such as a health check.
const UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";
const ITSELF: &[u8] = b"PROXY TCP4 10.0.0.1 198.51.100.1 50000 443\r\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn trusted() -> ProxyProtocol {
    ProxyProtocol::from_trusted(["10.0.0.0/8".parse().unwrap()])
}

fn proxied(
    step: ProxyProtocol,
    admission: AdmissionBuilder,
) -> (Acceptor<one_way::Server, ProxyProtocol>, Admission) {
    let (acceptor, admission) = guarded(admission);
    (acceptor.prepare(step), admission)
}

/// Creates a header of version 1 for a client at 192.0.2.`last`.
fn v1(last: u8) -> Vec<u8> {
    format!("PROXY TCP4 192.0.2.{last} 198.51.100.1 4711 443\r\n").into_bytes()
}

/// Creates a header of version 2 for a client at 192.0.2.`last`, with a field that is not known.
fn v2(last: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11".to_vec();
    header.extend([192, 0, 2, last, 198, 51, 100, 1]);
    header.extend([4711_u16.to_be_bytes(), 443_u16.to_be_bytes()].concat());
    header.extend([0xe1, 0, 2, b'h', b'i']);
    header
}

/// Creates both ends of a connection from the load balancer, on which it has sent `bytes`.
async fn balanced(bytes: &[u8]) -> (DuplexStream, Io) {
    let (mut client, server) = duplex(1024);
    client.write_all(bytes).await.unwrap();
    (client, Connection::new(server, BALANCER, &CancellationToken::new()))
}

/// Completes a handshake with a client that has the key.
async fn authenticate<T>(
    client: DuplexStream,
    accept: impl Future<Output = Result<Authenticated<T, Identity>, HandshakeError>>,
) -> Authenticated<T, Identity> {
    let (client, accepted) = tokio::join!(connector("key").connect(client), accept);
    client.unwrap();
    accepted.unwrap()
}

fn reported<T: Transport>(stream: &T) -> Option<SocketAddr> {
    TransportInfo::from_stream(stream).peer_addr
}

/// Nothing is lost and nothing is read past, however the bytes arrive: the byte after the header belongs to the next
/// step.
#[tokio::test]
async fn header_may_arrive_in_any_pieces() {
    let step = trusted();
    let acceptor = acceptor(&["key"]).prepare(step).then_prepare(read_preface::<Proxied<Io>>);
    for header in [v1(1), v2(1)] {
        let sent = [&header[..], b"P"].concat();
        for at in 0..=sent.len() {
            let (mut client, io) = balanced(&sent[..at]).await;
            let accept = tokio::spawn(acceptor.accept(io));
            yield_now().await;
            client.write_all(&sent[at..]).await.unwrap();
            let stream = authenticate(client, async { accept.await.unwrap() }).await;
            assert_eq!((stream.get_ref().preface, reported(&stream)), (b'P', Some(addr(1))), "{at}");
        }
        // One byte at a time, in both directions.
        let (mut client, server) = duplex(1);
        let io = Connection::new(server, BALANCER, &CancellationToken::new());
        let accept = tokio::spawn(acceptor.accept(io));
        client.write_all(&sent).await.unwrap();
        let stream = authenticate(client, async { accept.await.unwrap() }).await;
        assert_eq!((stream.get_ref().preface, reported(&stream)), (b'P', Some(addr(1))));
        let header = stream.get_ref().io.header().unwrap();
        assert_eq!(header.destination(), Some(([198, 51, 100, 1], 443).into()));
    }
}

/// The challenge is sent when the last byte of the header has arrived, and not before.
#[tokio::test]
async fn handshake_begins_at_the_last_byte_of_the_header() {
    let (acceptor, _) = proxied(trusted(), Admission::builder());
    for header in [v1(1), v2(1), UNKNOWN.to_vec(), LOCAL.to_vec()] {
        let (last, rest) = header.split_last().unwrap();
        let (mut client, io) = balanced(rest).await;
        let mut accept = Box::pin(acceptor.accept(io));
        assert!((&mut accept).now_or_never().is_none());
        assert!(client.read(&mut [0]).now_or_never().is_none(), "no challenge yet");
        client.write_all(&[*last]).await.unwrap();
        assert!((&mut accept).now_or_never().is_none());
        let nonce = read_array::<32>(&mut client).now_or_never().unwrap();
        client.write_all(&crate::support::hmac_md5(b"key", &nonce)).await.unwrap();
        client.write_all(b"more").await.unwrap();
        let mut stream = accept.await.unwrap();
        assert_eq!(read_verdict(&mut client).await, ACCEPTED);
        assert_eq!(&read_array::<4>(&mut stream).await, b"more");
    }
}

#[tokio::test(start_paused = true)]
async fn missing_header_is_timed_out_and_charges_no_source() {
    let seconds = Duration::from_secs;
    for (step, expected) in [
        (trusted(), seconds(3)),
        (trusted().timeout(seconds(1)), seconds(1)),
        // The deadline of the handshake.
        (trusted().timeout(seconds(60)), DEFAULT_TIMEOUT),
    ] {
        let (acceptor, admission) = proxied(step, strict());
        let begin = Instant::now();
        let (mut silent, io) = balanced(b"").await;
        let accept = tokio::spawn(acceptor.accept(io));
        // One byte per 400 ms does not extend it.
        let (mut slow, io) = balanced(b"").await;
        let slowly = tokio::spawn(acceptor.accept(io));
        let dribble = tokio::spawn(async move {
            for byte in v1(1) {
                if slow.write_all(&[byte]).await.is_err() {
                    return;
                }
                sleep(Duration::from_millis(400)).await;
            }
            panic!("the header was read to its end");
        });
        for accept in [accept, slowly] {
            let error = accept.await.unwrap().unwrap_err();
            assert_eq!((error.kind(), begin.elapsed()), (TimedOut, expected));
        }
        assert_closed(&mut silent).await;
        assert_eq!((admission.throttled(), admission.pending()), (0, 0));
        dribble.await.unwrap();
    }
    let (acceptor, _) = proxied(trusted(), strict());
    let (_client, io) = balanced(b"PROXY ").await;
    let error = acceptor.accept(io).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "handshake timed out: no PROXY protocol header in time, which is required from this address"
    );
}

#[tokio::test]
async fn anything_but_a_header_from_a_trusted_address_is_malformed() {
    let (acceptor, admission) = proxied(trusted(), strict());
    let too_long_v1 = [b"PROXY TCP4 ", &[b'1'; 200][..]].concat();
    let truncated = [&v1(1)[..10], b"\r\n"].concat();
    for (bytes, detail) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "no PROXY protocol header, which is required from this address"),
        (b"sixteen bytes or more", "no PROXY protocol header, which is required from this address"),
        (&too_long_v1, "a PROXY protocol header of more than 107 bytes"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "a PROXY protocol header of more than 552 bytes"),
        (&truncated, "an invalid PROXY protocol header (version 1)"),
    ] {
        let (mut client, io) = balanced(bytes).await;
        let error = acceptor.accept(io).await.unwrap_err();
        assert_eq!(error.kind(), Malformed);
        assert_eq!(error.to_string(), format!("malformed handshake message: {detail}"));
        assert_closed(&mut client).await;
    }
    let (mut client, io) = balanced(b"PROXY TCP4 192").await;
    client.shutdown().await.unwrap();
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), UnexpectedEof);
    assert_eq!((admission.throttled(), admission.pending()), (0, 0));
}

/// A stream that begins with `start` and then has the same byte without an end.
#[derive(Debug)]
struct Endless {
    start: &'static [u8],
    read: Arc<AtomicUsize>,
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let start = self.start;
        let (now, later) = start.split_at(start.len().min(buf.remaining()));
        self.start = later;
        buf.put_slice(now);
        let rest = buf.remaining();
        buf.initialize_unfilled().fill(b'1');
        buf.advance(rest);
        self.read.fetch_add(buf.filled().len() - before, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn no_more_is_read_than_the_longest_header() {
    let (acceptor, _) = proxied(trusted(), Admission::builder());
    for start in [
        &b"PROXY TCP4 "[..],
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x02\x19",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x02\x18",
    ] {
        let read = Arc::new(AtomicUsize::new(0));
        let endless = Endless { start, read: Arc::clone(&read) };
        let info = TransportInfo::new().peer_addr(BALANCER);
        let io = WithInfo::new(tokio::io::join(endless, tokio::io::sink()), info);
        assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Malformed);
        let read = read.load(Ordering::Relaxed);
        assert!(read <= 552, "{read}");
    }
}

/// The load balancer's own connections and those of clients without an IP address keep the address of the socket, and no
/// source is limited or charged for them.
#[tokio::test]
async fn header_without_address_keeps_the_address_of_the_socket() {
    let unix = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xd8"[..], &[0; 216]].concat();
    for header in [UNKNOWN, b"PROXY UNKNOWN 192.0.2.1 192.0.2.2 1 2\r\n", ITSELF, LOCAL, &unix] {
        let (acceptor, admission) = proxied(trusted(), strict().max_pending(4).max_per_source(1));
        let (client, io) = balanced(header).await;
        let stream = authenticate(client, acceptor.accept(io)).await;
        assert_eq!(reported(&stream), Some(BALANCER));
        let expected = (header == ITSELF).then_some(BALANCER);
        assert_eq!(stream.get_ref().header().unwrap().source(), expected);

        let (client, io) = balanced(header).await;
        assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
        assert_eq!(admission.throttled(), 0);

        // The limit of a source does not apply.
        let mut clients = Vec::new();
        let mut accepts = Vec::new();
        for _ in 0..4 {
            let (client, io) = balanced(header).await;
            let mut accept = Box::pin(acceptor.accept(io));
            assert!((&mut accept).now_or_never().is_none());
            clients.push(client);
            accepts.push(accept);
        }
        assert_eq!(admission.pending(), 4);
    }
}

/// A client on the host of the load balancer has another port.
#[tokio::test]
async fn client_with_the_ip_address_of_the_load_balancer_is_a_client() {
    let (acceptor, admission) = proxied(trusted(), strict());
    let (client, io) = balanced(b"PROXY TCP4 10.0.0.1 198.51.100.1 50001 443\r\n").await;
    assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
    assert_eq!(admission.throttled(), 1);
    // That source is throttled now, and the load balancer's connections for other clients are not.
    let (client, io) = balanced(&v1(1)).await;
    authenticate(client, acceptor.accept(io)).await;
}

/// Load balancers check a server by a connection that they close or reset at once, with or without a header.
#[tokio::test]
async fn health_checks_are_probes() {
    let (acceptor, admission) = proxied(trusted(), strict());
    let tls = acceptor.clone().then_prepare(read_preface::<Proxied<Io>>);
    for header in [b"", UNKNOWN, ITSELF, LOCAL] {
        let (mut client, io) = balanced(header).await;
        client.shutdown().await.unwrap();
        assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Probe);
        // Before the first byte of a further step.
        let (mut client, io) = balanced(header).await;
        client.shutdown().await.unwrap();
        assert_eq!(tls.accept(io).await.unwrap_err().kind(), Probe);
    }
    // A client that ends in that step is no probe.
    let (mut client, io) = balanced(&v1(1)).await;
    client.shutdown().await.unwrap();
    assert_eq!(tls.accept(io).await.unwrap_err().kind(), UnexpectedEof);
    assert!(is_throttled(&admission, 1));
    assert_eq!(admission.throttled(), 1);

    // A reset, over TCP.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for header in [b"", UNKNOWN, ITSELF, LOCAL] {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.write_all(header).await.unwrap();
        client.set_zero_linger().unwrap();
        drop(client);
        let io = Connection::new(server, BALANCER, &CancellationToken::new());
        assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Probe);
    }
    assert_eq!((admission.throttled(), admission.pending()), (1, 0));
}

/// From any other address no header is read: its bytes belong to the handshake, which refuses them.
#[tokio::test]
async fn header_from_an_untrusted_address_is_refused() {
    for (last, header, name) in [(1, v1(9), "version 1"), (2, v2(9), "version 2")] {
        let (acceptor, admission) = proxied(trusted(), strict());
        let (mut client, io) = from(last);
        let accept = tokio::spawn(acceptor.accept(io));
        client.write_all(&header).await.unwrap();
        read_array::<32>(&mut client).await;
        assert_eq!(read_verdict(&mut client).await, REFUSED);
        drop(client);
        let error = accept.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Refused);
        let expected = format!("the peer speaks the PROXY protocol ({name}), this side `one_way`");
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert!(is_throttled(&admission, last) && !is_throttled(&admission, 9), "the socket's address");

        // Without a header, the handshake as always.
        let (client, io) = from(3);
        let stream = authenticate(client, acceptor.accept(io)).await;
        assert_eq!((reported(&stream), stream.get_ref().header()), (Some(addr(3)), None));
    }
}

#[tokio::test]
async fn ipv4_mapped_addresses_count_as_ipv4() {
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:50000".parse().unwrap();
    for (prefix, from) in
        [("10.0.0.0/8", mapped), ("::ffff:10.0.0.0/104", BALANCER), ("::ffff:10.0.0.0/104", mapped)]
    {
        let step = ProxyProtocol::from_trusted([prefix.parse().unwrap()]);
        let (acceptor, admission) = proxied(step, strict());
        let (mut client, io) = connection(from);
        client.write_all(b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 4711 443\r\n").await.unwrap();
        assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
        assert!(is_throttled(&admission, 7), "{prefix} {from}");
        assert_eq!(admission.throttled(), 1);
    }
}

/// One client behind the load balancer is throttled, and no other.
#[tokio::test]
async fn penalties_apply_to_the_address_in_the_header() {
    let (acceptor, admission) = proxied(trusted(), strict());
    for header in [v1(1), v2(2)] {
        let (client, io) = balanced(&header).await;
        assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
    }
    assert!(is_throttled(&admission, 1) && is_throttled(&admission, 2));
    assert_eq!(admission.throttled(), 2, "not the load balancer");

    for header in [v1(1), v2(1), v1(2)] {
        let (mut client, io) = balanced(&header).await;
        assert_eq!(kind(acceptor.accept(io).now_or_never()), Some(Throttled));
        assert_closed(&mut client).await;
    }
    for header in [v1(3), v2(4), UNKNOWN.to_vec()] {
        let (client, io) = balanced(&header).await;
        authenticate(client, acceptor.accept(io)).await;
    }
    // It is the same source on a direct connection.
    assert_eq!(kind(acceptor.accept(from(1).1).now_or_never()), Some(Throttled));
    assert_eq!((admission.throttled(), admission.pending()), (2, 0));
}

#[tokio::test]
async fn failure_of_a_step_after_the_header_charges_the_client() {
    let (acceptor, admission) = proxied(trusted(), strict());
    let acceptor = acceptor.then_prepare(read_preface::<Proxied<Io>>);
    let (_client, io) = balanced(&[&v1(1)[..], b"!"].concat()).await;
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Malformed);
    // An abandoned handshake as well.
    let (_client, io) = balanced(&v1(2)).await;
    assert!(acceptor.accept(io).now_or_never().is_none());
    // Not the load balancer, neither before the header nor on a connection of its own.
    let (_client, io) = balanced(b"").await;
    assert!(acceptor.accept(io).now_or_never().is_none());
    let (_client, io) = balanced(&[UNKNOWN, b"!"].concat()).await;
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Malformed);
    assert!(is_throttled(&admission, 1) && is_throttled(&admission, 2));
    assert_eq!(admission.throttled(), 2);
}

/// A header may also come after another step, such as TLS. Until then no source is charged either.
#[tokio::test]
async fn header_after_another_step() {
    let (acceptor, admission) = guarded(strict());
    let acceptor = acceptor.prepare(read_preface::<Io>).then_prepare(trusted());
    let (_client, io) = balanced(b"!").await;
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Malformed);
    let (_client, io) = balanced(b"AGET / HTTP/1.1\r\n").await;
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Malformed);
    assert_eq!(admission.throttled(), 0);
    let (client, io) = balanced(&[b"A", &v1(1)[..]].concat()).await;
    assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
    assert_eq!(admission.throttled(), 1);
    assert!(is_throttled(&admission, 1));

    // A load balancer behind another one: the address in the first header must send a header, too.
    let (acceptor, admission) = proxied(trusted(), strict());
    let acceptor = acceptor.then_prepare(trusted());
    let inner = b"PROXY TCP4 10.0.0.2 10.0.0.1 4711 443\r\n";
    let (_client, io) = balanced(&[inner, &b"GET / HTTP/1.1\r\n"[..]].concat()).await;
    assert_eq!(acceptor.accept(io).await.unwrap_err().kind(), Malformed);
    assert_eq!(admission.throttled(), 0);
    let (client, io) = balanced(&[inner, &v2(2)[..]].concat()).await;
    let stream = authenticate(client, acceptor.accept(io)).await;
    assert_eq!(reported(&stream), Some(addr(2)));
}

#[tokio::test]
async fn admitted_slot_of_the_load_balancer_is_not_charged() {
    let (acceptor, admission) = proxied(trusted(), strict());
    let slot = || acceptor.admit(Some(BALANCER.ip())).unwrap();
    let (_client, io) = balanced(b"GET / HTTP/1.1\r\n").await;
    assert_eq!(acceptor.accept_admitted(io, slot()).await.unwrap_err().kind(), Malformed);
    assert_eq!(admission.throttled(), 0);
    let (client, io) = balanced(&v1(1)).await;
    assert_eq!(refuse(client, acceptor.accept_admitted(io, slot())).await, Refused);
    assert!(is_throttled(&admission, 1));
    assert_eq!(admission.throttled(), 1);
}

#[tokio::test]
async fn source_limit_and_exemptions_apply_to_the_address_in_the_header() {
    let exempt = "192.0.2.128/25".parse().unwrap();
    let (acceptor, admission) = proxied(trusted(), strict().max_pending(8).max_per_source(1).exempt(exempt));
    let mut in_flight = Vec::new();
    for last in 1..=6 {
        let (client, io) = balanced(&v1(last)).await;
        let mut accept = Box::pin(acceptor.accept(io));
        assert!((&mut accept).now_or_never().is_none());
        in_flight.push((client, accept));
    }
    // Three quarters are in use.
    let (_client, io) = balanced(&v1(1)).await;
    assert_eq!(kind(acceptor.accept(io).now_or_never()), Some(SourceLimit));
    let (_client, io) = balanced(&v1(7)).await;
    assert_eq!(kind(acceptor.accept(io).now_or_never()), None);
    drop(in_flight);

    for _ in 0..3 {
        let (client, io) = balanced(&v1(200)).await;
        assert_eq!(refuse(client, acceptor.accept(io)).await, Refused);
    }
    assert!(!is_throttled(&admission, 200));
    assert_eq!(admission.pending(), 0);
}

/// The age of a handshake begins with its connection, not with its header.
#[tokio::test(start_paused = true)]
async fn connections_are_evicted_by_their_age_before_and_after_the_header() {
    let (acceptor, _) = proxied(trusted(), Admission::builder().max_pending(2));
    let second = || sleep(Duration::from_secs(1));
    let (mut oldest, io) = balanced(b"").await;
    let mut with_header = tokio_test::task::spawn(acceptor.accept(io));
    assert!(with_header.poll().is_pending());
    second().await;
    let (_client, io) = balanced(b"").await;
    let mut without_header = tokio_test::task::spawn(acceptor.accept(io));
    assert!(without_header.poll().is_pending());
    second().await;
    oldest.write_all(&v1(1)).await.unwrap();
    assert!(with_header.poll().is_pending());
    let _third = acceptor.accept(from(3).1);
    assert!(with_header.is_woken() && !without_header.is_woken());
    assert_eq!(with_header.await.unwrap_err().kind(), Evicted);
    let _fourth = acceptor.accept(from(4).1);
    let error = without_header.await.unwrap_err();
    assert_eq!(error.to_string(), "evicted in favor of a new connection: in a step before the handshake");
}

/// Also for an address type that can hold IPv4 addresses alone.
#[tokio::test]
async fn incoming_returns_the_address_in_the_header() {
    let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"]))).prepare(trusted());
    let (connections, accepts) = mpsc::unbounded_channel();
    let mut incoming = Incoming::builder(Accepts(accepts), layer).start().unwrap();
    for (socket, header, expected) in [
        (BALANCER, v1(1), addr(1)),
        (BALANCER, v2(2), addr(2)),
        (BALANCER, LOCAL.to_vec(), BALANCER),
        (addr(3), Vec::new(), addr(3)),
    ] {
        let (mut client, server) = duplex(256);
        connections.send((server, socket)).unwrap();
        client.write_all(&header).await.unwrap();
        connector("key").connect(client).await.unwrap();
        let (stream, from) = incoming.accept_with_addr().await.unwrap();
        assert_eq!((from, *stream.get_ref().get_ref().addr()), (expected, socket));
        assert_eq!(reported(&stream), Some(expected));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn unix_sockets_are_trusted_on_request() {
    use tokio::net::{UnixListener, UnixStream};

    let directory = tempfile::tempdir().unwrap();
    for (step, last) in [(trusted().trust_unix_sockets(), 1), (trusted(), 2)] {
        let path = directory.path().join(last.to_string());
        let admission = strict().build().unwrap();
        let layer = ChallengeLayer::new(one_way::Server::new(ring(&["key"])))
            .admission(admission.clone())
            .prepare(step);
        let (report, mut errors) = mpsc::unbounded_channel();
        let mut incoming = Incoming::builder(UnixListener::bind(&path).unwrap(), layer)
            .on_error(move |error| report.send(error.handshake_error().unwrap().kind()).unwrap())
            .start()
            .unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(&v2(last)).await.unwrap();
        if last == 1 {
            let (client, accepted) = tokio::join!(connector("key").connect(client), incoming.accept());
            client.unwrap();
            assert_eq!(reported(&accepted.unwrap()), Some(addr(last)));
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(&v1(last)).await.unwrap();
            answer_by_hand(&mut client, "wrong").await;
            assert_eq!(read_verdict(&mut client).await, REFUSED);
            drop(client);
            assert_eq!(errors.recv().await.unwrap(), Refused);
            assert!(is_throttled(&admission, last), "the client's address");
            // It is required.
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(b"no header").await.unwrap();
            assert_eq!(errors.recv().await.unwrap(), Malformed);
        } else {
            read_array::<32>(&mut client).await;
            assert_eq!(read_verdict(&mut client).await, REFUSED);
            drop(client);
            assert_eq!(errors.recv().await.unwrap(), Refused);
            assert_eq!(admission.throttled(), 0);
        }
    }
}
