//! The heap memory of a connection, allocations of C code included.

use std::pin::pin;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio_util::codec::Encoder as _;

use crate::in_memory::start;
use crate::noise::{Noise, client};
use crate::tls::Tls;
use crate::transfer;
use crate::way::{Bare, Result, Stream as _, Way};

/// Prints how much more than a bare `TcpStream` one end of a connection holds.
pub(crate) fn measure(count: usize, is_bench: bool) {
    if heap_len().is_none() {
        return;
    }
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure_all(count, is_bench)).expect("connections");
}

async fn measure_all(count: usize, is_bench: bool) -> Result<()> {
    // The first one is to fill the lists of the runtime.
    idle(&Bare, count).await?;
    let (bare, _) = idle(&Bare, count).await?;
    let (noise, tls) = (Noise::new(), Tls::with_aws_lc());
    let (accepted, connected) = idle(&noise, count).await?;
    let (tls_accepted, tls_connected) = idle(&tls, count).await?;
    let rows = [
        ("noise, idle, server", accepted),
        ("noise, idle, client", connected),
        ("noise, pending, HELLO awaited", awaiting_hello(&noise, count).await?),
        ("noise, pending, FINISH awaited", awaiting_finish(&noise, count).await?),
        ("tokio-rustls, idle, server", tls_accepted),
        ("tokio-rustls, idle, client", tls_connected),
    ];
    if is_bench {
        println!("\nheap bytes of one end of a connection, above a bare TcpStream; {count} connections");
        for (name, held) in rows {
            println!("{name:<36} {:>9.0}", held - bare);
        }
    }
    Ok(())
}

/// Both ends, after data was sent in both directions.
async fn idle<W: Way>(way: &W, count: usize) -> Result<(f64, f64)> {
    let (mut accepted, mut connected) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut data = vec![0; 50_000];
    for _ in 0..count {
        let (client, server) = connection().await?;
        let (server, client) = tokio::join!(way.clone().accept(server), way.clone().connect(client));
        let (mut server, mut client) = (Box::new(server?), Box::new(client?));
        let pass =
            async |len: usize, client: &mut W::Connected, server: &mut W::Accepted, data: &mut [u8]| {
                client.send(&data[..len]).await?;
                let mut left = len;
                while left > 0 {
                    left -= server.receive(data).await?;
                }
                server.send(&data[..len]).await?;
                while left < len {
                    left += client.receive(data).await?;
                }
                Result::Ok(())
            };
        for len in [50_000, 1] {
            pass(len, &mut client, &mut server, &mut data).await?;
        }
        accepted.push(server);
        connected.push(client);
    }
    Ok((held_by(accepted), held_by(connected)))
}

/// The futures of servers whose clients have sent nothing.
async fn awaiting_hello(noise: &Noise, count: usize) -> Result<f64> {
    let (mut pending, mut clients) = (Vec::with_capacity(count), Vec::new());
    for _ in 0..count {
        let (client, server) = connection().await?;
        clients.push(client);
        let mut accepting = Box::pin(noise.acceptor.accept(server));
        if futures::poll!(&mut accepting).is_ready() {
            return Err("refused although nothing was sent".into());
        }
        pending.push(accepting);
    }
    Ok(held_by(pending))
}

/// The futures of servers that have sent ANSWER.
async fn awaiting_finish(noise: &Noise, count: usize) -> Result<f64> {
    let (mut pending, mut clients) = (Vec::with_capacity(count), Vec::new());
    for _ in 0..count {
        let (mut client, server) = connection().await?;
        let mut accepting = Box::pin(noise.acceptor.accept(server));
        tokio::select! {
            _ = &mut accepting => return Err("FINISH was not sent".into()),
            exchanged = pin!(exchange(&mut client)) => exchanged?,
        }
        clients.push(client);
        pending.push(accepting);
    }
    Ok(held_by(pending))
}

/// Sends HELLO and receives ANSWER.
async fn exchange(io: &mut TcpStream) -> Result<()> {
    const ANSWER_LEN: usize = 2 + 1 + 48;
    let mut hello = start(&client(&[7; 32]));
    let mut message = BytesMut::new();
    hello.codec.encode(hello.send.ok_or("a client speaks first")?, &mut message)?;
    io.write_all(&message).await?;
    io.read_exact(&mut [0; ANSWER_LEN]).await?;
    Ok(())
}

async fn connection() -> Result<(TcpStream, TcpStream)> {
    let (client, server) = transfer::connection().await?;
    // Closes with a reset. Otherwise connections in TIME_WAIT would use up the ports.
    client.set_zero_linger()?;
    server.set_zero_linger()?;
    Ok((client, server))
}

/// The bytes that each of these holds, itself included.
fn held_by<T>(mut values: Vec<T>) -> f64 {
    let heap_len = || heap_len().expect("checked before");
    let before = heap_len();
    let count = u32::try_from(values.len()).expect("some thousands");
    values.clear();
    let freed = u32::try_from(before.saturating_sub(heap_len())).expect("less than 4 GiB");
    f64::from(freed) / f64::from(count)
}

/// The bytes that are allocated by `malloc`, with its own headers. Rust's allocations are among them.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn heap_len() -> Option<usize> {
    // SAFETY: the function has no preconditions.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks.checked_add(info.hblkhd)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn heap_len() -> Option<usize> {
    None
}
