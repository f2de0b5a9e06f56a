//! A pair between psql and its server, over TCP and over Unix sockets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::process::{Running, run, stderr, stdout};
use crate::support::sidecar::{KEY, MECHANISMS, OTHER_KEY, Sidecar};

/// A database in a directory of its own.
struct Postgres {
    /// The path of its Unix socket.
    socket: PathBuf,
    addr: String,
    running: Running,
    directory: TempDir,
}

/// The directory of Debian's newest version, whose programs are not in the path.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    versions.map(|entry| entry.unwrap().path().join("bin")).max().expect("PostgreSQL is installed")
}

/// Returns the command of a program of the server, which does not run as root.
fn as_postgres(name: &str, is_root: bool) -> Command {
    let program = programs().join(name);
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command
}

impl Postgres {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            let status = Command::new("chown").arg("postgres").arg(directory.path()).status().unwrap();
            assert!(status.success());
        }
        let data = directory.path().join("data");
        let mut init = as_postgres("initdb", is_root);
        init.args(["--auth=trust", "--username=test", "--no-sync", "--no-instructions", "--pgdata"])
            .arg(&data);
        let output = run(&mut init, "");
        assert!(output.status.success(), "{}", stderr(&output));

        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut command = as_postgres("postgres", is_root);
        command.arg("-D").arg(&data).arg("-k").arg(directory.path()).args(["-h", "127.0.0.1", "-p"]);
        command.arg(port.to_string()).args(["-c", "fsync=off"]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut running = Running::start_stderr(&mut command);
        running.line_with("database system is ready to accept connections");
        let socket = directory.path().join(format!(".s.PGSQL.{port}"));
        Self { socket, addr: format!("127.0.0.1:{port}"), running, directory }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its sessions end, too.
        self.running.interrupt();
        self.running.wait();
    }
}

fn psql(host: &str, port: &str, args: &[&str], input: &str) -> Output {
    let mut command = Command::new("psql");
    command.args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "test", "-d", "postgres"]);
    run(command.args(["-h", host, "-p", port]).args(args), input)
}

fn psql_at(addr: &str, args: &[&str], input: &str) -> Output {
    let (host, port) = addr.rsplit_once(':').unwrap();
    psql(host, port, args, input)
}

fn assert_works(psql: impl Fn(&[&str], &str) -> Output) {
    let returns = |args: &[&str], input: &str, expected: &str| {
        let output = psql(args, input);
        assert_eq!(stdout(&output), expected, "{}", stderr(&output));
    };
    returns(&["-c", "select 6 * 7"], "", "42\n");
    // Bulk in both directions.
    let rows = (0..200_000).map(|row: u32| row.to_string() + "\n").collect::<String>();
    returns(&["-c", "create table numbers (n int)"], "", "");
    returns(&["-c", "copy numbers from stdin"], &rows, "");
    returns(&["-c", "select count(*), sum(n) from numbers"], "", "200000|19999900000\n");
    returns(&["-c", "copy (select n from numbers order by n) to stdout"], "", &rows);
    returns(&["-c", "drop table numbers"], "", "");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn psql_through_a_pair() {
    let postgres = Postgres::start();
    for mechanism in MECHANISMS {
        let args = ["--mechanism", mechanism];
        let mut server = Sidecar::server(&postgres.addr, KEY, &args);
        let mut client = Sidecar::client(&server.addr, KEY, &args);
        assert_works(|args, input| psql_at(&client.addr, args, input));
        // psql closes its connection without waiting for the server.
        for side in [&mut server, &mut client] {
            assert_eq!(side.ended().text("reason"), "completed");
        }

        server.replace(OTHER_KEY);
        let output = psql_at(&client.addr, &["-c", "select 1"], "");
        assert_eq!(output.status.code(), Some(2));
        assert!(server.failure().starts_with("handshake refused"));
    }
}

/// The client is where psql looks for a local server.
#[test]
#[ignore = "needs PostgreSQL"]
fn psql_over_unix_sockets() {
    let postgres = Postgres::start();
    let directory = tempfile::tempdir().unwrap();
    let path = |of: &Path| of.to_str().unwrap().to_owned();
    let server = Sidecar::server(&path(&postgres.socket), KEY, &[]);
    let listen = path(&directory.path().join(".s.PGSQL.5432"));
    let _client = Sidecar::client(&server.addr, KEY, &["--listen", &listen]);
    let host = path(directory.path());
    assert_works(|args, input| psql(&host, "5432", args, input));
    assert!(postgres.directory.path().exists());
}

/// A query that runs for long does not survive the end of the database unnoticed.
#[test]
#[ignore = "needs PostgreSQL"]
fn stopped_database_ends_the_session() {
    let postgres = Postgres::start();
    let mut server = Sidecar::server(&postgres.addr, KEY, &[]);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    let addr = client.addr.clone();
    let waiting = std::thread::spawn(move || psql_at(&addr, &["-c", "select pg_sleep(60)"], ""));
    let is_asleep = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";
    while stdout(&psql_at(&postgres.addr, &["-c", is_asleep], "")) != "1\n" {}
    drop(postgres);
    let output = waiting.join().unwrap();
    assert!(!output.status.success());
    // What the database says before it closes arrives.
    assert!(
        stderr(&output).contains("terminating connection due to administrator command"),
        "{}",
        stderr(&output)
    );
    server.ended();
}
