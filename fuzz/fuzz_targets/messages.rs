//! Decodes arbitrary bytes as messages of Python's `multiprocessing.connection`. No message exceeds the maximum, and
//! encoding and decoding a message again returns the same message.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tokio_util::codec::{Decoder as _, Encoder as _};
use tower_challenge::multiprocessing::MessageCodec;

const MAX: usize = 64;

fuzz_target!(|data: &[u8]| {
    let mut codec = MessageCodec::new().max_len(MAX);
    let mut buf = BytesMut::from(data);
    let mut again = BytesMut::new();
    let mut messages = Vec::new();
    while let Ok(Some(message)) = codec.decode(&mut buf) {
        assert!(message.len() <= MAX);
        codec.encode(&message, &mut again).unwrap();
        messages.push(message);
    }
    for message in messages {
        assert_eq!(codec.decode(&mut again).unwrap().unwrap(), message);
    }
    assert!(again.is_empty());
});
