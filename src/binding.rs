use crate::error::{HandshakeError, HandshakeErrorKind};
use crate::mechanism::Context;
use crate::transport::ChannelBinding;

/// How a side uses the channel binding of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Binding {
    /// Used if the stream has one.
    #[default]
    IfAvailable,
    /// Used; a stream without one is an error.
    Required,
    /// Not used.
    Ignored,
}

impl Binding {
    /// Returns the channel binding for the transcript, or an error if it is required and the stream has none.
    pub(crate) fn choose(self, cx: &Context<'_>) -> Result<Option<ChannelBinding>, HandshakeError> {
        match (self, cx.channel_binding()) {
            (Self::Ignored, _) => Ok(None),
            (Self::Required, None) => Err(HandshakeErrorKind::ChannelBinding.into()),
            (Self::IfAvailable | Self::Required, binding) => Ok(binding.cloned()),
        }
    }
}
