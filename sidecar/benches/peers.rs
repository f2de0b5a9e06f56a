//! Compares pairs of proxies between a client and a service on this machine: `challenge-proxy`, and those that are
//! installed of spiped, stunnel, socat and HAProxy (Debian's packages spiped, stunnel4, socat and haproxy).
//!
//! ```text
//! cargo bench -p challenge-proxy --bench peers
//! cargo bench -p challenge-proxy --bench peers -- --quick
//! ```
//!
//! Pairs take turns, so that other work of the machine affects all of them. Compare the ratios, not the numbers.

#![allow(clippy::cast_precision_loss, reason = "figures, far below 2^52")]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What the service sends first, on a connection for the number of connections and for idle sessions.
const GREETING: [u8; 16] = *b"hello from there";

/// How many connections are made at a time.
const CONCURRENCY: usize = 16;

/// How many sessions are idle when memory is measured.
const IDLE: usize = 200;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let has = |name| args.iter().any(|arg| arg == name);
    // `cargo test --benches` passes no `--bench`: the pairs are checked, and nothing is measured.
    let settings = match (has("--bench"), has("--quick")) {
        (false, _) => Settings { rounds: 0, slice: Duration::ZERO, bulk: 0, round_trips: 0 },
        (true, true) => {
            Settings { rounds: 3, slice: Duration::from_millis(300), bulk: 256 << 20, round_trips: 500 }
        }
        (true, false) => {
            Settings { rounds: 7, slice: Duration::from_secs(1), bulk: 1 << 30, round_trips: 4000 }
        }
    };
    let directory = tempfile::tempdir().expect("a directory");
    let services = Services::start();
    let pairs: Vec<_> =
        Kind::ALL.iter().filter_map(|kind| Pair::start(*kind, &services, directory.path())).collect();
    for pair in &pairs {
        greeted(pair.greeting).unwrap_or_else(|error| panic!("{}: {error}", pair.kind.name()));
    }
    let mut figures: Vec<Figures> = pairs.iter().map(|_| Figures::default()).collect();
    for _ in 0..settings.rounds {
        for (pair, figures) in pairs.iter().zip(&mut figures) {
            figures.connections.push(connections(pair.greeting, settings.slice));
            figures.bulk.push(bulk(pair.sink, settings.bulk));
            figures.round_trip.push(round_trip(pair.echo, settings.round_trips));
        }
    }
    if settings.rounds == 0 {
        return;
    }
    for (pair, figures) in pairs.iter().zip(&mut figures) {
        figures.idle.push(pair.idle_memory());
    }
    println!(
        "medians of {} rounds; connections at {CONCURRENCY} at a time, round trips of 64 bytes",
        settings.rounds
    );
    println!(
        "{:<26} {:>14} {:>12} {:>14} {:>18}",
        "", "connections/s", "bulk GiB/s", "round trip us", "idle KiB/session"
    );
    for (pair, figures) in pairs.iter().zip(&mut figures) {
        let Figures { connections, bulk, round_trip, idle } = figures;
        println!(
            "{:<26} {:>14.0} {:>12.3} {:>14.1} {:>18.1}",
            pair.kind.name(),
            median(connections),
            median(bulk) / f64::from(1 << 30),
            median(round_trip) * 1e6,
            median(idle) / 1024.0,
        );
    }
}

struct Settings {
    rounds: usize,
    slice: Duration,
    bulk: usize,
    round_trips: usize,
}

#[derive(Default)]
struct Figures {
    connections: Vec<f64>,
    bulk: Vec<f64>,
    round_trip: Vec<f64>,
    idle: Vec<f64>,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The plain services behind the pairs.
struct Services {
    greeting: SocketAddr,
    sink: SocketAddr,
    echo: SocketAddr,
}

impl Services {
    fn start() -> Self {
        let greeting = serve(|mut stream| {
            stream.write_all(&GREETING)?;
            // Until the client closes.
            io::copy(&mut stream, &mut io::sink()).map(drop)
        });
        let sink = serve(|mut stream| {
            let mut buf = vec![0; 256 * 1024];
            let mut received = 0_u64;
            loop {
                match stream.read(&mut buf)? {
                    0 => break,
                    len => received += len as u64,
                }
            }
            stream.write_all(&received.to_be_bytes())
        });
        let echo = serve(|mut stream| {
            stream.set_nodelay(true)?;
            let mut buf = [0; 64];
            loop {
                stream.read_exact(&mut buf)?;
                stream.write_all(&buf)?;
            }
        });
        Self { greeting, sink, echo }
    }
}

fn serve(session: fn(TcpStream) -> io::Result<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Clients close in the middle.
            thread::spawn(move || session(stream).unwrap_or_default());
        }
    });
    addr
}

#[derive(Clone, Copy)]
enum Kind {
    Noise,
    Mutual,
    Spiped,
    Stunnel,
    Socat,
    HaProxy,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Noise, Self::Mutual, Self::Spiped, Self::Stunnel, Self::Socat, Self::HaProxy];

    const fn name(self) -> &'static str {
        match self {
            Self::Noise => "challenge-proxy noise",
            Self::Mutual => "challenge-proxy mutual",
            Self::Spiped => "spiped",
            Self::Stunnel => "stunnel, PSK",
            Self::Socat => "socat, plain",
            Self::HaProxy => "HAProxy, plain",
        }
    }

    fn program(self) -> Option<PathBuf> {
        let name = match self {
            Self::Noise | Self::Mutual => return Some(env!("CARGO_BIN_EXE_challenge-proxy").into()),
            Self::Spiped => "spiped",
            Self::Stunnel => "stunnel4",
            Self::Socat => "socat",
            Self::HaProxy => "haproxy",
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        let found = directories.map(|directory| directory.join(name)).find(|path| path.is_file());
        if found.is_none() {
            println!("{name} is not installed");
        }
        found
    }
}

/// Two proxies of a kind, for each of the services.
struct Pair {
    kind: Kind,
    greeting: SocketAddr,
    sink: SocketAddr,
    echo: SocketAddr,
    processes: Vec<Child>,
    /// The processes for `greeting`.
    measured: [u32; 2],
}

impl Pair {
    fn start(kind: Kind, services: &Services, directory: &Path) -> Option<Self> {
        let program = kind.program()?;
        let mut processes = Vec::new();
        let [greeting, sink, echo] = [services.greeting, services.sink, services.echo].map(|service| {
            let [near, far] = free_addrs();
            processes.push(start(kind, &program, true, far, service, directory));
            processes.push(start(kind, &program, false, near, far, directory));
            near
        });
        let measured = [processes[0].id(), processes[1].id()];
        let pair = Self { kind, greeting, sink, echo, processes, measured };
        let begin = Instant::now();
        for addr in [pair.greeting, pair.sink, pair.echo] {
            while TcpStream::connect(addr).is_err() {
                assert!(begin.elapsed() < Duration::from_secs(20), "{} does not start", kind.name());
                thread::sleep(Duration::from_millis(10));
            }
        }
        while greeted(pair.greeting).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{} does not forward", kind.name());
            thread::sleep(Duration::from_millis(10));
        }
        Some(pair)
    }

    /// Returns how much memory of both processes an idle session takes, in bytes.
    fn idle_memory(&self) -> f64 {
        let memory = || self.measured.iter().map(|id| with_children(*id)).sum::<f64>();
        // What the first sessions allocate for all others.
        drop((0..IDLE).map(|_| greeted(self.greeting).expect("a session")).collect::<Vec<_>>());
        thread::sleep(Duration::from_millis(500));
        let before = memory();
        let sessions: Vec<_> = (0..IDLE).map(|_| greeted(self.greeting).expect("a session")).collect();
        thread::sleep(Duration::from_millis(500));
        let after = memory();
        drop(sessions);
        (after - before).max(0.0) / IDLE as f64
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // socat leaves its children alone: they are in its group.
            let _ = Command::new("kill").args(["-9", "--", &format!("-{}", process.id())]).status();
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Returns the proportional set size of a process and its children, in bytes.
fn with_children(id: u32) -> f64 {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    let own = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
    own.and_then(|kib| kib.trim().parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
        + children.map(with_children).sum::<f64>()
}

fn free_addrs() -> [SocketAddr; 2] {
    [(); 2]
        .map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"))
        .map(|listener| listener.local_addr().expect("an address"))
}

fn start(
    kind: Kind,
    program: &Path,
    is_server: bool,
    listen: SocketAddr,
    target: SocketAddr,
    directory: &Path,
) -> Child {
    use std::os::unix::process::CommandExt as _;

    let write = |name: String, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        path
    };
    let port = listen.port();
    let mut command = Command::new(program);
    match kind {
        Kind::Noise | Kind::Mutual => {
            let keys = write(format!("keys{port}"), format!("alice:{KEY}\n"));
            command.arg(if is_server { "server" } else { "client" });
            command.args(["--listen", &listen.to_string(), "--target", &target.to_string()]);
            command.args(["--audience", "bench", "--log-level", "warn", "--key-file"]).arg(keys);
            command.args(["--mechanism", if matches!(kind, Kind::Noise) { "noise" } else { "mutual" }]);
        }
        Kind::Spiped => {
            let key = write(format!("key{port}"), KEY.to_owned());
            command.args(["-F", if is_server { "-d" } else { "-e" }, "-n", "1000"]);
            command.arg("-s").arg(format!("[127.0.0.1]:{port}"));
            command.arg("-t").arg(format!("[127.0.0.1]:{}", target.port())).arg("-k").arg(key);
        }
        Kind::Stunnel => {
            let secrets = write(format!("secrets{port}"), format!("alice:{KEY}\n"));
            let config = format!(
                "foreground = yes\npid =\ndebug = 3\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n[bench]\n\
                 client = {}\naccept = {listen}\nconnect = {target}\nciphers = PSK\nPSKsecrets = {}\n",
                if is_server { "no" } else { "yes" },
                secrets.display(),
            );
            command.arg(write(format!("stunnel{port}.conf"), config));
        }
        Kind::Socat => {
            command.arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=128"));
            command.arg(format!("TCP:{target},nodelay"));
        }
        Kind::HaProxy => {
            let config = format!(
                "global\n maxconn 2000\ndefaults\n mode tcp\n option splice-auto\n timeout connect 20s\n \
                 timeout client 60s\n timeout server 60s\nlisten bench\n bind {listen}\n server target {target}\n"
            );
            command.arg("-db").arg("-f").arg(write(format!("haproxy{port}.cfg"), config));
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().unwrap_or_else(|error| panic!("{} does not start: {error}", kind.name()))
}

/// Connects and waits for the first bytes of the service.
fn greeted(addr: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    if greeting == GREETING { Ok(stream) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Returns how many connections per second are greeted.
fn connections(addr: SocketAddr, slice: Duration) -> f64 {
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..CONCURRENCY {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if greeted(addr).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        thread::sleep(slice);
        stop.store(true, Ordering::Relaxed);
    });
    count.into_inner() as f64 / begin.elapsed().as_secs_f64()
}

/// Sends this many bytes through a pair. Returns the bytes per second.
fn bulk(addr: SocketAddr, len: usize) -> f64 {
    let chunk = vec![7; 64 * 1024];
    let begin = Instant::now();
    let mut stream = TcpStream::connect(addr).expect("a connection");
    for _ in 0..len / chunk.len() {
        stream.write_all(&chunk).expect("the pair forwards");
    }
    stream.shutdown(std::net::Shutdown::Write).expect("an end");
    let mut received = [0; 8];
    stream.read_exact(&mut received).expect("the service answers");
    assert_eq!(u64::from_be_bytes(received), len as u64);
    len as f64 / begin.elapsed().as_secs_f64()
}

/// Returns the mean time of a round trip, in seconds.
fn round_trip(addr: SocketAddr, count: usize) -> f64 {
    let mut stream = TcpStream::connect(addr).expect("a connection");
    stream.set_nodelay(true).expect("an option");
    let mut buf = [7; 64];
    // Without the handshake.
    stream.write_all(&buf).and_then(|()| stream.read_exact(&mut buf)).expect("an echo");
    let begin = Instant::now();
    for _ in 0..count {
        stream.write_all(&buf).and_then(|()| stream.read_exact(&mut buf)).expect("an echo");
    }
    begin.elapsed().as_secs_f64() / count as f64
}
