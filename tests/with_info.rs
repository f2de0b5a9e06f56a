//! `WithInfo` around streams of types that do not implement `Transport`.

use std::io;

use tokio::io::{
    AsyncReadExt as _, AsyncWriteExt as _, Join, ReadHalf, SimplexStream, WriteHalf, join, simplex,
};
use tower::{Layer as _, ServiceBuilder, ServiceExt as _, service_fn};
use tower_challenge::HandshakeErrorKind::SourceLimit;
use tower_challenge::transport::{TransportInfo, WithInfo};
use tower_challenge::{Admission, AnswerLayer, Authenticated, ChallengeLayer, Identity, one_way};

use crate::support::{acceptor, connector, key, ring};

type Pipe = Join<ReadHalf<SimplexStream>, WriteHalf<SimplexStream>>;

/// Creates both ends of a connection that consists of two pipes.
fn pair() -> (WithInfo<Pipe>, WithInfo<Pipe>) {
    let ((client_reads, server_writes), (server_reads, client_writes)) = (simplex(64), simplex(64));
    let info = TransportInfo::new().peer_addr(([192, 0, 2, 1], 4711).into());
    (
        WithInfo::new(join(client_reads, client_writes), TransportInfo::new()),
        WithInfo::new(join(server_reads, server_writes), info),
    )
}

#[tokio::test]
async fn acceptor_and_connector() {
    let (client, server) = pair();
    let (accepted, connected) =
        tokio::join!(acceptor(&["key"]).accept(server), connector("key").connect(client));
    let (mut server, mut client) = (accepted.unwrap(), connected.unwrap());
    assert_eq!(server.peer().key_id(), &"key");
    server.write_all(b"hello").await.unwrap();
    client.write_all(b"world").await.unwrap();
    let (mut at_client, mut at_server) = ([0; 5], [0; 5]);
    client.read_exact(&mut at_client).await.unwrap();
    server.read_exact(&mut at_server).await.unwrap();
    assert_eq!((&at_client, &at_server), (b"hello", b"world"));
    // The end of the stream arrives, too.
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn challenge_layer_and_answer_layer() {
    let service = ServiceBuilder::new()
        .layer(ChallengeLayer::new(one_way::Server::new(ring(&["key"]))))
        .service_fn(|mut stream: Authenticated<WithInfo<Pipe>, Identity>| async move {
            let greeting = format!("hello {}", stream.peer().key_id());
            stream.write_all(greeting.as_bytes()).await?;
            stream.shutdown().await
        });
    let (client, server) = pair();
    let connector = AnswerLayer::new(one_way::Client::new(&key("key")))
        .layer(service_fn(|io: WithInfo<Pipe>| async { Ok::<_, io::Error>(io) }));
    let (response, connected) = tokio::join!(service.oneshot(server), connector.oneshot(client));
    response.unwrap();
    let mut greeting = String::new();
    connected.unwrap().read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "hello key");
}

#[tokio::test]
async fn peer_addr_is_the_source_for_admission_control() {
    let admission = Admission::builder().max_pending(1).max_per_source(1).build().unwrap();
    let acceptor = acceptor(&["key"]).admission(admission.clone());
    let _in_flight = acceptor.accept(pair().1);
    assert_eq!(acceptor.accept(pair().1).await.unwrap_err().kind(), SourceLimit);
    assert_eq!(admission.pending(), 1);
}
