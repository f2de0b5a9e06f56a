//! The handshake of the `bore-cli` crate, with the crate's own code. It has a timeout for each received message.

use bore_cli::auth::Authenticator;
use bore_cli::shared::Delimited;
use tokio::net::TcpStream;

use crate::way::{Key, Result, Way, be_greeted, greet};

#[derive(Clone)]
pub(crate) struct Bore(Key);

impl Bore {
    pub(crate) fn new(key: &Key) -> Self {
        Self(*key)
    }

    fn authenticator(&self) -> Authenticator {
        Authenticator::new(std::str::from_utf8(&self.0).expect("ASCII"))
    }
}

impl Way for Bore {
    async fn accept(self, io: TcpStream) -> Result<()> {
        let mut stream = Delimited::new(io);
        self.authenticator().server_handshake(&mut stream).await?;
        greet(stream.into_parts().io).await
    }

    async fn connect(self, io: TcpStream) -> Result<()> {
        let mut stream = Delimited::new(io);
        self.authenticator().client_handshake(&mut stream).await?;
        be_greeted(stream.into_parts().io).await
    }
}
