//! Requests to the address of the metrics and the health check.

use std::io::{Read as _, Write as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::service::connect;

/// Returns the status and the body.
pub(crate) fn get(addr: &str, path: &str) -> (u16, String) {
    let mut stream = connect(addr);
    stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\n\r\n").as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Returns the sum of the metrics with this name whose labels contain `labels`.
pub(crate) fn metric(addr: &str, name: &str, labels: &[&str]) -> u64 {
    let (status, body) = get(addr, "/metrics");
    assert_eq!(status, 200);
    let values = body.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        let is_wanted = key.split('{').next() == Some(name) && labels.iter().all(|label| key.contains(label));
        is_wanted.then(|| value.parse::<u64>().unwrap())
    });
    values.sum()
}

/// Waits until a metric has this value.
pub(crate) fn wait_for_metric(addr: &str, name: &str, labels: &[&str], expected: u64) {
    let begin = Instant::now();
    loop {
        let value = metric(addr, name, labels);
        if value == expected {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{name} {labels:?} is {value}, not {expected}");
        sleep(Duration::from_millis(5));
    }
}
