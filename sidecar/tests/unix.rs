//! Unix sockets, with a path and abstract, to listen on and as targets.

use std::fs;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::process::{run, stderr};
use crate::support::http::wait_for_metric;
use crate::support::service::{Service, assert_reset_without_a_byte, echo, greet, open, serve};
use crate::support::sidecar::{KEY, MECHANISMS, Sidecar, program, write_key};

/// The echo service, on a Unix socket.
fn start_service(listener: UnixListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || {
                serve(&mut &stream, &stream).unwrap();
                // Other descriptors may be open, so that dropping it would not end it.
                stream.shutdown(Shutdown::Both).unwrap();
            });
        }
    });
}

fn connect(address: &str) -> BufReader<UnixStream> {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).unwrap(),
        None => SocketAddr::from_pathname(address).unwrap(),
    };
    let stream = UnixStream::connect_addr(&address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    BufReader::new(stream)
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::symlink_metadata(path).unwrap();
    assert!(metadata.file_type().is_socket());
    metadata.permissions().mode() & 0o7777
}

/// Returns a name in the abstract namespace that no other test uses.
fn abstract_name(of: &str) -> String {
    format!("challenge-proxy-test-{of}-{}", std::process::id())
}

#[test]
fn all_sockets_can_be_unix_sockets() {
    for mechanism in MECHANISMS {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let name = |side: &str| format!("@{}", abstract_name(&format!("{side}-{mechanism}")));
        for [service, server, client] in [
            [path("service"), path("server"), path("client")],
            [name("service"), name("server"), name("client")],
        ] {
            let address = match service.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name).unwrap(),
                None => SocketAddr::from_pathname(&service).unwrap(),
            };
            start_service(UnixListener::bind_addr(&address).unwrap());
            let args = |listen| ["--mechanism", mechanism, "--listen", listen];
            let mut far = Sidecar::server(&service, KEY, &args(&server));
            let mut near = Sidecar::client(&server, KEY, &args(&client));
            assert_eq!((&far.addr, &near.addr), (&server, &client));

            let mut stream = connect(&client);
            greet(&mut stream);
            echo(&mut stream, b"hello");
            stream.get_mut().shutdown(Shutdown::Write).unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "5 bytes");
            for side in [&mut far, &mut near] {
                let ended = side.ended();
                assert_eq!((ended.text("reason"), ended.text("peer")), ("completed", "unix"));
                assert_eq!((ended.number("to_target"), ended.number("from_target")), (5, 18));
            }
        }
    }
}

/// The prefix makes a path explicit. TCP and Unix sockets can be mixed.
#[test]
fn unix_socket_in_front_of_tcp() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("client");
    let service = Service::start();
    let server = Sidecar::server(&service.addr, KEY, &[]);
    let _client = Sidecar::client(&server.addr, KEY, &["--listen", &format!("unix:{}", path.display())]);
    let mut stream = connect(path.to_str().unwrap());
    greet(&mut stream);
    echo(&mut stream, b"hello");
}

#[test]
fn mode_and_removal_of_the_socket() {
    for (args, expected) in
        [(&[][..], 0o600), (&["--listen-mode", "0660"], 0o660), (&["--listen-mode", "777"], 0o777)]
    {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listen = ["--listen", path.to_str().unwrap()];
        let mut sidecar = Sidecar::client("127.0.0.1:1", KEY, &[&listen[..], args].concat());
        assert_eq!(mode(&path), expected);
        // Nothing else was left there.
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        sidecar.running.terminate();
        assert!(sidecar.running.wait().success());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

#[test]
fn stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    // What a process leaves that was killed.
    let mut killed = Sidecar::client("127.0.0.1:1", KEY, &["--listen", path.to_str().unwrap()]);
    killed.running.kill();
    killed.running.wait();
    assert_eq!(mode(&path), 0o600);

    let service = Service::start();
    let server = Sidecar::server(&service.addr, KEY, &[]);
    let client = Sidecar::client(&server.addr, KEY, &["--listen", path.to_str().unwrap()]);
    greet(&mut connect(&client.addr));
}

#[test]
fn used_path_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    let start = |listen: &str| {
        let mut command = program();
        command.args(["client", "--listen", listen, "--target", "127.0.0.1:1", "--audience", "test"]);
        let output = run(command.arg("--key-file").arg(&keys), "");
        assert_eq!(output.status.code(), Some(1));
        let error = stderr(&output).lines().last().unwrap().to_owned();
        assert!(error.starts_with(&format!("error: --listen {listen}: ")), "{error}");
        error
    };

    let live = directory.path().join("live");
    let listener = UnixListener::bind(&live).unwrap();
    assert!(start(live.to_str().unwrap()).contains("in use"));
    // The one that listens was not harmed.
    UnixStream::connect(&live).unwrap();
    listener.accept().unwrap();

    let file = directory.path().join("file");
    fs::write(&file, "content").unwrap();
    start(file.to_str().unwrap());
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");

    let nowhere = directory.path().join("missing/socket");
    assert!(start(nowhere.to_str().unwrap()).contains("No such file"));

    let name = abstract_name("used");
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    assert!(start(&format!("@{name}")).contains("in use"));
}

/// Up to the system's limit of 107 bytes.
#[test]
fn longest_path() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().to_str().unwrap().len() + 1;
    let path = directory.path().join("s".repeat(107 - base));
    drop(UnixListener::bind(&path).expect("the system accepts it"));
    fs::remove_file(&path).unwrap();
    let service = Service::start();
    let server = Sidecar::server(&service.addr, KEY, &["--listen", path.to_str().unwrap()]);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    echo(&mut open(&client.addr), b"hello");
}

/// A process that has been replaced by another one at the same path must not remove the socket of that one.
#[test]
fn socket_of_another_process_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut sidecar = Sidecar::client("127.0.0.1:1", KEY, &["--listen", path.to_str().unwrap()]);
    let other = directory.path().join("other");
    let _listener = UnixListener::bind(&other).unwrap();
    fs::rename(&other, &path).unwrap();
    sidecar.running.terminate();
    assert!(sidecar.running.wait().success());
    UnixStream::connect(&path).unwrap();
}

/// A Unix socket cannot be reset. What had arrived before the failure is delivered before it is closed.
#[test]
fn data_before_a_failure_is_delivered() {
    const SENT: usize = 100_000;
    for mechanism in MECHANISMS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let args = ["--mechanism", mechanism, "--listen", path.to_str().unwrap(), "--admin", "127.0.0.1:0"];
        let server = Sidecar::server(&listener.local_addr().unwrap().to_string(), KEY, &args[..2]);
        let mut client = Sidecar::client(&server.addr, KEY, &args);
        let mut stream = connect(path.to_str().unwrap());
        let (mut target, _) = listener.accept().unwrap();
        target.write_all(&vec![7; SENT]).unwrap();
        wait_for_metric(client.admin(), "challenge_proxy_bytes_total", &["from_target"], SENT as u64);
        socket2::SockRef::from(&target).set_linger(Some(Duration::ZERO)).unwrap();
        drop(target);
        let ended = client.ended();
        assert!(ended.text("reason").starts_with("server: "), "{ended:?}");
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received);
        assert!(received == vec![7; SENT], "{mechanism}: {} bytes", received.len());
    }
}

#[test]
fn unreachable_unix_target() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let mut client = Sidecar::client(missing.to_str().unwrap(), KEY, &[]);
    assert_reset_without_a_byte(&client.addr);
    let ended = client.ended();
    let expected = format!("cannot connect to {}: No such file or directory (os error 2)", missing.display());
    assert_eq!(ended.text("reason"), expected);
}

/// A service that is restarted at its path is found again.
#[test]
fn target_that_is_started_later() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("service");
    let server = Sidecar::server(path.to_str().unwrap(), KEY, &[]);
    let client = Sidecar::client(&server.addr, KEY, &[]);
    assert_reset_without_a_byte(&client.addr);
    start_service(UnixListener::bind(&path).unwrap());
    let mut stream = open(&client.addr);
    echo(&mut stream, b"hello");
    stream.get_mut().shutdown(Shutdown::Both).unwrap();
    let ended: io::Result<usize> = stream.get_mut().write(b"more");
    assert!(ended.is_err());
}
