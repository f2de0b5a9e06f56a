use super::{Transport, TransportInfo, forward_async_read, forward_async_write};

/// A stream together with its transport metadata, for streams that do not implement [`Transport`].
///
/// The metadata replaces what the stream reports itself. To add to it, start with
/// [`TransportInfo::from_stream`].
///
/// ```
/// use tokio::io::{Join, ReadHalf, SimplexStream, WriteHalf};
/// use tower_challenge::transport::{TransportInfo, WithInfo};
/// use tower_challenge::{Acceptor, one_way};
///
/// type Pipe = Join<ReadHalf<SimplexStream>, WriteHalf<SimplexStream>>;
///
/// # async fn example(
/// #     acceptor: Acceptor<one_way::Server>, io: Pipe,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let info = TransportInfo::new().peer_addr(([192, 0, 2, 1], 8888).into());
/// let stream = acceptor.accept(WithInfo::new(io, info)).await?;
/// # drop(stream);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WithInfo<IO> {
    io: IO,
    info: TransportInfo,
}

impl<IO> WithInfo<IO> {
    /// Wraps `io`, which reports `info` from now on.
    pub const fn new(io: IO, info: TransportInfo) -> Self {
        Self { io, info }
    }

    /// Returns the metadata.
    pub const fn info(&self) -> &TransportInfo {
        &self.info
    }

    /// Returns a reference to the stream.
    pub const fn get_ref(&self) -> &IO {
        &self.io
    }

    /// Returns a mutable reference to the stream.
    pub const fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// Returns the stream.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

impl<IO> Transport for WithInfo<IO> {
    fn describe(&self, info: &mut TransportInfo) {
        let known = std::mem::take(info);
        *info = TransportInfo {
            shutdown: known.shutdown.or_else(|| self.info.shutdown.clone()),
            peer_addr: known.peer_addr.or(self.info.peer_addr),
            channel_binding: known.channel_binding.or_else(|| self.info.channel_binding.clone()),
        };
    }
}

forward_async_read!([] WithInfo<IO>);
forward_async_write!([] WithInfo<IO>);
