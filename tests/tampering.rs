//! A man in the middle who changes one bit of what one side sends: whoever hears it does not accept. Every bit of every
//! message, every mechanism, both directions, over whole handshakes.
#![cfg(all(feature = "mutual", feature = "multiprocessing"))]

mod support;

use std::fmt::Debug;

use support::{entries, key, ring};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tower_challenge::handshake::{Accept, Connect};
use tower_challenge::mechanism::{Client, Mechanism, PeerOf, Server};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Acceptor, Connector, KeyRing, multiprocessing, one_way};

const KEY: &str = "a key of sixteen bytes or more";

/// Copies what comes, with one bit of it changed if there is one to change; how many bits there were.
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

/// One handshake: whether server and client accept, and how many bits each sent.
async fn shake<S, C>(
    server: &Acceptor<S>,
    client: &Connector<C>,
    flips: [Option<usize>; 2],
) -> [(bool, usize); 2]
where
    S: Mechanism<Role = Server>,
    C: Mechanism<Role = Client>,
    Accept<DuplexStream, S>: Send + 'static,
    Connect<DuplexStream, C>: Send + 'static,
    PeerOf<S>: Send + Debug + 'static,
    PeerOf<C>: Send + Debug + 'static,
{
    let ((server_io, near_server), (client_io, near_client)) = (duplex(1024), duplex(1024));
    let (from_server, to_server) = tokio::io::split(near_server);
    let (from_client, to_client) = tokio::io::split(near_client);
    let accept = tokio::spawn(server.accept(server_io));
    let connect = tokio::spawn(client.connect(client_io));
    let down = tokio::spawn(copy(from_server, to_client, flips[0]));
    let up = tokio::spawn(copy(from_client, to_server, flips[1]));
    // Whoever is done hangs up, for the other one may wait for more.
    let accepted = accept.await.unwrap().is_ok();
    let connected = connect.await.unwrap().is_ok();
    [(accepted, down.await.unwrap()), (connected, up.await.unwrap())]
}

async fn every_bit<S, C>(server: S, client: C)
where
    S: Mechanism<Role = Server>,
    C: Mechanism<Role = Client>,
    Accept<DuplexStream, S>: Send + 'static,
    Connect<DuplexStream, C>: Send + 'static,
    PeerOf<S>: Send + Debug + 'static,
    PeerOf<C>: Send + Debug + 'static,
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
async fn of_one_way() {
    every_bit(one_way::Server::new(ring(&[KEY])), one_way::Client::new(&key(KEY))).await;
}

#[tokio::test(start_paused = true)]
async fn of_mutual() {
    let audience = Audience::new("orders").unwrap();
    let server = mutual::Server::new(KeyRing::new(entries(&[KEY])).unwrap(), audience.clone());
    every_bit(server, mutual::Client::new(KEY, &key(KEY), audience).unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn of_multiprocessing() {
    let server = || multiprocessing::Server::new(KeyRing::new(entries(&[KEY])).unwrap());
    every_bit(server(), multiprocessing::Client::new(&key(KEY))).await;
    // Also where less is refused.
    let client = multiprocessing::Client::new(&key(KEY)).allow_legacy_md5();
    every_bit(server().allow_legacy_md5(), client).await;
}
