//! Keys from Redis, for two servers and one client.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower_challenge::{Key, KeyId};
use tower_challenge_redis::{Form, Store, StoreSecret};

use crate::process::{run, stderr};
use crate::redis::Redis;
use crate::support::service::{Service, assert_reset_without_a_byte, echo, open, read_until_reset};
use crate::support::sidecar::{KEY, MECHANISMS, Sidecar, program};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(future)
}

fn alice() -> KeyId {
    KeyId::new("alice").unwrap()
}

/// A store with the key of `alice`.
struct Fleet {
    url: String,
    secret: PathBuf,
    store: Store,
    key: Key,
    _redis: Redis,
    _directory: TempDir,
}

impl Fleet {
    fn start(form: Form) -> Self {
        let redis = Redis::start();
        let url = format!("redis://{}", redis.addr);
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        let store = Store::new(&url, StoreSecret::create(&secret).unwrap()).unwrap();
        let key = block_on(async {
            store.init(form).await.unwrap();
            store.add(&alice()).await.unwrap()
        });
        Self { url, secret, store, key, _redis: redis, _directory: directory }
    }
}

/// Starts a server with the keys in Redis.
fn server(url: &str, secret: &Path, target: &str, args: &[&str]) -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["server", "--listen", "127.0.0.1:0", "--target", target, "--audience", "test"]);
    command.args(["--log-format", "json", "--keys", url, "--key-encryption-key-file"]).arg(secret);
    command.arg("--state-file").arg(directory.path().join("state")).args(args);
    Sidecar::spawn(&mut command, directory, 1)
}

#[test]
#[ignore = "needs Redis"]
fn revocation_ends_sessions_on_all_servers() {
    for form in [Form::Sealed, Form::Derived] {
        for mechanism in MECHANISMS {
            let Fleet { url, secret, store, key, .. } = &Fleet::start(form);
            let service = Service::start();
            let args = ["--mechanism", mechanism];
            let servers = [(); 2].map(|()| server(url, secret, &service.addr, &args));
            let clients =
                servers.each_ref().map(|server| Sidecar::client(&server.addr, &key.to_hex(), &args));
            let mut sessions = clients.each_ref().map(|client| open(&client.addr));
            for session in &mut sessions {
                echo(session, b"hello");
            }

            block_on(store.revoke(&alice())).unwrap();
            let revoked = Instant::now();
            for session in &mut sessions {
                read_until_reset(session);
            }
            assert!(revoked.elapsed() < Duration::from_secs(2), "{:?}", revoked.elapsed());
            for client in &clients {
                assert_reset_without_a_byte(&client.addr);
            }
        }
    }
}

#[test]
#[ignore = "needs Redis"]
fn errors_of_the_store_name_the_flag_and_no_password() {
    let redis = Redis::start();
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    StoreSecret::create(&secret).unwrap();
    for (login, problem) in [("", "the store is not initialized"), (&*format!("user:{KEY}@"), "")] {
        let mut command = program();
        command.args(["server", "--listen", "127.0.0.1:0", "--target", "127.0.0.1:1", "--audience", "test"]);
        command.args(["--keys", &format!("redis://{login}{}", redis.addr), "--key-encryption-key-file"]);
        let output = run(command.arg(&secret), "");
        assert_eq!(output.status.code(), Some(1));
        let error = stderr(&output);
        assert!(error.contains("--keys: ") && error.contains(problem) && !error.contains(KEY), "{error}");
    }
}

/// The sessions of a service that was changed by a reload are reached by revocations, too.
#[test]
#[ignore = "needs Redis"]
fn revocation_ends_sessions_of_before_a_reload() {
    let Fleet { url, secret, store, key, .. } = &Fleet::start(Form::Sealed);
    let service = Service::start();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    let write = |more: &str| {
        let text = format!(
            "log-format = \"json\"\n[[server]]\nlisten = \"127.0.0.1:0\"\ntarget = \"{}\"\naudience = \"test\"\n\
             keys = \"{url}\"\nkey-encryption-key-file = \"{}\"\ntimeout = 1\n{more}\n",
            service.addr,
            secret.display()
        );
        std::fs::write(&config, text).unwrap();
    };
    write("");
    let mut server = Sidecar::run(directory, &config, 1);
    let client = Sidecar::client(&server.addr, &key.to_hex(), &[]);
    let mut session = open(&client.addr);
    write("connect-timeout = 1");
    server.running.hang_up();
    server.event("configuration read");
    // Longer than the handshakes that were in flight may take: then the old accept loop ends.
    std::thread::sleep(Duration::from_secs(3));
    echo(&mut session, b"still open");
    block_on(store.revoke(&alice())).unwrap();
    let revoked = Instant::now();
    read_until_reset(&mut session);
    assert!(revoked.elapsed() < Duration::from_secs(2), "{:?}", revoked.elapsed());
}
