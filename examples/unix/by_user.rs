//! Keys that count only in the hands of the user whom they were given to.

use std::error::Error;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{SocketAddr, UCred, uid_t};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tower::ServiceBuilder;
use tower_challenge::mutual::{self, Audience, PreparedKey, ProvenServer};
use tower_challenge::serve::ServeError;
use tower_challenge::{
    AcceptError, Authenticated, ChallengeLayer, Connection, Connector, Identity, Key, KeyEntry, KeyRing,
    serve,
};

/// The user whom a key was given to: attached to the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner(pub(crate) uid_t);

pub(crate) type Stream = Authenticated<Connection<UnixStream, SocketAddr>, mutual::Peer<Owner>>;

/// Both of what is known of a peer, if the two agree.
///
/// # Errors
///
/// `PermissionDenied` for a key in the hands of another user than its owner.
pub(crate) fn admit(stream: &Stream) -> io::Result<(Identity<Owner>, UCred)> {
    // Told by the kernel, of the process that connected; no peer can make it up.
    let process = stream.get_ref().get_ref().peer_cred()?;
    let identity = stream.peer().identity().clone();
    let Owner(owner) = *identity.attached();
    if process.uid() == owner {
        Ok((identity, process))
    } else {
        let told = format!("key {} is user {owner}'s, not user {}'s", identity.key_id(), process.uid());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, told))
    }
}

async fn greet(mut stream: Stream) -> io::Result<()> {
    let (identity, process) = admit(&stream)?;
    let greeting = format!("hello {} of user {}", identity.key_id(), process.uid());
    stream.write_all(greeting.as_bytes()).await
}

/// Serves on a socket at `path`; returns what goes wrong on its connections.
pub(crate) fn listen(
    path: &Path,
    keys: KeyRing<PreparedKey, Owner>,
) -> Result<mpsc::UnboundedReceiver<String>, Box<dyn Error>> {
    let service = ServiceBuilder::new()
        .layer(ChallengeLayer::new(mutual::Server::new(keys, Audience::new("greetings")?)))
        .service_fn(greet);
    let (errors, error) = mpsc::unbounded_channel();
    let server = serve(UnixListener::bind(path)?, service).on_error(move |error| {
        let told = match error {
            ServeError::Connection { error: AcceptError::Service(error), .. } => error.to_string(),
            error => error.to_string(),
        };
        errors.send(told).unwrap_or_default();
    });
    tokio::spawn(server.into_future());
    Ok(error)
}

pub(crate) async fn connect(
    path: &Path,
    key_id: &str,
    key: &Key,
) -> Result<Authenticated<UnixStream, ProvenServer>, Box<dyn Error>> {
    let mechanism = mutual::Client::new(key_id, key, Audience::new("greetings")?)?;
    Ok(Connector::new(mechanism).connect(UnixStream::connect(path).await?).await?)
}

/// The user that this process is, as it is the owner of what it makes.
pub(crate) fn this_user(made: &Path) -> io::Result<uid_t> {
    Ok(made.metadata()?.uid())
}

pub(crate) async fn run() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let user = this_user(directory.path())?;
    let (ours, theirs) = (Key::generate()?, Key::generate()?);
    let keys = KeyRing::new([
        KeyEntry::new("ours", ours.clone())?.attach(Owner(user)),
        KeyEntry::new("theirs", theirs.clone())?.attach(Owner(user.wrapping_add(1))),
    ])?;
    let mut error = listen(&path, keys)?;

    println!("With the key of the user that this process is:");
    let mut greeting = String::new();
    connect(&path, "ours", &ours).await?.read_to_string(&mut greeting).await?;
    println!("  client: the server says {greeting:?}");

    println!("\nWith a key that was given to another user:");
    let len = connect(&path, "theirs", &theirs).await?.read_to_end(&mut Vec::new()).await?;
    println!("  client: got {len} bytes, then the server closed");
    println!("  server: {}", error.recv().await.expect("it tells"));

    println!("\nWith a key that nobody was given:");
    let refused = connect(&path, "ours", &Key::generate()?).await.expect_err("the key is another");
    println!("  client: {refused}");
    println!("  server: {}", error.recv().await.expect("it tells"));
    Ok(())
}
