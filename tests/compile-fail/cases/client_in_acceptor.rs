//! A client's mechanism on the server's side.

use tower_challenge::{Acceptor, ChallengeLayer, Key, one_way};

fn main() {
    let key = Key::new("a key").unwrap();
    let _acceptor = Acceptor::new(one_way::Client::new(&key));
    let _layer = ChallengeLayer::new(one_way::Client::new(&key));
}
