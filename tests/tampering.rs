//! An intermediary flips one bit of a message, and its receiver does not accept. Covers every bit of every message of
//! every mechanism, in both directions, in complete handshakes.
#![cfg(all(feature = "mutual", feature = "multiprocessing"))]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tower_challenge::mechanism::{ClientRole, Mechanism, ServerRole};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Acceptor, Connector, multiprocessing, one_way};

use crate::support::{entries, key, ring};

const KEY: &str = "a key of sixteen bytes or more";

/// Copies all bytes, and flips the bit at `flip` if there is one. Returns the number of bits.
async fn copy(
    mut from: tokio::io::ReadHalf<DuplexStream>,
    mut to: tokio::io::WriteHalf<DuplexStream>,
    flip: Option<usize>,
) -> usize {
    let mut bits = 0;
    while let Ok(mut byte) = from.read_u8().await {
        if let Some(bit) = flip.and_then(|flip| flip.checked_sub(bits)).filter(|&bit| bit < 8) {
            byte ^= 1 << bit;
        }
        bits += 8;
        if to.write_u8(byte).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    bits
}

/// Runs a handshake. Returns for server and client whether it accepted, and how many bits it sent.
async fn shake<S, C>(
    server: &Acceptor<S>,
    client: &Connector<C>,
    flips: [Option<usize>; 2],
) -> [(bool, usize); 2]
where
    S: Mechanism<Role = ServerRole>,
    C: Mechanism<Role = ClientRole>,
{
    let ((server_io, near_server), (client_io, near_client)) = (duplex(1024), duplex(1024));
    let (from_server, to_server) = tokio::io::split(near_server);
    let (from_client, to_client) = tokio::io::split(near_client);
    let down = copy(from_server, to_client, flips[0]);
    let up = copy(from_client, to_server, flips[1]);
    // A side that has completed closes its stream, since the other side may wait for more.
    let accept = async { server.accept(server_io).await.is_ok() };
    let connect = async { client.connect(client_io).await.is_ok() };
    let (accepted, connected, down, up) = tokio::join!(accept, connect, down, up);
    [(accepted, down), (connected, up)]
}

async fn every_bit<S, C>(server: S, client: C)
where
    S: Mechanism<Role = ServerRole>,
    C: Mechanism<Role = ClientRole>,
{
    let (server, client) = (Acceptor::new(server), Connector::new(client));
    let [(accepted, down), (connected, up)] = shake(&server, &client, [None, None]).await;
    assert!(accepted && connected && down > 0 && up > 0);
    for bit in 0..down {
        let [_, (connected, _)] = shake(&server, &client, [Some(bit), None]).await;
        assert!(!connected, "bit {bit} of {down} that the server sends");
    }
    for bit in 0..up {
        let [(accepted, _), _] = shake(&server, &client, [None, Some(bit)]).await;
        assert!(!accepted, "bit {bit} of {up} that the client sends");
    }
}

#[tokio::test(start_paused = true)]
async fn one_way_accepts_no_flipped_bit() {
    every_bit(one_way::Server::new(ring(&[KEY])), one_way::Client::new(&key(KEY))).await;
}

#[tokio::test(start_paused = true)]
async fn mutual_accepts_no_flipped_bit() {
    let audience = Audience::new("orders").unwrap();
    let server = mutual::Server::new(mutual::KeyRing::new(entries(&[KEY])).unwrap(), audience.clone());
    every_bit(server, mutual::Client::new(KEY, &key(KEY), audience).unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn multiprocessing_accepts_no_flipped_bit() {
    let server = || multiprocessing::Server::new(multiprocessing::KeyRing::new(entries(&[KEY])).unwrap());
    every_bit(server(), multiprocessing::Client::new(&key(KEY))).await;
    // Also with MD5 allowed, where fewer messages are refused.
    let client = multiprocessing::Client::new(&key(KEY)).allow_legacy_md5();
    every_bit(server().allow_legacy_md5(), client).await;
}
