use std::io;

use tokio_util::sync::CancellationToken;

/// Cancelled at the first Ctrl-C or SIGTERM, and at the second. From this call on no signal is missed.
pub(crate) fn first_and_second() -> io::Result<[CancellationToken; 2]> {
    #[cfg(unix)]
    let (mut interrupt, mut terminate) = {
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    #[cfg(windows)]
    let (mut interrupt, mut terminate) = {
        use tokio::signal::windows::{ctrl_c, ctrl_shutdown};
        (ctrl_c()?, ctrl_shutdown()?)
    };
    let tokens = [CancellationToken::new(), CancellationToken::new()];
    let told = tokens.clone();
    tokio::spawn(async move {
        for token in told {
            tokio::select! {
                _ = interrupt.recv() => token.cancel(),
                _ = terminate.recv() => token.cancel(),
            }
        }
    });
    Ok(tokens)
}
