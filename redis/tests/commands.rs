//! The program `challenge-keys`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use tower_challenge::{Key, KeyFile};

use crate::server::Redis;

pub(crate) struct Program {
    pub(crate) url: String,
    directory: TempDir,
}

pub(crate) struct Ran(Output);

impl Program {
    pub(crate) fn new(redis: &Redis) -> Self {
        Self { url: redis.url(), directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn secret(&self) -> PathBuf {
        self.path("secret")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_with(&self.secret(), args)
    }

    fn run_with(&self, secret: &Path, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_challenge-keys"));
        command.env_remove("CHALLENGE_REDIS").args(["--redis", &self.url]);
        command.arg("--key-encryption-key-file").arg(secret).args(args);
        Ran(command.output().unwrap())
    }

    pub(crate) fn init(&self) {
        self.run(&["init"]).success();
    }

    pub(crate) fn add(&self, id: &str) -> Key {
        key_of(id, &self.run(&["add", id]).success())
    }

    fn json(&self, args: &[&str]) -> Vec<Value> {
        let out = self.run(&[&["--json"], args].concat()).success();
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Ran {
    fn stdout(&self) -> &str {
        std::str::from_utf8(&self.0.stdout).unwrap()
    }

    fn stderr(&self) -> &str {
        std::str::from_utf8(&self.0.stderr).unwrap()
    }

    /// Returns what it printed.
    pub(crate) fn success(&self) -> String {
        assert_eq!(self.0.status.code(), Some(0), "{}", self.stderr());
        self.stdout().to_owned()
    }

    /// Returns the one line of the error.
    fn error(&self) -> String {
        assert_eq!(self.0.status.code(), Some(1), "{}", self.stdout());
        assert_eq!(self.stdout(), "");
        let error = self.stderr().strip_prefix("error: ").expect("an error").trim_end();
        assert_eq!(error.lines().count(), 1, "{error}");
        error.to_owned()
    }
}

/// The key of a line, which is all that was printed.
fn key_of(id: &str, out: &str) -> Key {
    let hex = out.strip_prefix(&format!("{id}:")).and_then(|rest| rest.strip_suffix('\n')).expect(out);
    assert_eq!(hex.len(), 64);
    Key::from_hex(hex.as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn every_command() {
    let redis = Redis::start().await;
    let program = Program::new(&redis);
    let ran = program.run(&["init"]);
    assert_eq!(ran.success(), "");
    assert!(ran.stderr().contains("keep a copy") && ran.stderr().ends_with("the store was initialized\n"));
    let secret = std::fs::read_to_string(program.secret()).unwrap();
    assert!(secret.len() == 65 && secret.ends_with('\n'));
    assert_eq!(program.secret().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(program.run(&["init"]).error().contains("initialized already"));

    let ran = program.run(&["add", "alice"]);
    let first = key_of("alice", &ran.success());
    assert_eq!(ran.stderr(), "\"alice\" was added\n");
    let second = key_of("alice", &program.run(&["rotate", "alice", "--overlap", "1h"]).success());
    assert_ne!(first.expose_secret(), second.expose_secret());
    program.add("bob");
    let ran = program.run(&["revoke", "bob"]);
    assert_eq!((ran.success().as_str(), ran.stderr()), ("", "\"bob\" was revoked\n"));
    assert_eq!(program.run(&["list"]).success(), "alice\t2 valid\nbob\t0 valid\trevoked\n");
    let listed = program.json(&["list"]);
    assert_eq!((&listed[0]["id"], &listed[0]["valid"]), (&"alice".into(), &2.into()));
    assert!(listed[0]["next_end"].is_u64() && listed[1]["revoked"] == true);

    let file = program.path("keys");
    let ran = program.run(&["export", file.to_str().unwrap()]);
    assert_eq!(ran.success(), "");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let exported = KeyFile::new(&file).read().unwrap();
    assert_eq!(exported.len(), 2);
    assert_eq!(exported[0].key().expose_secret(), first.expose_secret());
    assert!(program.run(&["export", file.to_str().unwrap()]).error().contains("exists"));
    assert_eq!(program.json(&["import", file.to_str().unwrap()])[0]["ids"], 1);
    assert_eq!(program.json(&["revoke", "carol"])[0]["revoked"], "carol");
    let error = program.run(&["import", "/does/not/exist"]).error();
    assert!(error.contains("/does/not/exist"), "{error}");

    let keys = tower_challenge_redis::RedisKeys::builder(
        redis.url(),
        tower_challenge_redis::StoreSecret::read(program.secret()).unwrap(),
    );
    let _keys = keys.name("web1").connect::<tower_challenge::mutual::PreparedKey>().await.unwrap();
    crate::support::eventually("status", async || {
        let status = program.json(&["status"]);
        status.len() == 1 && status[0]["name"] == "web1" && status[0]["current"] == true
    })
    .await;
    let status = program.run(&["status"]).success();
    assert!(status.starts_with("web1\tcurrent\t1 ids\t2 revoked\tstale 0."), "{status}");

    // A file that is older than a revocation does not undo it.
    program.run(&["revoke", "alice"]).success();
    let error = program.run(&["import", file.to_str().unwrap()]).error();
    assert!(error.contains("\"alice\" was revoked"), "{error}");
    // Not even if the id has a new key since.
    program.add("alice");
    let error = program.run(&["import", file.to_str().unwrap()]).error();
    assert!(error.contains("\"alice\" was revoked"), "{error}");
    program.run(&["revoke", "alice"]).success();
    // A key that the mechanisms cannot use.
    let short = program.path("short");
    std::fs::write(&short, "short:0102030405060708\n").unwrap();
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(program.run(&["import", short.to_str().unwrap()]).error().contains("16 to 1,024 bytes"));
    assert_eq!(
        program.run(&["list"]).success(),
        "alice\t0 valid\trevoked\nbob\t0 valid\trevoked\ncarol\t0 valid\trevoked\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn errors() {
    let mut redis = Redis::start().await;
    let program = Program::new(&redis);
    let error = program.run(&["add", "alice"]).error();
    assert!(error.contains("secret"), "{error}");
    tower_challenge_redis::StoreSecret::create(program.secret()).unwrap();
    for args in [&["add", "alice"][..], &["list"], &["revoke", "alice"], &["status"], &["export", "x"]] {
        assert!(program.run(args).error().contains("run `challenge-keys init`"), "{args:?}");
    }
    program.init();
    let other = program.path("other");
    tower_challenge_redis::StoreSecret::create(&other).unwrap();
    assert!(program.run_with(&other, &["list"]).error().contains("another secret"));
    for content in ["", "00\n", &"zz".repeat(32), &format!("{}\n\n", "00".repeat(32))] {
        std::fs::write(&other, content).unwrap();
        assert!(program.run_with(&other, &["list"]).error().contains("64 hexadecimal digits"), "{content:?}");
    }
    std::fs::write(&other, "00".repeat(32)).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = program.run_with(&other, &["list"]).error();
    assert!(error.contains("other") && !error.contains("0000"), "{error}");

    assert!(program.run(&["rotate", "alice", "--overlap", "1h"]).error().contains("has no key"));
    program.add("alice");
    assert!(program.run(&["add", "alice"]).error().contains("use `rotate`"));
    for _ in 0..3 {
        program.run(&["rotate", "alice", "--overlap", "1h"]).success();
    }
    assert!(program.run(&["rotate", "alice", "--overlap", "1h"]).error().contains("four keys"));
    assert!(program.run(&["add", "a:b"]).error().starts_with("the id: "));
    let key = "0123456789abcdef0123456789abcdef";
    let error = program.run(&["add", key]).error();
    assert!(!error.contains(key), "{error}");
    for args in [&["rotate", "alice"][..], &["rotate", "alice", "--overlap", "1"], &["x"], &["add"]] {
        let ran = program.run(args);
        assert_eq!((ran.0.status.code(), ran.stdout()), (Some(2), ""), "{args:?}");
    }
    redis.run::<()>("SET {tower-challenge}:key:alice garbled").await;
    let ran = program.run(&["list"]);
    // The others are listed all the same.
    assert_eq!((ran.0.status.code(), ran.stdout()), (Some(1), "alice\t0 valid\tunreadable\n"));
    assert!(ran.stderr().contains("1 ids have values that cannot be opened"), "{}", ran.stderr());
    // It can still be revoked, and added again.
    program.run(&["revoke", "alice"]).success();
    assert_eq!(program.run(&["list"]).success(), "alice\t0 valid\trevoked\n");
    program.add("alice");
    redis.kill();
    assert!(program.run(&["list"]).error().starts_with("Redis: "));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn derived() {
    let redis = Redis::start().await;
    let program = Program::new(&redis);
    assert_eq!(program.json(&["init", "--derived"])[0]["initialized"], true);
    let key = program.add("alice");
    assert_eq!(program.add("alice").expose_secret(), key.expose_secret(), "derived");
    assert_ne!(program.add("bob").expose_secret(), key.expose_secret());
    assert_eq!(program.run(&["list"]).success(), "");
    program.run(&["revoke", "alice"]).success();
    assert_eq!(program.run(&["list"]).success(), "alice\t0 valid\trevoked\n");
    program.run(&["add", "alice"]).error();
    for args in [&["rotate", "alice", "--overlap", "1h"][..], &["export", "x"]] {
        assert!(program.run(args).error().contains("derived"), "{args:?}");
    }
}

/// Changes of one id at the same time: each is done or says that it was not, and a revocation wins.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn concurrent_changes() {
    use std::sync::Arc;

    use crate::support::{Server, World, eventually, id};
    use tower_challenge_redis::{Error, RedisKeys, Store};

    let world = World::sealed().await;
    let store = Arc::new(Store::new(&world.redis.url(), world.secret()).unwrap());
    let server = Server::connect(RedisKeys::builder(world.redis.url(), world.secret())).await.unwrap();
    let mut conflicts = 0;
    for round in 0..20 {
        let name = format!("many-{round}");
        let mut keys = vec![store.add(&id(&name)).await.unwrap()];
        let rotations: Vec<_> = (0..6)
            .map(|_| {
                let (store, name) = (Arc::clone(&store), id(&name));
                tokio::spawn(async move { store.rotate(&name, std::time::Duration::from_secs(60)).await })
            })
            .collect();
        let revoke = {
            let (store, name) = (Arc::clone(&store), id(&name));
            tokio::spawn(async move { store.revoke(&name).await })
        };
        for rotation in rotations {
            match rotation.await.unwrap() {
                Ok(key) => keys.push(key),
                Err(Error::Conflict) => conflicts += 1,
                Err(Error::UnknownId(_) | Error::TooManyKeys(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
        revoke.await.unwrap().unwrap();
        assert!(matches!(
            store.rotate(&id(&name), std::time::Duration::ZERO).await,
            Err(Error::UnknownId(_))
        ));
        for key in &keys {
            eventually("revoked", async || !server.admits(&name, key).await).await;
        }
        let again = store.add(&id(&name)).await.unwrap();
        eventually("added again", async || server.admits(&name, &again).await).await;
    }
    assert!(conflicts > 0, "no fault");
}

/// Keys that are added while a revocation is on its way do not survive it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn revocation_wins_over_rotations() {
    use std::time::Duration;

    use crate::relay::Relay;
    use crate::support::{Server, World, eventually, id};
    use tower_challenge_redis::{Error, RedisKeys, Store};

    let world = World::sealed().await;
    let server = Server::connect(RedisKeys::builder(world.redis.url(), world.secret())).await.unwrap();
    let relay = Relay::start(world.redis.addr()).await;
    relay.set_delay(Duration::from_millis(100));
    let slow = Store::new(&relay.url(), world.secret()).unwrap();
    let mut keys = vec![world.store.add(&id("bob")).await.unwrap()];
    let revoke = tokio::spawn(async move { slow.revoke(&id("bob")).await });
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Several in a second, so that their versions are ahead of the clock.
        for _ in 0..5 {
            match world.store.rotate(&id("bob"), Duration::ZERO).await {
                Ok(key) => keys.push(key),
                Err(error) => assert!(matches!(error, Error::UnknownId(_)), "{error}"),
            }
        }
    }
    revoke.await.unwrap().unwrap();
    assert!(keys.len() > 10 && relay.affected() > 0, "no fault");
    assert_eq!(world.store.list().await.unwrap().iter().find(|listed| listed.id == "bob").unwrap().valid, 0);
    for key in &keys {
        eventually("revoked", async || !server.admits("bob", key).await).await;
    }
}
