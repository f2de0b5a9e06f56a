//! Socket activation, and notifications to systemd.

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{Running, run, stderr};
use crate::support::service::{Service, connect, echo, finish, greet, open};
use crate::support::sidecar::{KEY, Sidecar, program, write_key};

/// Returns `command` as systemd would start it: with these sockets as the descriptors 3 and 4.
fn activated(command: &Command, sockets: Vec<OwnedFd>, names: Option<&str>) -> Command {
    let count = sockets.len();
    // A process can be started with other descriptors than the standard ones through a shell only, which knows its
    // own process id, too.
    let moved = ["exec 3<&0 </dev/null; ", "exec 4>&1 >/dev/null; "][..count].concat();
    let script = format!("{moved}export LISTEN_FDS={count} LISTEN_PID=$$; exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(command.get_program()).args(command.get_args());
    let mut sockets = sockets.into_iter().map(Stdio::from);
    shell.stdin(sockets.next().unwrap()).stdout(sockets.next().unwrap_or_else(Stdio::null));
    names.map(|names| shell.env("LISTEN_FDNAMES", names));
    shell
}

fn directory_with_key() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys");
    write_key(&keys, KEY);
    (directory, keys)
}

/// The command of a server that listens on a socket of systemd.
fn server(listen: &str, target: &str, keys: &Path) -> Command {
    let mut command = program();
    command.args(["server", "--listen", listen, "--target", target, "--audience", "test"]);
    command.args(["--log-format", "json", "--key-file"]).arg(keys);
    command
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

#[test]
fn socket_of_systemd() {
    let service = Service::start();
    for (listen_on, names) in [("systemd", None), ("systemd", Some("web")), ("systemd:web", Some("web"))] {
        let (directory, keys) = directory_with_key();
        let (listener, addr) = listen();
        // A client that was there before the program: it waits in the queue.
        let early = Sidecar::client(&addr, KEY, &[]);
        let mut waiting = connect(&early.addr);
        let command = server(listen_on, &service.addr, &keys);
        let sidecar = Sidecar::spawn(&mut activated(&command, vec![listener.into()], names), directory, 1);
        assert_eq!(sidecar.addr, addr);
        greet(&mut waiting);
        echo(&mut open(&early.addr), b"hello");
    }
}

/// Two sockets, of which one is a Unix socket, for two services.
#[test]
fn named_sockets_of_systemd() {
    let service = Service::start();
    let (directory, keys) = directory_with_key();
    let (tcp, addr) = listen();
    let path = directory.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let config = directory.path().join("config.toml");
    std::fs::write(
        &config,
        format!(
            "log-format = \"json\"\n\
             [[client]]\nlisten = \"systemd:near\"\ntarget = \"{addr}\"\nkey-file = \"{keys}\"\naudience = \"test\"\nname = \"near\"\n\
             [[server]]\nlisten = \"systemd:far\"\ntarget = \"{}\"\nkey-file = \"{keys}\"\naudience = \"test\"\nname = \"far\"\n",
            service.addr,
            keys = keys.display()
        ),
    )
    .unwrap();
    let mut command = program();
    command.arg("run").arg("--config").arg(&config);
    let mut command = activated(&command, vec![tcp.into(), unix.into()], Some("far:near"));
    let mut sidecar = Sidecar::spawn(&mut command, directory, 2);
    let mut stream = BufReader::new(UnixStream::connect(&path).unwrap());
    greet(&mut stream);
    echo(&mut stream, b"hello");

    // They are kept when a service changes, and its file is not removed: it belongs to systemd.
    let text =
        std::fs::read_to_string(&config).unwrap().replace("[[client]]\n", "[[client]]\nidle-timeout = 60\n");
    std::fs::write(&config, text).unwrap();
    sidecar.running.hang_up();
    assert_eq!(sidecar.event("configuration read").number("services"), 2);
    greet(&mut BufReader::new(UnixStream::connect(&path).unwrap()));
    echo(&mut stream, b"still open");
    drop(stream);
    sidecar.running.terminate();
    sidecar.running.wait();
    assert!(path.exists());
}

/// A service that was removed and comes back has its socket again.
#[test]
fn socket_of_systemd_after_its_service_was_removed() {
    let service = Service::start();
    let (directory, keys) = directory_with_key();
    let (tcp, addr) = listen();
    let config = directory.path().join("config.toml");
    let write = |listen: &str| {
        let text = format!(
            "log-format = \"json\"\n[[server]]\nlisten = \"{listen}\"\ntarget = \"{}\"\nkey-file = \"{}\"\naudience = \"test\"\n",
            service.addr,
            keys.display()
        );
        std::fs::write(&config, text).unwrap();
    };
    write("systemd:web");
    let mut command = program();
    command.arg("run").arg("--config").arg(&config);
    let mut sidecar = Sidecar::spawn(&mut activated(&command, vec![tcp.into()], Some("web")), directory, 1);
    let client = Sidecar::client(&addr, KEY, &[]);
    echo(&mut open(&client.addr), b"hello");
    for listen in ["127.0.0.1:0", "systemd:web"] {
        write(listen);
        sidecar.running.hang_up();
        loop {
            let event = sidecar.next();
            assert_ne!(event.message(), "configuration unchanged", "{event:?}");
            if event.message() == "configuration read" {
                break;
            }
        }
    }
    echo(&mut open(&client.addr), b"hello");
}

#[test]
fn missing_sockets_are_errors() {
    let (_directory, keys) = directory_with_key();
    let error_of = |command: &mut Command| {
        // The socket is the standard input.
        let output = command.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        stderr(&output).lines().last().unwrap().to_owned()
    };
    let systemd = server("systemd", "127.0.0.1:1", &keys);
    let output = run(&mut server("systemd", "127.0.0.1:1", &keys), "");
    let expected = "error: --listen systemd: systemd has passed no socket on (LISTEN_FDS)";
    assert_eq!(stderr(&output).lines().last(), Some(expected));

    let named = server("systemd:web", "127.0.0.1:1", &keys);
    let error = error_of(&mut activated(&named, vec![listen().0.into()], Some("mail")));
    let expected =
        "error: --listen systemd:web: systemd has passed no socket of this name on; the names are: mail";
    assert_eq!(error, expected);

    let both = vec![listen().0.into(), listen().0.into()];
    let error = error_of(&mut activated(&systemd, both, Some("a:b")));
    let expected = "error: --listen systemd: systemd has passed 2 sockets on; choose a name: a, b";
    assert_eq!(error, expected);

    // Those of another process, as after a fork.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=1; exec \"$0\" \"$@\""]);
    shell.arg(systemd.get_program()).args(systemd.get_args()).stdin(Stdio::from(OwnedFd::from(listen().0)));
    assert!(error_of(&mut shell).ends_with("systemd has passed no socket on (LISTEN_FDS)"));
}

/// Real socket activation: the first client starts the program.
#[test]
#[ignore = "needs systemd-socket-activate"]
fn systemd_socket_activate() {
    let service = Service::start();
    let (_directory, keys) = directory_with_key();
    for (listen_on, fdname) in [("systemd", None), ("systemd:web", Some("--fdname=web"))] {
        let (free, addr) = listen();
        drop(free);
        let command = server(listen_on, &service.addr, &keys);
        let mut activate = Command::new("systemd-socket-activate");
        activate.args(["-l", &addr]).args(fdname).arg(command.get_program()).args(command.get_args());
        let _running = Running::start_stderr(activate.stdin(Stdio::null()).stdout(Stdio::null()));
        let begin = Instant::now();
        // The connection that starts the program is a probe.
        while TcpStream::connect(&addr).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20));
            sleep(Duration::from_millis(5));
        }
        let client = Sidecar::client(&addr, KEY, &[]);
        let mut stream = open(&client.addr);
        echo(&mut stream, b"hello");
        assert_eq!(finish(&mut stream), "5 bytes");
    }
}

/// The notification socket of systemd.
struct Notify {
    socket: UnixDatagram,
    path: PathBuf,
    _directory: TempDir,
}

impl Notify {
    fn bind() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket, path, _directory: directory }
    }

    /// Returns the next message other than those for the watchdog.
    fn next(&self) -> String {
        loop {
            let message = self.next_of_all();
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    fn next_of_all(&self) -> String {
        let mut buf = [0; 4096];
        let len = self.socket.recv(&mut buf).expect("a notification arrives");
        std::str::from_utf8(&buf[..len]).unwrap().trim_end().to_owned()
    }
}

#[test]
fn notifications_of_start_reload_and_stop() {
    let service = Service::start();
    let (directory, keys) = directory_with_key();
    let notify = Notify::bind();
    let config = directory.path().join("config.toml");
    let text = format!(
        "log-format = \"json\"\n[[server]]\nlisten = \"127.0.0.1:0\"\ntarget = \"{}\"\nkey-file = \"{}\"\naudience = \"test\"\n",
        service.addr,
        keys.display()
    );
    std::fs::write(&config, &text).unwrap();
    let mut command = program();
    command.arg("run").arg("--config").arg(&config).env("NOTIFY_SOCKET", &notify.path);
    let mut sidecar = Sidecar::spawn(command.stdout(Stdio::null()), directory, 1);
    assert_eq!(notify.next(), "READY=1");

    for (text, outcome) in [(text.as_str(), "configuration read"), ("wrong", "configuration unchanged")] {
        std::fs::write(&config, text).unwrap();
        sidecar.running.hang_up();
        let reloading = notify.next();
        let (state, now) = reloading.split_once("\nMONOTONIC_USEC=").unwrap();
        assert!(state == "RELOADING=1" && now.parse::<u64>().is_ok(), "{reloading}");
        sidecar.event(outcome);
        assert_eq!(notify.next(), "READY=1");
    }

    let client = Sidecar::client(&sidecar.addr, KEY, &[]);
    let mut session = open(&client.addr);
    sidecar.running.terminate();
    assert_eq!(notify.next(), "STOPPING=1");
    echo(&mut session, b"still open");
    finish(&mut session);
    assert!(sidecar.running.wait().success());
}

/// Nothing is ready before the keys are read.
#[test]
fn not_ready_before_the_service_is() {
    let (directory, keys) = directory_with_key();
    let notify = Notify::bind();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&fifo).status().unwrap().success());
    let mut command = server("127.0.0.1:0", "127.0.0.1:1", &fifo);
    command.env("NOTIFY_SOCKET", &notify.path).stdout(Stdio::null());
    let _running = Running::start_stderr(&mut command);
    // Opened once the program reads it.
    let mut writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    notify.socket.set_nonblocking(true).unwrap();
    assert!(notify.socket.recv(&mut [0; 64]).is_err());
    notify.socket.set_nonblocking(false).unwrap();
    std::io::copy(&mut std::fs::File::open(&keys).unwrap(), &mut writer).unwrap();
    drop(writer);
    assert_eq!(notify.next(), "READY=1");
}

#[test]
fn watchdog_is_fed() {
    let (directory, keys) = directory_with_key();
    let notify = Notify::bind();
    let mut command = server("127.0.0.1:0", "127.0.0.1:1", &keys);
    command.env("NOTIFY_SOCKET", &notify.path).env("WATCHDOG_USEC", "200000").stdout(Stdio::null());
    let sidecar = Sidecar::spawn(&mut command, directory, 1);
    assert_eq!(notify.next(), "READY=1");
    let begin = Instant::now();
    for _ in 0..5 {
        assert_eq!(notify.next_of_all(), "WATCHDOG=1");
    }
    // The first one is sent at once.
    let elapsed = begin.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(1)).contains(&elapsed), "{elapsed:?}");

    drop(sidecar);
}

#[test]
fn watchdog_is_not_fed_unless_it_is_on() {
    let (directory, keys) = directory_with_key();
    let notify = Notify::bind();
    let mut command = server("127.0.0.1:0", "127.0.0.1:1", &keys);
    command.env("NOTIFY_SOCKET", &notify.path).stdout(Stdio::null());
    let _sidecar = Sidecar::spawn(&mut command, directory, 1);
    assert_eq!(notify.next_of_all(), "READY=1");
    notify.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(notify.socket.recv(&mut [0; 64]).is_err());
}

/// The program continues without a receiver.
#[test]
fn failed_notification_is_logged() {
    let (directory, keys) = directory_with_key();
    let mut command = server("127.0.0.1:0", "127.0.0.1:1", &keys);
    command.env("NOTIFY_SOCKET", "/nonexistent/notify").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("systemd cannot be notified")));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(directory);
}
