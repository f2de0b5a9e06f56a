//! Somebody sets the clock, by a day, forwards and back: deadlines stay where they were.
#![cfg(all(feature = "net", target_os = "linux"))]

#[path = "support/process.rs"]
mod process;

use std::io::Read as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use process::{Running, example, run, stderr, stdout};

/// Has the program see the time of day that `file` says.
fn faked<'a>(command: &'a mut Command, file: &Path) -> &'a mut Command {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    assert!(Path::new(&library).exists(), "no {library}: apt-get install libfaketime");
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", file)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
}

/// How far a program started now is from the time of day, in days.
fn days_off(file: &Path) -> i64 {
    let output = run(faked(Command::new("date").arg("+%s"), file), "");
    let seen: i64 = stdout(&output).trim().parse().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // The two have not been read in the same second.
    (seen - i64::try_from(now).unwrap() + 43_200).div_euclid(86_400)
}

#[test]
#[ignore = "needs libfaketime"]
fn a_jump_of_the_wall_clock_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("time");
    std::fs::write(&file, "+0").unwrap();
    let mut command = example("server");
    command.args(["--listen", "127.0.0.1:0", "--timeout", "2", "--echo"]);
    let mut server = Running::start(faked(&mut command, &file));
    let addr = server.line().strip_prefix("listening on ").expect("it says where").to_owned();

    for (offset, days) in [("+1d", 1), ("-1d", -1)] {
        let begin = Instant::now();
        let mut silent = TcpStream::connect(&addr).unwrap();
        silent.read_exact(&mut [0; 32]).unwrap();
        std::fs::write(&file, offset).unwrap();
        assert_eq!(days_off(&file), days, "the jump is seen");
        // A friend gets in meanwhile, and the silent one has its two seconds and no more.
        let output = run(example("client").args(["--connect", &addr]), "hello\n");
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output), "hello\n");
        silent.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
        let lived = begin.elapsed();
        assert!((Duration::from_millis(1_900)..Duration::from_secs(3)).contains(&lived), "{lived:?}");
    }
}
