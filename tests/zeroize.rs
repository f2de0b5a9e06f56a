//! Searches the memory of a process for secrets after everything that held them was dropped.
//!
//! Each test runs itself again as a child process, which works with a key in some threads and scans its own memory. The
//! threads then wait, so that their stacks remain as the work left them. The child must not contain what it searches
//! for, so its parent computes the secrets and passes them on with a mask.
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use bytes::BytesMut;
use futures::FutureExt as _;
use hmac::digest::common::hazmat::SerializableState;
use md5::Md5;
use tokio_util::codec::{Decoder as _, Encoder};
use tower_challenge::mechanism::{
    ClientRole, Context, Handshake, Input, Mechanism, PeerOf, ServerRole, Step,
};
use tower_challenge::{Key, KeyEntry, KeyFile, one_way};

/// Set in a child. Its value is the path of the key file.
const KEY_FILE: &str = "ZEROIZE_KEY_FILE";

/// The lines of a child's output that name a secret begin with this.
const FOUND: &str = "found: ";

/// What the masked bytes of a secret are combined with.
const MASK: u8 = 0xa5;

/// The length of the pieces that are searched for: what a vector register holds, and so what the compiler spills.
const PIECE: usize = 16;

/// The id of the key in the key file.
const ID: &str = "alice";

/// A piece of a secret, with the name of the secret.
type Needle = (String, [u8; PIECE]);

/// A part of the work with the key in this file. It runs in a thread of its own.
type Work = Box<dyn FnOnce(&Path) + Send>;

/// Runs `work` in a child process. Returns the names of the secrets that are in its memory afterwards. `secrets` adds
/// to the secrets that a key has.
fn left_in_memory(test: &str, secrets: fn(&[u8], &mut Secrets), work: Vec<Work>) -> BTreeSet<String> {
    if let Some(path) = std::env::var_os(KEY_FILE) {
        run_child(Path::new(&path), work);
        std::process::exit(0);
    }
    let key = Key::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    std::fs::write(&path, format!("{ID}:{}\n", *key.to_hex())).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let mut all = Secrets::default();
    all.add("key", key.expose_secret());
    all.add("hexadecimal key", key.to_hex().as_bytes());
    secrets(key.expose_secret(), &mut all);

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(KEY_FILE, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for (name, piece) in all.0 {
        let masked = piece.map(|byte| byte ^ MASK);
        writeln!(stdin, "{} {name}", base16ct::lower::encode_string(&masked)).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.split_once(FOUND)?.1.to_owned()))
        .collect()
}

fn run_child(path: &Path, work: Vec<Work>) {
    let masked: Vec<Needle> = std::io::stdin()
        .lock()
        .lines()
        .map(|line| {
            let line = line.unwrap();
            let (digits, name) = line.split_once(' ').unwrap();
            let mut piece = [0; PIECE];
            base16ct::lower::decode(digits, &mut piece).unwrap();
            (name.to_owned(), piece)
        })
        .collect();
    assert_eq!(scan(&masked), BTreeSet::new(), "before the key is read");
    let (done, is_done) = mpsc::channel();
    let works = work.len();
    for work in work {
        let (path, done) = (path.to_owned(), done.clone());
        thread::spawn(move || {
            work(&path);
            done.send(()).unwrap();
            loop {
                thread::park();
            }
        });
    }
    (0..works).for_each(|_| is_done.recv().unwrap());
    for name in scan(&masked) {
        println!("\n{FOUND}{name}");
    }
}

/// Returns the names of the needles that are in the writable memory of this process.
fn scan(masked: &[Needle]) -> BTreeSet<String> {
    const PAGE: usize = 4096;
    let first_two = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let mut begins_needle = vec![false; 1 << 16];
    let two_masks = first_two(&[MASK; 2]);
    for (_, piece) in masked {
        begins_needle[first_two(piece) ^ two_masks] = true;
    }
    let memory = File::open("/proc/self/mem").unwrap();
    let mut found = BTreeSet::new();
    // The end of the previous page, and a page. It is cleared before each page: it is a part of the memory, too.
    let mut buf = vec![0; PIECE - 1 + PAGE];
    for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions) = (fields.next().unwrap(), fields.next().unwrap());
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        if !permissions.starts_with("rw") {
            continue;
        }
        buf.fill(0);
        for page in (from..to).step_by(PAGE) {
            buf.copy_within(PAGE.., 0);
            buf[PIECE - 1..].fill(0);
            let is_read = memory.read_exact_at(&mut buf[PIECE - 1..], page).is_ok();
            if !is_read || buf[PIECE - 1..] == [0; PAGE] {
                continue;
            }
            for window in buf.windows(PIECE).filter(|window| begins_needle[first_two(window)]) {
                let is_found = |(_, piece): &&Needle| window.iter().zip(piece).all(|(a, b)| a ^ MASK == *b);
                found.extend(masked.iter().filter(is_found).map(|(name, _)| name.clone()));
            }
        }
    }
    buf.fill(0);
    found
}

/// The pieces of all secrets, computed by the parent.
#[derive(Default)]
struct Secrets(Vec<Needle>);

impl Secrets {
    fn add(&mut self, name: &str, secret: &[u8]) {
        // In memory, and in the order of the words that a digest works with.
        for word in [1, 4, 8] {
            let bytes: Vec<u8> =
                secret.chunks_exact(word).flat_map(|word| word.iter().rev()).copied().collect();
            for piece in bytes.chunks_exact(PIECE) {
                self.0.push((name.to_owned(), piece.try_into().unwrap()));
            }
        }
    }

    /// Adds a key of an HMAC: the key, its padded blocks, and the states of the digest after them.
    fn add_hmac<D: hmac::digest::Digest + SerializableState>(
        &mut self,
        name: &str,
        key: &[u8],
        block: usize,
        state: usize,
    ) {
        self.add(name, key);
        for (pad, byte) in [("inner", 0x36), ("outer", 0x5c)] {
            let mut padded: Vec<u8> = key.iter().map(|key| key ^ byte).collect();
            self.add(&format!("{name}, {pad} block"), &padded);
            padded.resize(block, byte);
            let serialized = D::new_with_prefix(padded).serialize();
            let state = &serialized[..state];
            self.add(&format!("{name}, {pad} state"), state);
            // The order of words in the registers of the x86 instructions for SHA-256.
            if state.len() == 32 {
                let words: Vec<&[u8]> = state.chunks_exact(4).collect();
                let order = [5, 4, 1, 0, 7, 6, 3, 2].map(|at| words[at]).concat();
                self.add(&format!("{name}, {pad} state"), &order);
            }
        }
    }

    fn add_md5(&mut self, name: &str, key: &[u8]) {
        self.add_hmac::<Md5>(name, key, 64, 16);
    }

    #[cfg(any(feature = "mutual", feature = "multiprocessing", feature = "noise"))]
    fn add_sha256(&mut self, name: &str, key: &[u8]) {
        self.add_hmac::<sha2::Sha256>(name, key, 64, 32);
    }

    #[cfg(feature = "multiprocessing")]
    fn add_sha384(&mut self, name: &str, key: &[u8]) {
        self.add_hmac::<sha2::Sha384>(name, key, 128, 64);
    }

    /// Adds the padded blocks of an HMAC whose digest has no such state.
    #[cfg(feature = "multiprocessing")]
    fn add_sha3(&mut self, name: &str, key: &[u8]) {
        for byte in [0x36, 0x5c] {
            let padded: Vec<u8> = key.iter().map(|key| key ^ byte).collect();
            self.add(name, &padded);
        }
    }
}

#[cfg(any(feature = "mutual", feature = "multiprocessing", feature = "noise"))]
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    use hmac::{KeyInit as _, Mac as _};

    hmac::Hmac::<sha2::Sha256>::new_from_slice(key)
        .unwrap()
        .chain_update(message)
        .finalize()
        .into_bytes()
        .into()
}

#[cfg(any(feature = "mutual", feature = "multiprocessing"))]
fn expand(prk: &[u8], info: &[u8]) -> [u8; 32] {
    hmac_sha256(prk, &[info, &[1]].concat())
}

fn one_way_secrets(key: &[u8], secrets: &mut Secrets) {
    secrets.add_md5("MD5", key);
}

#[cfg(feature = "mutual")]
fn mutual_secrets(key: &[u8], secrets: &mut Secrets) {
    let prk = hmac_sha256(b"tower-challenge mutual v1", key);
    secrets.add_sha256("pseudorandom key", &prk);
    secrets.add_sha256("client's key", &expand(&prk, b"client proof"));
    secrets.add_sha256("server's key", &expand(&prk, b"server proof"));
    let fields: [&[u8]; 7] =
        [b"tower-challenge mutual v1", &[7; 32], &[7; 32], ID.as_bytes(), b"orders", b"", b""];
    let transcript: Vec<u8> =
        fields.iter().flat_map(|field| [&[0, u8::try_from(field.len()).unwrap()], *field].concat()).collect();
    let transcript = <sha2::Sha256 as sha2::Digest>::digest(transcript);
    secrets.add_sha256("exporter", &expand(&prk, &[b"exporter", &transcript[..]].concat()));
}

#[cfg(feature = "mutual")]
fn derived_secrets(key: &[u8], secrets: &mut Secrets) {
    let prk = hmac_sha256(&[0; 32], key);
    secrets.add_sha256("pseudorandom key", &prk);
    let derived = expand(&prk, b"tower-challenge derived key v1alice");
    secrets.add("derived key", &derived);
    secrets.add_sha256(
        "pseudorandom key of the derived key",
        &hmac_sha256(b"tower-challenge mutual v1", &derived),
    );
}

#[cfg(feature = "multiprocessing")]
fn multiprocessing_secrets(key: &[u8], secrets: &mut Secrets) {
    secrets.add_md5("MD5", key);
    secrets.add_sha256("SHA-256", key);
    secrets.add_sha384("SHA-384", key);
    secrets.add_sha3("SHA-3", key);
    let prk = hmac_sha256(b"tower-challenge multiprocessing v1", key);
    secrets.add_sha256("pseudorandom key", &prk);
    secrets.add_sha256("mark", &expand(&prk, b"client challenge"));
}

fn read(path: &Path) -> Vec<KeyEntry> {
    KeyFile::new(path).read().unwrap()
}

fn work(work: impl FnOnce(&Path) + Send + 'static) -> Work {
    Box::new(work)
}

/// Fills nonces. They need not be random here, and the parent must know them.
#[expect(clippy::unnecessary_wraps, reason = "a source of random bytes can fail")]
fn seven(out: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
    out.fill(7);
    Ok(())
}

/// Runs a handshake up to the point at which `steps` messages were received. Returns the peers of both sides, if it is
/// complete.
fn exchange<S, C>(server: &S, client: &C, steps: usize) -> (Option<PeerOf<S>>, Option<PeerOf<C>>)
where
    S: Mechanism<Role = ServerRole>,
    C: Mechanism<Role = ClientRole>,
{
    exchange_with(server, client, steps, |_| ())
}

/// Runs a handshake in which the last byte of message number `steps` is changed in transit.
fn tampered<S, C>(server: &S, client: &C, steps: usize)
where
    S: Mechanism<Role = ServerRole>,
    C: Mechanism<Role = ClientRole>,
{
    exchange_with(server, client, steps, |bytes| *bytes.last_mut().unwrap() ^= 1);
}

fn exchange_with<S, C>(
    server: &S,
    client: &C,
    steps: usize,
    change_last: impl Fn(&mut [u8]),
) -> (Option<PeerOf<S>>, Option<PeerOf<C>>)
where
    S: Mechanism<Role = ServerRole>,
    C: Mechanism<Role = ClientRole>,
{
    let mut random = seven;
    let cx = &mut Context::with_random(&mut random);
    let (mut server, mut client) = (server.start(cx).unwrap(), client.start(cx).unwrap());
    let (mut accepted, mut connected) = (None, None);
    let mut bytes = BytesMut::new();
    for step in 1..=steps {
        let from_server = step % 2 == 1;
        if from_server {
            let Some(message) = server.send.take() else { break };
            encode(&mut server.codec, message, &mut bytes);
        } else {
            let Some(message) = client.send.take() else { break };
            encode(&mut client.codec, message, &mut bytes);
        }
        if step == steps {
            change_last(&mut bytes);
        }
        if from_server {
            (client.send, connected) = receive(&mut client.codec, &mut client.handshake, &mut bytes);
        } else {
            (server.send, accepted) = receive(&mut server.codec, &mut server.handshake, &mut bytes);
        }
    }
    (accepted, connected)
}

fn encode<M, C: Encoder<M>>(codec: &mut C, message: M, bytes: &mut BytesMut) {
    assert!(codec.encode(message, bytes).is_ok());
}

/// Receives a message. Returns the next message to send, and the peer of a handshake that is complete; neither if it
/// failed.
fn receive<H: Handshake>(
    codec: &mut H::Codec,
    handshake: &mut H,
    bytes: &mut BytesMut,
) -> (Option<H::Message>, Option<H::Peer>) {
    let Ok(Some(frame)) = codec.decode(bytes) else { unreachable!("the message is complete") };
    let mut step = handshake.step(Input::Frame(frame));
    if let Ok(Step::LookUp(lookup)) = step {
        step = handshake.step(Input::Found(lookup.now_or_never().expect("the keys are in memory")));
    }
    match step {
        Ok(Step::Continue { send }) => (send, None),
        Ok(Step::Complete { send, peer }) => (send, Some(peer)),
        Ok(Step::LookUp(_)) => unreachable!("there is one lookup"),
        Err(_) => (None, None),
    }
}

#[track_caller]
fn assert_nothing_is_left(left: &BTreeSet<String>) {
    assert!(left.is_empty(), "left in memory: {left:#?}");
}

/// A key that is still there is found, also on a stack. Otherwise the other tests would mean nothing.
#[test]
fn control_finds_a_key() {
    #[inline(never)]
    fn copy(keys: Vec<KeyEntry>) {
        let mut copies = [[0_u8; 32]; 500];
        for copy in &mut copies {
            copy.copy_from_slice(keys[0].key().expose_secret());
        }
        drop(keys);
        black_box(&copies);
    }
    let work = work(|path| copy(read(path)));
    let left = left_in_memory("control_finds_a_key", one_way_secrets, vec![work]);
    assert!(left.contains("key"), "{left:?}");
}

/// The state of an HMAC is found as long as a client exists.
#[test]
fn control_finds_the_state_of_an_hmac() {
    let work = work(|path| std::mem::forget(one_way::Client::new(read(path)[0].key())));
    let left = left_in_memory("control_finds_the_state_of_an_hmac", one_way_secrets, vec![work]);
    for state in ["MD5, inner state", "MD5, outer state"] {
        assert!(left.contains(state), "{left:?}");
    }
    assert!(!left.contains("key"), "{left:?}");
}

#[test]
fn one_way() {
    fn sides(path: &Path) -> (one_way::Server, one_way::Client) {
        let entry = read(path).remove(0);
        let client = one_way::Client::new(entry.key());
        (one_way::Server::new(one_way::KeyRing::new([entry]).unwrap()), client)
    }
    let step = |steps| {
        work(move |path| {
            let (server, client) = sides(path);
            exchange(&server, &client, steps);
        })
    };
    let refused = work(|path| {
        let (server, client) = sides(path);
        tampered(&server, &client, 2);
    });
    let key = |path: &Path| one_way::PreparedKey::<Md5>::new(read(path)[0].key());
    let sign = work(move |path| _ = key(path).sign(b"message"));
    let verify = work(move |path| _ = key(path).verify(b"message", &[7; 16]));
    let client = work(|path| drop(one_way::Client::new(read(path)[0].key())));
    let work = (0..=3).map(step).chain([refused, sign, verify, client]).collect();
    assert_nothing_is_left(&left_in_memory("one_way", one_way_secrets, work));
}

#[cfg(feature = "mutual")]
mod mutual {
    use tower_challenge::mutual::{Audience, Client, KeyRing, Server};
    use tower_challenge::{Acceptor, Connector, DerivedKeys};

    use super::*;

    fn audience() -> Audience {
        Audience::new("orders").unwrap()
    }

    #[test]
    fn control_finds_derived_keys_and_states() {
        let work = work(|path| {
            let keys = read(path);
            let (prk, _) = hkdf::Hkdf::<sha2::Sha256>::extract(
                Some(b"tower-challenge mutual v1"),
                keys[0].key().expose_secret(),
            );
            black_box(Box::leak(Box::new(prk)));
            drop(keys);
            let (server, client) = sides(path);
            std::mem::forget((exchange(&server, &client, 3), server, client));
        });
        let test = "mutual::control_finds_derived_keys_and_states";
        let left = left_in_memory(test, mutual_secrets, vec![work]);
        for name in [
            "pseudorandom key",
            "pseudorandom key, inner state",
            "pseudorandom key, outer state",
            "client's key, inner state",
            "client's key, outer state",
            "server's key, inner state",
            "server's key, outer state",
            "exporter",
        ] {
            assert!(left.contains(name), "{name} in {left:?}");
        }
    }

    #[test]
    fn key_ring() {
        let ring = work(|path| drop(KeyRing::new(read(path)).unwrap()));
        let replaced = work(|path| {
            let ring = KeyRing::new(read(path)).unwrap();
            ring.replace([KeyEntry::new("other", Key::generate().unwrap()).unwrap()]).unwrap();
            drop(ring);
        });
        let client = work(|path| drop(Client::from_entry(&read(path)[0], "orders").unwrap()));
        let work = vec![ring, replaced, client];
        assert_nothing_is_left(&left_in_memory("mutual::key_ring", mutual_secrets, work));
    }

    #[test]
    fn derived_keys() {
        let derive = work(|path| {
            let keys = read(path);
            drop(DerivedKeys::derive(keys[0].key(), keys[0].id()).unwrap());
        });
        let master = work(|path| drop(DerivedKeys::new(read(path)[0].key(), |_: &[u8]| Some(())).unwrap()));
        let exchange = |steps| {
            work(move |path| {
                let keys = read(path);
                let derived = DerivedKeys::derive(keys[0].key(), keys[0].id()).unwrap();
                let client = Client::new(ID, &derived, audience()).unwrap();
                let keys = DerivedKeys::new(keys[0].key(), |_: &[u8]| Some(())).unwrap();
                exchange(&Server::new(keys, audience()), &client, steps);
            })
        };
        let work = vec![derive, master, exchange(0), exchange(2), exchange(3)];
        assert_nothing_is_left(&left_in_memory("mutual::derived_keys", derived_secrets, work));
    }

    fn sides(path: &Path) -> (Server<KeyRing>, Client) {
        let entry = read(path).remove(0);
        let client = Client::from_entry(&entry, "orders").unwrap();
        (Server::new(KeyRing::new([entry]).unwrap(), audience()), client)
    }

    #[test]
    fn every_step_of_a_handshake() {
        let step = |steps| {
            work(move |path| {
                let (server, client) = sides(path);
                exchange(&server, &client, steps);
            })
        };
        let refused = |steps| {
            work(move |path| {
                let (server, client) = sides(path);
                tampered(&server, &client, steps);
            })
        };
        // The key that is tried last: the other ones of its id leave their own traces.
        let refused_by_the_last_key = work(|path| {
            let entry = read(path).remove(0);
            let client = Client::from_entry(&entry, "orders").unwrap();
            let other = || KeyEntry::new(ID, Key::generate().unwrap()).unwrap();
            let ring = KeyRing::new([other(), other(), other(), entry]).unwrap();
            tampered(&Server::new(ring, audience()), &client, 2);
        });
        let export = work(|path| {
            let (server, client) = sides(path);
            let (_, connected) = exchange(&server, &client, 3);
            connected.unwrap().export_keying_material(b"label", b"", &mut [0; 32]).unwrap();
        });
        let refused = [refused(2), refused(3), refused_by_the_last_key];
        let work = (0..=3).map(step).chain(refused).chain([export]).collect();
        assert_nothing_is_left(&left_in_memory("mutual::every_step_of_a_handshake", mutual_secrets, work));
    }

    #[test]
    fn whole_handshake_with_exported_keying_material() {
        let handshake = work(|path| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let entry = read(path).remove(0);
                let connector = Connector::new(Client::from_entry(&entry, "orders").unwrap());
                let acceptor = Acceptor::new(Server::new(KeyRing::new([entry]).unwrap(), audience()));
                let (client, server) = tokio::io::duplex(1024);
                let (accepted, connected) = tokio::join!(acceptor.accept(server), connector.connect(client));
                let mut exported = [[0; 32]; 2];
                let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
                accepted.peer().export_keying_material(b"label", b"", &mut exported[0]).unwrap();
                connected.peer().export_keying_material(b"label", b"", &mut exported[1]).unwrap();
                assert_eq!(exported[0], exported[1]);
            });
        });
        let test = "mutual::whole_handshake_with_exported_keying_material";
        assert_nothing_is_left(&left_in_memory(test, mutual_secrets, vec![handshake]));
    }
}

#[cfg(feature = "multiprocessing")]
mod multiprocessing {
    use tower_challenge::multiprocessing::{Client, Digest, KeyRing, Server};

    use super::*;

    #[test]
    fn control_finds_states() {
        let work = work(|path| std::mem::forget(KeyRing::new(read(path)).unwrap()));
        let left =
            left_in_memory("multiprocessing::control_finds_states", multiprocessing_secrets, vec![work]);
        for name in ["MD5, inner state", "SHA-256, inner state", "SHA-384, outer state", "mark, outer state"]
        {
            assert!(left.contains(name), "{name} in {left:?}");
        }
    }

    fn sides(path: &Path) -> (Server, Client) {
        let entry = read(path).remove(0);
        let client = Client::new(entry.key());
        (Server::new(KeyRing::new([entry]).unwrap()), client)
    }

    #[test]
    fn every_step_of_a_handshake() {
        let step = |steps| {
            work(move |path| {
                let (server, client) = sides(path);
                exchange(&server, &client, steps);
            })
        };
        let refused = |steps| {
            work(move |path| {
                let (server, client) = sides(path);
                tampered(&server, &client, steps);
            })
        };
        let ring = work(|path| drop(KeyRing::new(read(path)).unwrap()));
        let client = work(|path| drop(Client::new(read(path)[0].key())));
        let work = (0..=6).map(step).chain([refused(2), refused(5), ring, client]).collect();
        let test = "multiprocessing::every_step_of_a_handshake";
        assert_nothing_is_left(&left_in_memory(test, multiprocessing_secrets, work));
    }

    /// A rogue server without the key forwards the challenge of another client.
    #[test]
    fn client_that_recognizes_a_challenge_of_its_own() {
        let work = work(|path| {
            let client = Client::new(read(path)[0].key());
            let mut random = seven;
            let cx = &mut Context::with_random(&mut random);
            let [mut first, mut second] = [client.start(cx).unwrap(), client.start(cx).unwrap()];
            let mut bytes = BytesMut::new();
            let challenge = [&b"#CHALLENGE#{sha256}"[..], &[7; 40]].concat();
            for message in [&challenge[..], b"#WELCOME#"] {
                bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
                bytes.extend_from_slice(message);
                (first.send, _) = receive(&mut first.codec, &mut first.handshake, &mut bytes);
            }
            encode(&mut first.codec, first.send.unwrap(), &mut bytes);
            let reflected = second.codec.decode(&mut bytes).unwrap().unwrap();
            assert!(second.handshake.step(Input::Frame(reflected)).is_err());
        });
        let test = "multiprocessing::client_that_recognizes_a_challenge_of_its_own";
        assert_nothing_is_left(&left_in_memory(test, multiprocessing_secrets, vec![work]));
    }

    /// A rogue server without the key chooses the digest of the client's answer.
    #[test]
    fn client_that_is_asked_for_any_digest() {
        let digests: [(&[u8], Option<Digest>); 5] = [
            (b"{sha256}", None),
            (b"{sha384}", None),
            (b"{sha3_256}", None),
            (b"{sha3_384}", None),
            (b"{md5}", Some(Digest::Md5)),
        ];
        let work = digests.map(|(name, digest)| {
            work(move |path| {
                let client = Client::new(read(path)[0].key());
                let client = digest.map_or(client.clone(), |digest| client.digests([digest]));
                let mut start = client.start(&mut Context::with_random(&mut seven)).unwrap();
                let challenge = [b"#CHALLENGE#", name, &[7; 40]].concat();
                let mut bytes = BytesMut::new();
                bytes.extend_from_slice(&u32::try_from(challenge.len()).unwrap().to_be_bytes());
                bytes.extend_from_slice(&challenge);
                let (answer, _) = receive(&mut start.codec, &mut start.handshake, &mut bytes);
                assert!(answer.is_some());
            })
        });
        let test = "multiprocessing::client_that_is_asked_for_any_digest";
        assert_nothing_is_left(&left_in_memory(test, multiprocessing_secrets, work.into()));
    }
}

#[cfg(feature = "noise")]
mod noise {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
    use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, duplex};
    use tower_challenge::noise::{Audience, Client, KeyRing, Server, Suite};

    use super::*;

    const PROTOCOL: &[u8] = b"tower-challenge noise v1";
    /// What the seeds of the ephemeral keys are made of, with the key.
    const SEEDS: [(&str, u8); 2] = [("server's ephemeral key", 0x31), ("client's ephemeral key", 0x52)];
    /// A direction is rekeyed after so many records.
    const REKEY_EVERY: usize = 1 << 20;

    /// All that is computed with the key in a session of this suite.
    fn secrets_of(suite: Suite, key: &[u8], secrets: &mut Secrets) {
        let name: [u8; 32] = match suite {
            Suite::Aes256Gcm => *b"Noise_NNpsk0_25519_AESGCM_SHA256",
            _ => <sha2::Sha256 as sha2::Digest>::digest(b"Noise_NNpsk0_25519_ChaChaPoly_SHA256").into(),
        };
        let prk = hmac_sha256(PROTOCOL, key);
        secrets.add_sha256("pseudorandom key", &prk);
        let psk = hmac_sha256(&prk, &[&b"psk"[..], &[1]].concat());
        secrets.add("psk", &psk);
        let temp = hmac_sha256(&name, &psk);
        secrets.add_sha256("temporary key of the psk", &temp);
        let mut chaining_key = hmac_sha256(&temp, &[1]);
        secrets.add_sha256("chaining key of the psk", &chaining_key);
        let [server, client] = SEEDS.map(|(name, mask)| {
            let mut seed: Vec<u8> = key.iter().map(|byte| byte ^ mask).collect();
            secrets.add(name, &seed);
            let private = PrivateKey::from_private_key(&X25519, &seed).unwrap();
            // As X25519 computes with it (RFC 7748, section 5).
            seed[0] &= 0b1111_1000;
            seed[31] = seed[31] & 0b0111_1111 | 0b0100_0000;
            secrets.add(name, &seed);
            private
        });
        let [server_public, client_public] =
            [&server, &client].map(|key| key.compute_public_key().unwrap().as_ref().to_vec());
        let peer = UnparsedPublicKey::new(&X25519, &client_public);
        let shared = agreement::agree(&server, peer, (), |shared| Ok(shared.to_vec())).unwrap();
        secrets.add("shared secret", &shared);
        for (name, input) in
            [("message 1", &client_public), ("public key", &server_public), ("message 2", &shared)]
        {
            let temp = hmac_sha256(&chaining_key, input);
            secrets.add_sha256(&format!("temporary key, {name}"), &temp);
            chaining_key = hmac_sha256(&temp, &[1]);
            secrets.add_sha256(&format!("chaining key, {name}"), &chaining_key);
            secrets.add(&format!("key, {name}"), &hmac_sha256(&temp, &[&chaining_key[..], &[2]].concat()));
        }
        let temp = hmac_sha256(&chaining_key, &[]);
        secrets.add_sha256("temporary key of the transport keys", &temp);
        let up = hmac_sha256(&temp, &[1]);
        let down = hmac_sha256(&temp, &[&up[..], &[2]].concat());
        for (name, key) in [("client's", up), ("server's", down)] {
            secrets.add(&format!("{name} transport key"), &key);
            secrets.add(&format!("{name} rekeyed key"), &rekeyed(suite, &key));
        }
    }

    fn rekeyed(suite: Suite, key: &[u8; 32]) -> [u8; 32] {
        let (algorithm, counter) = match suite {
            Suite::Aes256Gcm => (&AES_256_GCM, u64::MAX.to_be_bytes()),
            _ => (&CHACHA20_POLY1305, u64::MAX.to_le_bytes()),
        };
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter);
        let (key, nonce) = (UnboundKey::new(algorithm, key).unwrap(), Nonce::assume_unique_for_key(nonce));
        let mut rekeyed = [0; 32];
        let tag = LessSafeKey::new(key).seal_in_place_separate_tag(nonce, Aad::empty(), &mut rekeyed);
        let _tag = tag.unwrap();
        rekeyed
    }

    fn aes(key: &[u8], secrets: &mut Secrets) {
        secrets_of(Suite::Aes256Gcm, key, secrets);
    }

    fn chacha(key: &[u8], secrets: &mut Secrets) {
        secrets_of(Suite::ChaCha20Poly1305, key, secrets);
    }

    /// What is done with a session.
    #[derive(Clone, Copy)]
    enum Use {
        /// The handshake ends after so many messages were received.
        Handshake(usize),
        /// The last byte of this message is changed.
        Refused(usize),
        /// The client sends so many bytes, and nothing that follows overwrites what is left on the stack.
        Sent(usize),
        /// The same, and the server receives them.
        Received(usize),
        /// Both sides send so many records of one byte, and longer ones.
        Stream(usize),
    }

    /// Runs a session. `keeps` leaves its states in memory.
    fn run(path: &Path, suite: Suite, usage: Use, keeps: bool) {
        let entry = read(path).remove(0);
        let client = Client::from_entry(&entry, "orders").unwrap().suite(suite);
        let seeds = SEEDS.map(|(_, mask)| {
            let entry = read(path).remove(0);
            move |out: &mut [u8]| -> Result<(), Box<dyn Error + Send + Sync>> {
                out.iter_mut().zip(entry.key().expose_secret()).for_each(|(out, key)| *out = *key ^ mask);
                Ok(())
            }
        });
        let [mut server_seed, mut client_seed] = seeds;
        let server = Server::new(KeyRing::new([entry]).unwrap(), Audience::new("orders").unwrap());
        let mut server = server.start(&mut Context::with_random(&mut server_seed)).unwrap();
        let mut client = client.start(&mut Context::with_random(&mut client_seed)).unwrap();
        let mut bytes = BytesMut::new();
        let (steps, changed) = match usage {
            Use::Handshake(steps) => (steps, None),
            Use::Refused(step) => (step, Some(step)),
            Use::Sent(_) | Use::Received(_) | Use::Stream(_) => (3, None),
        };
        for step in 1..=steps {
            let is_from_client = step % 2 == 1;
            if is_from_client {
                encode(&mut client.codec, client.send.take().unwrap(), &mut bytes);
            } else {
                encode(&mut server.codec, server.send.take().unwrap(), &mut bytes);
            }
            if changed == Some(step) {
                *bytes.last_mut().unwrap() ^= 1;
            }
            if is_from_client {
                (server.send, _) = receive(&mut server.codec, &mut server.handshake, &mut bytes);
            } else {
                (client.send, _) = receive(&mut client.codec, &mut client.handshake, &mut bytes);
            }
        }
        if let Use::Handshake(_) | Use::Refused(_) = usage {
            if keeps {
                std::mem::forget((server.handshake, client.handshake));
            }
            return;
        }
        let (near, far) = duplex(100_000);
        let (mut client, _) = client.handshake.wrap(near, BytesMut::new());
        let (mut server, _) = server.handshake.wrap(far, BytesMut::new());
        let records = match usage {
            Use::Stream(records) => records,
            Use::Sent(len) | Use::Received(len) => {
                let mut bytes = vec![7; len];
                client.write_all(&bytes).now_or_never().unwrap().unwrap();
                client.flush().now_or_never().unwrap().unwrap();
                if let Use::Received(_) = usage {
                    server.read_exact(&mut bytes).now_or_never().unwrap().unwrap();
                }
                return;
            }
            Use::Handshake(_) | Use::Refused(_) => unreachable!("returned above"),
        };
        let mut bytes = vec![7; 50_000];
        let lens = [100, 1_000, 50_000].into_iter().chain(std::iter::repeat_n(1, records));
        for len in lens {
            send(&mut client, &mut server, &mut bytes[..len]);
            send(&mut server, &mut client, &mut bytes[..len]);
        }
        if keeps {
            std::mem::forget((client, server));
            return;
        }
        client.shutdown().now_or_never().unwrap().unwrap();
        server.shutdown().now_or_never().unwrap().unwrap();
        assert_eq!(server.read(&mut [0]).now_or_never().unwrap().unwrap(), 0);
    }

    fn send(from: &mut (impl AsyncWrite + Unpin), to: &mut (impl AsyncRead + Unpin), bytes: &mut [u8]) {
        from.write_all(bytes).now_or_never().unwrap().unwrap();
        from.flush().now_or_never().unwrap().unwrap();
        to.read_exact(bytes).now_or_never().unwrap().unwrap();
    }

    #[test]
    fn control_finds_the_secrets_of_a_handshake() {
        let work =
            [1, 3].map(|steps| work(move |path| run(path, Suite::Aes256Gcm, Use::Handshake(steps), true)));
        let test = "noise::control_finds_the_secrets_of_a_handshake";
        let left = left_in_memory(test, aes, work.into());
        for name in ["chaining key, message 1", "client's transport key", "server's transport key"] {
            assert!(left.contains(name), "{name} in {left:?}");
        }
    }

    #[test]
    fn control_finds_the_chaining_key() {
        let work = work(|path| std::mem::forget(KeyRing::new(read(path)).unwrap()));
        let left = left_in_memory("noise::control_finds_the_chaining_key", aes, vec![work]);
        assert!(left.iter().any(|name| name.starts_with("chaining key of the psk")), "{left:?}");
        assert!(!left.contains("psk") && !left.contains("key"), "{left:?}");
    }

    fn every_step_of_a_session(test: &str, suite: Suite, secrets: fn(&[u8], &mut Secrets)) {
        let lens = [1, 15, 16, 64, 100, 200, 300, 600, 1_000, 5_000, 50_000];
        let uses = (0..4).map(Use::Handshake).chain((1..4).map(Use::Refused)).chain([Use::Stream(1)]);
        let uses = uses.chain(lens.map(Use::Sent)).chain(lens.map(Use::Received));
        let work = uses.map(|usage| work(move |path| run(path, suite, usage, false))).collect();
        assert_nothing_is_left(&left_in_memory(test, secrets, work));
    }

    #[test]
    fn every_step_of_a_session_with_aes() {
        every_step_of_a_session("noise::every_step_of_a_session_with_aes", Suite::Aes256Gcm, aes);
    }

    #[test]
    fn every_step_of_a_session_with_chacha() {
        let test = "noise::every_step_of_a_session_with_chacha";
        every_step_of_a_session(test, Suite::ChaCha20Poly1305, chacha);
    }

    /// A stream that was rekeyed and is still in use has the new keys, and nothing that opens what was sent before.
    fn rekeyed_stream_has_only_the_new_keys(test: &str, suite: Suite, secrets: fn(&[u8], &mut Secrets)) {
        let work = work(move |path| run(path, suite, Use::Stream(REKEY_EVERY), true));
        let left = left_in_memory(test, secrets, vec![work]);
        let new = ["client's rekeyed key", "server's rekeyed key"].map(String::from);
        assert_eq!(left, new.into());
    }

    #[test]
    fn rekeyed_stream_has_only_the_new_keys_of_aes() {
        let test = "noise::rekeyed_stream_has_only_the_new_keys_of_aes";
        rekeyed_stream_has_only_the_new_keys(test, Suite::Aes256Gcm, aes);
    }

    #[test]
    fn rekeyed_stream_has_only_the_new_keys_of_chacha() {
        let test = "noise::rekeyed_stream_has_only_the_new_keys_of_chacha";
        rekeyed_stream_has_only_the_new_keys(test, Suite::ChaCha20Poly1305, chacha);
    }

    #[test]
    fn nothing_is_left_of_a_rekeyed_stream_with_aes() {
        let work = work(|path| run(path, Suite::Aes256Gcm, Use::Stream(REKEY_EVERY), false));
        let test = "noise::nothing_is_left_of_a_rekeyed_stream_with_aes";
        assert_nothing_is_left(&left_in_memory(test, aes, vec![work]));
    }

    #[test]
    fn nothing_is_left_of_a_rekeyed_stream_with_chacha() {
        let work = work(|path| run(path, Suite::ChaCha20Poly1305, Use::Stream(REKEY_EVERY), false));
        let test = "noise::nothing_is_left_of_a_rekeyed_stream_with_chacha";
        assert_nothing_is_left(&left_in_memory(test, chacha, vec![work]));
    }
}
