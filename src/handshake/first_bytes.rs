//! Names the protocol of a peer by the first bytes that it sent.

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};

use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::{Mechanism, Role as _};

/// What messages of CPython's multiprocessing begin with, after their length.
const PYTHON: [&[u8]; 4] = [b"#CHALLENGE#", b"#WELCOME#", b"#FAILURE#", b"{sha256}"];

/// The first bytes that a peer sent: enough to recognize the protocols below.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstBytes {
    bytes: [u8; Self::LEN],
    len: u8,
}

impl FirstBytes {
    /// The longest pattern: a length of four bytes and `#CHALLENGE#`.
    const LEN: usize = 15;

    /// Records the beginning of the read buffer, as long as nothing was taken from it.
    fn record(&mut self, buf: &[u8]) {
        if buf.len() > self.as_bytes().len() && buf.starts_with(self.as_bytes()) {
            let len = buf.len().min(Self::LEN);
            self.bytes[..len].copy_from_slice(&buf[..len]);
            self.len = u8::try_from(len).expect("at most 15");
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether these are the first bytes of the mechanism itself, in another version or dialect perhaps.
    fn is_protocol_of(&self, mechanism: &str) -> bool {
        match (mechanism, self.as_bytes()) {
            ("mutual", [0, 33, 1, ..]) => true,
            ("noise", bytes) => is_noise(bytes),
            ("multiprocessing", [0, 0, 0, _, rest @ ..]) => PYTHON.iter().any(|text| rest.starts_with(text)),
            _ => false,
        }
    }

    /// What a peer speaks that sent these bytes, unless it is `mechanism`.
    fn foreign_protocol(&self, mechanism: &str) -> Option<&'static str> {
        const HTTP: [&[u8]; 10] = [
            b"GET ",
            b"HEAD ",
            b"POST ",
            b"PUT ",
            b"DELETE ",
            b"CONNECT ",
            b"OPTIONS ",
            b"TRACE ",
            b"PATCH ",
            b"HTTP/",
        ];
        const OTHERS: [(&[u8], &str); 4] = [
            (b"PRI * HTTP/2", "HTTP/2"),
            (b"SSH-", "SSH"),
            (b"PROXY ", "the PROXY protocol (version 1)"),
            (b"\r\n\r\n\0\r\nQUIT\n", "the PROXY protocol (version 2)"),
        ];

        let bytes = self.as_bytes();
        match bytes {
            [0x16 | 0x15, 0x03, 0x00..=0x04, ..] => Some("TLS"),
            // A challenge of `mutual`: its length, its version.
            [0, 33, 1, ..] if mechanism != "mutual" => Some("the mechanism `mutual` of this crate"),
            _ if is_noise(bytes) && mechanism != "noise" => Some("the mechanism `noise` of this crate"),
            // A message of CPython's multiprocessing: its length, then the text.
            [0, 0, 0, _, rest @ ..] if mechanism != "multiprocessing" => PYTHON
                .iter()
                .any(|text| rest.starts_with(text))
                .then_some("Python's multiprocessing.connection"),
            _ if HTTP.iter().any(|start| bytes.starts_with(start)) => Some("HTTP"),
            _ => OTHERS.into_iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, name)| name),
        }
    }

    /// Adds to `error` what the first bytes tell about the peer.
    pub(super) fn explain<M: Mechanism>(&self, error: HandshakeError) -> HandshakeError {
        use HandshakeErrorKind::{Malformed, Refused, TimedOut, UnexpectedEof};

        let kind = error.kind();
        match kind {
            TimedOut if self.len == 0 && !error.has_detail() => {
                return HandshakeError::with_detail(
                    kind,
                    "the peer sent nothing; both sides may be waiting for the other to speak first",
                );
            }
            UnexpectedEof if self.len == 0 && M::Role::IS_SERVER => return error.into_probe(),
            UnexpectedEof if self.len == 0 && !error.has_detail() => {
                return HandshakeError::with_detail(
                    kind,
                    "the server sent nothing; it may refuse this address, or have too many connections",
                );
            }
            TimedOut | UnexpectedEof | Malformed | Refused => {}
            _ => return error,
        }
        if let Some(protocol) = self.foreign_protocol(M::NAME) {
            let detail = format!("the peer speaks {protocol}, this side `{}`", M::NAME);
            return HandshakeError::with_cause(kind, detail);
        }
        match (kind, error.get_ref()) {
            // Of a codec or of a state machine, which know no more than that the message is wrong.
            (Malformed, None) if !self.is_protocol_of(M::NAME) => {
                let detail = match error.detail_text() {
                    Some(text) => format!("{text}; does the peer use another mechanism?"),
                    None => "does the peer use another mechanism?".to_owned(),
                };
                HandshakeError::with_cause(kind, detail)
            }
            _ => error,
        }
    }
}

/// Whether these are the first bytes of a HELLO or an ANSWER of `noise`. Its refusal is the same as that of `mutual`.
fn is_noise(bytes: &[u8]) -> bool {
    match *bytes {
        // Its length, its version, the suite, the length of the key id; a public key and a tag follow.
        [high, low, 1, 1 | 2, id, ..] if id > 0 => u16::from_be_bytes([high, low]) == 3 + u16::from(id) + 48,
        // Its length, "accepted".
        [0, 49, 1, ..] => true,
        _ => false,
    }
}

/// A codec that records the first bytes it sees.
#[derive(Debug)]
pub(super) struct Recording<C> {
    codec: C,
    pub(super) first_bytes: FirstBytes,
}

impl<C> Recording<C> {
    pub(super) fn new(codec: C) -> Self {
        Self { codec, first_bytes: FirstBytes::default() }
    }
}

impl<C: Decoder> Decoder for Recording<C> {
    type Item = C::Item;
    type Error = C::Error;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<C::Item>, C::Error> {
        self.first_bytes.record(buf);
        self.codec.decode(buf)
    }

    fn decode_eof(&mut self, buf: &mut BytesMut) -> Result<Option<C::Item>, C::Error> {
        self.first_bytes.record(buf);
        self.codec.decode_eof(buf)
    }
}

impl<T, C: Encoder<T>> Encoder<T> for Recording<C> {
    type Error = C::Error;

    fn encode(&mut self, item: T, buf: &mut BytesMut) -> Result<(), C::Error> {
        self.codec.encode(item, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::one_way;

    fn protocol(bytes: &[u8], mechanism: &str) -> Option<&'static str> {
        // Byte by byte, as a slow peer sends them.
        let mut first = FirstBytes::default();
        (0..=bytes.len()).for_each(|len| first.record(&bytes[..len]));
        first.foreign_protocol(mechanism)
    }

    #[test]
    fn known_protocols_are_named() {
        for (bytes, name) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], "TLS"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n", "HTTP"),
            (b"PRI * HTTP/2.0\r\n\r\nSM", "HTTP/2"),
            (b"SSH-2.0-OpenSSH_9.8\r\n", "SSH"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "the PROXY protocol (version 1)"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", "the PROXY protocol (version 2)"),
            (b"\0\0\0\x3b#CHALLENGE#{sha256}", "Python's multiprocessing.connection"),
            (b"\0\x21\x01abcdefgh", "the mechanism `mutual` of this crate"),
            (b"\0\x38\x01\x01\x05alice", "the mechanism `noise` of this crate"),
            (b"\x01\x32\x01\x02\xffabcdefgh", "the mechanism `noise` of this crate"),
            (b"\0\x31\x01abcdefgh", "the mechanism `noise` of this crate"),
        ] {
            assert_eq!(protocol(bytes, "one_way"), Some(name));
        }
        assert_eq!(protocol(b"\0\x21\x01abcdefgh", "mutual"), None);
        assert_eq!(protocol(b"\0\0\0\x3b#CHALLENGE#{sha256}", "multiprocessing"), None);
        assert_eq!(protocol(b"\0\x38\x01\x01\x05alice", "noise"), None);
        assert_eq!(protocol(b"\0\x39\x01\x01\x05alice", "mutual"), None);
        assert_eq!(protocol(b"", "mutual"), None);
        assert_eq!(protocol(b"hello", "mutual"), None);
    }

    #[test]
    fn bytes_after_the_first_message_are_not_recorded() {
        let mut first = FirstBytes::default();
        first.record(b"first");
        first.record(b"GET / HTTP/1.1");
        assert_eq!(first.as_bytes(), b"first");
    }

    #[test]
    fn explains_by_kind() {
        let explain = |bytes: &[u8], error| {
            let mut first = FirstBytes::default();
            first.record(bytes);
            first.explain::<one_way::Server>(error).to_string()
        };
        let malformed = HandshakeError::malformed("a frame of more than 1024 bytes");
        assert_eq!(
            explain(b"\x16\x03\x01", malformed),
            "malformed handshake message: the peer speaks TLS, this side `one_way`"
        );
        let malformed = HandshakeError::malformed("a frame of more than 1024 bytes");
        assert_eq!(
            explain(b"xyz", malformed),
            "malformed handshake message: a frame of more than 1024 bytes; does the peer use another mechanism?"
        );
        let timed_out = explain(b"", HandshakeErrorKind::TimedOut.into());
        assert!(timed_out.contains("the peer sent nothing"), "{timed_out}");
        assert_eq!(explain(b"x", HandshakeErrorKind::TimedOut.into()), "handshake timed out");
        let probe = explain(b"", HandshakeErrorKind::UnexpectedEof.into());
        assert_eq!(probe, "connection closed before the peer sent anything");
        let refused =
            FirstBytes::default().explain::<one_way::Client>(HandshakeErrorKind::UnexpectedEof.into());
        assert_eq!(refused.kind(), HandshakeErrorKind::UnexpectedEof, "a client sees no probes");
        assert_eq!(explain(b"", HandshakeErrorKind::Evicted.into()), "evicted in favor of a new connection");
    }
}
