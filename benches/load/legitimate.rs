//! The legitimate client: connects with the key and measures how long it takes.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower_challenge::{Connector, Key, one_way};

use crate::server::KEY;
use crate::unauthenticated::connect;

/// The client's timeout. A connection that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two connections.
const PAUSE: Duration = Duration::from_millis(1);

/// The latencies and failures of the legitimate client.
pub(crate) struct Latencies {
    pub(crate) failed: usize,
    // In milliseconds, sorted.
    times: Vec<f64>,
}

impl Latencies {
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        self.times
            .get((self.times.len() * percent / 100).min(self.times.len() - 1))
            .copied()
            .unwrap_or(f64::NAN)
    }
}

/// Connects `times` times in sequence and measures each connection.
pub(crate) fn measure(addr: SocketAddr, times: usize) -> Latencies {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let connector = Connector::new(one_way::Client::new(&Key::new(KEY).expect("a valid key")));
        let mut latencies = Latencies { failed: 0, times: Vec::with_capacity(times) };
        for _ in 0..times {
            let begin = Instant::now();
            match tokio::time::timeout(TIMEOUT, once(&connector, addr)).await {
                Ok(Ok(())) => latencies.times.push(begin.elapsed().as_secs_f64() * 1e3),
                other => {
                    eprintln!("a legitimate connection failed: {other:?}");
                    latencies.failed += 1;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        latencies.times.sort_by(f64::total_cmp);
        latencies
    })
}

async fn once(
    connector: &Connector<one_way::Client>,
    addr: SocketAddr,
) -> Result<(), Box<dyn std::error::Error>> {
    let stream = connect(addr, Ipv4Addr::new(127, 200, 0, 1)).await?;
    stream.set_nodelay(true)?;
    let mut stream = connector.connect(stream).await?;
    stream.write_u8(7).await?;
    if stream.read_u8().await? != 7 {
        return Err("the echo differs".into());
    }
    Ok(())
}
