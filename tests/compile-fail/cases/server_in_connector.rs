//! A server's mechanism on the client's side.

use tower_challenge::{AnswerLayer, Connector, Key, KeyEntry, one_way};

fn main() {
    let keys = || one_way::KeyRing::new([KeyEntry::new("id", Key::new("a key").unwrap()).unwrap()]).unwrap();
    let _connector = Connector::new(one_way::Server::new(keys()));
    let _layer = AnswerLayer::new(one_way::Server::new(keys()));
}
