//! Peers that know nothing of the handshake.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{REFUSED, read_array, read_verdict};

/// Says `bytes` to a server of `one_way`, and sees: a challenge, that what it said is taken for a wrong answer, the end.
pub async fn speaks(addr: SocketAddr, bytes: &[u8]) {
    let mut stranger = TcpStream::connect(addr).await.unwrap();
    stranger.write_all(bytes).await.unwrap();
    read_array::<32>(&mut stranger).await;
    assert_eq!(read_verdict(&mut stranger).await, REFUSED);
    assert_eq!(stranger.read(&mut [0]).await.unwrap(), 0);
}

/// Is challenged by a server of `one_way`, and says nothing.
pub async fn silent(addr: SocketAddr) -> TcpStream {
    let mut stranger = TcpStream::connect(addr).await.unwrap();
    read_array::<32>(&mut stranger).await;
    stranger
}

/// More of them than `Incoming` has room for, unless told otherwise.
pub async fn many_silent(addr: SocketAddr) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..32 {
        all.push(silent(addr).await);
    }
    all
}
