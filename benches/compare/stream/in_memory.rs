//! Handshakes as functions: no stream, no runtime.

use std::hint::black_box;
use std::time::Duration;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use bytes::BytesMut;
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio_util::codec::{Decoder, Encoder};
use tower_challenge::RefusalReason;
use tower_challenge::mechanism::{Context, Handshake, Input, Mechanism, Start, Step};
use tower_challenge::noise;

use crate::Effort;
use crate::noise::{client, server};
use crate::report::Quartiles;
use crate::snow_stream::Snow;
use crate::transfer::processor_time;

const KEY: [u8; 32] = [7; 32];
const RECORD_LEN: usize = 16 * 1024;
/// How many slices of each round.
const SLICES: u32 = 10;

pub(crate) fn measure(effort: &Effort, is_bench: bool) {
    let (server, client) = (server(&[KEY]), client(&KEY));
    let mut noise = || handshake(&server, &client);
    let (default, ring) = (Snow::with_default_resolver(), Snow::with_ring());
    let mut with_default = || drop(default.handshake().expect("a handshake"));
    let mut with_ring = || drop(ring.handshake().expect("a handshake"));
    // The server's own part, with four keys of the id to try and a client that has none of them.
    let refusing = self::server(&[[1; 32], [2; 32], [3; 32], [4; 32]]);
    let hello = hello(&client);
    let mut refusal = || refuse(&refusing, &hello);
    let (mut one, mut other) = (vec![0; RECORD_LEN], vec![0; RECORD_LEN]);
    let (mut aws_lc, mut ring) = (seal_with_aws_lc(&mut one), seal_with_ring(&mut other));

    let measured: &mut [&mut dyn FnMut(); 7] = &mut [
        &mut noise,
        &mut with_default,
        &mut with_ring,
        &mut refusal,
        &mut diffie_hellman,
        &mut aws_lc,
        &mut ring,
    ];
    let mut seconds: [Vec<f64>; 7] = Default::default();
    // Short slices, so that a change of the processor's speed affects neighbours alike.
    for _ in 0..effort.rounds * SLICES as usize {
        for (call, seconds) in measured.iter_mut().zip(&mut seconds) {
            seconds.push(seconds_per_call(call, effort.slice / SLICES));
        }
    }
    if !is_bench {
        return;
    }
    let [noise, with_default, with_ring, refusal, diffie_hellman, aws_lc, ring] = seconds;
    println!("\nhandshakes per second in memory, both sides, `noise` relative to");
    println!("{:<36} {}", "snow, default resolver", Quartiles::of_ratios(&with_default, &noise));
    println!("{:<36} {}", "snow, ring", Quartiles::of_ratios(&with_ring, &noise));
    let micros = |seconds: Vec<f64>| Quartiles::of(&seconds.iter().map(|s| s * 1e6).collect::<Vec<_>>());
    println!("{:<36} {}", "its X25519 alone", Quartiles::of_ratios(&diffie_hellman, &noise));
    println!("\nmicroseconds in memory");
    println!("{:<36} {}", "handshake, both sides", micros(noise));
    println!("{:<36} {}", "HELLO refused, four keys tried", micros(refusal));
    println!("\nAES-256-GCM in memory, 16 KiB: bytes per second, aws-lc-rs relative to");
    println!("{:<36} {}", "ring", Quartiles::of_ratios(&ring, &aws_lc));
}

/// What both sides of a handshake compute with X25519: two keys, and a Diffie-Hellman each.
fn diffie_hellman() {
    let key = |byte| PrivateKey::from_private_key(&X25519, &[byte; 32]).expect("a key of 32 bytes");
    let [client, server] = [1, 2].map(|byte| {
        let key = key(byte);
        let public = key.compute_public_key().expect("a public key");
        (key, public)
    });
    for (own, peer) in [(&client, &server), (&server, &client)] {
        let public = UnparsedPublicKey::new(&X25519, &peer.1);
        agree(&own.0, public, (), |_| Ok(())).expect("a shared secret");
    }
}

/// Seals a record with the cipher of `noise`. No record layer is faster than that.
fn seal_with_aws_lc(record: &mut [u8]) -> impl FnMut() {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).expect("a key of 32 bytes"));
    move || {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), record);
        let _ = black_box(tag.expect("a short record"));
    }
}

/// Seals a record with the cipher of `snow` with ring.
fn seal_with_ring(record: &mut [u8]) -> impl FnMut() {
    use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).expect("a key of 32 bytes"));
    move || {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), record);
        let _ = black_box(tag.expect("a short record"));
    }
}

/// The processor time of a call, in seconds.
fn seconds_per_call(call: &mut dyn FnMut(), slice: Duration) -> f64 {
    let begin = processor_time();
    let mut count = 0.0;
    loop {
        for _ in 0..10 {
            call();
        }
        count += 10.0;
        let elapsed = processor_time().saturating_sub(begin);
        if elapsed >= slice {
            return elapsed.as_secs_f64() / count;
        }
    }
}

type Server = noise::Server<noise::KeyRing>;

pub(crate) fn start<M: Mechanism>(mechanism: &M) -> Start<M::Handshake> {
    let mut system = |out: &mut [u8]| SysRng.try_fill_bytes(out).map_err(Into::into);
    mechanism.start(&mut Context::with_random(&mut system)).expect("random bytes")
}

/// From the first byte to FINISH, with the messages as they are on the wire.
fn handshake(server: &Server, client: &noise::Client) {
    let mut wire = BytesMut::with_capacity(512);
    let Start { codec: mut client_codec, handshake: mut client, send } = start(client);
    client_codec.encode(send.expect("HELLO"), &mut wire).expect("a message");

    let Start { codec: mut server_codec, handshake: mut server, .. } = start(server);
    let Ok(Step::LookUp(keys)) = server.step(receive(&mut server_codec, &mut wire)) else {
        panic!("no lookup")
    };
    let Ok(Step::Continue { send: Some(answer) }) = server.step(Input::Found(keys.into_inner())) else {
        panic!("no ANSWER")
    };
    server_codec.encode(answer, &mut wire).expect("a message");

    let Ok(Step::Complete { send: Some(finish), .. }) = client.step(receive(&mut client_codec, &mut wire))
    else {
        panic!("no FINISH")
    };
    client_codec.encode(finish, &mut wire).expect("a message");
    let Ok(Step::Complete { .. }) = server.step(receive(&mut server_codec, &mut wire)) else {
        panic!("not accepted")
    };
}

fn receive<H: Handshake>(codec: &mut H::Codec, wire: &mut BytesMut) -> Input<H> {
    match codec.decode(wire) {
        Ok(Some(frame)) => Input::Frame(frame),
        _ => panic!("not a whole message"),
    }
}

fn hello(client: &noise::Client) -> BytesMut {
    let mut wire = BytesMut::new();
    let Start { mut codec, send, .. } = start(client);
    codec.encode(send.expect("HELLO"), &mut wire).expect("a message");
    wire
}

fn refuse(server: &Server, hello: &BytesMut) {
    let Start { mut codec, handshake: mut server, .. } = start(server);
    let Ok(Step::LookUp(keys)) = server.step(receive(&mut codec, &mut hello.clone())) else {
        panic!("no lookup")
    };
    let Err(reject) = server.step(Input::Found(keys.into_inner())) else {
        panic!("accepted without the key")
    };
    assert_eq!(reject.error().refusal_reason(), Some(RefusalReason::ProofMismatch));
}
