//! A pair between a real Redis and its own client, neither of which knows the handshake.

use std::net::TcpListener;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::process::{Running, run, stderr, stdout};
use crate::support::sidecar::{KEY, MECHANISMS, OTHER_KEY, Sidecar};

/// A Redis without persistence, and its address.
pub(crate) struct Redis {
    pub(crate) addr: String,
    running: Running,
    directory: TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &addr.port().to_string(), "--save", ""]);
        command.arg("--unixsocket").arg(directory.path().join("socket"));
        let mut running = Running::start(command.arg("--dir").arg(directory.path()));
        running.line_with("Ready to accept connections");
        Self { addr: addr.to_string(), running, directory }
    }
}

/// Runs `redis-cli` against this address.
fn redis_cli(addr: &str, args: &[&str], input: impl AsRef<[u8]>) -> Output {
    let port = addr.rsplit(':').next().unwrap();
    run(Command::new("redis-cli").args(["-p", port]).args(args), input)
}

fn assert_replies(addr: &str, args: &[&str], expected: &str) {
    let output = redis_cli(addr, args, "");
    assert_eq!(stdout(&output).trim_end(), expected, "{}", stderr(&output));
}

fn pair(mechanism: &str) -> (Redis, Sidecar, Sidecar) {
    let redis = Redis::start();
    let args = ["--mechanism", mechanism];
    let server = Sidecar::server(&redis.addr, KEY, &args);
    let client = Sidecar::client(&server.addr, KEY, &args);
    (redis, server, client)
}

#[test]
#[ignore = "needs Redis"]
fn sets_and_gets() {
    for mechanism in MECHANISMS {
        let (redis, _server, client) = pair(mechanism);
        assert_replies(&client.addr, &["SET", "greeting", "hello"], "OK");
        assert_replies(&client.addr, &["GET", "greeting"], "hello");
        assert_replies(&redis.addr, &["GET", "greeting"], "hello");
    }
}

#[test]
#[ignore = "needs Redis"]
fn unix_sockets() {
    let redis = Redis::start();
    let path = |name: &str| redis.directory.path().join(name).to_str().unwrap().to_owned();
    let server = Sidecar::server(&path("socket"), KEY, &[]);
    let _client = Sidecar::client(&server.addr, KEY, &["--listen", &path("client")]);
    let output = run(Command::new("redis-cli").args(["-s", &path("client"), "PING"]), "");
    assert_eq!(stdout(&output).trim_end(), "PONG", "{}", stderr(&output));
}

#[test]
#[ignore = "needs Redis"]
fn pipeline() {
    use std::fmt::Write as _;

    let mut commands = String::new();
    for index in 0..100_000 {
        write!(commands, "SET key:{index} {index}\r\n").unwrap();
    }
    for mechanism in MECHANISMS {
        let (redis, _server, client) = pair(mechanism);
        let output = redis_cli(&client.addr, &["--pipe"], &commands);
        assert!(stdout(&output).ends_with("errors: 0, replies: 100000\n"), "{}", stdout(&output));
        assert_replies(&redis.addr, &["DBSIZE"], "100000");
        assert_replies(&client.addr, &["GET", "key:99999"], "99999");
    }
}

#[test]
#[ignore = "needs Redis"]
fn large_value() {
    let value = "a long line ".repeat(1024 * 1024);
    for mechanism in MECHANISMS {
        let (_redis, _server, client) = pair(mechanism);
        let output = redis_cli(&client.addr, &["-x", "SET", "large"], &value);
        assert_eq!(stdout(&output), "OK\n");
        let output = redis_cli(&client.addr, &["GET", "large"], "");
        assert!(stdout(&output).trim_end_matches('\n') == value);
    }
}

#[test]
#[ignore = "needs Redis"]
fn wrong_key_and_key_replacement() {
    let connections = |redis: &Redis| -> u64 {
        let output = redis_cli(&redis.addr, &["INFO", "stats"], "");
        let line = stdout(&output).lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse().unwrap()
    };
    for mechanism in MECHANISMS {
        let (redis, mut server, mut client) = pair(mechanism);
        server.replace(OTHER_KEY);
        let before = connections(&redis);
        let output = redis_cli(&client.addr, &["PING"], "");
        assert_eq!(stdout(&output).trim_end(), "");
        assert!(!output.status.success());
        assert_eq!(stderr(&output).trim_end(), "Error: Connection reset by peer");
        assert!(server.failure().starts_with("handshake refused: the proof does not match"));
        // The additional connection is that of `INFO`.
        assert_eq!(connections(&redis), before + 1, "the refused client did not reach Redis");

        client.replace(OTHER_KEY);
        assert_replies(&client.addr, &["PING"], "PONG");
    }
}

#[test]
#[ignore = "needs Redis"]
fn client_without_handshake() {
    for mechanism in MECHANISMS {
        let (_redis, mut server, _client) = pair(mechanism);
        let output = redis_cli(&server.addr, &["PING"], "");
        assert!(!output.status.success());
        assert_eq!(stdout(&output).trim_end(), "");
        let error = stderr(&output);
        if mechanism == "mutual" {
            // The first byte of a challenge is not a reply of Redis.
            assert!(error.contains("Protocol error"), "{error}");
        } else {
            assert!(error.starts_with("Error: "), "{error}");
        }
        assert!(server.failure().starts_with("malformed handshake message: "));
    }
}

/// A client that waits for Redis learns that it was killed.
#[test]
#[ignore = "needs Redis"]
fn killed_redis() {
    let (redis, mut server, client) = pair("noise");
    let addr = client.addr.clone();
    let waiting = std::thread::spawn(move || redis_cli(&addr, &["BLPOP", "nothing", "0"], ""));
    while !stdout(&redis_cli(&redis.addr, &["INFO", "clients"], "")).contains("blocked_clients:1") {}
    redis.running.kill();
    let output = waiting.join().unwrap();
    assert!(!output.status.success() && stderr(&output).starts_with("Error: "), "{}", stderr(&output));
    server.ended();
}
