//! Whether the time that a server takes says anything about a secret, in the manner of dudect (Reparaz, Balasch,
//! Verbauwhede: "Dude, is my code constant time?", 2017).
//!
//! ```text
//! cargo bench --bench timing
//! cargo bench --bench timing -- --quick
//! ```
//!
//! Each experiment times two classes of input in random order and compares their means by Welch's t-test: of all
//! samples, and of the fastest of them alone, since noise only ever makes slower. A |t| of 4.5 or more is a
//! difference that chance does not make. The last one is a comparison that leaks; were it not caught, the others
//! would say nothing.
//!
//! A right answer is not compared with a wrong one: the verdict tells them apart anyway, and what is computed for a
//! peer that is accepted takes its time.

use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::BytesMut;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio_util::codec::{Decoder, Encoder as _};
use tower_challenge::mechanism::{self, Context, Handshake, Input, Mechanism, Start, Step};
#[cfg(feature = "multiprocessing")]
use tower_challenge::multiprocessing;
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{Key, KeyEntry, KeyRing, one_way};

/// dudect's bound.
const LEAK: f64 = 4.5;
/// What else the machine does can look like a leak once, but hardly again with fresh samples.
const ATTEMPTS: usize = 3;
/// Inputs are prepared by so many, out of the timed code's way, and still in the caches when their turn comes.
const BATCH: usize = 64;
/// How many of a thousand samples are compared, the fastest ones.
const CROPS: [usize; 12] = [100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 990, 1000];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().collect();
    let has = |name| args.iter().any(|arg| arg == name);
    if !has("--bench") {
        // `cargo test --benches`, unoptimized.
        return ExitCode::SUCCESS;
    }
    let samples = if has("--quick") { 50_000 } else { 500_000 };

    let leaks = [
        mutual_wrong_byte(samples),
        mutual_unknown_id(samples),
        one_way_which_key(samples),
        one_way_wrong_byte(samples),
        #[cfg(feature = "multiprocessing")]
        multiprocessing_wrong_byte(samples),
    ];
    let caught = control(samples);
    if leaks.contains(&true) || !caught { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    A,
    B,
}

fn mutual_wrong_byte(samples: usize) -> bool {
    let (client, server) = mutual_sides("known");
    let prepare = |class| answered(&server, &client, |bytes| spoil(bytes, first_or_last(class, 32)));
    leaks("mutual: tag wrong in its first or last byte", samples, prepare, refused)
}

fn mutual_unknown_id(samples: usize) -> bool {
    let (known, server) = mutual_sides("known");
    let (other, _) = mutual_sides("other");
    let prepare = |class| {
        let client = if class == Class::A { &known } else { &other };
        answered(&server, client, |bytes| spoil(bytes, 1 + below(32)))
    };
    leaks("mutual: tag wrong or id unknown", samples, prepare, refused)
}

fn one_way_which_key(samples: usize) -> bool {
    let keys: [_; 8] = std::array::from_fn(|_| Key::generate().unwrap());
    let (first, last) = (one_way::Client::new(&keys[0]), one_way::Client::new(&keys[7]));
    let entry = |(id, key): (usize, &Key)| KeyEntry::new(id.to_string(), key.clone()).unwrap();
    let server = one_way::Server::new(KeyRing::new(keys.iter().enumerate().map(entry)).unwrap());
    let prepare = |class| answered(&server, if class == Class::A { &first } else { &last }, |_| ());
    leaks("one_way: right for the first or last of 8 keys", samples, prepare, |w| !refused(w))
}

fn one_way_wrong_byte(samples: usize) -> bool {
    let key = Key::generate().unwrap();
    let client = one_way::Client::new(&key);
    let server = one_way::Server::new(KeyRing::new([KeyEntry::new("k", key).unwrap()]).unwrap());
    let prepare = |class| answered(&server, &client, |bytes| spoil(bytes, first_or_last(class, 16)));
    leaks("one_way: answer wrong in its first or last byte", samples, prepare, refused)
}

#[cfg(feature = "multiprocessing")]
fn multiprocessing_wrong_byte(samples: usize) -> bool {
    let key = Key::generate().unwrap();
    let client = multiprocessing::Client::new(&key);
    let server = multiprocessing::Server::new(KeyRing::new([KeyEntry::new("k", key).unwrap()]).unwrap());
    let prepare = |class| answered(&server, &client, |bytes| spoil(bytes, first_or_last(class, 32)));
    leaks("multiprocessing: tag wrong in its first or last byte", samples, prepare, refused)
}

/// What `one_way` would be if its 16 bytes were compared one by one until two differ.
fn control(samples: usize) -> bool {
    let mac = Hmac::<Md5>::new_from_slice(&random::<32>()).unwrap();
    let answer = |nonce: &[u8; 32]| mac.clone().chain_update(nonce).finalize().into_bytes();
    let prepare = |class| {
        let nonce = random();
        let mut guess = answer(&nonce);
        spoil(&mut guess, first_or_last(class, 16));
        (nonce, guess)
    };
    let run = |(nonce, guess): ([u8; 32], hmac::digest::Output<Hmac<Md5>>)| {
        !answer(&nonce).iter().zip(&guess).all(|(right, guessed)| black_box(right) == guessed)
    };
    leaks("control: the same compared byte by byte, must leak", samples, prepare, run)
}

/// A client, and a server that has its key and no other: with several, where each lies in memory is half a nanosecond
/// of difference too, between known ones.
fn mutual_sides(id: &str) -> (mutual::Client, mutual::Server<KeyRing<mutual::PreparedKey>>) {
    let (key, audience) = (Key::generate().unwrap(), Audience::new("orders").unwrap());
    let client = mutual::Client::new(id, &key, audience.clone()).unwrap();
    let ring = KeyRing::new([KeyEntry::new(id, key).unwrap()]).unwrap();
    (client, mutual::Server::new(ring, audience))
}

/// A server's state machine, and the next message for it.
type Waiting<H> = (H, <<H as Handshake>::Codec as Decoder>::Item);

/// A handshake up to where the client's answer has come, changed on its way.
fn answered<S, C>(server: &S, client: &C, change: impl FnOnce(&mut [u8])) -> Waiting<S::Handshake>
where
    S: Mechanism<Role = mechanism::Server>,
    C: Mechanism<Role = mechanism::Client>,
{
    let mut system = |out: &mut [u8]| SysRng.try_fill_bytes(out).map_err(Into::into);
    let cx = &mut Context::with_random(&mut system);
    let (Ok(mut server), Ok(mut client)) = (server.start(cx), client.start(cx)) else { unreachable!() };
    let challenge = server.send.take().expect("the server speaks first");
    let frame = carried(challenge, &mut server, &mut client, |_| ());
    let Ok(Step::Continue { send: Some(answer) }) = client.handshake.step(Input::Frame(frame)) else {
        unreachable!("a client answers")
    };
    let frame = carried(answer, &mut client, &mut server, change);
    (server.handshake, frame)
}

/// A message as it comes out on the other side.
fn carried<F: Handshake, T: Handshake>(
    message: F::Message,
    from: &mut Start<F>,
    to: &mut Start<T>,
    spoil: impl FnOnce(&mut [u8]),
) -> <T::Codec as Decoder>::Item {
    let mut bytes = BytesMut::new();
    let Ok(()) = from.codec.encode(message, &mut bytes) else { unreachable!() };
    spoil(&mut bytes);
    let Ok(Some(frame)) = to.codec.decode(&mut bytes) else { unreachable!("a whole message") };
    frame
}

/// Where the tag at the end of a message is wrong, counted from the end.
fn first_or_last(class: Class, tag_len: usize) -> usize {
    if class == Class::A { tag_len } else { 1 }
}

fn spoil(bytes: &mut [u8], from_end: usize) {
    let at = bytes.len() - from_end;
    bytes[at] ^= random::<1>()[0] | 1;
}

/// What the server computes once an answer has come: whether it refuses.
fn refused<H: Handshake>((mut handshake, frame): Waiting<H>) -> bool {
    let mut step = handshake.step(Input::Frame(frame));
    if let Ok(Step::LookUp(lookup)) = step {
        let Poll::Ready(found) = pin!(lookup).poll(&mut std::task::Context::from_waker(Waker::noop())) else {
            unreachable!("the keys are in memory")
        };
        step = handshake.step(Input::Found(found));
    }
    step.is_err()
}

/// Whether `run` takes longer for what is prepared for one class than for the other, in all attempts. It must return
/// true.
fn leaks<T>(name: &str, samples: usize, prepare: impl Fn(Class) -> T, run: impl Fn(T) -> bool) -> bool {
    let attempt = || {
        measure(samples / 10, &prepare, &run); // to warm up
        let (t, difference) = compare(measure(samples, &prepare, &run));
        println!("{name:<52}  |t| = {:7.2}, {difference:+7.2} ns", t.abs());
        t.abs() >= LEAK
    };
    (0..ATTEMPTS).all(|_| attempt())
}

/// How long `run` takes, in nanoseconds, for inputs of both classes in random order.
fn measure<T>(samples: usize, prepare: &impl Fn(Class) -> T, run: &impl Fn(T) -> bool) -> Vec<(f64, Class)> {
    let mut times = Vec::with_capacity(samples + BATCH);
    while times.len() < samples {
        let batch: Vec<_> = random::<BATCH>()
            .map(|byte| if byte % 2 == 0 { Class::A } else { Class::B })
            .map(|class| (class, prepare(class)))
            .into();
        for (class, input) in batch {
            let input = black_box(input);
            let begin = Instant::now();
            let right = black_box(run(input));
            let time = begin.elapsed();
            assert!(right, "not what is to be measured");
            times.push((time.as_secs_f64() * 1e9, class));
        }
    }
    times
}

/// The t that is farthest from 0 among all crops, and how much longer class A takes in that crop.
fn compare(mut times: Vec<(f64, Class)>) -> (f64, f64) {
    times.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let of_crop = |kept: usize| {
        let (longest, _) = times[times.len() * kept / 1000 - 1];
        // All that took as long as the longest, or their order would decide which of them count.
        let kept = &times[..times.partition_point(|(time, _)| *time <= longest)];
        welch(Moments::of(kept, Class::A), Moments::of(kept, Class::B))
    };
    CROPS.into_iter().map(of_crop).max_by(|(a, _), (b, _)| a.abs().total_cmp(&b.abs())).expect("some crops")
}

/// Welch's t, and the difference of the means.
fn welch(a: Moments, b: Moments) -> (f64, f64) {
    let difference = a.mean - b.mean;
    let error = (a.variance / a.count + b.variance / b.count).sqrt();
    // Where the clock is coarse, the fastest may all have taken the same time.
    (if difference == 0.0 { 0.0 } else { difference / error }, difference)
}

#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Moments {
    fn of(times: &[(f64, Class)], class: Class) -> Self {
        let of_class = || times.iter().filter(|(_, of)| *of == class).map(|(time, _)| *time);
        let count: f64 = of_class().map(|_| 1.0).sum();
        let mean = of_class().sum::<f64>() / count;
        let variance = of_class().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Self { count, mean, variance }
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).unwrap();
    bytes
}

/// A random number below a power of two of at most 256.
fn below(bound: usize) -> usize {
    usize::from(random::<1>()[0]) % bound
}
