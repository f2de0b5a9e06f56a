//! Whatever a peer sends, in whatever portions: no state machine of a server accepts it without a key, none panics, and no
//! codec waits for more than its longest frame.
#![no_main]

use bytes::BytesMut;
use futures::FutureExt as _;
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::Decoder;
use tower_challenge::mechanism::{Context, Handshake, Input, Mechanism, Step};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Key, KeyEntry, KeyRing, multiprocessing, one_way};

/// More than any frame of these wires.
const LONGEST_WAIT: usize = 1024 + 2;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let key = || Key::new("a key that the fuzzer does not know").unwrap();
    let entries = || [KeyEntry::new("k", key()).unwrap()];
    let audience = || Audience::new("a").unwrap();
    match choice % 6 {
        0 => assert!(!accepts(&one_way::Server::new(KeyRing::new(entries()).unwrap()), data)),
        1 => assert!(!accepts(&mutual::Server::new(KeyRing::new(entries()).unwrap(), audience()), data)),
        2 => {
            let server = multiprocessing::Server::new(KeyRing::new(entries()).unwrap());
            assert!(!accepts(&server.allow_legacy_md5(), data));
        }
        3 => assert!(!accepts(&mutual::Client::new("k", &key(), audience()).unwrap(), data)),
        4 => assert!(!accepts(&multiprocessing::Client::new(&key()).allow_legacy_md5(), data)),
        // Whose client believes anybody.
        _ => _ = accepts(&one_way::Client::new(&key()), data),
    }
});

/// Feeds a state machine, the first byte of each portion saying how long it is.
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
                Ok(None) => break assert!(buf.len() < LONGEST_WAIT),
                Ok(Some(frame)) => match step(&mut handshake, Input::Frame(frame)) {
                    Some(true) => {}
                    Some(false) => return false,
                    None => return true,
                },
            }
        }
    }
    false
}

/// Whether it goes on, or is over with nobody accepted; none if somebody is.
fn step<H: Handshake>(handshake: &mut H, input: Input<H>) -> Option<bool> {
    match handshake.step(input) {
        Ok(Step::Continue { .. }) => Some(true),
        Ok(Step::LookUp(lookup)) => step(handshake, Input::Found(lookup.now_or_never()?)),
        Ok(Step::Complete { .. }) => None,
        Err(_) => Some(false),
    }
}
