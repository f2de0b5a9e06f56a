//! The signals that ask a program to end.

/// Waits for Ctrl-C and, on Unix, for SIGTERM, which `kill`, `docker stop` and systemd send.
///
/// A signal counts from the first poll of the future on.
///
/// # Panics
///
/// Panics if a signal handler cannot be installed.
pub(crate) async fn shutdown_signal() {
    let interrupt = async { tokio::signal::ctrl_c().await.expect("failed to install the Ctrl-C handler") };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};

        let mut terminate = signal(SignalKind::terminate()).expect("failed to install the SIGTERM handler");
        tokio::select! {
            () = interrupt => {}
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    interrupt.await;
}
