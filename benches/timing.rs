//! Searches for timing side channels of the server, in the style of dudect (Reparaz, Balasch, Verbauwhede: "Dude, is my
//! code constant time?", 2017).
//!
//! ```text
//! cargo bench -p benches --bench timing
//! cargo bench -p benches --bench timing -- --quick
//! ```
//!
//! Each experiment times two classes of input in random order and compares their means by Welch's t-test: of all
//! samples, and of the fastest of them only, since noise can only make an operation slower. A |t| of 4.5 or more is not
//! explained by chance. If the fastest samples are all of one class, that is a leak too, although there is no |t|. The
//! last experiment is a control: a comparison that leaks. If it were not detected, the other results would mean nothing.
//!
//! A key id that exists and one that does not are compared in every key source of the crate. They must also allocate
//! the same memory. The function of a `KeyStore` creates entries for an id that exists and passes them on, which takes
//! some ten nanoseconds for each. The crate cannot take this time for an unknown id in the same way, so there the
//! medians may differ by 200 ns.
//!
//! A correct answer is not compared with a wrong one: the verdict distinguishes them anyway, and accepting a peer takes
//! additional computations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::future::ready;
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
use tower_challenge::key::KeySource;
use tower_challenge::mechanism::{self, Context, Handshake, Input, Mechanism, Start, Step};
use tower_challenge::mutual::{self, Audience};
use tower_challenge::{DerivedKeys, Key, KeyEntry, KeyId, KeyStore, multiprocessing, one_way};

/// The threshold of dudect.
const LEAK: f64 = 4.5;
/// What a known id may cost in a [`KeyStore`], in nanoseconds, since the store's function creates entries for it and passes
/// them on. Preparing a key takes some 1,000.
const STORE_BOUND: f64 = 200.0;
/// Other work of the machine can look like a leak once, but rarely again with new samples.
const ATTEMPTS: usize = 3;
/// The number of inputs that are prepared at a time: outside of the timed code, and few enough to stay in the caches.
const BATCH: usize = 64;
/// How many of a thousand samples, the fastest ones, are compared.
const CROPS: [usize; 12] = [100, 200, 300, 400, 500, 600, 700, 800, 900, 950, 990, 1000];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().collect();
    let has = |name| args.iter().any(|arg| arg == name);
    check_statistics();
    check_allocations();
    if !has("--bench") {
        // Run by `cargo test --benches`, without optimizations.
        return ExitCode::SUCCESS;
    }
    let samples = if has("--quick") { 50_000 } else { 500_000 };

    let leaks = [
        mutual_wrong_byte(samples),
        ring_unknown_id(samples, 1),
        ring_unknown_id(samples, 2),
        ring_unknown_id(samples, 4),
        derived_unknown_id(samples),
        store_unknown_id(samples, 1),
        store_unknown_id(samples, 2),
        store_unknown_id(samples, 4),
        one_way_matching_key(samples),
        one_way_wrong_byte(samples),
        multiprocessing_wrong_byte(samples),
    ];
    let detected = control(samples);
    if leaks.contains(&true) || !detected { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    A,
    B,
}

fn mutual_wrong_byte(samples: usize) -> bool {
    let set_up = || {
        let entry = KeyEntry::new("known", Key::generate().unwrap()).unwrap();
        let client = mutual::Client::from_entry(&entry, "orders").unwrap();
        let server = mutual::Server::new(mutual::KeyRing::new([entry]).unwrap(), audience());
        move |class| answered(&server, &client, |bytes| corrupt(bytes, first_or_last(class, 32)))
    };
    leaks("mutual: tag wrong in its first or last byte", samples, set_up, refused)
}

/// Answers to a server with these keys: with a wrong tag for the id `known`, or for an id of the same length that the
/// source does not have.
fn answers<S: KeySource<mutual::PreparedKey>>(
    keys: S,
) -> impl Fn(Class) -> Waiting<HandshakeOf<mutual::Server<S>>> {
    let client = |id| mutual::Client::new(id, &Key::generate().unwrap(), audience()).unwrap();
    let (known, unknown) = (client("known"), client("other"));
    let server = mutual::Server::new(keys, audience());
    move |class| {
        let client = if class == Class::A { &known } else { &unknown };
        answered(&server, client, |bytes| corrupt(bytes, 1 + below(32)))
    }
}

/// Creates a ring that has no other id. With several ids, the places of their keys in memory alone make a difference of
/// half a nanosecond, also between known ids.
fn ring(keys: usize) -> mutual::KeyRing {
    let entries = (0..keys).map(|_| KeyEntry::new("known", Key::generate().unwrap()).unwrap());
    mutual::KeyRing::new(entries).unwrap()
}

fn derived() -> impl KeySource<mutual::PreparedKey> {
    DerivedKeys::new(&Key::generate().unwrap(), |id: &[u8]| is_known(id).then_some(())).unwrap()
}

fn store(keys: usize) -> impl KeySource<mutual::PreparedKey> {
    let stored: Vec<[u8; 32]> = (0..keys).map(|_| random()).collect();
    KeyStore::new(move |id: KeyId| {
        let rows = if is_known(id.as_bytes()) { &stored[..] } else { &[] };
        let entry = |key: &[u8; 32]| KeyEntry::new(id.clone(), Key::new(key).unwrap()).unwrap();
        // Of the same capacity for every id.
        let mut entries = Vec::with_capacity(stored.len());
        entries.extend(rows.iter().map(entry));
        ready(Ok::<_, Infallible>(entries))
    })
}

fn ring_unknown_id(samples: usize, keys: usize) -> bool {
    let name = format!("mutual, KeyRing, id with {keys} keys or unknown");
    leaks(&name, samples, || answers(ring(keys)), refused)
}

fn derived_unknown_id(samples: usize) -> bool {
    leaks("mutual, DerivedKeys, id known or unknown", samples, || answers(derived()), refused)
}

fn store_unknown_id(samples: usize, keys: usize) -> bool {
    let name = format!("mutual, KeyStore, id with {keys} keys or unknown");
    leaks_more_than(STORE_BOUND, &name, samples, || answers(store(keys)), refused)
}

/// Fails if an unknown id allocates or releases other memory than a known one.
fn check_allocations() {
    fn check<S: KeySource<mutual::PreparedKey>>(name: &str, keys: S) {
        let prepare = answers(keys);
        let allocated = |class| {
            let input = prepare(class);
            let before = ALLOCATED.get();
            assert!(refused(input));
            let after = ALLOCATED.get();
            std::array::from_fn::<_, 4, _>(|i| after[i] - before[i])
        };
        allocated(Class::A); // Allocates what is created only once.
        assert_eq!(allocated(Class::A), allocated(Class::B), "{name}");
    }

    for keys in [1, 2, 4] {
        check("KeyRing", ring(keys));
        check("KeyStore", store(keys));
    }
    check("DerivedKeys", derived());
}

thread_local! {
    /// The allocations of this thread: how many there were, the sum of their sizes, and the same for those released.
    static ALLOCATED: Cell<[usize; 4]> = const { Cell::new([0; 4]) };
}

struct Counting;

impl Counting {
    fn count(of: usize, layout: Layout) {
        let mut allocated = ALLOCATED.get();
        allocated[of] += 1;
        allocated[of + 1] += layout.size();
        ALLOCATED.set(allocated);
    }
}

// SAFETY: everything is forwarded to the system's allocator. The counter is a thread-local cell that does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(0, layout);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count(2, layout);
        // SAFETY: the caller upholds the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn one_way_matching_key(samples: usize) -> bool {
    let set_up = || {
        let keys: [_; 8] = std::array::from_fn(|_| Key::generate().unwrap());
        let (first, last) = (one_way::Client::new(&keys[0]), one_way::Client::new(&keys[7]));
        let entry = |(id, key): (usize, &Key)| KeyEntry::new(id.to_string(), key.clone()).unwrap();
        let ring = one_way::KeyRing::new(keys.iter().enumerate().map(entry)).unwrap();
        let server = one_way::Server::new(ring);
        move |class| answered(&server, if class == Class::A { &first } else { &last }, |_| ())
    };
    leaks("one_way: answer matches the first or last of 8 keys", samples, set_up, |input| !refused(input))
}

fn one_way_wrong_byte(samples: usize) -> bool {
    let set_up = || {
        let key = Key::generate().unwrap();
        let client = one_way::Client::new(&key);
        let ring = one_way::KeyRing::new([KeyEntry::new("k", key).unwrap()]).unwrap();
        let server = one_way::Server::new(ring);
        move |class| answered(&server, &client, |bytes| corrupt(bytes, first_or_last(class, 16)))
    };
    leaks("one_way: answer wrong in its first or last byte", samples, set_up, refused)
}

fn multiprocessing_wrong_byte(samples: usize) -> bool {
    let set_up = || {
        let key = Key::generate().unwrap();
        let client = multiprocessing::Client::new(&key);
        let ring = multiprocessing::KeyRing::new([KeyEntry::new("k", key).unwrap()]).unwrap();
        let server = multiprocessing::Server::new(ring);
        move |class| answered(&server, &client, |bytes| corrupt(bytes, first_or_last(class, 32)))
    };
    leaks("multiprocessing: tag wrong in its first or last byte", samples, set_up, refused)
}

/// `one_way` with a comparison of its 16 bytes that stops at the first difference.
fn control(samples: usize) -> bool {
    let mac = Hmac::<Md5>::new_from_slice(&random::<32>()).unwrap();
    let answer = |nonce: &[u8; 32]| mac.clone().chain_update(nonce).finalize().into_bytes();
    let prepare = |class| {
        let nonce = random();
        let mut guess = answer(&nonce);
        corrupt(&mut guess, first_or_last(class, 16));
        (nonce, guess)
    };
    let run = |(nonce, guess): ([u8; 32], hmac::digest::Output<Hmac<Md5>>)| {
        !answer(&nonce).iter().zip(&guess).all(|(correct, guessed)| black_box(correct) == guessed)
    };
    leaks("control: comparison byte by byte, must leak", samples, || &prepare, run)
}

/// Compares all bytes. A comparison that ends at the first difference takes less time for some ids.
fn is_known(id: &[u8]) -> bool {
    let difference = id.iter().zip(b"known").fold(0, |difference, (a, b)| difference | (a ^ b));
    black_box(difference) == 0
}

fn audience() -> Audience {
    Audience::new("orders").unwrap()
}

type HandshakeOf<M> = <M as Mechanism>::Handshake;

/// The state machine of a server and the next message for it.
type Waiting<H> = (H, <<H as Handshake>::Codec as Decoder>::Item);

/// Runs a handshake up to the client's answer, whose bytes `change` modifies in transit.
fn answered<S, C>(server: &S, client: &C, change: impl FnOnce(&mut [u8])) -> Waiting<S::Handshake>
where
    S: Mechanism<Role = mechanism::ServerRole>,
    C: Mechanism<Role = mechanism::ClientRole>,
{
    let mut system = |out: &mut [u8]| SysRng.try_fill_bytes(out).map_err(Into::into);
    let cx = &mut Context::with_random(&mut system);
    let (Ok(mut server), Ok(mut client)) = (server.start(cx), client.start(cx)) else { unreachable!() };
    let challenge = server.send.take().expect("the server speaks first");
    let frame = transmit(challenge, &mut server, &mut client, |_| ());
    let Ok(Step::Continue { send: Some(answer) }) = client.handshake.step(Input::Frame(frame)) else {
        unreachable!("the client answers")
    };
    let frame = transmit(answer, &mut client, &mut server, change);
    (server.handshake, frame)
}

/// Encodes a message, modifies its bytes by `change` and decodes it on the other side.
fn transmit<F: Handshake, T: Handshake>(
    message: F::Message,
    from: &mut Start<F>,
    to: &mut Start<T>,
    change: impl FnOnce(&mut [u8]),
) -> <T::Codec as Decoder>::Item {
    let mut bytes = BytesMut::new();
    let Ok(()) = from.codec.encode(message, &mut bytes) else { unreachable!() };
    change(&mut bytes);
    let Ok(Some(frame)) = to.codec.decode(&mut bytes) else { unreachable!("the message is complete") };
    frame
}

/// Returns the position of the wrong byte in the tag at the end of a message, counted from the end.
fn first_or_last(class: Class, tag_len: usize) -> usize {
    if class == Class::A { tag_len } else { 1 }
}

/// Changes the byte at this position.
fn corrupt(bytes: &mut [u8], from_end: usize) {
    let at = bytes.len() - from_end;
    bytes[at] ^= random::<1>()[0] | 1;
}

/// Processes the answer like a server. Returns whether it refuses.
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

/// Returns whether `run` takes longer for the inputs of one class than of the other, in all attempts. `run` must return
/// true.
///
/// `set_up` returns the function that creates an input. It is called for each attempt, and its results stay in memory
/// until the last: where the keys are in memory alone can make a difference.
fn leaks<T, P: Fn(Class) -> T>(
    name: &str,
    samples: usize,
    set_up: impl Fn() -> P,
    run: impl Fn(T) -> bool,
) -> bool {
    let mut kept = Vec::new();
    (0..ATTEMPTS).all(|_| {
        let prepare = set_up();
        let (outcome, _) = attempt(name, samples, &prepare, &run);
        kept.push(prepare);
        outcome.map_or(true, |t| t.abs() >= LEAK)
    })
}

/// Like [`leaks`], for operations that differ by as much as a function of the program itself does.
fn leaks_more_than<T, P: Fn(Class) -> T>(
    nanoseconds: f64,
    name: &str,
    samples: usize,
    set_up: impl Fn() -> P,
    run: impl Fn(T) -> bool,
) -> bool {
    let mut kept = Vec::new();
    (0..ATTEMPTS).all(|_| {
        let prepare = set_up();
        let (_, difference) = attempt(name, samples, &prepare, &run);
        kept.push(prepare);
        difference.is_nan() || difference.abs() > nanoseconds
    })
}

/// Measures, prints and returns the largest |t| and the difference of the medians.
fn attempt<T>(
    name: &str,
    samples: usize,
    prepare: &impl Fn(Class) -> T,
    run: &impl Fn(T) -> bool,
) -> (Result<f64, &'static str>, f64) {
    measure(samples / 10, prepare, run); // warm-up
    let times = measure(samples, prepare, run);
    let difference = median(&times, Class::A) - median(&times, Class::B);
    let outcome = compare(times);
    match outcome {
        Ok((t, mean)) => {
            println!("{name:<52}  |t| = {:7.2}, {mean:+7.2} ns, medians {difference:+7.2} ns", t.abs());
        }
        Err(reason) => println!("{name:<52}  {reason}, medians {difference:+7.2} ns"),
    }
    (outcome.map(|(t, _)| t), difference)
}

/// Measures `run` in nanoseconds for inputs of both classes in random order.
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
            let expected = black_box(run(input));
            let time = begin.elapsed();
            assert!(expected, "the operation had another outcome than the experiment is about");
            times.push((time.as_secs_f64() * 1e9, class));
        }
    }
    times
}

/// Returns the largest |t| among all crops, with its sign, and how much longer class A takes in that crop.
///
/// Fails if a crop has no |t|, because there are fewer than two samples of a class in it. Such a crop proves a leak, or
/// an experiment that measured nothing.
fn compare(mut times: Vec<(f64, Class)>) -> Result<(f64, f64), &'static str> {
    times.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut largest = (0.0_f64, 0.0);
    for kept in CROPS {
        let slowest = (times.len() * kept / 1000).checked_sub(1).ok_or("there are too few samples")?;
        let (longest, _) = times[slowest];
        // Includes all samples that took as long as the slowest one. Otherwise their order would decide.
        let kept = &times[..times.partition_point(|(time, _)| *time <= longest)];
        let (a, b) = (Moments::of(kept, Class::A), Moments::of(kept, Class::B));
        if a.count.min(b.count) < 2.0 {
            return Err("the fastest samples are all of one class");
        }
        let (t, difference) = welch(a, b);
        if t.is_nan() || difference.is_nan() {
            return Err("|t| is not a number");
        }
        if t.abs() >= largest.0.abs() {
            largest = (t, difference);
        }
    }
    Ok(largest)
}

/// Fails if [`compare`] overlooks a leak, so that it does not do so silently.
fn check_statistics() {
    let classes = [Class::A, Class::B];
    let times = |time: fn(Class, u32) -> f64| -> Vec<_> {
        (0..2_000).flat_map(|i| classes.map(|class| (time(class, i), class))).collect()
    };
    let noise = |i: u32| f64::from(i * 7919 % 101);
    let same = compare(times(|_, i| f64::from(i * 7919 % 101)));
    assert!(same.is_ok_and(|(t, _)| t == 0.0), "equal times are no leak");
    let shifted = times(|class, i| f64::from(i * 7919 % 101) + if class == Class::A { 9.0 } else { 0.0 });
    assert!(compare(shifted).is_ok_and(|(t, difference)| t > LEAK && difference > 0.0));
    // The times do not overlap, so that the fastest crops hold one class only.
    let apart = times(|class, i| f64::from(i * 7919 % 101) + if class == Class::A { 1e3 } else { 0.0 });
    assert!(compare(apart).is_err());
    assert!(compare(times(|_, _| f64::NAN)).is_err());
    let infinite = times(|class, i| if class == Class::A && i == 0 { f64::INFINITY } else { 1.0 });
    assert!(compare(infinite).is_err());
    assert!(compare(Vec::new()).is_err());
    assert!(compare((0..2_000).map(|i| (noise(i), Class::A)).collect()).is_err());
    assert!(compare(vec![(1.0, Class::A), (1.0, Class::B)]).is_err());
}

/// Returns the median time of a class, in nanoseconds.
fn median(times: &[(f64, Class)], class: Class) -> f64 {
    let mut times: Vec<_> = times.iter().filter(|(_, of)| *of == class).map(|(time, _)| *time).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns Welch's t and the difference of the means.
fn welch(a: Moments, b: Moments) -> (f64, f64) {
    let difference = a.mean - b.mean;
    let error = (a.variance / a.count + b.variance / b.count).sqrt();
    // With a coarse clock, the fastest samples may all have the same time.
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

/// Returns a random number below `bound`, a power of two of at most 256.
fn below(bound: usize) -> usize {
    usize::from(random::<1>()[0]) % bound
}
