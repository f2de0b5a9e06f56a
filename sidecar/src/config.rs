//! The configuration of a process, from the command line or from a file.
//!
//! The file is read into the same flags: each key of a table is the flag of that name. So both have the same names,
//! defaults, checks and errors.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, Args};
use toml::{Table, Value};
use tower_challenge::BoxError;

use crate::args::{ClientArgs, CommonArgs, ProcessArgs, ServerArgs};

/// The settings of a process and its services.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) process: ProcessArgs,
    pub(crate) services: Vec<Service>,
    /// The file, which can be read again.
    pub(crate) file: Option<PathBuf>,
}

/// One service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Service {
    Server(ServerArgs),
    Client(ClientArgs),
}

impl Service {
    pub(crate) const fn common(&self) -> &CommonArgs {
        match self {
            Self::Server(args) => &args.common,
            Self::Client(args) => &args.common,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.common().name()
    }
}

impl Config {
    pub(crate) fn one(process: ProcessArgs, service: Service) -> Self {
        Self { process, services: vec![service], file: None }
    }

    /// Reads a configuration file.
    pub(crate) fn read(path: &Path) -> Result<Self, BoxError> {
        let in_file = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| in_file(&error))?;
        let (process, services) = parse(&text).map_err(|error| in_file(&error))?;
        Ok(Self { process, services, file: Some(path.to_owned()) })
    }
}

fn parse(text: &str) -> Result<(ProcessArgs, Vec<Service>), String> {
    // Without the line itself, which the error quotes: it may have a password.
    let mut table: Table = toml::from_str(text).map_err(|error| {
        let line =
            error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })?;
    let mut services = Vec::new();
    for (place, args) in tables(&mut table, "server")? {
        services.push(Service::Server(from_table(&place, args)?));
    }
    for (place, args) in tables(&mut table, "client")? {
        services.push(Service::Client(from_table(&place, args)?));
    }
    let process = from_table("the process", table)?;
    if services.is_empty() {
        return Err("there is no service: add a [[server]] or a [[client]]".to_owned());
    }
    for (at, service) in services.iter().enumerate() {
        let is_same = |other: &Service| other.name() == service.name();
        if services[..at].iter().any(is_same) {
            let name = service.name();
            return Err(format!(
                "two services are named \"{name}\" (by default by the audience): set their `name`"
            ));
        }
    }
    for (at, service) in services.iter().enumerate() {
        let listen = &service.common().listen;
        if !listen.is_any_port() && services[..at].iter().any(|other| other.common().listen == *listen) {
            return Err(format!("\"{}\": --listen {listen} is that of another service", service.name()));
        }
    }
    let state_file = |service: &Service| match service {
        Service::Server(args) => args.state_file.clone(),
        Service::Client(_) => None,
    };
    let mut state_files: Vec<_> = services.iter().filter_map(state_file).collect();
    state_files.sort_unstable();
    if let Some(pair) = state_files.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two services have the --state-file {}", pair[0].display()));
    }
    Ok((process, services))
}

/// Removes an array of tables. Returns each with its place for errors.
fn tables(table: &mut Table, name: &str) -> Result<Vec<(String, Table)>, String> {
    let values = match table.remove(name) {
        None => Vec::new(),
        Some(Value::Array(values)) => values,
        Some(_) => return Err(format!("`{name}` must be an array of tables: [[{name}]]")),
    };
    let tables = values.into_iter().enumerate().map(|(at, value)| match value {
        Value::Table(table) => {
            let label = ["name", "audience"].iter().find_map(|key| table.get(*key)?.as_str());
            let label = label.map_or_else(|| format!("number {}", at + 1), |label| format!("{label:?}"));
            Ok((format!("[[{name}]] {label}"), table))
        }
        _ => Err(format!("`{name}` must be an array of tables: [[{name}]]")),
    });
    tables.collect()
}

/// Parses a table as if it were flags.
fn from_table<A: Args>(place: &str, table: Table) -> Result<A, String> {
    let command = clap::Command::new("config").no_binary_name(true).disable_help_flag(true);
    let command = A::augment_args(command);
    let mut flags = Vec::new();
    for (key, value) in table {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(&*key));
        let pushed = arg.ok_or("there is no such setting").and_then(|arg| push_flag(&mut flags, arg, value));
        pushed.map_err(|error| format!("{place}: `{key}`: {error}"))?;
    }
    let matches = command.try_get_matches_from(flags);
    matches.and_then(|matches| A::from_arg_matches(&matches)).map_err(|error| {
        // The first paragraph has the problem, the others are about the command line.
        let text = error.to_string();
        let problem = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{place}: {problem}")
    })
}

fn push_flag(flags: &mut Vec<OsString>, arg: &Arg, value: Value) -> Result<(), &'static str> {
    let flag = arg.get_long().unwrap_or_else(|| unreachable!("all settings are flags"));
    let takes_value = arg.get_action().takes_values();
    let text = match value {
        Value::Boolean(is_on) if !takes_value => {
            flags.extend(is_on.then(|| format!("--{flag}").into()));
            return Ok(());
        }
        _ if !takes_value => return Err("a boolean was expected"),
        Value::Array(values) => {
            return values.into_iter().try_for_each(|value| match value {
                Value::Array(_) => Err("an array of strings was expected"),
                value => push_flag(flags, arg, value),
            });
        }
        Value::String(text) => text,
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(_) | Value::Datetime(_) | Value::Table(_) => {
            return Err("a string or a number was expected");
        }
    };
    flags.push(format!("--{flag}={text}").into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDIS: &str = r#"
        [[server]]
        listen = "0.0.0.0:9000"
        target = ["127.0.0.1:6379", "/run/redis.sock"]
        key-file = "keys"
        audience = "redis"
        penalties = true
        allow-group-read = false
        idle-timeout = 1.5
        max-sessions = 10
    "#;

    #[test]
    fn keys_are_flags() {
        let (process, services) = parse(&format!("shutdown-timeout = 5\n{REDIS}")).unwrap();
        assert_eq!(process.shutdown_timeout.to_string(), "5");
        let [Service::Server(server)] = &services[..] else { panic!("{services:?}") };
        assert_eq!(server.common.name(), "redis");
        assert_eq!(server.common.target.len(), 2);
        assert_eq!(server.common.idle_timeout.to_string(), "1.5");
        assert!(server.penalties && !server.allow_group_read);
    }

    #[test]
    fn errors_name_the_service_and_the_key() {
        for (text, parts) in [
            ("", &["there is no service"][..]),
            ("listen = 1", &["the process", "`listen`"]),
            ("server = 1", &["[[server]]"]),
            ("[[server]]\naudience = \"a\"", &["[[server]] \"a\"", "--listen"]),
            (
                "[[server]]\nlisten = \"host\"",
                &["[[server]] number 1", "'host'", "--listen", "the port is missing"],
            ),
            ("[[server]]\nlisten = {}", &["[[server]] number 1", "`listen`"]),
            ("[[client]]\npenalties = true", &["[[client]] number 1", "`penalties`", "no such setting"]),
            ("[[server]]\npenalties = 1", &["`penalties`", "a boolean was expected"]),
            ("[[server]]\nkeepalive = false", &["`keepalive`", "a string or a number was expected"]),
            ("[[server]]\nnope = []", &["`nope`", "no such setting"]),
            ("[[server]]\nkeys = \"redis://u:secret@h", &["line 2"]),
            (&format!("{REDIS}{REDIS}"), &["two services are named \"redis\""]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                parts.iter().all(|part| error.contains(part)) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
    }
}
