//! The vectors of the independent reference, byte for byte and for both roles.

use std::future::Ready;

use bytes::BytesMut;
use serde::Deserialize;
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::cipher::Cipher;
use super::exchange::{Session, ephemeral, mix_dh};
use super::message::{Codec, PUBLIC_LEN};
use super::record::{CLOSE, DATA, FINISH, Opener, Sealer};
use super::symmetric::{Symmetric, hkdf2, initial_hash, mix_hash};
use super::{Audience, Client, KeyRing, NoiseStream, Server, Suite, server};
use crate::error::BoxError;
use crate::key::{Key, KeyEntry, KeyId};
use crate::mechanism::{Context, Handshake, Input, Mechanism, Start, Step};
use crate::transport::ChannelBinding;

#[derive(Deserialize)]
struct Row {
    name: String,
    suite: u8,
    key: String,
    key_id: String,
    audience: String,
    binding_type: String,
    binding: String,
    client_ephemeral_private: String,
    server_ephemeral_private: String,
    hello_frame: String,
    answer_frame: String,
    refused_frame: String,
    handshake_hash: String,
    client_records: Vec<String>,
    #[serde(default)]
    server_records: Vec<String>,
}

fn rows() -> Vec<Row> {
    serde_json::from_str(include_str!("../../tests/vectors/noise.json")).unwrap()
}

fn hex(digits: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(digits).unwrap()
}

fn frame<H: Handshake<Codec = Codec>>(message: H::Message) -> Vec<u8>
where
    Codec: tokio_util::codec::Encoder<H::Message, Error: std::fmt::Debug>,
{
    let mut buf = BytesMut::new();
    Codec::new().encode(message, &mut buf).unwrap();
    buf.to_vec()
}

fn input<H: Handshake<Codec = Codec>>(bytes: &[u8]) -> Input<H> {
    let mut buf = BytesMut::from(bytes);
    let frame = Codec::new().decode(&mut buf).unwrap().unwrap();
    assert!(buf.is_empty());
    Input::Frame(frame)
}

fn start<M: Mechanism>(mechanism: &M, row: &Row, seed: &str) -> Start<M::Handshake> {
    let seed = hex(seed);
    let mut random = |out: &mut [u8]| -> Result<(), BoxError> {
        out.copy_from_slice(&seed);
        Ok(())
    };
    let binding = (!row.binding.is_empty()).then(|| {
        assert_eq!(hex(&row.binding_type), ChannelBinding::TLS_EXPORTER.as_bytes());
        ChannelBinding::new(ChannelBinding::TLS_EXPORTER, hex(&row.binding)).unwrap()
    });
    mechanism.start(&mut Context::with_random(&mut random).channel(binding)).unwrap()
}

fn mechanisms(row: &Row) -> (Client, Server<KeyRing>) {
    let key = Key::new(hex(&row.key)).unwrap();
    let id = KeyId::new(hex(&row.key_id)).unwrap();
    let audience = match &*hex(&row.audience) {
        [] => Audience::unspecified(),
        name => Audience::new(name).unwrap(),
    };
    let suite = Suite::from_number(row.suite).unwrap();
    let client = Client::new(id.clone(), &key, audience.clone()).unwrap().suite(suite);
    let ring = KeyRing::new([KeyEntry::new(id, key).unwrap()]).unwrap();
    (client, Server::new(ring, audience))
}

fn look_up<S>(
    handshake: &mut server::ServerHandshake<S>,
    input: Input<server::ServerHandshake<S>>,
) -> Step<server::ServerHandshake<S>>
where
    S: crate::key::KeySource<
            super::PreparedKey,
            Lookup = Ready<Result<crate::key::KeySet<super::PreparedKey, ()>, BoxError>>,
            Metadata = (),
        >,
{
    let Ok(Step::LookUp(lookup)) = handshake.step(input) else { panic!("a lookup") };
    handshake.step(Input::Found(lookup.into_inner())).unwrap_or_else(|reject| panic!("{:?}", reject.error()))
}

#[test]
fn handshakes_match() {
    for row in rows() {
        let (client, server) = mechanisms(&row);
        let mut client = start(&client, &row, &row.client_ephemeral_private);
        let hello = frame::<super::client::ClientHandshake>(client.send.take().unwrap());
        assert_eq!(hello, hex(&row.hello_frame), "{}", row.name);

        let mut server = start(&server, &row, &row.server_ephemeral_private).handshake;
        let Step::Continue { send: Some(answer) } = look_up(&mut server, input(&hello)) else {
            panic!("an answer")
        };
        let answer = frame::<server::ServerHandshake<KeyRing>>(answer);
        assert_eq!(answer, hex(&row.answer_frame), "{}", row.name);

        let Ok(Step::Complete { send: Some(finish), peer }) = client.handshake.step(input(&answer)) else {
            panic!("complete")
        };
        let finish = frame::<super::client::ClientHandshake>(finish);
        assert_eq!(finish, hex(&row.client_records[0]), "{}", row.name);
        assert_eq!(peer.handshake_hash()[..], hex(&row.handshake_hash), "{}", row.name);

        let Ok(Step::Complete { send: None, peer }) = server.step(input(&finish)) else { panic!("complete") };
        assert_eq!(peer.handshake_hash()[..], hex(&row.handshake_hash), "{}", row.name);
        assert_eq!(peer.identity().key_id().as_bytes(), hex(&row.key_id));
    }
}

#[test]
fn refusal_matches() {
    for row in rows() {
        let (_, server) = mechanisms(&row);
        let mut server = start(&server, &row, &row.server_ephemeral_private).handshake;
        let mut hello = hex(&row.hello_frame);
        *hello.last_mut().unwrap() ^= 1;
        let Ok(Step::LookUp(lookup)) = server.step(input(&hello)) else { panic!("a lookup") };
        let reject = server.step(Input::Found(lookup.into_inner())).unwrap_err();
        let mut buf = BytesMut::new();
        Codec::new().encode(reject.send.unwrap(), &mut buf).unwrap();
        assert_eq!(buf[..], hex(&row.refused_frame));
    }
}

#[test]
fn records_match() {
    for row in rows() {
        let is_rekeyed = row.name.contains("rekeyed");
        let session = || {
            let (client, _) = mechanisms(&row);
            let client = start(&client, &row, &row.client_ephemeral_private);
            client.handshake.session_of(input(&hex(&row.answer_frame)))
        };
        let (sent, received) = (session(), session());
        let (mut up, mut opener) = (Sealer::new(sent.up), Opener::new(received.up));
        let expected: &[(u8, &[u8])] = if is_rekeyed {
            &[(FINISH, b""), (DATA, b"1"), (DATA, b"2"), (DATA, b"3"), (DATA, b"4")]
        } else {
            &[(FINISH, b""), (DATA, b"hello"), (DATA, b""), (CLOSE, b"")]
        };
        check(&row.client_records, expected, &mut up, &mut opener, is_rekeyed);
        if !row.server_records.is_empty() {
            let (mut down, mut opener) = (Sealer::new(sent.down), Opener::new(received.down));
            let expected: &[(u8, &[u8])] = &[(DATA, b"welcome"), (CLOSE, b"")];
            check(&row.server_records, expected, &mut down, &mut opener, false);
        }
    }
}

/// Checks the records of a direction, which is rekeyed before every second one, or not at all.
fn check(
    rows: &[String],
    expected: &[(u8, &[u8])],
    sealer: &mut Sealer,
    opener: &mut Opener,
    is_rekeyed: bool,
) {
    assert_eq!(rows.len(), expected.len());
    for (number, (row, &(kind, data))) in rows.iter().zip(expected).enumerate() {
        if is_rekeyed && number > 0 && number % 2 == 0 {
            sealer.cipher().rekey();
            opener.cipher().rekey();
        }
        let mut out = BytesMut::new();
        sealer.seal(kind, std::iter::once(data), data.len(), &mut out);
        assert_eq!(out[..], hex(row));
        let mut record = out.split_off(2);
        assert_eq!(opener.open(&mut record).unwrap(), (kind, data.len()));
        assert_eq!(&record[1..=data.len()], data);
    }
}

/// The session of the first row, anew.
fn session() -> Session {
    let row = &rows()[0];
    let (client, _) = mechanisms(row);
    let client = start(&client, row, &row.client_ephemeral_private);
    client.handshake.session_of(input(&hex(&row.answer_frame)))
}

#[tokio::test]
async fn streams_go_on_across_rekeying_in_both_directions() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let (near, far) = tokio::io::duplex(64);
    let (client, server) = (session(), session());
    let ciphers = |send: Cipher, receive: Cipher| {
        (Sealer::new(send.before_rekeying(3)), Opener::new(receive.before_rekeying(3)))
    };
    let mut client = NoiseStream::new(near, ciphers(client.up, client.down), client.hash, &[], false);
    let mut server = NoiseStream::new(far, ciphers(server.down, server.up), server.hash, &[], false);
    for round in 0..6 {
        let mut received = [0; 3];
        client.write_all(&[round; 3]).await.unwrap();
        client.flush().await.unwrap();
        server.read_exact(&mut received).await.unwrap();
        server.write_all(&received).await.unwrap();
        server.flush().await.unwrap();
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(received, [round; 3]);
    }
}

/// Ten million records in each direction, whose keys are those of an independent computation.
// Without optimizations it takes a minute.
#[cfg(not(debug_assertions))]
#[test]
fn ten_million_records_across_rekeying() {
    use aws_lc_rs::aead::{Aad, LessSafeKey, UnboundKey};

    const RECORDS: u64 = 10_000_000;

    let unbound =
        |suite: Suite, key: &[u8; 32]| LessSafeKey::new(UnboundKey::new(suite.aead(), key).unwrap());
    let directions = Suite::ALL.into_iter().flat_map(|suite| [(suite, 1), (suite, 2)]);
    for (suite, first) in directions {
        let mut key = [first; 32];
        let (mut sealer, mut opener) =
            (Sealer::new(Cipher::new(suite, &key)), Opener::new(Cipher::new(suite, &key)));
        let (mut out, mut rekeyed) = (BytesMut::new(), 0);
        for number in 0..RECORDS {
            if number > 0 && number % (1 << 20) == 0 {
                // The first 32 bytes of `ENCRYPT(k, 2^64 - 1, "", zeros)`.
                let mut next = [0; 32];
                let nonce = suite.nonce(u64::MAX);
                let tag = unbound(suite, &key).seal_in_place_separate_tag(nonce, Aad::empty(), &mut next);
                let _tag = tag.unwrap();
                key = next;
                rekeyed += 1;
            }
            let data = number.to_le_bytes();
            out.clear();
            sealer.seal(DATA, std::iter::once(&data[..]), data.len(), &mut out);
            if number % (1 << 20) < 2 || number % (1 << 20) == (1 << 20) - 1 {
                let mut expected = [&[DATA][..], &data].concat();
                let nonce = suite.nonce(number);
                unbound(suite, &key).seal_in_place_append_tag(nonce, Aad::empty(), &mut expected).unwrap();
                assert_eq!(out[2..], expected, "record {number}");
            }
            assert_eq!(opener.open(&mut out[2..]).unwrap(), (DATA, data.len()), "record {number}");
            assert_eq!(out[3..3 + data.len()], data, "record {number}");
        }
        assert_eq!(rekeyed, 9);
    }
}

#[derive(Deserialize)]
struct PublicRow {
    protocol_name: String,
    init_prologue: String,
    init_psks: [String; 1],
    init_ephemeral: String,
    resp_ephemeral: String,
    handshake_hash: String,
    messages: Vec<PublicMessage>,
}

#[derive(Deserialize)]
struct PublicMessage {
    payload: String,
    ciphertext: String,
}

/// The published vectors of the pattern. They have another PSK and prologue, and payloads in the handshake.
#[test]
fn published_vectors_match() {
    let rows: Vec<PublicRow> =
        serde_json::from_str(include_str!("../../tests/vectors/noise-public.json")).unwrap();
    assert_eq!(rows.len(), Suite::ALL.len());
    for (row, suite) in rows.iter().zip(Suite::ALL) {
        assert_eq!(row.protocol_name.as_bytes(), suite.protocol_name());
        let (chaining_key, psk_hash) = hkdf2(&initial_hash(suite), &hex(&row.init_psks[0]));
        let hash = mix_hash(&initial_hash(suite), &[&hex(&row.init_prologue)]);
        let hash = mix_hash(&hash, &[&*psk_hash]);
        let mut state = Symmetric { suite, chaining_key, hash };
        let seeds = [&row.init_ephemeral, &row.resp_ephemeral]
            .map(|seed| zeroize::Zeroizing::new(hex(seed).try_into().unwrap()));
        let [(_, client_public), (server, server_public)] = seeds.map(|seed| ephemeral(&seed).unwrap());

        state.mix_hash(&client_public);
        let key = state.mix_key(&client_public);
        check_message(&mut state, &key, &client_public, &row.messages[0]);
        state.mix_hash(&server_public);
        state.mix_key(&server_public);
        let key = mix_dh(&mut state, &server, &client_public).unwrap();
        check_message(&mut state, &key, &server_public, &row.messages[1]);
        assert_eq!(state.hash[..], hex(&row.handshake_hash));

        let (mut up, mut down) = state.split();
        for (at, message) in row.messages[2..].iter().enumerate() {
            let cipher = if at % 2 == 0 { &mut up } else { &mut down };
            assert_eq!(seal(cipher, &[], &hex(&message.payload)), hex(&message.ciphertext));
        }
    }
}

fn check_message(state: &mut Symmetric, key: &[u8; 32], public: &[u8; PUBLIC_LEN], message: &PublicMessage) {
    let sealed = seal(&mut Cipher::new(state.suite, key), &state.hash, &hex(&message.payload));
    assert_eq!([&public[..], &sealed].concat(), hex(&message.ciphertext));
    state.mix_hash(&sealed);
}

fn seal(cipher: &mut Cipher, ad: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut sealed = payload.to_vec();
    let tag = cipher.seal(ad, &mut sealed);
    sealed.extend_from_slice(&tag);
    sealed
}
