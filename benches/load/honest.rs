//! Somebody who has the key.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower_challenge::{Connector, Key, one_way};

use crate::server::KEY;
use crate::strangers::connect;

/// How long somebody waits at most; a friend who has to wait this long has not been let in.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two of its connections.
const PAUSE: Duration = Duration::from_millis(1);

/// What an honest peer went through.
pub(crate) struct Experience {
    pub(crate) failed: usize,
    // In milliseconds, sorted.
    times: Vec<f64>,
}

impl Experience {
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        self.times
            .get((self.times.len() * percent / 100).min(self.times.len() - 1))
            .copied()
            .unwrap_or(f64::NAN)
    }
}

/// Connects so many times, one after the other, and says how it was.
pub(crate) fn visit(addr: SocketAddr, times: usize) -> Experience {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let connector = Connector::new(one_way::Client::new(&Key::new(KEY).expect("a key")));
        let mut experience = Experience { failed: 0, times: Vec::with_capacity(times) };
        for _ in 0..times {
            let begin = Instant::now();
            match tokio::time::timeout(PATIENCE, once(&connector, addr)).await {
                Ok(Ok(())) => experience.times.push(begin.elapsed().as_secs_f64() * 1e3),
                other => {
                    eprintln!("an honest peer was turned away: {other:?}");
                    experience.failed += 1;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        experience.times.sort_by(f64::total_cmp);
        experience
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
        return Err("not what was sent".into());
    }
    Ok(())
}
