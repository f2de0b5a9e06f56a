//! The rights that the documentation gives to servers and managers are enough. Other URLs than `redis://` work, too.

use tower_challenge::mutual;
use tower_challenge_redis::{Error, Form, RedisKeys, RedisPenalties, Store};

use crate::server::Redis;
use crate::support::{Server, World, eventually, id, key};

const SERVER: &str = "resetkeys resetchannels -@all +client|tracking +client|trackinginfo +get +mget +scan +hset \
     +subscribe +publish +ping %R~{tower-challenge}:marker %R~{tower-challenge}:key:* \
     %R~{tower-challenge}:revoked:* %W~{tower-challenge}:servers &{tower-challenge}:penalties";

const MANAGER: &str = "resetkeys resetchannels -@all +get +mget +scan +set +setnx +watch +multi +exec +hgetall \
     ~{tower-challenge}:marker ~{tower-challenge}:key:* ~{tower-challenge}:revoked:* \
     %R~{tower-challenge}:servers";

async fn add_user(redis: &Redis, name: &str, rules: &str) -> String {
    redis.run::<()>(&format!("ACL SETUSER {name} on >password {rules}")).await;
    format!("redis://{name}:password@{}", redis.addr())
}

async fn denied(redis: &Redis) -> Vec<String> {
    let log: Vec<std::collections::HashMap<String, redis::Value>> = redis.run("ACL LOG").await;
    let object = |entry: &std::collections::HashMap<String, redis::Value>| format!("{:?}", entry["object"]);
    log.iter().map(object).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn documented_rights_are_enough() {
    let redis = Redis::start().await;
    let (server, manager) =
        (add_user(&redis, "server", SERVER).await, add_user(&redis, "manager", MANAGER).await);
    let mut world = World::new(Form::Sealed, redis).await;
    let store = Store::new(&manager, world.secret()).unwrap();
    let servers = Server::connect(RedisKeys::builder(&server, world.secret()).name("one")).await.unwrap();
    let key = store.add(&id("carol")).await.unwrap();
    eventually("carol", async || servers.admits("carol", &key).await).await;
    let rotated = store.rotate(&id("carol"), std::time::Duration::from_secs(60)).await.unwrap();
    eventually("rotated", async || servers.admits("carol", &rotated).await).await;
    store.revoke(&id("carol")).await.unwrap();
    eventually("revoked", async || !servers.admits("carol", &rotated).await).await;
    assert_eq!(store.list().await.unwrap().len(), 1001);
    assert_eq!(store.export().await.unwrap().len(), 999);
    store.import(&[crate::support::entry(1)]).await.unwrap();
    eventually("status", async || {
        store.status().await.unwrap().iter().any(|status| status.name == "one" && status.is_current)
    })
    .await;
    let admission = tower_challenge::Admission::builder()
        .penalties(tower_challenge::admission::Penalties::new())
        .build()
        .unwrap();
    let _exchange = RedisPenalties::new(&server).unwrap().start(admission.clone());
    eventually("subscribed", async || {
        world.redis.run::<(String, u64)>("PUBSUB NUMSUB {tower-challenge}:penalties").await.1 > 0
    })
    .await;
    let denied = denied(&world.redis).await;
    assert!(denied.is_empty(), "{denied:?}");
    // A server changes nothing, and a manager initializes.
    let store = Store::new(&server, world.secret()).unwrap();
    assert!(matches!(store.revoke(&id("id-1")).await, Err(Error::Redis(_))));
    assert!(matches!(
        Store::new(&manager, world.secret()).unwrap().init(Form::Sealed).await,
        Err(Error::Initialized)
    ));
    world.check().await;
}

/// Nothing is ever deleted, and without the right to report a server does its work.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn without_del_and_without_report() {
    let redis = Redis::start().await;
    let manager = add_user(&redis, "manager", "~* &* +@all -del -unlink -flushall -flushdb").await;
    let server = add_user(&redis, "server", &SERVER.replace("+hset ", "")).await;
    let world = World::new(Form::Sealed, redis).await;
    let server = Server::connect(RedisKeys::builder(server, world.secret())).await.unwrap();
    let store = Store::new(&manager, world.secret()).unwrap();
    store.revoke(&id("id-1")).await.unwrap();
    eventually("revoked", async || !server.admits("id-1", &key(1)).await).await;
    eventually("not reported", async || !denied(&world.redis).await.is_empty()).await;
    assert!(server.keys.is_connected());
    assert_eq!(store.list().await.unwrap().iter().filter(|listed| listed.revoked).count(), 2);
}

/// A server that may not follow the store does not begin, and one that may not read it any more goes on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn without_rights() {
    let redis = Redis::start().await;
    for lacking in ["+client|tracking ", "+mget ", "+scan ", "+get ", "%R~{tower-challenge}:revoked:* "] {
        let rules = SERVER.replace(lacking, "");
        assert_ne!(rules, SERVER);
        add_user(&redis, "server", &rules).await;
    }
    let mut world = World::new(Form::Sealed, redis).await;
    for lacking in ["+client|tracking ", "+mget ", "+scan ", "+get ", "%R~{tower-challenge}:marker "] {
        world.redis.run::<()>("ACL DELUSER server").await;
        let url = add_user(&world.redis, "server", &SERVER.replace(lacking, "")).await;
        let refused = RedisKeys::builder(url, world.secret()).connect::<mutual::PreparedKey>().await;
        let error = refused.err().unwrap().to_string();
        assert!(error.contains("permission"), "{lacking}: {error}");
        assert!(!error.contains("password"), "{error}");
    }
    world.redis.run::<()>("ACL DELUSER server").await;
    let url = add_user(&world.redis, "server", SERVER).await;
    let server = Server::connect(RedisKeys::builder(url, world.secret())).await.unwrap();
    world.redis.run::<()>("ACL SETUSER server -mget -client|trackinginfo").await;
    eventually("noticed", async || !server.keys.is_connected()).await;
    assert!(server.admits("id-1", &key(1)).await);
    world.redis.run::<()>("ACL SETUSER server +mget +client|trackinginfo").await;
    eventually("back", async || server.keys.is_connected()).await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis");
    let redis = Redis::start_with(&["--unixsocket", socket.to_str().unwrap()]).await;
    let world = World::new(Form::Sealed, redis).await;
    let url = format!("redis+unix://{}", socket.display());
    let server = Server::connect(RedisKeys::builder(&url, world.secret())).await.unwrap();
    Store::new(&url, world.secret()).unwrap().revoke(&id("id-1")).await.unwrap();
    eventually("revoked", async || !server.admits("id-1", &key(1)).await).await;
}

/// TLS, with a certificate that the system trusts and with one that it does not.
#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn tls() {
    use std::process::Command;

    let directory = tempfile::tempdir().unwrap();
    let make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=ca \
        -keyout ca.key -out ca.pem 2>&1
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=redis -keyout key -out csr 2>&1
        printf 'subjectAltName=IP:127.0.0.1' > ext
        openssl x509 -req -in csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile ext -out cert 2>&1";
    let output = Command::new("sh").arg("-ec").arg(make).current_dir(&directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let tls_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let redis = Redis::start_with(&[
        "--tls-port",
        &tls_port.to_string(),
        "--tls-cert-file",
        &path("cert"),
        "--tls-key-file",
        &path("key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-auth-clients",
        "no",
    ])
    .await;
    let run = |trusted: bool, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_challenge-keys"));
        command.args(["--redis", &format!("rediss://127.0.0.1:{tls_port}")]);
        command.args(["--key-encryption-key-file", &path("secret")]).args(args);
        command.env("SSL_CERT_FILE", path(if trusted { "ca.pem" } else { "cert" }));
        command.output().unwrap()
    };
    let output = run(true, &["init"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let error = run(false, &["list"]);
    let error = String::from_utf8_lossy(&error.stderr);
    assert!(error.starts_with("error: Redis: ") && error.contains("ertificate"), "{error}");
    assert_eq!(redis.run::<u64>("DBSIZE").await, 1);
}
