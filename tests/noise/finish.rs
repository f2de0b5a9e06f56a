//! A peer that has its ANSWER has proven nothing before FINISH. Meanwhile it has one slot until the deadline, can be
//! evicted, and is charged if it fails.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use HandshakeErrorKind::{Evicted, Refused, Revoked, TimedOut, UnexpectedEof};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::advance;
use tokio_util::sync::CancellationToken;
use tower::{Layer as _, Service as _, service_fn};
use tower_challenge::admission::{Admission, Penalties};
use tower_challenge::noise::{self, NoiseStream};
use tower_challenge::{
    AcceptError, Acceptor, Authenticated, ChallengeLayer, Connection, Connector, HandshakeError,
    HandshakeErrorKind, Key, KeyEntry, RefusalReason,
};

use crate::support::{audience, client, pass_on, read_frame, ring, server};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

type Io = Connection<DuplexStream>;
type Stream = Authenticated<NoiseStream<Io>, noise::Peer>;
type Accepting = JoinHandle<Result<Stream, HandshakeError>>;

fn addr(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4711).into()
}

/// Creates both ends of a connection from 192.0.2.`last`.
fn from(last: u8) -> (DuplexStream, Io) {
    let (near, far) = duplex(4096);
    (near, Connection::new(far, addr(last), &CancellationToken::new()))
}

/// An acceptor for one pending handshake, which throttles a source at its first penalty, for as long as that is.
fn guarded() -> (Acceptor<noise::Server<noise::KeyRing>>, Admission) {
    let penalties = Penalties::new().threshold(Duration::ZERO).evicted(2 * SECOND);
    let admission = Admission::builder().max_pending(1).penalties(penalties).build().unwrap();
    (Acceptor::new(server()).admission(admission.clone()), admission)
}

/// Runs a client up to its FINISH, which is returned instead of passed on.
async fn withhold_finish(to_server: &mut DuplexStream) -> Vec<u8> {
    let (io, mut near) = duplex(4096);
    let connecting = tokio::spawn(Connector::new(client()).connect(io));
    pass_on(&mut near, to_server).await;
    pass_on(to_server, &mut near).await;
    let finish = read_frame(&mut near).await;
    connecting.await.unwrap().unwrap();
    finish
}

/// Starts a handshake from 192.0.2.1 that waits for FINISH.
async fn waiting(acceptor: &Acceptor<noise::Server<noise::KeyRing>>) -> (Accepting, DuplexStream, Vec<u8>) {
    let (mut near, io) = from(1);
    let accepting = tokio::spawn(acceptor.accept(io));
    let finish = withhold_finish(&mut near).await;
    tokio::task::yield_now().await;
    assert!(!accepting.is_finished());
    (accepting, near, finish)
}

/// Checks that the only throttled source is throttled for exactly this time from now on.
async fn assert_throttled_for(admission: &Admission, time: Duration) {
    assert_eq!((admission.pending(), admission.throttled()), (0, 1));
    advance(time.checked_sub(MILLISECOND).unwrap()).await;
    assert_eq!(admission.throttled(), 1, "for less than {time:?}");
    advance(MILLISECOND).await;
    assert_eq!(admission.throttled(), 0, "for more than {time:?}");
}

#[tokio::test(start_paused = true)]
async fn withheld_finish_holds_a_slot_until_the_deadline() {
    let (acceptor, admission) = guarded();
    let (accepting, _near, _) = waiting(&acceptor.timeout(3 * SECOND)).await;
    advance((3 * SECOND).checked_sub(MILLISECOND).unwrap()).await;
    tokio::task::yield_now().await;
    assert_eq!((admission.pending(), admission.throttled(), accepting.is_finished()), (1, 0, false));
    advance(MILLISECOND).await;
    assert_eq!(accepting.await.unwrap().unwrap_err().kind(), TimedOut);
    assert_throttled_for(&admission, 10 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn peer_without_finish_is_evicted() {
    let (acceptor, admission) = guarded();
    let (accepting, _near, _) = waiting(&acceptor).await;
    let (near, io) = from(2);
    // A newcomer takes the slot, and succeeds.
    let (accepted, connected) = tokio::join!(acceptor.accept(io), Connector::new(client()).connect(near));
    accepted.unwrap();
    connected.unwrap();
    assert_eq!(accepting.await.unwrap().unwrap_err().kind(), Evicted);
    assert_throttled_for(&admission, 2 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn connection_that_ends_before_finish_is_charged() {
    for in_part_of_finish in [false, true] {
        let (acceptor, admission) = guarded();
        let (accepting, mut near, finish) = waiting(&acceptor).await;
        advance(4 * SECOND).await;
        if in_part_of_finish {
            near.write_all(&finish[..10]).await.unwrap();
        }
        drop(near);
        assert_eq!(accepting.await.unwrap().unwrap_err().kind(), UnexpectedEof);
        // As long as it was in flight.
        assert_throttled_for(&admission, 4 * SECOND).await;
    }
}

/// E.g. by a timeout around it.
#[tokio::test(start_paused = true)]
async fn handshake_that_is_dropped_before_finish_is_charged() {
    let (acceptor, admission) = guarded();
    let (accepting, mut near, _) = waiting(&acceptor).await;
    advance(4 * SECOND).await;
    accepting.abort();
    assert!(accepting.await.unwrap_err().is_cancelled());
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0, "the connection is closed");
    assert_throttled_for(&admission, 4 * SECOND).await;
}

/// The slot is proven, and free once the stream is handed over.
#[tokio::test(start_paused = true)]
async fn late_finish_succeeds() {
    let (acceptor, admission) = guarded();
    let (accepting, mut near, finish) = waiting(&acceptor).await;
    advance(9 * SECOND).await;
    near.write_all(&finish).await.unwrap();
    let stream = accepting.await.unwrap().unwrap();
    assert_eq!(stream.peer().identity().key_id(), &"alice");
    assert_eq!((admission.pending(), admission.throttled()), (0, 0));
}

/// All of a recorded session, HELLO to FINISH.
#[tokio::test(start_paused = true)]
async fn replayed_session_gets_an_answer_and_no_further() {
    let (mut near, io) = duplex(4096);
    let connecting = tokio::spawn(Connector::new(client()).connect(io));
    let hello = read_frame(&mut near).await;
    let (mut far, server_io) = duplex(4096);
    let recorded = tokio::spawn(Acceptor::new(server()).accept(server_io));
    far.write_all(&hello).await.unwrap();
    pass_on(&mut far, &mut near).await;
    let finish = read_frame(&mut near).await;
    far.write_all(&finish).await.unwrap();
    connecting.await.unwrap().unwrap();
    recorded.await.unwrap().unwrap();

    // Waits for ANSWER, or sends everything at once.
    for waits in [true, false] {
        let (acceptor, admission) = guarded();
        let (mut attacker, io) = from(1);
        let accepting = tokio::spawn(acceptor.accept(io));
        attacker.write_all(&hello).await.unwrap();
        if waits {
            assert_eq!(read_frame(&mut attacker).await.len(), 2 + 1 + 48);
            tokio::task::yield_now().await;
            assert!(!accepting.is_finished());
        }
        attacker.write_all(&finish).await.unwrap();
        let error = accepting.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.refusal_reason()), (Refused, Some(RefusalReason::NoFinish)));
        assert_eq!(error.claimed_key_id().unwrap().to_string(), "alice");
        assert_throttled_for(&admission, 5 * SECOND).await;
    }
}

/// The key was valid when the ANSWER was sent. That it still is, is checked with FINISH.
#[tokio::test(start_paused = true)]
async fn key_revoked_before_finish_never_reaches_the_service() {
    for revokes in [true, false] {
        let keys = ring();
        let called = Arc::new(AtomicBool::new(false));
        let is_called = Arc::clone(&called);
        let admission =
            Admission::builder().penalties(Penalties::new().threshold(Duration::ZERO)).build().unwrap();
        let layer = ChallengeLayer::new(noise::Server::new(keys.clone(), audience()));
        let mut service = layer.admission(admission.clone()).layer(service_fn(move |_: Stream| {
            is_called.store(true, Ordering::SeqCst);
            async { Ok::<_, Infallible>(()) }
        }));
        let (mut near, io) = from(1);
        let serving = tokio::spawn(service.call(io));
        let finish = withhold_finish(&mut near).await;
        if revokes {
            keys.replace([KeyEntry::new("alice", Key::new([8; 32]).unwrap()).unwrap()]).unwrap();
        }
        near.write_all(&finish).await.unwrap();
        match serving.await.unwrap() {
            Err(AcceptError::Handshake(error)) if revokes => assert_eq!(error.kind(), Revoked),
            other => assert!(!revokes && other.is_ok()),
        }
        assert_eq!(called.load(Ordering::SeqCst), !revokes);
        // The peer is not at fault.
        assert_eq!((admission.pending(), admission.throttled()), (0, 0));
        // No record was sent.
        assert_eq!(near.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    }
}
