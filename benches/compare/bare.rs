//! No handshake between connect and greeting: the baseline.

use tokio::net::TcpStream;

use crate::way::{Result, Way, be_greeted, greet};

#[derive(Clone)]
pub(crate) struct Bare;

impl Way for Bare {
    async fn accept(self, io: TcpStream) -> Result<()> {
        greet(io).await
    }

    async fn connect(self, io: TcpStream) -> Result<()> {
        be_greeted(io).await
    }
}
