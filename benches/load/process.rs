//! Child processes, which run this program again and are controlled by lines of text.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(args: &[String]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("the path of this program"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the process starts");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line of output");
        line.trim_end().to_owned()
    }

    /// Sends a command and returns the line that the process prints.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("the process reads its input");
        self.line()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the number of this name in a line of `name=value` fields.
pub(crate) fn number(line: &str, name: &str) -> f64 {
    line.split_whitespace()
        .find_map(|field| field.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

/// Returns the processor time of a process, in seconds.
pub(crate) fn cpu_seconds(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("the process runs");
    // The name may contain any character, so the fields are counted from its end. The times are fields 14 and 15 of the
    // line, in ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    (ticks(11) + ticks(12)) / 100.0
}

/// The processor of the unauthenticated peers.
pub(crate) const FIRST: &str = "0";

/// The processors of the server and the legitimate client. May include processors that do not exist.
pub(crate) const OTHERS: &str = "1-63";

/// Restricts this process, and the processes that it starts, to these processors.
pub(crate) fn pin(processors: &str) {
    let pinned = Command::new("taskset")
        .args(["-cp", processors, &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !pinned {
        eprintln!("not pinned to processor {processors}: unauthenticated peers slow the server down");
    }
}
