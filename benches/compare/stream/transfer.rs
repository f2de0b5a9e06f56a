//! Transfers over TCP loopback, with both sides in one thread or in a thread each.

use std::thread;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, spawn_local};

use crate::way::{Result, Stream, Way};

const WRITE_LEN: usize = 64 * 1024;
const PING_LEN: usize = 64;

#[derive(Clone, Copy)]
pub(crate) enum Threads {
    One,
    Two,
}

#[derive(Clone, Copy)]
enum Load {
    /// The client sends so many bytes, and the server one when it has all.
    Bulk(usize),
    /// Each side sends a message so many times.
    PingPong(usize),
}

/// In seconds.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) elapsed: f64,
    /// Of the process, user and system.
    pub(crate) processor: f64,
}

pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    run: Box<dyn Fn(Load, Threads) -> Result<Sample>>,
}

impl Candidate {
    /// Checks first that data arrives unchanged.
    pub(crate) fn new(name: &'static str, way: impl Way) -> Self {
        block_on(check(way.clone())).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name, run: Box::new(move |load, threads| run(&way, load, threads)) }
    }

    pub(crate) fn bulk(&self, len: usize, threads: Threads) -> Sample {
        self.run(Load::Bulk(len), threads)
    }

    pub(crate) fn ping_pong(&self, count: usize, threads: Threads) -> Sample {
        self.run(Load::PingPong(count), threads)
    }

    fn run(&self, load: Load, threads: Threads) -> Sample {
        (self.run)(load, threads).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn block_on<F: Future>(future: F) -> F::Output {
    LocalSet::new().block_on(&runtime(), future)
}

async fn check(way: impl Way) -> Result<()> {
    let (client, server) = connection().await?;
    let accepting = spawn_local(way.clone().accept(server));
    let mut client = way.connect(client).await?;
    let mut server = accepting.await??;
    let sent: Vec<u8> = (0..1_000_003_usize).map(|at| (at * 7 + at / 251).to_le_bytes()[0]).collect();
    let data = sent.clone();
    let echo = spawn_local(async move {
        let mut received = Vec::new();
        let mut buf = vec![0; WRITE_LEN];
        while received.len() < data.len() {
            let len = server.receive(&mut buf).await?;
            received.extend_from_slice(&buf[..len]);
        }
        if received != data {
            return Err("other bytes arrive".into());
        }
        Result::Ok(server.send(&received).await?)
    });
    client.send(&sent).await?;
    let mut received = vec![0; sent.len()];
    receive_all(&mut client, &mut received).await?;
    echo.await??;
    if received == sent { Ok(()) } else { Err("other bytes return".into()) }
}

fn run(way: &impl Way, load: Load, threads: Threads) -> Result<Sample> {
    match threads {
        Threads::One => block_on(async {
            let (client, server) = connection().await?;
            let serving = spawn_local(serve(way.clone(), server, load));
            let sample = use_server(way.clone(), client, load).await;
            serving.await??;
            sample
        }),
        Threads::Two => {
            let (client, server) = runtime().block_on(connection())?;
            let (client, server) = (client.into_std()?, server.into_std()?);
            let own = way.clone();
            let serving = thread::spawn(move || {
                runtime().block_on(async { serve(own, TcpStream::from_std(server)?, load).await })
            });
            let way = way.clone();
            let sample =
                runtime().block_on(async { use_server(way, TcpStream::from_std(client)?, load).await });
            serving.join().expect("no panic")?;
            sample
        }
    }
}

pub(crate) async fn connection() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let client = TcpStream::connect(listener.local_addr()?).await?;
    let (server, _) = listener.accept().await?;
    for io in [&client, &server] {
        io.set_nodelay(true)?;
    }
    Ok((client, server))
}

async fn serve(way: impl Way, io: TcpStream, load: Load) -> Result<()> {
    let mut stream = way.accept(io).await?;
    stream.send(b"!").await?;
    match load {
        Load::Bulk(mut left) => {
            let mut data = vec![0; WRITE_LEN];
            while left > 0 {
                left -= stream.receive(&mut data).await?;
            }
            stream.send(b"!").await?;
        }
        Load::PingPong(count) => {
            let mut data = [0; PING_LEN];
            for _ in 0..count {
                receive_all(&mut stream, &mut data).await?;
                stream.send(&data).await?;
            }
        }
    }
    // The client ends the connection.
    let _ = stream.receive(&mut [0]).await;
    Ok(())
}

async fn use_server(way: impl Way, io: TcpStream, load: Load) -> Result<Sample> {
    let mut stream = way.connect(io).await?;
    receive_all(&mut stream, &mut [0]).await?;
    let (begin, processor) = (Instant::now(), processor_time());
    match load {
        Load::Bulk(len) => {
            let data = vec![b'x'; WRITE_LEN];
            for _ in 0..len / WRITE_LEN {
                stream.send(&data).await?;
            }
            receive_all(&mut stream, &mut [0]).await?;
        }
        Load::PingPong(count) => {
            let mut data = [b'x'; PING_LEN];
            for _ in 0..count {
                stream.send(&data).await?;
                receive_all(&mut stream, &mut data).await?;
            }
        }
    }
    let processor = processor_time().saturating_sub(processor);
    Ok(Sample { elapsed: begin.elapsed().as_secs_f64(), processor: processor.as_secs_f64() })
}

async fn receive_all(stream: &mut impl Stream, mut data: &mut [u8]) -> Result<()> {
    while !data.is_empty() {
        let len = stream.receive(data).await?;
        data = &mut data[len..];
    }
    Ok(())
}

/// The processor time that this process has used, in user and system mode.
pub(crate) fn processor_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the pointer is valid for writes of this type.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    assert_eq!(result, 0, "getrusage of the own process");
    // SAFETY: `getrusage` has succeeded, and so has written all of it.
    let usage = unsafe { usage.assume_init() };
    let duration = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).expect("no negative time");
        Duration::from_secs(seconds)
            + Duration::from_micros(u64::try_from(time.tv_usec).expect("no negative time"))
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}
