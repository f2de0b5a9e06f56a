//! gRPC with tonic for clients that hold a key. One process runs the server and four clients: one with the right key, one
//! without the permission to call, one with a wrong key, and one that speaks gRPC without a handshake.
//!
//! ```text
//! cargo run -p example-tonic
//! ```
//!
//! The service is gRPC's health check, which needs no code generator.

#[macro_use]
#[path = "../../shared/print.rs"]
mod print;
#[path = "../../shared/shutdown_signal.rs"]
mod shutdown_signal;

use std::error::Error;
use std::net::SocketAddr;

use hyper_util::client::legacy::connect::HttpConnector;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::service::InterceptorLayer;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::health_reporter;
use tower::Layer as _;
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{AnswerLayer, ChallengeLayer, HyperAnswerLayer, Incoming, Key, KeyEntry, PeerInfo};

use self::shutdown_signal::shutdown_signal;

type BoxError = Box<dyn Error + Send + Sync>;

/// Whether the holder of a key may call: the metadata of the key.
#[derive(Clone, Copy)]
struct MayCall(bool);

/// What a service finds in the extensions of a request.
type Peer = PeerInfo<mutual::Peer<MayCall>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (alice, bob) = (Key::generate()?, Key::generate()?);
    let keys = mutual::KeyRing::new([
        KeyEntry::new("alice", alice.clone())?.with_metadata(MayCall(true)),
        KeyEntry::new("bob", bob.clone())?.with_metadata(MayCall(false)),
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
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, shutdown_signal()));
    println!("The server listens on {addr}.");

    println!("\nA client with the right key:");
    let channel = connect(addr, mutual::Client::new("alice", &alice, audience.clone())?).await?;
    println!("  client: the server is {:?}", check(channel).await?);

    println!("\nA client without the permission to call:");
    let channel = connect(addr, mutual::Client::new("bob", &bob, audience.clone())?).await?;
    println!("  client: {}", check(channel).await.expect_err("bob may not call").message());

    println!("\nA client with a wrong key:");
    let wrong = mutual::Client::new("alice", &bob, audience)?;
    let refused = connect(addr, wrong).await.expect_err("the server has another key");
    println!("  client: {}", with_sources(&*refused));
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    println!("\nA client without a handshake:");
    let channel = Endpoint::from_shared(format!("http://{addr}"))?.connect().await?;
    let failed = check(channel).await.expect_err("a challenge is not a response");
    println!("  client: {}", with_sources(&failed));
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);
    Ok(())
}

/// Runs before each call of any service. The services find the peer in the same extension.
fn authorize(request: Request<()>) -> Result<Request<()>, Status> {
    let info = request.extensions().get::<Peer>().expect("set for each connection");
    let identity = info.peer.identity();
    println!("  server: {} calls from {}", identity.key_id(), info.addr);
    let MayCall(may) = *identity.metadata();
    if may { Ok(request) } else { Err(Status::permission_denied("you may not call")) }
}

async fn connect(addr: SocketAddr, mechanism: mutual::Client) -> Result<Channel, BoxError> {
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    let connector = HyperAnswerLayer::new(AnswerLayer::new(mechanism)).layer(http);
    Ok(Endpoint::from_shared(format!("http://{addr}"))?.connect_with_connector(connector).await?)
}

async fn check(channel: Channel) -> Result<String, Status> {
    let response = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
    Ok(response.into_inner().status().as_str_name().to_owned())
}

/// Formats an error with its sources. tonic's errors do not print their cause themselves.
fn with_sources(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_sources(source)),
        None => error.to_string(),
    }
}
