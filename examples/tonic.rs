//! gRPC with tonic, for clients that hold a key, all in one process: a server, a client with the right key, one that may
//! not call, one with a wrong key, and one that knows gRPC but no handshake.
//!
//! ```text
//! cargo run --features tonic --example tonic
//! ```
//!
//! The service is gRPC's own health check, which needs no code generator.

use std::error::Error;
use std::net::SocketAddr;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::service::InterceptorLayer;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::health_reporter;
use tower::ServiceBuilder;
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{AnswerLayer, ChallengeLayer, Incoming, Key, KeyEntry, KeyRing, PeerInfo};

type BoxError = Box<dyn Error + Send + Sync>;

/// Whether the holder of a key may call.
#[derive(Clone, Copy)]
struct MayCall(bool);

/// What services know of their connection.
type Peer = PeerInfo<mutual::Peer<MayCall>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (alice, bob) = (Key::generate()?, Key::generate()?);
    let keys = KeyRing::new([
        KeyEntry::new("alice", alice.clone())?.attach(MayCall(true)),
        KeyEntry::new("bob", bob.clone())?.attach(MayCall(false)),
    ])?;
    let audience = Audience::new("health")?;
    let layer = ChallengeLayer::new(mutual::Server::new(keys, audience.clone()));

    let (errors, mut error) = mpsc::unbounded_channel();
    let incoming = Incoming::builder(TcpListener::bind("127.0.0.1:0").await?, layer)
        .on_error(move |error| errors.send(error.to_string()).unwrap_or_default())
        .start()?;
    let addr = *incoming.local_addr();
    let (_reporter, health) = health_reporter();
    let server = Server::builder().layer(InterceptorLayer::new(authorize)).add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));
    println!("A server listens on {addr}.");

    println!("\nA client with the right key:");
    let channel = connect(addr, mutual::Client::new("alice", &alice, audience.clone())?).await?;
    println!("  client: the server is {:?}", check(channel).await?);

    println!("\nA client that may not call:");
    let channel = connect(addr, mutual::Client::new("bob", &bob, audience.clone())?).await?;
    println!("  client: {}", check(channel).await.expect_err("it may not").message());

    println!("\nA client with a wrong key:");
    let wrong = mutual::Client::new("alice", &bob, audience)?;
    println!("  client: {}", chain(&*connect(addr, wrong).await.expect_err("the server refuses it")));
    println!("  server: {}", error.recv().await.expect("it tells"));

    println!("\nA client that knows nothing of the handshake:");
    let channel = Endpoint::from_shared(format!("http://{addr}"))?.connect().await?;
    println!("  client: {}", chain(&check(channel).await.expect_err("a challenge is no response")));
    println!("  server: {}", error.recv().await.expect("it tells"));
    Ok(())
}

/// Comes before each call of any service; those find the peer in the same place.
fn authorize(request: Request<()>) -> Result<Request<()>, Status> {
    let info = request.extensions().get::<Peer>().expect("of each connection that is served");
    let identity = info.peer.identity();
    println!("  server: {} calls from {}", identity.key_id(), info.addr);
    let MayCall(may) = *identity.attached();
    if may { Ok(request) } else { Err(Status::permission_denied("you may not")) }
}

async fn connect(addr: SocketAddr, mechanism: mutual::Client) -> Result<Channel, BoxError> {
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    let connector = ServiceBuilder::new()
        .map_response(TokioIo::new)
        .layer(AnswerLayer::new(mechanism))
        .map_response(TokioIo::into_inner)
        .service(http);
    Ok(Endpoint::from_shared(format!("http://{addr}"))?.connect_with_connector(connector).await?)
}

async fn check(channel: Channel) -> Result<String, Status> {
    let response = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
    Ok(response.into_inner().status().as_str_name().to_owned())
}

/// An error with all that lies beneath it.
fn chain(error: &dyn Error) -> String {
    let beneath = error.source().map(|source| format!(": {}", chain(source)));
    format!("{error}{}", beneath.unwrap_or_default())
}
