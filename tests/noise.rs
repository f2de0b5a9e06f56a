//! `noise` over pipes: what arrives is what was sent, in order and once, and everything else is an error.
#![cfg(feature = "noise")]

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream, DuplexStream, ReadBuf, duplex,
};
use tokio::time::timeout;
use tower_challenge::noise::{self, Audience, NoiseStream, Suite};
use tower_challenge::transport::{Transport, TransportInfo};
use tower_challenge::{Acceptor, Authenticated, Connector, HandshakeErrorKind, Key, KeyEntry, RefusalReason};

const LONG: Duration = Duration::from_secs(60);

fn key() -> Key {
    Key::new([7; 32]).unwrap()
}

fn audience() -> Audience {
    Audience::new("orders").unwrap()
}

fn server() -> noise::Server<noise::KeyRing> {
    let keys = noise::KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap();
    noise::Server::new(keys, audience())
}

fn client() -> noise::Client {
    noise::Client::new("alice", &key(), audience()).unwrap()
}

type Server<IO = DuplexStream> = Authenticated<NoiseStream<IO>, noise::Peer>;
type Client<IO = DuplexStream> = Authenticated<NoiseStream<IO>, noise::ServerPeer>;

/// A session over a pipe of this size.
async fn session(size: usize, suite: Suite) -> (Client, Server) {
    let (near, far) = duplex(size);
    session_over(near, far, suite).await
}

async fn session_over<C, S>(near: C, far: S, suite: Suite) -> (Client<C>, Server<S>)
where
    C: AsyncRead + AsyncWrite + Transport + Unpin,
    S: AsyncRead + AsyncWrite + Transport + Unpin,
{
    let (acceptor, connector) = (Acceptor::new(server()), Connector::new(client().suite(suite)));
    let (server, client) = tokio::join!(acceptor.accept(far), connector.connect(near));
    (client.unwrap(), server.unwrap())
}

/// Bytes that differ from each other for long enough.
fn data(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256 * 13 + at / 65_536).to_le_bytes()[0]).collect()
}

#[tokio::test]
async fn both_sides_know_each_other_and_the_session() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let (client, server) = session(1, suite).await;
        assert_eq!(server.peer().identity().key_id(), &"alice");
        assert_eq!(client.peer().handshake_hash(), server.peer().handshake_hash());
    }
    let ((first, _), (second, _)) =
        (session(64, Suite::Aes256Gcm).await, session(64, Suite::Aes256Gcm).await);
    assert_ne!(first.peer().handshake_hash(), second.peer().handshake_hash());
}

#[tokio::test]
async fn data_of_any_length_arrives_over_pipes_of_any_size() {
    for size in [1, 2, 100, 16_384, 70_000] {
        for len in [0, 1, 16_366, 16_367, 16_368, 50_000] {
            let (mut client, mut server) = session(size, Suite::Aes256Gcm).await;
            let sent = data(len);
            let writing = async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            };
            let reading = async {
                let mut received = Vec::new();
                server.read_to_end(&mut received).await.unwrap();
                // The other direction is still open.
                server.write_all(&received).await.unwrap();
                server.shutdown().await.unwrap();
            };
            let (answer, ()) = tokio::join!(writing, reading);
            assert!(answer == sent, "{len} bytes over a pipe of {size}");
        }
    }
}

#[tokio::test]
async fn greeting_server_and_client_that_reads_first() {
    let (mut client, mut server) = session(1, Suite::Aes256Gcm).await;
    let greeting = async {
        server.write_all(b"hello").await.unwrap();
        server.flush().await.unwrap();
        let mut answer = [0; 2];
        server.read_exact(&mut answer).await.unwrap();
    };
    let reading = async {
        let mut greeting = [0; 5];
        client.read_exact(&mut greeting).await.unwrap();
        client.write_all(b"hi").await.unwrap();
        client.flush().await.unwrap();
    };
    timeout(LONG, async { tokio::join!(greeting, reading) }).await.unwrap();
}

/// Each side writes more than the pipe holds before it reads, and never flushes.
#[tokio::test]
async fn writing_before_reading_without_a_flush_makes_progress() {
    async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        for round in 0..20_u8 {
            stream.write_all(&[round; 1000]).await.unwrap();
            let mut received = [0; 1000];
            stream.read_exact(&mut received).await.unwrap();
            assert_eq!(received, [round; 1000]);
        }
    }
    // A record of 1,000 bytes fits the pipe only if the other side reads meanwhile.
    let (client, server) = session(1100, Suite::Aes256Gcm).await;
    timeout(LONG, async { tokio::join!(talk(client), talk(server)) }).await.unwrap();
}

/// The reader drains what the writer has left, and the writer is woken although the reader's task polled last.
#[tokio::test]
async fn split_halves_in_two_tasks_wake_each_other() {
    let (client, server) = session(64, Suite::Aes256Gcm).await;
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    let sent = Arc::new(data(300_000));
    let writes = [sent.clone(), sent.clone()];
    let [up, down] = writes;
    let tasks = [
        tokio::spawn(async move {
            client_write.write_all(&up).await.unwrap();
            client_write.shutdown().await.unwrap();
        }),
        tokio::spawn(async move {
            server_write.write_all(&down).await.unwrap();
            server_write.shutdown().await.unwrap();
        }),
    ];
    let readers = [
        tokio::spawn(async move {
            let mut all = Vec::new();
            client_read.read_to_end(&mut all).await.unwrap();
            all
        }),
        tokio::spawn(async move {
            let mut all = Vec::new();
            server_read.read_to_end(&mut all).await.unwrap();
            all
        }),
    ];
    for task in tasks {
        timeout(LONG, task).await.unwrap().unwrap();
    }
    for reader in readers {
        assert!(timeout(LONG, reader).await.unwrap().unwrap() == *sent);
    }
}

#[tokio::test]
async fn dropped_stream_is_no_clean_end() {
    let (mut client, mut server) = session(1024, Suite::Aes256Gcm).await;
    client.write_all(b"part one").await.unwrap();
    client.flush().await.unwrap();
    drop(client);
    let mut received = Vec::new();
    let error = server.read_to_end(&mut received).await.unwrap_err();
    assert_eq!((error.kind(), &received[..]), (ErrorKind::UnexpectedEof, &b"part one"[..]));
    assert!(error.to_string().contains("without a CLOSE"), "{error}");
    // Both directions have ended, and no CLOSE is sent.
    assert!(server.write_all(b"x").await.is_err());
    assert_eq!(server.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn unauthenticated_end_can_be_accepted_between_records_only() {
    for (cut, clean) in [(0, true), (1, false), (20, false)] {
        let (client_io, mut relay_near) = duplex(4096);
        let (mut relay_far, server_io) = duplex(4096);
        let acceptor = Acceptor::new(server().dangerous_accept_unauthenticated_end());
        let connector = Connector::new(client());
        let relay = async {
            relay_frames(&mut relay_near, &mut relay_far, 1).await;
            relay_frames(&mut relay_far, &mut relay_near, 1).await;
            // FINISH and one record, then a part of the next.
            relay_frames(&mut relay_near, &mut relay_far, 2).await;
            let mut next = vec![0; cut];
            relay_near.read_exact(&mut next).await.unwrap();
            relay_far.write_all(&next).await.unwrap();
            drop(relay_far);
        };
        let talk = async {
            let mut client = connector.connect(client_io).await.unwrap();
            for part in [&b"one"[..], b"two"] {
                client.write_all(part).await.unwrap();
                client.flush().await.unwrap();
            }
            client
        };
        let listen = async {
            let mut server = acceptor.accept(server_io).await.unwrap();
            let mut received = Vec::new();
            (server.read_to_end(&mut received).await.map_err(|error| error.kind()), received)
        };
        let (_client, (outcome, received), ()) = tokio::join!(talk, listen, relay);
        assert_eq!(received, b"one");
        assert_eq!(outcome, if clean { Ok(3) } else { Err(ErrorKind::UnexpectedEof) });
    }
}

async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let len = io.read_u16().await.unwrap();
    let mut frame = len.to_be_bytes().to_vec();
    frame.resize(2 + usize::from(len), 0);
    io.read_exact(&mut frame[2..]).await.unwrap();
    frame
}

async fn relay_frames(from: &mut DuplexStream, to: &mut DuplexStream, count: usize) {
    for _ in 0..count {
        let frame = read_frame(from).await;
        to.write_all(&frame).await.unwrap();
    }
}

/// What the attacker makes of the client's records: FINISH is not among them.
type Edit = Box<dyn Fn(Vec<Vec<u8>>) -> Vec<u8>>;

/// The client sends three parts and a CLOSE, each in a record; the attacker edits them. Returns what the server reads.
async fn attacked(edit: Edit) -> (Result<(), ErrorKind>, Vec<u8>) {
    let (client_io, mut relay_near) = duplex(4096);
    let (mut relay_far, server_io) = duplex(4096);
    let (acceptor, connector) = (Acceptor::new(server()), Connector::new(client()));
    let relay = async {
        relay_frames(&mut relay_near, &mut relay_far, 1).await;
        relay_frames(&mut relay_far, &mut relay_near, 1).await;
        relay_frames(&mut relay_near, &mut relay_far, 1).await;
        let mut records = Vec::new();
        for _ in 0..4 {
            records.push(read_frame(&mut relay_near).await);
        }
        relay_far.write_all(&edit(records)).await.unwrap_or_default();
        drop(relay_far);
        relay_near
    };
    let talk = async {
        let mut client = connector.connect(client_io).await.unwrap();
        for part in [&b"transfer 10 "[..], b"NOT ", b"to bob "] {
            client.write_all(part).await.unwrap();
            client.flush().await.unwrap();
        }
        client.shutdown().await.unwrap();
        client
    };
    let listen = async {
        let mut server = acceptor.accept(server_io).await.unwrap();
        let mut received = Vec::new();
        let outcome = server.read_to_end(&mut received).await;
        if outcome.is_err() {
            // Final, in both directions.
            assert!(server.read(&mut [0]).await.is_err());
            assert!(server.write(b"x").await.is_err());
        }
        (outcome.map(|_| ()).map_err(|error| error.kind()), received)
    };
    let (_client, outcome, _relay) = tokio::join!(talk, listen, relay);
    outcome
}

const SENT: &[u8] = b"transfer 10 NOT to bob ";

#[tokio::test]
async fn unedited_records_end_cleanly() {
    let (outcome, received) = attacked(Box::new(|records| records.concat())).await;
    assert_eq!((outcome, &received[..]), (Ok(()), SENT));
}

/// Never a wrong byte, never a clean end.
#[tokio::test]
async fn deleted_repeated_and_reordered_records_are_errors() {
    for at in 0..4 {
        let edits: [Edit; 3] = [
            Box::new(move |mut records| {
                records.remove(at);
                records.concat()
            }),
            Box::new(move |mut records| {
                records.insert(at, records[at].clone());
                records.concat()
            }),
            Box::new(move |mut records| {
                records.swap(at, (at + 1) % 4);
                records.concat()
            }),
        ];
        for (which, edit) in edits.into_iter().enumerate() {
            let (outcome, received) = attacked(edit).await;
            // A CLOSE that is repeated after the end is not read.
            let after_the_end = which == 1 && at == 3;
            assert_eq!(outcome.is_ok(), after_the_end, "edit {which} of record {at}");
            assert!(SENT.starts_with(&received), "edit {which} of record {at}");
        }
    }
}

#[tokio::test]
async fn every_cut_is_noticed() {
    let len = attacked_len().await;
    for cut in 0..len {
        let (outcome, received) = attacked(Box::new(move |records| records.concat()[..cut].to_vec())).await;
        assert_eq!(outcome, Err(ErrorKind::UnexpectedEof), "cut after {cut} bytes");
        assert!(SENT.starts_with(&received));
    }
}

#[tokio::test]
async fn every_flipped_bit_is_noticed() {
    let len = attacked_len().await;
    for bit in 0..8 * len {
        let flip: Edit = Box::new(move |records| {
            let mut bytes = records.concat();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        let (outcome, received) = attacked(flip).await;
        assert!(outcome.is_err(), "bit {bit}");
        assert!(SENT.starts_with(&received), "bit {bit}");
    }
}

async fn attacked_len() -> usize {
    let len = Arc::new(std::sync::Mutex::new(0));
    let seen = Arc::clone(&len);
    let record = move |records: Vec<Vec<u8>>| {
        let bytes = records.concat();
        *seen.lock().unwrap() = bytes.len();
        bytes
    };
    assert_eq!(attacked(Box::new(record)).await.0, Ok(()));
    *len.lock().unwrap()
}

/// Every bit of every message of the handshake.
#[tokio::test]
async fn every_flipped_bit_of_the_handshake_is_refused() {
    // HELLO, ANSWER, FINISH, with their lengths.
    for (message, len) in [(0, 2 + 3 + 5 + 48), (1, 2 + 1 + 48), (2, 2 + 17)] {
        for bit in 0..8 * len {
            let (client_io, mut relay_near) = duplex(4096);
            let (mut relay_far, server_io) = duplex(4096);
            let acceptor = Acceptor::new(server()).timeout(Duration::from_millis(200));
            let connector = Connector::new(client()).timeout(Duration::from_millis(200));
            let relay = async move {
                for current in 0..3 {
                    let (from, to) = if current == 1 {
                        (&mut relay_far, &mut relay_near)
                    } else {
                        (&mut relay_near, &mut relay_far)
                    };
                    let Ok(len) = from.read_u16().await else { return };
                    let mut frame = len.to_be_bytes().to_vec();
                    frame.resize(2 + usize::from(len), 0);
                    if from.read_exact(&mut frame[2..]).await.is_err() {
                        return;
                    }
                    if current == message {
                        frame[bit / 8] ^= 1 << (bit % 8);
                    }
                    if to.write_all(&frame).await.is_err() {
                        return;
                    }
                }
                // Whatever is said then is not passed on.
            };
            let (accepted, connected, ()) =
                tokio::join!(acceptor.accept(server_io), connector.connect(client_io), relay);
            assert!(accepted.is_err(), "bit {bit} of message {message}");
            // FINISH is the client's last word: it cannot know what becomes of it.
            assert!(message == 2 || connected.is_err(), "bit {bit} of message {message}");
        }
    }
}

#[tokio::test]
async fn records_of_another_session_or_direction_do_not_open() {
    for reflect in [false, true] {
        let done = Arc::new(AtomicBool::new(false));
        let (client_io, mut near) = duplex(4096);
        let (mut far, server_io) = duplex(4096);
        let (acceptor, connector) = (Acceptor::new(server()), Connector::new(client()));
        let relay = async {
            relay_frames(&mut near, &mut far, 1).await;
            relay_frames(&mut far, &mut near, 1).await;
            relay_frames(&mut near, &mut far, 1).await;
            let record = if reflect {
                // The server's own record, sent back to it.
                read_frame(&mut far).await
            } else {
                // The same place and direction of another session.
                let (mut other, _server) = recorded().await;
                read_frame(&mut other).await
            };
            far.write_all(&record).await.unwrap();
            done.store(true, Ordering::SeqCst);
        };
        let listen = async {
            let mut server = acceptor.accept(server_io).await.unwrap();
            server.write_all(b"greeting").await.unwrap();
            server.flush().await.unwrap();
            server.read(&mut [0; 64]).await.unwrap_err().kind()
        };
        let (_client, kind, ()) = tokio::join!(connector.connect(client_io), listen, relay);
        assert_eq!(kind, ErrorKind::InvalidData);
        assert!(done.load(Ordering::SeqCst), "the record was replaced");
    }
}

/// The wire of a session whose client has sent one record.
async fn recorded() -> (DuplexStream, Server) {
    let (client_io, mut near) = duplex(4096);
    let (mut far, server_io) = duplex(4096);
    let (acceptor, connector) = (Acceptor::new(server()), Connector::new(client()));
    let relay = async {
        relay_frames(&mut near, &mut far, 1).await;
        relay_frames(&mut far, &mut near, 1).await;
        relay_frames(&mut near, &mut far, 1).await;
    };
    let (server, client, ()) = tokio::join!(acceptor.accept(server_io), connector.connect(client_io), relay);
    let mut client = client.unwrap();
    client.write_all(b"recorded").await.unwrap();
    client.flush().await.unwrap();
    std::mem::forget(far);
    (near, server.unwrap())
}

#[tokio::test]
async fn refusals_say_why_to_the_server_alone() {
    let other = Key::new([8; 32]).unwrap();
    let wrong = Audience::new("billing").unwrap();
    for (client, reason) in [
        (noise::Client::new("alice", &other, audience()).unwrap(), RefusalReason::ProofMismatch),
        (noise::Client::new("bob", &key(), audience()).unwrap(), RefusalReason::UnknownKeyId),
        (noise::Client::new("alice", &key(), wrong).unwrap(), RefusalReason::ProofMismatch),
        (client().suite(Suite::ChaCha20Poly1305), RefusalReason::SuiteNotAllowed),
    ] {
        let (near, far) = duplex(1024);
        let acceptor = Acceptor::new(server().suites([Suite::Aes256Gcm]));
        let connector = Connector::new(client);
        let (accepted, connected) = tokio::join!(acceptor.accept(far), connector.connect(near));
        let (accepted, connected) = (accepted.unwrap_err(), connected.unwrap_err());
        assert_eq!((accepted.kind(), accepted.refusal_reason()), (HandshakeErrorKind::Refused, Some(reason)));
        assert_eq!((connected.kind(), connected.refusal_reason()), (HandshakeErrorKind::Refused, None));
    }
}

/// A recorded HELLO gets an ANSWER, and no further.
#[tokio::test]
async fn replayed_hello_never_reaches_a_service() {
    let (client_io, mut near) = duplex(4096);
    let connector = Connector::new(client()).timeout(Duration::from_millis(100));
    let (_, hello) = tokio::join!(connector.connect(client_io), read_frame(&mut near));
    for replayed_finish in [false, true] {
        let (mut attacker, server_io) = duplex(4096);
        let acceptor = Acceptor::new(server()).timeout(Duration::from_millis(200));
        let attack = async {
            attacker.write_all(&hello).await.unwrap();
            let answer = read_frame(&mut attacker).await;
            assert_eq!(answer.len(), 2 + 49);
            if replayed_finish {
                attacker.write_all(&[&[0, 17][..], &[9; 17]].concat()).await.unwrap();
            }
            attacker
        };
        let (accepted, _attacker) = tokio::join!(acceptor.accept(server_io), attack);
        let error = accepted.unwrap_err();
        if replayed_finish {
            assert_eq!(error.refusal_reason(), Some(RefusalReason::NoFinish));
        } else {
            assert_eq!(error.kind(), HandshakeErrorKind::TimedOut);
        }
    }
}

#[tokio::test]
async fn vectored_writes_are_gathered_into_one_record() {
    use std::io::IoSlice;

    let (mut client, mut server) = session(64 * 1024, Suite::Aes256Gcm).await;
    assert!(client.is_write_vectored());
    let parts = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"record")];
    assert_eq!(client.write_vectored(&parts).await.unwrap(), 10);
    client.flush().await.unwrap();
    let mut received = [0; 64];
    let len = server.read(&mut received).await.unwrap();
    assert_eq!(&received[..len], b"one record");
}

#[tokio::test]
async fn shutdown_after_a_lost_write_is_an_error() {
    // The record fits the pipe, or not.
    for size in [4096, 64] {
        let (mut client, server) = session(size, Suite::Aes256Gcm).await;
        drop(server);
        let written = client.write_all(b"important").await.unwrap_err();
        assert_eq!(written.kind(), ErrorKind::BrokenPipe);
        assert_eq!(client.shutdown().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(client.flush().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
    let (mut client, server) = session(64, Suite::Aes256Gcm).await;
    assert_eq!(client.write(&[0; 1000]).await.unwrap(), 1000);
    drop(server);
    assert_eq!(client.shutdown().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(client.shutdown().await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn received_data_can_be_read_after_a_failed_write() {
    let (mut client, mut server) = session(4096, Suite::Aes256Gcm).await;
    server.write_all(b"413 too large").await.unwrap();
    server.shutdown().await.unwrap();
    drop(server);
    assert_eq!(client.write_all(b"body").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"413 too large");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!(client.write_all(b"body").await.is_err());
}

#[tokio::test]
async fn parked_reader_sends_what_a_write_of_another_task_left() {
    let (client, mut server) = session(64, Suite::Aes256Gcm).await;
    let (mut read, mut write) = tokio::io::split(client);
    let reader = tokio::spawn(async move { read.read_exact(&mut [0; 4]).await.map(drop) });
    tokio::task::yield_now().await;
    tokio::spawn(async move { write.write_all(&[1; 1000]).await.unwrap() }).await.unwrap();
    let mut received = [0; 1000];
    timeout(LONG, server.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, [1; 1000]);
    server.write_all(b"done").await.unwrap();
    timeout(LONG, reader).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn revoked_session_ends_without_a_close() {
    for waits in [false, true] {
        let (near, far) = duplex(4096);
        let keys = noise::KeyRing::new([KeyEntry::new("alice", key()).unwrap()]).unwrap();
        let acceptor = Acceptor::new(noise::Server::new(keys.clone(), audience()));
        let acceptor = acceptor.end_revoked_sessions(Duration::ZERO);
        let connector = Connector::new(client());
        let (server, client) = tokio::join!(acceptor.accept(far), connector.connect(near));
        let (mut server, mut client) = (server.unwrap(), client.unwrap());
        server.write_all(b"transfer 10 ").await.unwrap();
        server.flush().await.unwrap();
        keys.replace([KeyEntry::new("bob", Key::new([8; 32]).unwrap()).unwrap()]).unwrap();
        if waits {
            // The end of a session is a timer.
            let _ = server.flush().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(server.write_all(b"NOT").await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
        }
        let closed = server.shutdown().await;
        drop(server);
        let mut received = Vec::new();
        let ended = client.read_to_end(&mut received).await.map_err(|error| error.kind());
        assert_eq!(received, b"transfer 10 ");
        // The end is a clean one only if there was no error.
        assert_eq!(closed.is_ok(), ended.is_ok());
        if waits {
            assert_eq!(closed.unwrap_err().kind(), ErrorKind::ConnectionAborted);
            assert_eq!(ended, Err(ErrorKind::UnexpectedEof));
        }
    }
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn completed_write_wakes_no_task() {
    let (mut client, _server) = session(65_536, Suite::Aes256Gcm).await;
    let wakes = Arc::new(Count(AtomicUsize::new(0)));
    let counting = Waker::from(Arc::clone(&wakes));
    let cx = &mut Context::from_waker(&counting);
    assert!(Pin::new(&mut client).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending());
    assert!(Pin::new(&mut client).poll_write(cx, b"x").is_ready());
    assert!(Pin::new(&mut client).poll_flush(cx).is_ready());
    assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
}

/// A pipe that takes and gives one byte at a time, is not ready every other time, and fails if it is told to.
struct Rough {
    io: DuplexStream,
    is_ready: [bool; 2],
    fails: Arc<AtomicBool>,
}

impl Rough {
    fn new(io: DuplexStream) -> Self {
        Self { io, is_ready: [false; 2], fails: Arc::default() }
    }

    fn poll_ready(&mut self, direction: usize, cx: &Context<'_>) -> Poll<()> {
        self.is_ready[direction] = !self.is_ready[direction];
        if self.is_ready[direction] {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn check(&self) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::Error::new(ErrorKind::HostUnreachable, "cable was cut"));
        }
        Ok(())
    }
}

impl Transport for Rough {}

impl AsyncRead for Rough {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_ready(0, cx));
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut one))?;
        buf.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rough {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        std::task::ready!(self.poll_ready(1, cx));
        Pin::new(&mut self.io).poll_write(cx, &buf[..1])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn data_arrives_byte_by_byte_over_a_transport_that_is_often_not_ready() {
    let (near, far) = duplex(3);
    let (client, server) = session_over(Rough::new(near), Rough::new(far), Suite::ChaCha20Poly1305).await;
    let sent = Arc::new(data(20_000));
    let mut tasks = tokio::task::JoinSet::new();
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut server_read, mut server_write) = tokio::io::split(server);
    let [up, down] = [Arc::clone(&sent), Arc::clone(&sent)];
    tasks.spawn(async move {
        client_write.write_all(&up).await.unwrap();
        client_write.shutdown().await.unwrap();
        Vec::new()
    });
    tasks.spawn(async move {
        server_write.write_all(&down).await.unwrap();
        server_write.shutdown().await.unwrap();
        Vec::new()
    });
    tasks.spawn(async move {
        let mut all = Vec::new();
        client_read.read_to_end(&mut all).await.unwrap();
        all
    });
    tasks.spawn(async move {
        let mut all = Vec::new();
        server_read.read_to_end(&mut all).await.unwrap();
        all
    });
    let all = timeout(LONG, tasks.join_all()).await.unwrap();
    assert_eq!(all.iter().filter(|all| **all == *sent).count(), 2);
}

#[tokio::test]
async fn errors_of_writing_are_reported_once_as_they_are_and_then_with_their_text() {
    for noticed_by_read in [false, true] {
        let (near, far) = duplex(4096);
        let near = Rough::new(near);
        let fails = Arc::clone(&near.fails);
        let (mut client, mut server) = session_over(near, far, Suite::Aes256Gcm).await;
        server.write_all(b"reason").await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.write(b"left").await.unwrap(), 4);
        fails.store(true, Ordering::SeqCst);
        if noticed_by_read {
            let mut received = [0; 6];
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"reason");
        }
        let first = client.flush().await.unwrap_err();
        assert_eq!((first.kind(), &*first.to_string()), (ErrorKind::HostUnreachable, "cable was cut"));
        fails.store(false, Ordering::SeqCst);
        for error in [client.write(b"x").await.unwrap_err(), client.shutdown().await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            assert!(error.to_string().contains("cable was cut"), "{error}");
        }
    }
}

#[tokio::test]
async fn errors_of_the_transports_flush_and_shutdown_are_final() {
    for shuts_down in [false, true] {
        let (near, far) = duplex(4096);
        let near = Rough::new(near);
        let fails = Arc::clone(&near.fails);
        let (mut client, _server) = session_over(near, far, Suite::Aes256Gcm).await;
        client.write_all(b"x").await.unwrap();
        client.flush().await.unwrap();
        fails.store(true, Ordering::SeqCst);
        let failed = if shuts_down { client.shutdown().await } else { client.flush().await };
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::HostUnreachable);
        fails.store(false, Ordering::SeqCst);
        assert!(client.write(b"x").await.is_err());
        assert!(client.flush().await.is_err());
        assert!(client.shutdown().await.is_err());
    }
}

#[tokio::test]
async fn reads_flush_a_transport_that_buffers() {
    async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        for round in 0..3_u8 {
            stream.write_all(&[round; 100]).await.unwrap();
            let mut received = [0; 100];
            stream.read_exact(&mut received).await.unwrap();
            assert_eq!(received, [round; 100]);
        }
    }
    let (near, far) = duplex(64);
    let (client, server) = session_over(BufStream::new(near), BufStream::new(far), Suite::Aes256Gcm).await;
    timeout(LONG, async { tokio::join!(talk(client), talk(server)) }).await.unwrap();
}

/// A mechanism within the stream is bound to this session.
#[tokio::test]
async fn channel_binding_is_that_of_the_session() {
    let (client, server) = session(4096, Suite::Aes256Gcm).await;
    let binding = TransportInfo::from_stream(&client).channel_binding.unwrap();
    assert_eq!(binding.data(), client.peer().handshake_hash());
    assert_eq!(TransportInfo::from_stream(&server).channel_binding, Some(binding));
}
