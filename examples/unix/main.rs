//! A Unix socket whose peers are known twice: by the key that they hold, and by the user whose process they are.
//!
//! ```text
//! cargo run --example unix
//! ```

#[cfg(unix)]
mod by_user;

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    by_user::run().await
}

#[cfg(not(unix))]
fn main() {
    println!("There are no Unix sockets here.");
}
