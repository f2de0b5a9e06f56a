//! A Unix socket whose peers are identified twice: by the key that they hold, and by the user of their process.
//!
//! ```text
//! cargo run --example unix
//! ```

#[macro_use]
#[path = "../shared/print.rs"]
mod print;

#[cfg(unix)]
mod by_user;

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    by_user::run().await
}

#[cfg(not(unix))]
fn main() {
    println!("This system has no Unix sockets.");
}
