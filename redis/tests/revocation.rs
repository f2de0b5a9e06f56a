//! A revocation is effective everywhere within a second.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tower_challenge::Connector;
use tower_challenge::noise::{self, Audience};
use tower_challenge_redis::{Form, RedisKeys};

use crate::commands::Program;
use crate::server::Redis;
use crate::support::{LONG, SERVERS, World, eventually, id, key};

/// Prints and returns the median and the worst.
fn figures(what: &str, mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {} in all, median {median:.2?}, worst {worst:.2?}", times.len());
    (median, worst)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn thousand_revocations_on_five_servers() {
    const COUNT: usize = 998;

    let mut world = World::sealed().await;
    let (mut sessions, mut seen) = (JoinSet::new(), JoinSet::new());
    for number in 0..COUNT {
        let name = format!("id-{number}");
        for server in &world.servers {
            let revoked = server.revocation(&name).await.revoked();
            seen.spawn(async move {
                revoked.await;
                (number, Instant::now())
            });
        }
        let session = world.servers[number % SERVERS].session(&name, &key(number)).await.unwrap();
        sessions.spawn(async move { (number, session.end().await) });
    }
    let mut begins = Vec::new();
    for number in 0..COUNT {
        begins.push(Instant::now());
        world.store.revoke(&id(&format!("id-{number}"))).await.unwrap();
    }
    let since = |(number, at): (usize, Instant)| at - begins[number];
    let seen: Vec<_> = timeout(LONG, seen.join_all()).await.unwrap().into_iter().map(since).collect();
    let ended: Vec<_> = sessions.join_all().await.into_iter().map(since).collect();
    assert_eq!((seen.len(), ended.len()), (COUNT * SERVERS, COUNT));
    let (_, worst) = figures("revocation to server", seen);
    assert!(worst < Duration::from_secs(1));
    let (_, worst) = figures("revocation to the end of the session", ended);
    assert!(worst < Duration::from_secs(1));
    for number in (0..COUNT).step_by(50) {
        for server in &world.servers {
            assert!(!server.admits(&format!("id-{number}"), &key(number)).await);
        }
    }
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn derived_keys() {
    let mut world = World::new(Form::Derived, Redis::start().await).await;
    let (mut sessions, mut begins) = (JoinSet::new(), Vec::new());
    for number in 0..100 {
        let name = format!("id-{number}");
        let key = world.store.add(&id(&name)).await.unwrap();
        for server in &world.servers {
            let session = server.session(&name, &key).await.unwrap();
            sessions.spawn(async move { (number, session.end().await) });
        }
    }
    for number in 0..100 {
        begins.push(Instant::now());
        world.store.revoke(&id(&format!("id-{number}"))).await.unwrap();
    }
    let ended = sessions.join_all().await.into_iter().map(|(number, at): (usize, _)| at - begins[number]);
    let (_, worst) = figures("revocation of derived keys to the end of the session", ended.collect());
    assert!(worst < Duration::from_secs(1));
    world.check().await;
    assert!(world.store.add(&id("id-1")).await.is_err(), "a derived key that is revoked stays so");
}

/// The key of a rotation works at once, the old one until the end of the overlap, and its session ends then.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn rotation_without_a_refusal() {
    const OVERLAP: Duration = Duration::from_secs(2);

    let world = World::sealed().await;
    let (old, name) = (key(7), "id-7");
    let mut ends = JoinSet::new();
    for server in &world.servers {
        ends.spawn(server.session(name, &old).await.unwrap().end());
    }
    let begin = Instant::now();
    let new = world.store.rotate(&id(name), OVERLAP).await.unwrap();
    let is_new = eventually("the new key", async || {
        for server in &world.servers {
            if !server.admits(name, &new).await {
                return false;
            }
        }
        true
    });
    let is_new = is_new.await;
    assert!(is_new < Duration::from_secs(1), "{is_new:?}");
    let mut handshakes = 0;
    // Without Redis, too.
    world.redis.stop();
    while begin.elapsed() + Duration::from_millis(100) < OVERLAP {
        for server in &world.servers {
            assert!(server.admits(name, &old).await && server.admits(name, &new).await);
            handshakes += 2;
        }
    }
    let ended: Vec<_> = ends.join_all().await.into_iter().map(|at| at - begin).collect();
    let (first, last) = (ended.iter().min().unwrap(), ended.iter().max().unwrap());
    println!(
        "new key after {is_new:.2?}, old sessions end after {first:.2?} to {last:.2?}, {handshakes} handshakes"
    );
    assert!(*first >= OVERLAP && *last < OVERLAP + Duration::from_millis(1500));
    for server in &world.servers {
        assert!(!server.admits(name, &old).await && server.admits(name, &new).await);
    }
    world.redis.resume();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn four_keys_of_an_id() {
    let world = World::sealed().await;
    let mut keys = vec![key(3)];
    for _ in 0..3 {
        keys.push(world.store.rotate(&id("id-3"), Duration::from_secs(3600)).await.unwrap());
    }
    let error = world.store.rotate(&id("id-3"), Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, tower_challenge_redis::Error::TooManyKeys(_)), "{error}");
    for server in &world.servers {
        for key in &keys {
            eventually("all keys", async || server.admits("id-3", key).await).await;
        }
    }
    world.store.revoke(&id("id-3")).await.unwrap();
    for server in &world.servers {
        for key in &keys {
            eventually("no key", async || !server.admits("id-3", key).await).await;
        }
    }
}

/// A server of the example `fleet`.
struct Process {
    child: Child,
    addr: String,
}

impl Process {
    fn start(program: &Program) -> Self {
        let test = std::env::current_exe().unwrap();
        let path = test.parent().unwrap().parent().unwrap().join("examples/fleet");
        assert!(path.exists(), "build the examples first: cargo build -p tower-challenge-redis --examples");
        let mut command = Command::new(path);
        command
            .arg("127.0.0.1:0")
            .env("CHALLENGE_REDIS", &program.url)
            .env("CHALLENGE_SECRET", program.secret());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let addr = lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, addr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sessions of `noise`, servers in processes of their own, and the program.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn five_processes() {
    let redis = Redis::start().await;
    let program = Program::new(&redis);
    program.init();
    let keys: Vec<_> = (0..20).map(|number| program.add(&format!("id-{number}"))).collect();
    let processes: Vec<_> = (0..5).map(|_| Process::start(&program)).collect();
    let audience = || Audience::new("fleet").unwrap();
    let (mut sessions, mut begins) = (JoinSet::new(), Vec::new());
    for (number, key) in keys.iter().enumerate() {
        for process in &processes {
            let io = TcpStream::connect(&process.addr).await.unwrap();
            let client = noise::Client::new(format!("id-{number}").as_str(), key, audience()).unwrap();
            let mut session = Connector::new(client).connect(io).await.unwrap();
            sessions.spawn(async move {
                let read = timeout(LONG, session.read(&mut [0; 4])).await.expect("the session goes on");
                assert!(!matches!(read, Ok(1..)));
                (number, Instant::now())
            });
        }
    }
    for number in 0..keys.len() {
        begins.push(Instant::now());
        program.run(&["revoke", &format!("id-{number}")]).success();
    }
    let ended = sessions.join_all().await.into_iter().map(|(number, at)| at - begins[number]);
    let (_, worst) = figures("`revoke` to the end of the session in another process", ended.collect());
    assert!(worst < Duration::from_secs(1));
    for process in &processes {
        let io = TcpStream::connect(&process.addr).await.unwrap();
        let client = noise::Client::new("id-1", &keys[1], audience()).unwrap();
        assert!(Connector::new(client).connect(io).await.is_err());
    }
}

/// The keys of `noise` are prepared in another way.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Redis"]
async fn debug_shows_nothing() {
    let world = World::sealed().await;
    let keys: RedisKeys<noise::PreparedKey> = world.builder().connect().await.unwrap();
    let url = "redis://user:password-of-redis@127.0.0.1:1/";
    let secret = std::fs::read_to_string(world.secret_path()).unwrap();
    let penalties = tower_challenge_redis::RedisPenalties::new(url).unwrap();
    let store = tower_challenge_redis::Store::new(url, world.secret()).unwrap();
    let builder = RedisKeys::builder(url, world.secret());
    let shown = format!("{keys:?} {builder:?} {store:?} {penalties:?} {:?}", world.secret());
    for hidden in ["password-of-redis", secret.trim_end(), "00000000000000000000000000000001"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
    let error = builder.connect::<noise::PreparedKey>().await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("password-of-redis"));
    let error = tower_challenge_redis::Store::new("redis://user:password-of-redis@:x", world.secret());
    assert!(!format!("{error:?}").contains("password-of-redis"), "{error:?}");
}
