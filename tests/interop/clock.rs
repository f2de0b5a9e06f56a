//! Deadlines do not depend on the system clock: it jumps by a day, forwards and backwards.
#![cfg(target_os = "linux")]

use std::io::Read as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::process::{Running, example, run, stderr, stdout};

/// Makes the program see the time of day that is in `file`.
fn with_fake_time<'a>(command: &'a mut Command, file: &Path) -> &'a mut Command {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    assert!(Path::new(&library).exists(), "no {library}: apt-get install libfaketime");
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", file)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
}

/// Returns by how many days the time of a program that starts now differs from the real time.
fn days_off(file: &Path) -> i64 {
    let output = run(with_fake_time(Command::new("date").arg("+%s"), file), "");
    let seen: i64 = stdout(&output).trim().parse().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // Rounds: the two were not read in the same second.
    (seen - i64::try_from(now).unwrap() + 43_200).div_euclid(86_400)
}

#[test]
#[ignore = "needs libfaketime"]
fn wall_clock_jump_does_not_move_deadlines() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("time");
    std::fs::write(&file, "+0").unwrap();
    let mut command = example("server");
    command.args(["--tutorial", "--listen", "127.0.0.1:0", "--timeout", "2", "--echo"]);
    let mut server = Running::start(with_fake_time(&mut command, &file));
    let addr = server.line().strip_prefix("listening on ").expect("the address was printed").to_owned();

    for (offset, days) in [("+1d", 1), ("-1d", -1)] {
        let begin = Instant::now();
        let mut silent = TcpStream::connect(&addr).unwrap();
        silent.read_exact(&mut [0; 32]).unwrap();
        std::fs::write(&file, offset).unwrap();
        assert_eq!(days_off(&file), days, "programs see the jump");
        // Meanwhile a legitimate client is accepted. The silent peer has exactly its two seconds.
        let output = run(example("client").args(["--tutorial", "--connect", &addr]), "hello\n");
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), "hello\n");
        silent.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
        let lived = begin.elapsed();
        assert!((Duration::from_millis(1_900)..Duration::from_secs(3)).contains(&lived), "{lived:?}");
    }
}
