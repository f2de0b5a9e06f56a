/// Implements `AsyncRead` or `AsyncWrite` for a wrapper by that of the stream in its field `io`.
///
/// Every method is forwarded, vectored writes included; clippy checks that none is missing. If a method of the wrapper
/// is given as `check`, it is called first, and its error is returned.
macro_rules! forward_async_write {
    ([$($generics:tt)*] $wrapper:ty $(, check = $check:ident)?) => {
        #[deny(clippy::missing_trait_methods)]
        impl<IO: tokio::io::AsyncWrite + Unpin, $($generics)*> tokio::io::AsyncWrite for $wrapper {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                $(self.$check(cx)?;)?
                std::pin::Pin::new(&mut self.io).poll_write(cx, buf)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                $(self.$check(cx)?;)?
                std::pin::Pin::new(&mut self.io).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                // For a stream that encrypts, a shutdown says that nothing is missing.
                $(self.$check(cx)?;)?
                std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                $(self.$check(cx)?;)?
                std::pin::Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.io.is_write_vectored()
            }
        }
    };
}

macro_rules! forward_async_read {
    ([$($generics:tt)*] $wrapper:ty $(, check = $check:ident)?) => {
        #[deny(clippy::missing_trait_methods)]
        impl<IO: tokio::io::AsyncRead + Unpin, $($generics)*> tokio::io::AsyncRead for $wrapper {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                $(self.$check(cx)?;)?
                std::pin::Pin::new(&mut self.io).poll_read(cx, buf)
            }
        }
    };
}

pub(crate) use {forward_async_read, forward_async_write};
