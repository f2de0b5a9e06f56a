//! An attacker on the wire changes what is sent, in either direction. The reader never gets a wrong byte, and never a
//! clean end that was not sent.

use std::io::ErrorKind;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, duplex};
use tower_challenge::{Acceptor, Connector};

use crate::support::{Relayed, client, pass_on, read_frame, relayed, server};

/// What each side sends, a record each.
const PARTS: [&[u8]; 3] = [b"transfer 10 ", b"NOT ", b"to bob "];

/// The direction that is attacked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

const DIRECTIONS: [Direction; 2] = [Direction::Up, Direction::Down];

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// The records that an attacker has. The first one has the number 1 in its direction, after FINISH, if that is up.
struct Records {
    /// What is sent in the attacked direction: a record for each part, and CLOSE.
    sent: Vec<Vec<u8>>,
    /// What the reader has sent itself: the same parts.
    reflected: Vec<Vec<u8>>,
}

/// The outcome of an attack.
struct Attacked {
    outcome: Result<(), ErrorKind>,
    received: Vec<u8>,
}

/// Lets both sides send, and the attacker change what goes in one direction, followed by the end of the connection.
async fn attack(direction: Direction, edit: impl FnOnce(&Records) -> Vec<u8>) -> Attacked {
    let Relayed { client, server, mut near, mut far } = relayed(server()).await;
    let (mut sender, mut reader): (Box<dyn Io>, Box<dyn Io>) = match direction {
        Direction::Up => (Box::new(client), Box::new(server)),
        Direction::Down => {
            std::mem::swap(&mut near, &mut far);
            (Box::new(server), Box::new(client))
        }
    };
    let mut records = Records { sent: Vec::new(), reflected: Vec::new() };
    for part in PARTS {
        sender.write_all(part).await.unwrap();
        reader.write_all(part).await.unwrap();
        records.sent.push(read_frame(&mut near).await);
        records.reflected.push(read_frame(&mut far).await);
    }
    sender.shutdown().await.unwrap();
    records.sent.push(read_frame(&mut near).await);

    let (original, edited) = (records.sent.concat(), edit(&records));
    far.write_all(&edited).await.unwrap();
    far.shutdown().await.unwrap();
    let mut received = Vec::new();
    let outcome = reader.read_to_end(&mut received).await.map(drop).map_err(|error| error.kind());

    // What was intact up to the first change, and no more.
    let is_intact = |count: &usize| edited.starts_with(&records.sent[..*count].concat());
    let intact = (0..=PARTS.len()).rev().find(is_intact).unwrap();
    assert_eq!(received, PARTS[..intact].concat());
    // A clean end only if everything arrived up to CLOSE.
    assert_eq!(outcome.is_ok(), edited.starts_with(&original));
    if outcome.is_err() {
        // Final, in both directions, and no CLOSE is sent.
        assert_eq!(reader.read(&mut [0]).await.map_err(|error| error.kind()).map(drop), outcome);
        assert!(reader.write(b"x").await.is_err());
        assert!(reader.shutdown().await.is_err());
        drop(reader);
        assert_eq!(far.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    }
    Attacked { outcome, received }
}

/// The bytes of all records that are sent.
async fn sent(direction: Direction) -> Vec<u8> {
    let mut sent = Vec::new();
    let attacked = attack(direction, |records| {
        sent = records.sent.concat();
        sent.clone()
    });
    assert_eq!(attacked.await.outcome, Ok(()));
    sent
}

#[tokio::test]
async fn every_flipped_bit_of_the_records() {
    for direction in DIRECTIONS {
        for bit in 0..8 * sent(direction).await.len() {
            let attacked = attack(direction, |records| {
                let mut edited = records.sent.concat();
                edited[bit / 8] ^= 1 << (bit % 8);
                edited
            });
            // A record that seems longer is cut by the end of the connection.
            let is_final = [Err(ErrorKind::InvalidData), Err(ErrorKind::UnexpectedEof)];
            assert!(is_final.contains(&attacked.await.outcome), "bit {bit}, {direction:?}");
        }
    }
}

#[tokio::test]
async fn every_cut_of_the_connection() {
    for direction in DIRECTIONS {
        for cut in 0..sent(direction).await.len() {
            let attacked = attack(direction, |records| records.sent.concat()[..cut].to_vec()).await;
            assert_eq!(attacked.outcome, Err(ErrorKind::UnexpectedEof), "after {cut} bytes, {direction:?}");
        }
    }
}

#[tokio::test]
async fn deleted_repeated_and_reordered_records() {
    let count = PARTS.len() + 1;
    for direction in DIRECTIONS {
        for at in 0..count {
            attack(direction, |records| [&records.sent[..at], &records.sent[at + 1..]].concat().concat())
                .await;
            attack(direction, |records| [&records.sent[..=at], &records.sent[at..]].concat().concat()).await;
            for other in 0..count {
                // Record `at` in the place of `other`, and the one there moved, or replaced.
                for moves in [true, false] {
                    attack(direction, |records| {
                        let mut edited = records.sent.clone();
                        edited[other].clone_from(&records.sent[at]);
                        if moves {
                            edited[at].clone_from(&records.sent[other]);
                        }
                        edited.concat()
                    })
                    .await;
                }
            }
        }
        attack(direction, |records| records.sent.iter().rev().flatten().copied().collect()).await;
    }
}

/// The length is changed to match, or the rest takes the place of what is missing.
#[tokio::test]
async fn cut_and_extended_records() {
    for direction in DIRECTIONS {
        for at in 0..=PARTS.len() {
            for fixes_length in [true, false] {
                for change in [-17, -16, -1, 1, 16] {
                    attack(direction, |records| {
                        let mut edited = records.sent.clone();
                        let len = edited[at].len().checked_add_signed(change).unwrap();
                        edited[at].resize(len, 0);
                        if fixes_length {
                            let sealed = u16::try_from(len - 2).unwrap();
                            edited[at][..2].copy_from_slice(&sealed.to_be_bytes());
                        }
                        edited.concat()
                    })
                    .await;
                }
            }
        }
    }
}

/// The same place of another session, with the same key and contents, and the reader's own records, sent back to it.
#[tokio::test]
async fn records_of_another_session_or_direction() {
    for direction in DIRECTIONS {
        let mut others = Vec::new();
        attack(direction, |records| {
            others.clone_from(&records.sent);
            records.sent.concat()
        })
        .await;
        for at in 0..=PARTS.len() {
            for (from, reflects) in (0..4).map(|from| (from, false)).chain((0..3).map(|from| (from, true))) {
                for replaces in [true, false] {
                    attack(direction, |records| {
                        let foreign = if reflects { &records.reflected } else { &others };
                        let rest = at + usize::from(replaces);
                        [&records.sent[..at], &foreign[from..=from], &records.sent[rest..]].concat().concat()
                    })
                    .await;
                }
            }
        }
    }
}

/// tokio-noise 0.0.7 skips up to ten records: its reader gets `"transfer 10 to bob "` and a clean end.
#[tokio::test]
async fn attack_on_tokio_noise_deletes_a_record() {
    for direction in DIRECTIONS {
        let delete = |records: &Records| [&records.sent[..1], &records.sent[2..]].concat().concat();
        let Attacked { outcome, received } = attack(direction, delete).await;
        assert_eq!((outcome, &received[..]), (Err(ErrorKind::InvalidData), &b"transfer 10 "[..]));
    }
}

/// In snowstorm 0.4.0 either cut is a clean end after the first record.
#[tokio::test]
async fn attack_on_snowstorm_cuts_between_records_and_within_a_record() {
    for direction in DIRECTIONS {
        for within in [0, 10] {
            let cut = |records: &Records| [&records.sent[0], &records.sent[1][..within]].concat();
            let Attacked { outcome, received } = attack(direction, cut).await;
            assert_eq!((outcome, &received[..]), (Err(ErrorKind::UnexpectedEof), &b"transfer 10 "[..]));
        }
    }
}

/// With the option for protocols that mark their own end.
#[tokio::test]
async fn unauthenticated_end_can_be_accepted_between_records_only() {
    for (cut, clean) in [(0, true), (1, false), (20, false)] {
        let relayed = relayed(server().dangerous_accept_unauthenticated_end()).await;
        let Relayed { mut client, mut server, mut near, mut far } = relayed;
        for part in [&b"one"[..], b"two"] {
            client.write_all(part).await.unwrap();
        }
        pass_on(&mut near, &mut far).await;
        let next = read_frame(&mut near).await;
        far.write_all(&next[..cut]).await.unwrap();
        drop(far);
        let mut received = Vec::new();
        let outcome = server.read_to_end(&mut received).await.map_err(|error| error.kind());
        assert_eq!(received, b"one");
        assert_eq!(outcome, if clean { Ok(3) } else { Err(ErrorKind::UnexpectedEof) });
    }
}

/// HELLO, ANSWER and FINISH, with their lengths.
const MESSAGE_LENS: [usize; 3] = [2 + 3 + 5 + 48, 2 + 1 + 48, 2 + 17];

/// Runs a handshake in which the attacker changes message `number`, and ends both connections after it, or after FINISH.
/// Returns whether server and client have accepted. The paused clock ends the waiting for what is missing.
async fn attack_handshake(number: usize, edit: impl FnOnce(&[u8]) -> Vec<u8>) -> (bool, bool) {
    let ((client_io, mut near), (mut far, server_io)) = (duplex(4096), duplex(4096));
    let (acceptor, connector) = (Acceptor::new(server()), Connector::new(client()));
    let relay = async {
        for current in 0..MESSAGE_LENS.len() {
            let (from, to) = if current == 1 { (&mut far, &mut near) } else { (&mut near, &mut far) };
            if current < number {
                pass_on(from, to).await;
                continue;
            }
            let frame = read_frame(from).await;
            assert_eq!(frame.len(), MESSAGE_LENS[number]);
            let edited = edit(&frame);
            // The receiver may not read all of it.
            let _ = to.write_all(&edited).await;
            let _ = to.shutdown().await;
            break;
        }
        // Nothing that is sent then is passed on.
        let _ = near.shutdown().await;
        let _ = far.read_to_end(&mut Vec::new()).await;
    };
    let accept = async { acceptor.accept(server_io).await.is_ok() };
    let connect = async { connector.connect(client_io).await.is_ok() };
    let (accepted, connected, ()) = tokio::join!(accept, connect, relay);
    (accepted, connected)
}

/// FINISH is the client's last word: it cannot know what becomes of it.
fn assert_refused((accepted, connected): (bool, bool), number: usize, what: &str) {
    assert!(!accepted, "message {number}, {what}");
    assert_eq!(connected, number == 2, "message {number}, {what}");
}

#[tokio::test(start_paused = true)]
async fn every_flipped_bit_of_the_handshake() {
    for (number, len) in MESSAGE_LENS.into_iter().enumerate() {
        for bit in 0..8 * len {
            let outcome = attack_handshake(number, |message| {
                let mut message = message.to_vec();
                message[bit / 8] ^= 1 << (bit % 8);
                message
            });
            assert_refused(outcome.await, number, &format!("bit {bit}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_cut_of_the_handshake() {
    for (number, len) in MESSAGE_LENS.into_iter().enumerate() {
        for cut in 0..len {
            let outcome = attack_handshake(number, |message| message[..cut].to_vec()).await;
            assert_refused(outcome, number, &format!("cut after {cut} bytes"));
        }
    }
}

/// HELLO can be a replay. It gets an ANSWER, and no further.
#[tokio::test(start_paused = true)]
async fn messages_of_another_handshake() {
    for number in 0..MESSAGE_LENS.len() {
        let mut other = Vec::new();
        attack_handshake(number, |message| {
            other = message.to_vec();
            message.to_vec()
        })
        .await;
        assert_refused(attack_handshake(number, |_| other).await, number, "of another handshake");
        // Each message in the place of each other one, from another handshake.
        for from in (0..MESSAGE_LENS.len()).filter(|from| *from != number) {
            let mut other = Vec::new();
            attack_handshake(from, |message| {
                other = message.to_vec();
                message.to_vec()
            })
            .await;
            assert_refused(attack_handshake(number, |_| other).await, number, "of another place");
        }
    }
}

/// The second one is a record to its receiver, and does not open.
#[tokio::test]
async fn repeated_messages() {
    for number in 0..MESSAGE_LENS.len() {
        let ((client_io, mut near), (mut far, server_io)) = (duplex(4096), duplex(4096));
        let (acceptor, connector) = (Acceptor::new(server()), Connector::new(client()));
        let relay = async move {
            for current in 0..MESSAGE_LENS.len() {
                let (from, to) = if current == 1 { (&mut far, &mut near) } else { (&mut near, &mut far) };
                let frame = read_frame(from).await;
                for _ in 0..=usize::from(current == number) {
                    // The server may have closed the connection already.
                    let _ = to.write_all(&frame).await;
                }
            }
        };
        let accept = async { read_error(acceptor.accept(server_io).await.ok()?).await };
        let connect = async { read_error(connector.connect(client_io).await.ok()?).await };
        let ((), accepted, connected) = tokio::join!(relay, accept, connect);
        let expected = match number {
            // Refused in the place of FINISH.
            0 => (None, Some(ErrorKind::UnexpectedEof)),
            1 => (Some(ErrorKind::UnexpectedEof), Some(ErrorKind::InvalidData)),
            _ => (Some(ErrorKind::InvalidData), Some(ErrorKind::UnexpectedEof)),
        };
        assert_eq!((accepted, connected), expected, "message {number}");
    }
}

async fn read_error(mut stream: impl AsyncRead + Unpin) -> Option<ErrorKind> {
    stream.read(&mut [0]).await.err().map(|error| error.kind())
}
