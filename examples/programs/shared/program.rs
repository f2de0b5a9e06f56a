//! The beginning and the end of a program.

use std::pin::Pin;
use std::process::ExitCode;

use tokio::runtime::Runtime;

use super::BoxError;
use super::output::{err, flush};

/// Completes when the program is asked to end.
pub(crate) type Stopping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a program to its end, and prints the error if there is one.
pub(crate) fn run<C: Into<ExitCode>>(program: impl Future<Output = Result<C, BoxError>>) -> ExitCode {
    let ended = Runtime::new().map_err(BoxError::from).and_then(|runtime| {
        let ended = runtime.block_on(program);
        // Does not wait for threads that read a file or resolve a name: a file system that hangs must not keep the
        // program from ending.
        runtime.shutdown_background();
        ended
    });
    let code = ended.map_or_else(
        |error| {
            err(format_args!("error: {error}"));
            ExitCode::FAILURE
        },
        Into::into,
    );
    flush();
    code
}
