//! The server's side: authenticates the clients that connect, and forwards their connections to a plain target.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tower_challenge::admission::{Admission, AdmissionError, Penalties};
use tower_challenge::handshake::Accept;
use tower_challenge::key::PrepareKey;
use tower_challenge::mechanism::{Mechanism as Mechanisms, PeerOf, ServerRole, StreamOf};
use tower_challenge::prepare::{Proxied, ProxyProtocol};
use tower_challenge::transport::TransportInfo;
use tower_challenge::{
    Authenticated, BoxError, ChallengeLayer, Connection, KeyFile, KeyId, Transport, mutual, noise,
};
use tower_challenge_redis::{PenaltyExchange, RedisKeys, RedisPenalties, StoreSecret};

use crate::args::{Mechanism, ProxyVersion, ServerArgs};
use crate::capacity::{Capacity, Demand};
use crate::keys::{self, Source, Watched};
use crate::service::{self, Prepared, SessionFailed};
use crate::session::{Session, Sessions, reset_on_drop};
use crate::socket::{OverSocket, Peer, Socket};
use crate::target::Targets;
use crate::{audience, proxy_header};

/// The smallest default of `--max-per-source`. A client sidecar has 64 handshakes in flight at the same time, so a
/// burst of its sessions is within the limit of every server.
const MIN_PER_SOURCE: usize = 128;

/// The stream of a handshake.
type Accepted = Proxied<Connection<Socket, Peer>>;

/// Reads the keys and checks the settings.
pub(crate) async fn prepare(args: &ServerArgs, share: usize) -> Result<Prepared, BoxError> {
    let audience = audience(&args.common)?;
    match (args.common.mechanism, &args.key_file) {
        (Mechanism::Noise, Some(path)) => {
            let Watched { current, watch } = keys::ring(&source(args, path)).await?;
            prepare_with(args, share, noise::Server::new(current, audience), Box::new(watch))
        }
        (Mechanism::Mutual, Some(path)) => {
            let Watched { current, watch } = keys::ring(&source(args, path)).await?;
            prepare_with(args, share, mutual::Server::new(current, audience), Box::new(watch))
        }
        (Mechanism::Noise, None) => {
            let keys = fleet_keys(args).await?;
            let feed = Box::new(keys.clone());
            prepare_with(args, share, noise::Server::new(keys, audience), feed)
        }
        (Mechanism::Mutual, None) => {
            let keys = fleet_keys(args).await?;
            let feed = Box::new(keys.clone());
            prepare_with(args, share, mutual::Server::new(keys, audience), feed)
        }
    }
}

fn source<'a>(args: &'a ServerArgs, path: &'a Path) -> Source<'a> {
    Source { service: args.common.name(), path, allow_group_read: args.allow_group_read }
}

/// Loads the keys of a fleet from Redis, and follows them.
async fn fleet_keys<K>(args: &ServerArgs) -> Result<RedisKeys<K>, BoxError>
where
    K: PrepareKey + Send + Sync + 'static,
{
    let (Some(url), Some(path)) = (&args.keys, &args.key_encryption_key_file) else {
        unreachable!("clap requires a key file, or these two")
    };
    let file = KeyFile::new(path);
    let file = if args.allow_group_read { file.allow_group_read() } else { file };
    // A pipe without a writer blocks the thread.
    let secret = spawn_blocking(move || StoreSecret::read_file(&file)).await?;
    let secret = secret.map_err(|error| format!("--key-encryption-key-file: {error}"))?;
    let builder = RedisKeys::builder(url, secret).prefix(&args.keys_prefix);
    // Not the same name for each start, and for each check.
    let mut builder = builder.name(format!("{}:{}", host_name(), args.common.name()));
    if let Some(path) = &args.state_file {
        builder = builder.state_file(path);
    }
    if let Some(max) = args.max_stale.unless_zero() {
        builder = builder.max_stale(max);
    }
    builder.connect().await.map_err(|error| format!("--keys: {error}").into())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.is_empty() { "server".to_owned() } else { name.trim().to_owned() }
}

/// Shares the penalties of a fleet, if its keys are in Redis.
fn share_penalties(args: &ServerArgs, admission: &Admission) -> Result<Option<PenaltyExchange>, BoxError> {
    let Some(url) = args.keys.as_ref().filter(|_| args.penalties) else { return Ok(None) };
    Ok(Some(RedisPenalties::new(url)?.prefix(&args.keys_prefix).start(admission.clone())))
}

fn prepare_with<M>(
    args: &ServerArgs,
    share: usize,
    mechanism: M,
    feed: Box<dyn Send>,
) -> Result<Prepared, BoxError>
where
    M: Mechanisms<Role = ServerRole> + Send + Sync + 'static,
    StreamOf<M, Accepted>: OverSocket + Transport + Send,
    PeerOf<M>: HasKeyId + Send,
    Accept<Connection<Socket, Peer>, M, ProxyProtocol>: Send,
{
    let common = &args.common;
    let capacity = Capacity::fit(common, share, Demand::SERVER)?;
    let admission = admission(args, capacity)?;
    let exchange = share_penalties(args, &admission)?;
    let challenge = ChallengeLayer::new(mechanism)
        .prepare(ProxyProtocol::from_trusted(args.proxy_protocol_from.iter().copied()))
        .timeout(common.timeout.0)
        .ready_timeout(common.timeout.0)
        .admission(admission);
    let forward = Arc::new(Forward {
        places: Semaphore::new(capacity.max_sessions),
        targets: Targets::new(common.target.clone(), common.connect_timeout.0, common.socket_options()),
        sessions: Sessions::new(common.name(), ["client", "target"], common.idle_timeout.unless_zero()),
        args: args.clone(),
    });
    let service = ServiceBuilder::new().layer(challenge).service_fn(
        move |stream: Authenticated<StreamOf<M, Accepted>, PeerOf<M>>| {
            let forward = Arc::clone(&forward);
            async move { forward.session(stream).await }
        },
    );
    let common = common.clone();
    Ok(Box::new(move |listener, lifetime| {
        Box::pin(async move {
            let ended = service::run(&common, capacity, listener, lifetime, service).await;
            // Keys are followed for as long as there are sessions that their revocation would end.
            drop((feed, exchange));
            ended
        })
    }))
}

fn admission(args: &ServerArgs, capacity: Capacity) -> Result<Admission, AdmissionError> {
    let quarter = capacity.max_pending.div_ceil(4).max(MIN_PER_SOURCE);
    let admission = Admission::builder()
        .max_pending(capacity.max_pending)
        .max_per_source(args.max_per_source.map_or(quarter, std::num::NonZeroUsize::get));
    let admission = args.exempt.iter().fold(admission, |admission, &prefix| admission.exempt(prefix));
    if args.penalties { admission.penalties(Penalties::new()) } else { admission }.build()
}

/// The state that all sessions share.
struct Forward {
    /// Not a limit of tower, which would drop a peer that waits for too long without a reset.
    places: Semaphore,
    targets: Targets,
    sessions: Arc<Sessions>,
    args: ServerArgs,
}

impl Forward {
    async fn session<S, P>(&self, stream: Authenticated<S, P>) -> Result<(), SessionFailed>
    where
        Authenticated<S, P>: tokio::io::AsyncRead + AsyncWrite + OverSocket + Transport + Unpin,
        P: HasKeyId,
    {
        reset_on_drop(&stream, true);
        let peer = TransportInfo::from_stream(&stream).peer_addr.map_or(Peer::Unix, Peer::Tcp);
        let key_id = stream.peer().key_id().clone();
        let header = self.args.send_proxy_protocol.map(|version| header(version, &stream, peer, &key_id));
        let session = Session::begin(&self.sessions, peer, Some(key_id));
        let Some(_place) = self.place(stream.shutdown_token()).await else {
            return session.fail(&"too many sessions");
        };
        let mut target = match self.targets.connect().await {
            Ok(target) => target,
            Err(error) => return session.fail(&error),
        };
        if let Some(header) = header {
            if let Err(error) = target.write_all(&header).await {
                return session.fail(&format_args!("target: {error}"));
            }
        }
        let revoked = stream.revoked();
        let grace = self.args.revoked_grace.0;
        let revoked = async move {
            revoked.await;
            sleep(grace).await;
        };
        session.run(stream, target, revoked).await
    }

    /// Waits for a place among the sessions. `None` if there is none in time.
    async fn place(&self, shutdown: Option<&CancellationToken>) -> Option<SemaphorePermit<'_>> {
        let stopping = async {
            match shutdown {
                Some(token) => token.cancelled().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            place = timeout(self.args.common.timeout.0, self.places.acquire()) => place.ok()?.ok(),
            () = stopping => None,
        }
    }
}

/// Returns the header for the target.
fn header(version: ProxyVersion, stream: &impl OverSocket, peer: Peer, key_id: &KeyId) -> Vec<u8> {
    let addresses = match peer {
        Peer::Tcp(source) => stream.destination().map(|destination| (source, destination)),
        Peer::Unix => None,
    };
    match version {
        ProxyVersion::V1 => proxy_header::v1(addresses),
        ProxyVersion::V2 => proxy_header::v2(addresses, key_id.as_bytes()),
    }
}

/// A peer that is known by the id of its key.
trait HasKeyId {
    fn key_id(&self) -> &KeyId;
}

impl HasKeyId for noise::Peer {
    fn key_id(&self) -> &KeyId {
        self.identity().key_id()
    }
}

impl HasKeyId for mutual::Peer {
    fn key_id(&self) -> &KeyId {
        self.identity().key_id()
    }
}
