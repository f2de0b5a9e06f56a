//! A `redis-server` of its own for each test.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, cmd};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub(crate) struct Redis {
    pub(crate) port: u16,
    args: Vec<String>,
    child: Child,
    pub(crate) directory: TempDir,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(args: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        let child = spawn(port, &directory, &args);
        let redis = Self { port, args, child, directory };
        redis.ready().await;
        redis
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    async fn ready(&self) {
        let begin = Instant::now();
        // A password may be required.
        while !self.try_raw().await.is_ok_and(|_| true) {
            assert!(begin.elapsed() < Duration::from_secs(10), "redis-server did not start");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn try_raw(&self) -> RedisResult<MultiplexedConnection> {
        redis::Client::open(self.url())?.get_multiplexed_async_connection().await
    }

    /// Sends a command on a connection of its own.
    pub(crate) async fn send<T: FromRedisValue>(&self, args: &[&[u8]]) -> T {
        let mut connection = self.try_raw().await.unwrap();
        let mut command = redis::Cmd::new();
        for arg in args {
            command.arg(*arg);
        }
        command.query_async(&mut connection).await.unwrap()
    }

    /// Sends a command of words.
    pub(crate) async fn run<T: FromRedisValue>(&self, command: &str) -> T {
        let args: Vec<_> = command.split(' ').map(str::as_bytes).collect();
        self.send(&args).await
    }

    /// All names and their values.
    pub(crate) async fn dump(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut connection = self.try_raw().await.unwrap();
        let names: Vec<Vec<u8>> = cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
        let mut values = Vec::new();
        for name in names {
            let kind: String = cmd("TYPE").arg(&name).query_async(&mut connection).await.unwrap();
            if kind == "string" {
                let value = cmd("GET").arg(&name).query_async(&mut connection).await.unwrap();
                values.push((name, value));
            } else {
                let parts: Vec<Vec<u8>> =
                    cmd("HGETALL").arg(&name).query_async(&mut connection).await.unwrap();
                values.push((name, parts.concat()));
            }
        }
        values
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Stops the process. It keeps its connections and says nothing.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    pub(crate) fn kill(&mut self) {
        self.signal("-KILL");
        self.child.wait().unwrap();
    }

    /// Starts it again with the same arguments and directory.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.port, &self.directory, &self.args);
        self.ready().await;
    }
}

fn spawn(port: u16, directory: &TempDir, args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--save", "", "--maxmemory-policy", "noeviction", "--daemonize", "no"]);
    command.arg("--dir").arg(directory.path()).args(args);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server is not installed")
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
