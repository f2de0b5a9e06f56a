//! Child processes: the examples, and peers in other languages.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Once, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Returns the command for an example, such as `server` or `example-axum`. Builds the examples if it is missing: `cargo
/// test` builds no programs of packages without tests.
pub fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    let built = || {
        let places = [profile.join("examples").join(&file), profile.join(&file)];
        places.into_iter().find(|path| path.exists())
    };
    let path = built().unwrap_or_else(|| {
        build_examples(profile);
        built().unwrap_or_else(|| panic!("no example is named {name}"))
    });
    let mut command = Command::new(path);
    command.env_remove("CHALLENGE_KEY");
    command
}

/// Builds all examples into the directory of this profile, once.
fn build_examples(profile: &Path) {
    static BUILT: Once = Once::new();

    BUILT.call_once(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--workspace", "--bins", "--examples", "--target-dir"]);
        build.arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the examples do not compile");
    });
}

/// Returns `command` with a limit on its file descriptors.
pub fn limited(command: &Command, descriptors: u32) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"")]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

/// Sets the soft limit of a process on file descriptors, on Linux.
pub fn set_descriptor_limit(process: u32, descriptors: usize) {
    let limit = format!("--nofile={descriptors}:");
    let status = Command::new("prlimit").args(["--pid", &process.to_string(), &limit]).status().unwrap();
    assert!(status.success());
}

pub fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("python").join(name)
}

/// Returns the command for the script on the Python package `noiseprotocol`. Checks that this is installed.
pub fn python_noise() -> Command {
    static CHECKED: Once = Once::new();

    CHECKED.call_once(|| {
        let mut check = Command::new(python_program());
        let status = check.args(["-c", "import noise.connection"]).status().unwrap();
        let advice = "make a virtual environment with noiseprotocol==0.3.1, and name its Python in PYTHON";
        assert!(status.success(), "{:?} cannot import noise.connection: {advice}", check.get_program());
    });
    python("noise_peer.py")
}

pub fn python(name: &str) -> Command {
    let mut command = Command::new(python_program());
    command.arg(script(name)).env("PYTHONUTF8", "1");
    command
}

fn python_program() -> OsString {
    std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into())
}

/// How long a test waits for a program before it fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A program that runs during a test and is killed at its end.
pub struct Running {
    child: Child,
    // A thread reads them, so that the program never blocks on a full pipe.
    lines: mpsc::Receiver<String>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("failed to start");
        let lines = lines(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Starts a program whose standard error is read instead. Its input and output are as `command` has them.
    pub fn start_stderr(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("failed to start");
        let lines = lines(child.stderr.take().unwrap());
        Self { child, lines }
    }

    /// Starts a program whose output is read up to the first line of the standard output that contains `part`, and no
    /// further. Returns the end of that line, and the two pipes.
    pub fn start_unread(command: &mut Command, part: &str) -> (Self, String, (ChildStdout, ChildStderr)) {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("failed to start");
        let (mut stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let mut line = String::new();
        let rest = loop {
            let mut byte = [0];
            stdout.read_exact(&mut byte).expect("the program prints a line");
            if byte == *b"\n" {
                if let Some((_, rest)) = line.split_once(part) {
                    break rest.to_owned();
                }
                line.clear();
            } else {
                line.push(char::from(byte[0]));
            }
        };
        (Self { child, lines: mpsc::channel().1 }, rest, (stdout, stderr))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns how many file descriptors the program has open, on Linux.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }

    /// Returns the lines of the output until the program closes it.
    pub fn rest(&mut self) -> Vec<String> {
        let deadline = Instant::now() + TIMEOUT;
        let next = || self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        std::iter::from_fn(|| match next() {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the program does not end"),
        })
        .collect()
    }

    /// Returns the next line of the output.
    pub fn line(&mut self) -> String {
        self.lines.recv_timeout(TIMEOUT).expect("the program prints a line")
    }

    /// Skips to the next line that contains `part`.
    pub fn line_with(&mut self, part: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Returns how much processor time the program has used, on Linux.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Fields 14 and 15, in ticks of 10 ms. Field 2, the name in parentheses, may contain anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
        Duration::from_millis(10 * (ticks(11) + ticks(12)))
    }

    pub fn interrupt(&self) {
        self.signal("-INT");
    }

    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    pub fn hang_up(&self) {
        self.signal("-HUP");
    }

    pub fn kill(&self) {
        self.signal("-KILL");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a pipe in a thread of its own.
fn lines(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    let pipe = BufReader::new(pipe);
    thread::spawn(move || pipe.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

/// Runs a program to its end with `input` as its standard input.
pub fn run(command: &mut Command, input: impl AsRef<[u8]>) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{:?} does not start: {error}", command.get_program()));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.as_ref().to_vec();
    // A program may end before it has read all of it.
    thread::spawn(move || stdin.write_all(&input).unwrap_or_default());
    let (stdout, stderr) = (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap()));
    let status = wait(&mut child);
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Runs an example that needs no arguments. It must succeed and print all of `parts`.
pub fn succeeds_and_says(name: &str, parts: &[&str]) {
    let output = run(&mut example(name), "");
    assert!(output.status.success(), "{}", stderr(&output));
    for part in parts {
        assert!(stdout(&output).contains(part), "no {part:?} in {}", stdout(&output));
    }
}

fn read(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

fn wait(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None if begin.elapsed() < TIMEOUT => thread::sleep(Duration::from_millis(5)),
            None => {
                let _ = child.kill();
                panic!("the program does not end");
            }
        }
    }
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}
