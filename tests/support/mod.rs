//! Helpers shared by several tests.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tower_challenge::{Acceptor, Connector, Key, KeyEntry, Transport, one_way};

/// The accepting verdict of the classic wire, "authentication succeeded".
pub const ACCEPTED: &str = "验证成功";
/// The refusing verdict of the classic wire, "authentication failed".
pub const REFUSED: &str = "验证失败";

pub type Ring = one_way::KeyRing;

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Creates a ring in which the id of each key is its text.
pub fn ring(keys: &[&str]) -> Ring {
    Ring::new(entries(keys)).unwrap()
}

/// Creates entries in which the id of each key is its text.
pub fn entries(keys: &[&str]) -> Vec<KeyEntry> {
    keys.iter().map(|text| KeyEntry::new(*text, key(text)).unwrap()).collect()
}

pub fn acceptor(keys: &[&str]) -> Acceptor<one_way::Server> {
    Acceptor::new(one_way::Server::new(ring(keys)))
}

pub fn connector(text: &str) -> Connector<one_way::Client> {
    Connector::new(one_way::Client::new(&key(text)))
}

/// Computes an HMAC-MD5 without the crate under test.
pub fn hmac_md5(key: &[u8], nonce: &[u8]) -> [u8; 16] {
    Hmac::<Md5>::new_from_slice(key).unwrap().chain_update(nonce).finalize().into_bytes().into()
}

/// Plays the client of the classic wire by hand: reads the challenge and answers it.
pub async fn answer_by_hand<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO, key: &str) {
    let nonce = read_array::<32>(io).await;
    io.write_all(&hmac_md5(key.as_bytes(), &nonce)).await.unwrap();
}

pub async fn read_array<const N: usize>(io: &mut (impl AsyncRead + Unpin)) -> [u8; N] {
    let mut bytes = [0; N];
    io.read_exact(&mut bytes).await.unwrap();
    bytes
}

pub async fn read_verdict(io: &mut (impl AsyncRead + Unpin)) -> String {
    String::from_utf8(read_array::<12>(io).await.to_vec()).unwrap()
}

/// Polls the two futures in turn, `polls` times in total, and drops both. Returns whether both had completed.
pub fn polled_in_turn(first: impl Future, second: impl Future, polls: usize) -> bool {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let cx = &mut Context::from_waker(Waker::noop());
    let (mut first_done, mut second_done) = (false, false);
    for poll in 0..polls {
        if poll % 2 == 0 {
            first_done = first_done || first.as_mut().poll(cx).is_ready();
        } else {
            second_done = second_done || second.as_mut().poll(cx).is_ready();
        }
    }
    first_done && second_done
}

/// A stream that lets a test observe when it is dropped: the strong count of `alive` decreases.
#[derive(Debug)]
pub struct Watched<IO> {
    pub io: IO,
    pub alive: Arc<()>,
}

impl<IO> Transport for Watched<IO> {}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
