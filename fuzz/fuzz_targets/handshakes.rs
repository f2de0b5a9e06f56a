//! Feeds arbitrary bytes in arbitrary portions to the state machines. None panics, none accepts a peer without a key
//! (except the client of `one_way`, which accepts every server), and no codec waits for more than its longest frame.
#![no_main]

use bytes::BytesMut;
use futures::FutureExt as _;
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::Decoder;
use tower_challenge::mechanism::{Context, Handshake, Input, Mechanism, Step};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Key, KeyEntry, multiprocessing, one_way};

/// The longest frame of all wires.
const MAX_FRAME_LEN: usize = 1024 + 2;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let key = || Key::new("a key that the fuzzer does not know").unwrap();
    let entries = || [KeyEntry::new("k", key()).unwrap()];
    let audience = || Audience::new("a").unwrap();
    match choice % 6 {
        0 => {
            let ring = one_way::KeyRing::new(entries()).unwrap();
            assert!(!accepts(&one_way::Server::new(ring), data));
        }
        1 => {
            let ring = mutual::KeyRing::new(entries()).unwrap();
            assert!(!accepts(&mutual::Server::new(ring, audience()), data));
        }
        2 => {
            let ring = multiprocessing::KeyRing::new(entries()).unwrap();
            assert!(!accepts(&multiprocessing::Server::new(ring).allow_legacy_md5(), data));
        }
        3 => assert!(!accepts(&mutual::Client::new("k", &key(), audience()).unwrap(), data)),
        4 => assert!(!accepts(&multiprocessing::Client::new(&key()).allow_legacy_md5(), data)),
        // This client accepts every server.
        _ => _ = accepts(&one_way::Client::new(&key()), data),
    }
});

/// Feeds `data` to a state machine in portions, each of which begins with a byte for its length. Returns whether the
/// state machine accepts.
fn accepts<M: Mechanism>(mechanism: &M, mut data: &[u8]) -> bool {
    let mut random = |out: &mut [u8]| {
        out.fill(0x5c);
        Ok(())
    };
    let start = mechanism.start(&mut Context::with_random(&mut random)).unwrap();
    let (mut codec, mut handshake) = (start.codec, start.handshake);
    let mut buf = BytesMut::new();
    while let Some((&len, rest)) = data.split_first() {
        let (portion, rest) = rest.split_at(usize::from(len).min(rest.len()));
        buf.extend_from_slice(portion);
        data = rest;
        loop {
            match codec.decode(&mut buf) {
                Err(_) => return false,
                Ok(None) => break assert!(buf.len() < MAX_FRAME_LEN),
                Ok(Some(frame)) => match step(&mut handshake, Input::Frame(frame)) {
                    Outcome::Continues => {}
                    Outcome::Fails => return false,
                    Outcome::Accepts => return true,
                },
            }
        }
    }
    false
}

enum Outcome {
    Continues,
    Accepts,
    Fails,
}

fn step<H: Handshake>(handshake: &mut H, input: Input<H>) -> Outcome {
    match handshake.step(input) {
        Ok(Step::Continue { .. }) => Outcome::Continues,
        Ok(Step::LookUp(lookup)) => {
            let found = lookup.now_or_never().expect("the keys are in memory");
            step(handshake, Input::Found(found))
        }
        Ok(Step::Complete { .. }) => Outcome::Accepts,
        Err(_) => Outcome::Fails,
    }
}
