//! The example `proxy` in front of a real Redis, with its own client behind it: neither knows of any handshake.
#![cfg(all(unix, feature = "net", feature = "mutual"))]

#[path = "support/process.rs"]
mod process;
#[path = "support/proxy.rs"]
mod proxy;

use std::net::TcpListener;
use std::process::{Command, Output};

use process::{Running, run, stderr, stdout};
use proxy::{KEY, OTHER_KEY, Proxy};
use tempfile::TempDir;

/// A Redis that keeps nothing, and where it listens.
struct Redis {
    addr: String,
    _running: Running,
    _directory: TempDir,
}

impl Redis {
    fn start() -> Self {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &addr.port().to_string(), "--save", ""]);
        let mut running = Running::start(command.arg("--dir").arg(directory.path()));
        running.line_with("Ready to accept connections");
        Self { addr: addr.to_string(), _running: running, _directory: directory }
    }
}

/// What `redis-cli` says at this address.
fn redis_cli(addr: &str, args: &[&str], input: impl AsRef<[u8]>) -> Output {
    let port = addr.rsplit(':').next().unwrap();
    run(Command::new("redis-cli").args(["-p", port]).args(args), input)
}

fn assert_says(addr: &str, args: &[&str], expected: &str) {
    let output = redis_cli(addr, args, "");
    assert_eq!(stdout(&output).trim_end(), expected, "{}", stderr(&output));
}

fn pair() -> (Redis, Proxy, Proxy) {
    let redis = Redis::start();
    let server = Proxy::server(&redis.addr, KEY, &[]);
    let client = Proxy::client(&server.addr, KEY, &[]);
    (redis, server, client)
}

#[test]
#[ignore = "needs Redis"]
fn set_and_get() {
    let (redis, _server, client) = pair();
    assert_says(&client.addr, &["SET", "greeting", "hello"], "OK");
    assert_says(&client.addr, &["GET", "greeting"], "hello");
    assert_says(&redis.addr, &["GET", "greeting"], "hello");
}

#[test]
#[ignore = "needs Redis"]
fn a_pipeline() {
    use std::fmt::Write as _;

    let (redis, _server, client) = pair();
    let mut commands = String::new();
    for index in 0..100_000 {
        write!(commands, "SET key:{index} {index}\r\n").unwrap();
    }
    let output = redis_cli(&client.addr, &["--pipe"], commands);
    assert!(stdout(&output).ends_with("errors: 0, replies: 100000\n"), "{}", stdout(&output));
    assert_says(&redis.addr, &["DBSIZE"], "100000");
    assert_says(&client.addr, &["GET", "key:99999"], "99999");
}

#[test]
#[ignore = "needs Redis"]
fn a_large_value() {
    let (_redis, _server, client) = pair();
    let value = "a long line ".repeat(1024 * 1024);
    let output = redis_cli(&client.addr, &["-x", "SET", "large"], &value);
    assert_eq!(stdout(&output), "OK\n");
    let output = redis_cli(&client.addr, &["GET", "large"], "");
    assert!(stdout(&output).trim_end_matches('\n') == value);
}

#[test]
#[ignore = "needs Redis"]
fn a_wrong_key_and_keys_that_are_replaced() {
    let (redis, mut server, mut client) = pair();
    let count = || stdout(&redis_cli(&redis.addr, &["INFO", "stats"], "")).to_owned();
    let connections = |info: &str| -> u64 {
        let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse().unwrap()
    };
    server.replace(OTHER_KEY);
    let before = connections(&count());
    let output = redis_cli(&client.addr, &["PING"], "");
    assert_eq!(stdout(&output).trim_end(), "");
    assert!(!output.status.success());
    // Closed, or reset where its command was not read yet.
    assert!(stderr(&output).starts_with("Error: "), "{}", stderr(&output));
    server.running.line_with("refused: handshake refused");
    // The one more is the one that counts.
    assert_eq!(connections(&count()), before + 1, "nobody has reached Redis");

    client.replace(OTHER_KEY);
    assert_says(&client.addr, &["PING"], "PONG");
}

#[test]
#[ignore = "needs Redis"]
fn no_handshake_at_all() {
    let (_redis, mut server, _client) = pair();
    let output = redis_cli(&server.addr, &["PING"], "");
    assert!(!output.status.success());
    assert_eq!(stdout(&output).trim_end(), "");
    // The first byte of a challenge is no reply of Redis'.
    assert!(stderr(&output).contains("Protocol error"), "{}", stderr(&output));
    server.running.line_with("refused: malformed handshake message");
}
