//! Keys that are accepted only from processes of the user that they were issued to.

use std::error::Error;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::{env, process};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{SocketAddr, UCred, uid_t};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tower::ServiceBuilder;
use tower_challenge::mutual::{self, Audience, ServerPeer};
use tower_challenge::serve::ServeError;
use tower_challenge::{Authenticated, ChallengeLayer, Connection, Connector, Identity, Key, KeyEntry, serve};

/// The user that a key was issued to: the metadata of the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner(pub(crate) uid_t);

pub(crate) type Stream = Authenticated<Connection<UnixStream, SocketAddr>, mutual::Peer<Owner>>;

/// Returns both identities of a peer, if they agree.
///
/// # Errors
///
/// `PermissionDenied` if the process belongs to another user than the key.
pub(crate) fn admit(stream: &Stream) -> io::Result<(Identity<Owner>, UCred)> {
    // The kernel reports the process that connected. A peer cannot forge it.
    let process = stream.get_ref().get_ref().peer_cred()?;
    let identity = stream.peer().identity().clone();
    let Owner(owner) = *identity.metadata();
    if process.uid() == owner {
        Ok((identity, process))
    } else {
        let reason = format!("key {} is user {owner}'s, not user {}'s", identity.key_id(), process.uid());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
    }
}

async fn greet(mut stream: Stream) -> io::Result<()> {
    let (identity, process) = admit(&stream)?;
    let greeting = format!("hello {} of user {}", identity.key_id(), process.uid());
    stream.write_all(greeting.as_bytes()).await
}

/// Serves on a socket at `path`. Returns the errors of its connections.
pub(crate) fn listen(
    path: &Path,
    keys: mutual::KeyRing<Owner>,
) -> Result<mpsc::UnboundedReceiver<String>, Box<dyn Error>> {
    let service = ServiceBuilder::new()
        .layer(ChallengeLayer::new(mutual::Server::new(keys, Audience::new("greetings")?)))
        .service_fn(greet);
    let (errors, error) = mpsc::unbounded_channel();
    let server = serve(UnixListener::bind(path)?, service).on_error(move |error| {
        let text = match error {
            // Without the address: clients of a Unix socket have none.
            ServeError::Connection { error, .. } => error.to_string(),
            error => error.to_string(),
        };
        errors.send(text).unwrap_or_default();
    });
    tokio::spawn(server.into_future());
    Ok(error)
}

pub(crate) async fn connect(
    path: &Path,
    key_id: &str,
    key: &Key,
) -> Result<Authenticated<UnixStream, ServerPeer>, Box<dyn Error>> {
    let mechanism = mutual::Client::new(key_id, key, Audience::new("greetings")?)?;
    Ok(Connector::new(mechanism).connect(UnixStream::connect(path).await?).await?)
}

/// Returns the user of this process, which owns the file that it created at `path`.
pub(crate) fn this_user(path: &Path) -> io::Result<uid_t> {
    Ok(path.metadata()?.uid())
}

/// A directory that only this user can enter, removed on drop.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn create() -> io::Result<Self> {
        let path = env::temp_dir().join(format!("tower-challenge-{}", process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) async fn run() -> Result<(), Box<dyn Error>> {
    let directory = PrivateDirectory::create()?;
    let path = directory.0.join("socket");
    let user = this_user(&directory.0)?;
    let (ours, theirs) = (Key::generate()?, Key::generate()?);
    let keys = mutual::KeyRing::new([
        KeyEntry::new("ours", ours.clone())?.with_metadata(Owner(user)),
        KeyEntry::new("theirs", theirs.clone())?.with_metadata(Owner(user.wrapping_add(1))),
    ])?;
    let mut error = listen(&path, keys)?;

    println!("With the key that was issued to the user of this process:");
    let mut greeting = String::new();
    connect(&path, "ours", &ours).await?.read_to_string(&mut greeting).await?;
    println!("  client: the server says {greeting:?}");

    println!("\nWith a key that was issued to another user:");
    let len = connect(&path, "theirs", &theirs).await?.read_to_end(&mut Vec::new()).await?;
    println!("  client: got {len} bytes, then the server closed");
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);

    println!("\nWith a key that the server does not have:");
    let refused = connect(&path, "ours", &Key::generate()?).await.expect_err("the server has another key");
    println!("  client: {refused}");
    println!("  server: {}", error.recv().await.ok_or("the server has stopped")?);
    Ok(())
}
