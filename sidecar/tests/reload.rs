//! `run --config`: several services in one process, and SIGHUP.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{run, stderr};
use crate::support::http::wait_for_metric;
use crate::support::relay::Relay;
use crate::support::service::{Service, assert_reset_without_a_byte, echo, finish, open, read_until_reset};
use crate::support::sidecar::{Event, KEY, MECHANISMS, OTHER_KEY, Sidecar, program, write_key};

/// A configuration file and its services.
struct Config {
    path: PathBuf,
    keys: PathBuf,
}

impl Config {
    fn create() -> (TempDir, Self) {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("keys");
        write_key(&keys, KEY);
        let path = directory.path().join("config.toml");
        (directory, Self { path, keys })
    }

    /// Writes the file: for each service its side, its name, its address, its target, and further lines.
    fn write(&self, services: &[(&str, &str, &str, &str, &str)]) {
        let mut text = "log-format = \"json\"\nshutdown-timeout = 5\nadmin = \"127.0.0.1:0\"\n".to_owned();
        for (side, name, listen, target, more) in services {
            writeln!(text, "[[{side}]]\nname = \"{name}\"\nlisten = \"{listen}\"\ntarget = \"{target}\"")
                .unwrap();
            writeln!(text, "key-file = \"{}\"\naudience = \"test\"\n{more}", self.keys.display()).unwrap();
        }
        fs::write(&self.path, text).unwrap();
    }
}

/// Returns an address that is free, for services that keep it after a reload.
fn free_addr() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Reads the file again. Returns what the program logs about it.
fn reload(sidecar: &mut Sidecar) -> Event {
    sidecar.running.hang_up();
    loop {
        let event = sidecar.next();
        if event.message().starts_with("configuration ") {
            return event;
        }
    }
}

fn assert_refused(addr: &str) {
    let begin = Instant::now();
    // The listener is closed soon after the reload.
    while TcpStream::connect(addr).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(5), "{addr} is still open");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

/// Both sides in one process.
#[test]
fn two_services_in_one_process() {
    let service = Service::start();
    let [near, far] = [free_addr(), free_addr()];
    for mechanism in MECHANISMS {
        let (directory, config) = Config::create();
        let more = format!("mechanism = \"{mechanism}\"");
        config
            .write(&[("server", "far", &far, &service.addr, &more), ("client", "near", &near, &far, &more)]);
        let mut sidecar = Sidecar::run(directory, &config.path, 2);
        let mut stream = open(&near);
        echo(&mut stream, b"hello");
        assert_eq!(finish(&mut stream), "5 bytes");
        let mut names = [sidecar.ended(), sidecar.ended()].map(|event| event.text("service").to_owned());
        names.sort();
        assert_eq!(names, ["far", "near"]);
        // One signal stops both.
        sidecar.running.terminate();
        assert!(sidecar.running.wait().success());
    }
}

#[test]
fn reload_adds_changes_and_removes_services() {
    let [first, second] = [Service::start(), Service::start()];
    let (directory, config) = Config::create();
    let [a, b, c] = [free_addr(), free_addr(), free_addr()];
    let server_a = ("server", "a", &*a, &*first.addr, "");
    let client_b = ("client", "b", &*b, &*a, "");
    config.write(&[server_a, client_b]);
    let mut sidecar = Sidecar::run(directory, &config.path, 2);
    let mut before = open(&b);

    // Nothing has changed.
    let read = reload(&mut sidecar);
    assert_eq!((read.message(), read.number("services")), ("configuration read", 2));
    echo(&mut before, b"one");

    // One is added.
    config.write(&[server_a, client_b, ("client", "c", &c, &a, "")]);
    assert_eq!(reload(&mut sidecar).number("services"), 3);
    let mut added = open(&c);
    echo(&mut before, b"two");

    // The target of one changes, for new sessions.
    let server_a = ("server", "a", &*a, &*second.addr, "");
    config.write(&[server_a, client_b, ("client", "c", &c, &a, "")]);
    assert_eq!(reload(&mut sidecar).number("services"), 3);
    assert_eq!((first.connections(), second.connections()), (2, 0));
    let mut after = open(&b);
    assert_eq!((first.connections(), second.connections()), (2, 1));
    echo(&mut before, b"three");
    echo(&mut after, b"three");

    // One is removed. Its session continues.
    config.write(&[server_a, client_b]);
    assert_eq!(reload(&mut sidecar).number("services"), 2);
    assert_refused(&c);
    echo(&mut added, b"four");

    // It comes back.
    config.write(&[server_a, client_b, ("client", "c", &c, &a, "")]);
    assert_eq!(reload(&mut sidecar).number("services"), 3);
    echo(&mut open(&c), b"hello");

    for stream in [&mut before, &mut added, &mut after] {
        assert!(finish(stream).ends_with(" bytes"));
    }
}

/// Sessions of a service that was changed or removed are part of the shutdown.
#[test]
fn shutdown_waits_for_sessions_of_earlier_generations() {
    let service = Service::start();
    let (directory, config) = Config::create();
    let [a, b] = [free_addr(), free_addr()];
    config.write(&[("server", "a", &a, &service.addr, ""), ("client", "b", &b, &a, "")]);
    let mut sidecar = Sidecar::run(directory, &config.path, 2);
    let mut session = open(&b);
    config.write(&[("server", "a", &a, &service.addr, "idle-timeout = 60")]);
    assert_eq!(reload(&mut sidecar).number("services"), 1);
    assert_refused(&b);
    sidecar.running.terminate();
    sidecar.event("stopping");
    echo(&mut session, b"still open");
    assert_eq!(finish(&mut session), "10 bytes");
    let stopped = sidecar.event("stopped");
    assert_eq!(["completed", "failed", "aborted"].map(|field| stopped.number(field)), [2, 0, 0]);
    assert!(sidecar.running.wait().success());
}

/// Its keys are followed for as long as there are sessions.
#[test]
fn revocation_ends_sessions_of_an_earlier_generation() {
    let service = Service::start();
    let (directory, config) = Config::create();
    let a = free_addr();
    config.write(&[("server", "a", &a, &service.addr, "")]);
    let mut sidecar = Sidecar::run(directory, &config.path, 1);
    let client = Sidecar::client(&a, KEY, &[]);
    let mut session = open(&client.addr);
    config.write(&[("server", "a", &a, &service.addr, "idle-timeout = 60")]);
    reload(&mut sidecar);
    write_key(&config.keys, OTHER_KEY);
    assert_eq!(read_until_reset(&mut session), b"");
    assert_eq!(sidecar.ended().text("reason"), "the key was revoked");
}

/// Clients connect all the time, while a service changes.
#[test]
fn reloads_refuse_no_connection() {
    for mechanism in MECHANISMS {
        let service = Service::start();
        let (directory, config) = Config::create();
        let [a, b] = [free_addr(), free_addr()];
        let write = |round: usize| {
            let more = format!("mechanism = \"{mechanism}\"\nidle-timeout = {}", 1000 + round);
            config.write(&[("server", "a", &a, &service.addr, &more), ("client", "b", &b, &a, &more)]);
        };
        write(0);
        let mut sidecar = Sidecar::run(directory, &config.path, 2);
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (stop, count, addr) = (Arc::clone(&stop), Arc::clone(&count), b.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let mut stream = open(&addr);
                        echo(&mut stream, b"hello");
                        assert_eq!(finish(&mut stream), "5 bytes");
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for round in 1..=20 {
            let sessions = count.load(Ordering::Relaxed);
            write(round);
            assert_eq!(reload(&mut sidecar).message(), "configuration read");
            let begin = Instant::now();
            while count.load(Ordering::Relaxed) < sessions + 4 {
                assert!(begin.elapsed() < Duration::from_secs(20), "no sessions after a reload");
                thread::sleep(Duration::from_millis(1));
            }
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().unwrap();
        }
    }
}

/// A handshake that has begun before the reload completes after it.
#[test]
fn in_flight_handshakes_survive_a_reload() {
    for mechanism in MECHANISMS {
        let service = Service::start();
        let (directory, config) = Config::create();
        let a = free_addr();
        let more = format!("mechanism = \"{mechanism}\"");
        config.write(&[("server", "a", &a, &service.addr, &more)]);
        let mut sidecar = Sidecar::run(directory, &config.path, 1);
        let relay = Relay::start(&a);
        let client = Sidecar::client(&relay.addr, KEY, &["--mechanism", mechanism]);
        relay.hold();
        let addr = client.addr.clone();
        let opening = thread::spawn(move || echo(&mut open(&addr), b"hello"));
        relay.wait_held();
        wait_for_metric(sidecar.admin(), "challenge_handshakes_pending", &[], 1);
        config.write(&[("server", "a", &a, &service.addr, &format!("{more}\nidle-timeout = 60"))]);
        assert_eq!(reload(&mut sidecar).message(), "configuration read");
        relay.release();
        opening.join().unwrap();

        // And one that has begun before its service is removed.
        relay.hold();
        let addr = client.addr.clone();
        let opening = thread::spawn(move || echo(&mut open(&addr), b"hello"));
        relay.wait_held();
        wait_for_metric(sidecar.admin(), "challenge_handshakes_pending", &[], 1);
        config.write(&[("server", "other", "127.0.0.1:0", &service.addr, &more)]);
        assert_eq!(reload(&mut sidecar).message(), "configuration read");
        relay.release();
        opening.join().unwrap();
    }
}

#[test]
fn invalid_file_changes_nothing() {
    let service = Service::start();
    let (directory, config) = Config::create();
    let missing = directory.path().join("missing");
    let [a, b] = [free_addr(), free_addr()];
    let server_a = ("server", "a", &*a, &*service.addr, "");
    let client_b = ("client", "b", &*b, &*a, "");
    config.write(&[server_a, client_b]);
    let mut sidecar = Sidecar::run(directory, &config.path, 2);
    let mut session = open(&b);
    let c = free_addr();
    let used = TcpListener::bind("127.0.0.1:0").unwrap();
    let used = used.local_addr().unwrap().to_string();
    let path = config.path.display();
    // The first service would be removed, the second one changed, and the third one is wrong.
    for (third, parts) in [
        (("server", "c", &*c, "127.0.0.1", ""), &["[[server]] \"c\"", "--target", "the port is missing"][..]),
        (("server", "c", "nowhere", "127.0.0.1:1", ""), &["--listen", "'nowhere'"]),
        (("server", "c", &*c, "127.0.0.1:1", "speed = 9"), &["[[server]] \"c\"", "`speed`"]),
        (("client", "c", &*c, "127.0.0.1:1", "key-id = \"bob\""), &["service \"c\"", "bob", "--key-id"]),
        (("client", "c", &*used, "127.0.0.1:1", ""), &["service \"c\"", "--listen", &used, "in use"]),
        (("client", "b", &*c, "127.0.0.1:1", ""), &["two services are named \"b\""]),
        (("client", "c", &*c, "127.0.0.1:1", "]"), &["config.toml"]),
    ] {
        config.write(&[("client", "b", &b, &a, "idle-timeout = 1"), third]);
        let unchanged = reload(&mut sidecar);
        assert_eq!(unchanged.message(), "configuration unchanged");
        let error = unchanged.text("error");
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        echo(&mut session, b"still open");
        echo(&mut open(&b), b"hello");
        if c != third.2 {
            continue;
        }
        assert!(TcpStream::connect(&c).is_err(), "nothing listens on {c}");
    }
    // A key file that is missing.
    let text = fs::read_to_string(&config.path).unwrap();
    let keys = config.keys.display().to_string();
    fs::write(&config.path, text.replace(&keys, missing.to_str().unwrap()).replace("\n]\n", "\n")).unwrap();
    let unchanged = reload(&mut sidecar);
    assert!(unchanged.text("error").contains("missing"), "{unchanged:?}");
    fs::remove_file(&config.path).unwrap();
    let unchanged = reload(&mut sidecar);
    assert!(unchanged.text("error").starts_with(&format!("{path}: ")), "{unchanged:?}");
    echo(&mut session, b"still open");
    echo(&mut open(&b), b"hello");

    // The next valid file is used.
    config.write(&[server_a]);
    assert_eq!(reload(&mut sidecar).number("services"), 1);
    assert_refused(&b);
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;

    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The mode of a socket changes, unless the file turns out to be invalid.
#[test]
fn reload_of_unix_sockets() {
    let (directory, config) = Config::create();
    let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
    let (a, b) = (first.to_str().unwrap(), second.to_str().unwrap());
    config.write(&[("client", "a", a, "127.0.0.1:1", ""), ("client", "b", b, "127.0.0.1:1", "")]);
    let mut sidecar = Sidecar::run(directory, &config.path, 2);
    config.write(&[("client", "a", a, "127.0.0.1:1", "listen-mode = \"0660\"")]);
    assert_eq!(reload(&mut sidecar).message(), "configuration read");
    assert_eq!(mode(&first), 0o660);
    let begin = Instant::now();
    while second.exists() {
        assert!(begin.elapsed() < Duration::from_secs(5), "the socket of a removed service is removed");
        thread::sleep(Duration::from_millis(5));
    }

    config.write(&[
        ("client", "a", a, "127.0.0.1:1", "listen-mode = \"0666\""),
        ("client", "c", "/nonexistent/socket", "127.0.0.1:1", ""),
    ]);
    assert_eq!(reload(&mut sidecar).message(), "configuration unchanged");
    assert_eq!(mode(&first), 0o660);
}

/// Two services with the same address are an error, as they are at the start.
#[test]
fn services_do_not_share_a_listener() {
    let [first, second] = [Service::start(), Service::start()];
    let (directory, config) = Config::create();
    let a = free_addr();
    config.write(&[("server", "a", &a, &first.addr, "")]);
    let mut sidecar = Sidecar::run(directory, &config.path, 1);
    config.write(&[("server", "a", &a, &first.addr, ""), ("server", "b", &a, &second.addr, "")]);
    let unchanged = reload(&mut sidecar);
    assert_eq!(unchanged.message(), "configuration unchanged", "{unchanged:?}");
    assert!(unchanged.text("error").contains(&a), "{unchanged:?}");

    // Each service with port 0 has a port of its own.
    let (directory, config) = Config::create();
    config.write(&[("server", "a", "127.0.0.1:0", &first.addr, "")]);
    let mut sidecar = Sidecar::run(directory, &config.path, 1);
    config.write(&[
        ("server", "a", "127.0.0.1:0", &first.addr, ""),
        ("server", "b", "127.0.0.1:0", &second.addr, ""),
    ]);
    sidecar.running.hang_up();
    let listening = sidecar.event("listening");
    assert_eq!(listening.text("service"), "b");
    assert_ne!(listening.text("address"), sidecar.addr);
}

/// Keys are read again when their file changes, without a signal.
#[test]
fn keys_of_each_service_are_watched() {
    let service = Service::start();
    let (directory, config) = Config::create();
    let a = free_addr();
    config.write(&[("server", "a", &a, &service.addr, "")]);
    let mut sidecar = Sidecar::run(directory, &config.path, 1);
    let client = Sidecar::client(&a, OTHER_KEY, &[]);
    assert_reset_without_a_byte(&client.addr);
    write_key(&config.keys, OTHER_KEY);
    let read = sidecar.event("keys read");
    assert_eq!((read.text("service"), read.number("keys")), ("a", 1));
    echo(&mut open(&client.addr), b"hello");
}

/// A reload that waits for a file does not keep the program from stopping.
#[test]
fn signal_ends_a_reload_that_hangs() {
    let service = Service::start();
    let (directory, config) = Config::create();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&fifo).status().unwrap().success());
    let a = free_addr();
    config.write(&[("server", "a", &a, &service.addr, "")]);
    let mut sidecar = Sidecar::run(directory, &config.path, 1);
    let text = fs::read_to_string(&config.path).unwrap();
    fs::write(&config.path, text.replace("/keys\"", "/fifo\"")).unwrap();
    sidecar.running.hang_up();
    // The running services continue.
    let client = Sidecar::client(&a, KEY, &[]);
    assert_eq!(finish(&mut open(&client.addr)), "0 bytes");
    sidecar.running.terminate();
    let begin = Instant::now();
    sidecar.running.wait();
    assert!(begin.elapsed() < Duration::from_secs(5), "ended after {:?}", begin.elapsed());
}

/// Without a configuration file there is nothing to read again.
#[test]
fn hangup_without_a_file() {
    let service = Service::start();
    let mut server = Sidecar::server(&service.addr, KEY, &[]);
    server.running.hang_up();
    loop {
        let event = server.next();
        if event.text("level") == "WARN" {
            assert!(event.message().contains("no configuration file"), "{event:?}");
            break;
        }
    }
    let client = Sidecar::client(&server.addr, KEY, &[]);
    echo(&mut open(&client.addr), b"hello");
}

#[test]
fn startup_errors_name_the_file_and_the_service() {
    let (_directory, config) = Config::create();
    let start = || {
        let output = run(program().arg("run").arg("--config").arg(&config.path), "");
        assert_eq!(output.status.code(), Some(1));
        stderr(&output).to_owned()
    };
    let path = config.path.display();
    assert_eq!(start(), format!("error: {path}: No such file or directory (os error 2)\n"));
    fs::write(&config.path, "").unwrap();
    assert_eq!(start(), format!("error: {path}: there is no service: add a [[server]] or a [[client]]\n"));
    config.write(&[("server", "a", "localhost", "127.0.0.1:1", "")]);
    let error = start();
    assert!(error.starts_with(&format!("error: {path}: [[server]] \"a\": ")), "{error}");
    assert!(error.contains("'localhost'") && error.contains("--listen"), "{error}");
    config.write(&[("client", "a", "127.0.0.1:0", "127.0.0.1:1", "key-id = \"bob\"")]);
    let error = start();
    let expected = format!("error: service \"a\": key file {}: no key", config.keys.display());
    assert!(error.contains(&expected), "{error}");
}
