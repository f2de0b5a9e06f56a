//! Peers that do not know the handshake, or that never answer it.
#![allow(dead_code, unreachable_pub, reason = "not every test uses all of it")]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{REFUSED, read_array, read_verdict};

/// Sends `bytes` to a server of `one_way`, which must take them for a wrong answer: the peer gets the challenge, the
/// refusal and the end of the stream, and nothing else.
pub async fn assert_refused(addr: SocketAddr, bytes: &[u8]) {
    let mut peer = TcpStream::connect(addr).await.unwrap();
    peer.write_all(bytes).await.unwrap();
    read_array::<32>(&mut peer).await;
    assert_eq!(read_verdict(&mut peer).await, REFUSED);
    assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
}

/// Reads the challenge of a server of `one_way` and sends nothing.
pub async fn connect_silent(addr: SocketAddr) -> TcpStream {
    let mut peer = TcpStream::connect(addr).await.unwrap();
    read_array::<32>(&mut peer).await;
    peer
}

/// Connects more silent peers than the default capacity of `Incoming`.
pub async fn connect_many_silent(addr: SocketAddr) -> Vec<TcpStream> {
    let mut peers = Vec::new();
    for _ in 0..32 {
        peers.push(connect_silent(addr).await);
    }
    peers
}
