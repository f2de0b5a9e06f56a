//! The experiments and the properties that must hold in them.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::legitimate::measure;
use crate::process::{Process, cpu_seconds, number};

pub(crate) type Outcome = Result<(), String>;

pub(crate) fn all(quick: bool) -> Outcome {
    flood(quick)?;
    memory()?;
    share(quick)?;
    bursts(quick)
}

/// Fails with this error unless the condition holds.
pub(crate) fn must(holds: bool, error: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { Err(error.into()) }
}

/// Starts a server and returns its address.
pub(crate) fn server(
    max_pending: usize,
    max_per_source: usize,
    timeout: u64,
    more: &[&str],
) -> (Process, SocketAddr) {
    let mut args = vec![
        "server".into(),
        format!("--max-pending={max_pending}"),
        format!("--max-per-source={max_per_source}"),
        format!("--timeout={timeout}"),
    ];
    args.extend(more.iter().map(ToString::to_string));
    let mut server = Process::start(&args);
    let addr = server.line().parse().expect("an address");
    (server, addr)
}

/// Starts `count` unauthenticated peers from `sources` addresses.
pub(crate) fn unauthenticated(addr: SocketAddr, count: u32, sources: u32, more: &[&str]) -> Process {
    let mut args = vec![
        "unauthenticated".to_owned(),
        format!("--addr={addr}"),
        format!("--count={count}"),
        format!("--sources={sources}"),
    ];
    args.extend(more.iter().map(ToString::to_string));
    Process::start(&args)
}

/// Waits until the server's statistics satisfy the condition.
pub(crate) fn wait_until(
    server: &mut Process,
    timeout: Duration,
    condition: impl Fn(&str) -> bool,
) -> Option<String> {
    let begin = Instant::now();
    loop {
        let stats = server.ask("stats");
        if condition(&stats) {
            return Some(stats);
        }
        if begin.elapsed() > timeout {
            eprintln!("not satisfied in time: {stats}");
            return None;
        }
        sleep(Duration::from_millis(20));
    }
}

/// Waits until the server has released everything since the statistics `before`.
pub(crate) fn expect_idle(server: &mut Process, before: &str) -> Outcome {
    let is_idle = |stats: &str| {
        number(stats, "pending") == 0.0
            && number(stats, "tasks") <= number(before, "tasks")
            && number(stats, "fds") <= number(before, "fds")
    };
    let after = wait_until(server, Duration::from_secs(3), is_idle);
    must(after.is_some(), format!("something was not released; before: {before}"))
}

pub(crate) fn flood(quick: bool) -> Outcome {
    println!("\n# flood: a cap of 1,000; 10,000 silent peers reconnect as soon as they are dropped");
    let samples = if quick { 1_000 } else { 5_000 };
    for (sources, penalties) in [(250, false), (10_000, false), (10_000, true)] {
        println!("from {sources} sources, {} penalties:", if penalties { "with" } else { "without" });
        // Other work of the machine can slow the server down, so a slow result is measured again. Without penalties the
        // flood keeps the server's processor busy all the time, and the latency has no bound.
        let mut attempts = (0..3).map(|_| flooded(samples, sources, penalties));
        let bound = if penalties { 2.0 } else { f64::INFINITY };
        let fast = attempts.find(|ratio| ratio.as_ref().map_or(true, |&ratio| ratio < bound));
        fast.ok_or("the median latency is more than twice that without a flood")??;
    }
    Ok(())
}

/// Returns the ratio of the median latencies with and without a flood.
fn flooded(samples: usize, sources: u32, penalties: bool) -> Result<f64, String> {
    let more: &[&str] = if penalties { &["--penalties"] } else { &[] };
    let (mut server, addr) = server(1_000, 250, 10, more);
    let _ = measure(addr, 200);
    let before = server.ask("stats");
    let idle = measure(addr, samples);

    let mut peers = unauthenticated(addr, 10_000, sources, &[]);
    let full = wait_until(&mut server, Duration::from_secs(10), |stats| number(stats, "pending") >= 900.0);
    full.ok_or("the cap is never reached")?;
    // Penalties need some time to add up.
    sleep(Duration::from_secs(if penalties { 15 } else { 2 }));
    let usage = |peers: &mut Process, server: &Process| {
        (number(&peers.ask("stats"), "connections"), cpu_seconds(server.id()), cpu_seconds(peers.id()))
    };
    let (begin, first) = (Instant::now(), usage(&mut peers, &server));
    let flooded = measure(addr, samples);
    let (seconds, last) = (begin.elapsed().as_secs_f64(), usage(&mut peers, &server));
    println!(
        "  {:.0} connections per second; processors: server {:.2}, unauthenticated peers {:.2}; {}",
        (last.0 - first.0) / seconds,
        (last.1 - first.1) / seconds,
        (last.2 - first.2) / seconds,
        server.ask("stats")
    );
    must(flooded.failed == 0, format!("{} legitimate connections failed", flooded.failed))?;
    for percent in [50, 99] {
        let (idle, flooded) = (idle.percentile(percent), flooded.percentile(percent));
        println!(
            "  legitimate p{percent}: {idle:.3} ms without the flood, {flooded:.3} ms with it: {:.2} times as long",
            flooded / idle
        );
    }
    drop(peers);
    expect_idle(&mut server, &before)?;
    Ok(flooded.percentile(50) / idle.percentile(50))
}

pub(crate) fn memory() -> Outcome {
    const PEERS: u32 = 10_000;
    const BUDGET: f64 = 2048.0;
    const DEADLINE: u32 = 5;
    println!("\n# memory: a cap of 12,000; 10,000 silent peers");
    let (mut server, addr) = server(12_000, 250, DEADLINE.into(), &[]);
    let before = server.ask("stats");
    let mut peers = unauthenticated(addr, PEERS, 10_000, &[]);
    let full =
        wait_until(&mut server, Duration::from_secs(5), |stats| number(stats, "pending") >= f64::from(PEERS));
    let full = full.ok_or("not all peers are admitted")?;
    let each = |name: &str| (number(&full, name) - number(&before, name)) / f64::from(PEERS);
    println!(
        "an in-flight handshake: {:.0} bytes allocated, {:.0} bytes resident",
        each("bytes"),
        each("rss")
    );
    must(each("bytes") <= BUDGET, "more than 2 KiB for each in-flight handshake")?;
    sleep(Duration::from_secs(u64::from(DEADLINE) + 1));
    let longest = number(&peers.ask("stats"), "longest");
    println!("the longest connection: {longest} ms, with a deadline of {DEADLINE} s");
    must(
        (longest - 1e3 * f64::from(DEADLINE)) <= 1e3,
        "a silent peer outlives the deadline by more than a second",
    )?;
    drop(peers);
    expect_idle(&mut server, &before)
}

pub(crate) fn share(quick: bool) -> Outcome {
    println!(
        "\n# share: an attack from one source, whose limit of 50 applies while 750 of 1,000 slots are in use"
    );
    let samples = if quick { 300 } else { 2_000 };
    // Refused peers that linger are the first to be evicted, so they count towards the cap only.
    for (behaviour, bound) in [("silent", 750.0), ("linger", 1_000.0), ("hang-up", 750.0), ("mixed", 1_000.0)]
    {
        let (mut server, addr) = server(1_000, 50, 5, &[]);
        let before = server.ask("stats");
        let mut peers = unauthenticated(addr, 2_000, 1, &["--behaviour", behaviour]);
        let mut most = 0.0_f64;
        for _ in 0..50 {
            most = most.max(number(&server.ask("stats"), "pending"));
            sleep(Duration::from_millis(10));
        }
        let legitimate = measure(addr, samples);
        most = most.max(number(&server.ask("stats"), "pending"));
        println!(
            "{behaviour}: at most {most} in flight, legitimate p99 {:.3} ms; unauthenticated peers: {}",
            legitimate.percentile(99),
            peers.ask("stats")
        );
        must(most <= bound + 1.0, "more handshakes than those of the source and the legitimate client")?;
        // A source that hangs up need not reach its limit.
        must(behaviour == "hang-up" || most >= 700.0, "the source should have reached its limit")?;
        must(legitimate.failed == 0, format!("{} legitimate connections failed", legitimate.failed))?;
        drop(peers);
        expect_idle(&mut server, &before)?;
    }
    Ok(())
}

pub(crate) fn bursts(quick: bool) -> Outcome {
    let connections = if quick { 20_000 } else { 100_000 };
    println!("\n# bursts: {connections} connections, 1,000 at a time");
    let (mut server, addr) = server(1_000, 250, 2, &[]);
    let before = server.ask("stats");
    let limit = format!("--connections={connections}");
    let begin = Instant::now();
    let mut peers = unauthenticated(addr, 1_000, 100, &["--behaviour", "hang-up", &limit]);
    assert_eq!(peers.line(), "done");
    let seconds = begin.elapsed().as_secs_f64();
    println!("{:.0} per second; {}", f64::from(connections) / seconds, peers.ask("stats"));
    expect_idle(&mut server, &before)?;
    println!("before: {before}\nafter:  {}", server.ask("stats"));
    Ok(())
}
