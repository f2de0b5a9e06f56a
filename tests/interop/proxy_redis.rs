//! The example `proxy` between a real Redis and its own client, neither of which knows the handshake.
#![cfg(unix)]

use std::net::TcpListener;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::process::{Running, run, stderr, stdout};
use crate::proxy_pair::{KEY, OTHER_KEY, Proxy};

/// A Redis without persistence, and its address.
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

/// Runs `redis-cli` against this address.
fn redis_cli(addr: &str, args: &[&str], input: impl AsRef<[u8]>) -> Output {
    let port = addr.rsplit(':').next().unwrap();
    run(Command::new("redis-cli").args(["-p", port]).args(args), input)
}

fn assert_replies(addr: &str, args: &[&str], expected: &str) {
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
fn sets_and_gets() {
    let (redis, _server, client) = pair();
    assert_replies(&client.addr, &["SET", "greeting", "hello"], "OK");
    assert_replies(&client.addr, &["GET", "greeting"], "hello");
    assert_replies(&redis.addr, &["GET", "greeting"], "hello");
}

#[test]
#[ignore = "needs Redis"]
fn pipeline() {
    use std::fmt::Write as _;

    let (redis, _server, client) = pair();
    let mut commands = String::new();
    for index in 0..100_000 {
        write!(commands, "SET key:{index} {index}\r\n").unwrap();
    }
    let output = redis_cli(&client.addr, &["--pipe"], commands);
    assert!(stdout(&output).ends_with("errors: 0, replies: 100000\n"), "{}", stdout(&output));
    assert_replies(&redis.addr, &["DBSIZE"], "100000");
    assert_replies(&client.addr, &["GET", "key:99999"], "99999");
}

#[test]
#[ignore = "needs Redis"]
fn large_value() {
    let (_redis, _server, client) = pair();
    let value = "a long line ".repeat(1024 * 1024);
    let output = redis_cli(&client.addr, &["-x", "SET", "large"], &value);
    assert_eq!(stdout(&output), "OK\n");
    let output = redis_cli(&client.addr, &["GET", "large"], "");
    assert!(stdout(&output).trim_end_matches('\n') == value);
}

#[test]
#[ignore = "needs Redis"]
fn wrong_key_and_key_replacement() {
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
    // The connection was closed, or reset if the command was not read yet.
    assert!(stderr(&output).starts_with("Error: "), "{}", stderr(&output));
    server.running.line_with(" handshake refused: the proof does not match");
    // The additional connection is that of `INFO`.
    assert_eq!(connections(&count()), before + 1, "the refused client did not reach Redis");

    client.replace(OTHER_KEY);
    assert_replies(&client.addr, &["PING"], "PONG");
}

#[test]
#[ignore = "needs Redis"]
fn client_without_handshake() {
    let (_redis, mut server, _client) = pair();
    let output = redis_cli(&server.addr, &["PING"], "");
    assert!(!output.status.success());
    assert_eq!(stdout(&output).trim_end(), "");
    // The first byte of a challenge is not a reply of Redis.
    assert!(stderr(&output).contains("Protocol error"), "{}", stderr(&output));
    server.running.line_with(" malformed handshake message: ");
}
