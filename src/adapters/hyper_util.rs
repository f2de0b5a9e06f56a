//! [`Authenticated`] as a connection of hyper-util's pooling client.

use hyper_util::client::legacy::connect::{Connected, Connection};

use crate::stream::Authenticated;

/// What the stream within says of itself; and what the server has proven, in the extensions of each response.
impl<IO, P> Connection for Authenticated<IO, P>
where
    IO: Connection,
    P: Clone + Send + Sync + 'static,
{
    fn connected(&self) -> Connected {
        self.get_ref().connected().extra(self.peer().clone())
    }
}
