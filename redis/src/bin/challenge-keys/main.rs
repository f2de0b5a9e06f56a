//! `challenge-keys`: manages the keys of a fleet in Redis.

mod args;
mod output;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use serde_json::json;
use tokio::runtime::Runtime;
use tower_challenge::{BoxError, Key, KeyFile, KeyId};
use tower_challenge_redis::{Error, Form, Store, StoreSecret};
use zeroize::Zeroizing;

use self::args::{Cli, Command};
use self::output::{Output, note};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    let ended =
        Runtime::new().map_err(BoxError::from).and_then(|runtime| runtime.block_on(run(&cli, output)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The reader may be gone.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli, output: Output) -> Result<(), BoxError> {
    let path = &cli.key_encryption_key_file;
    let secret = match &cli.command {
        Command::Init { .. } => init_secret(path)?,
        _ => StoreSecret::read(path)?,
    };
    let store = Store::new(&cli.redis, secret)?.prefix(&cli.prefix);
    match &cli.command {
        Command::Init { derived } => {
            store.init(if *derived { Form::Derived } else { Form::Sealed }).await?;
            output.done("the store was initialized", &json!({"initialized": true}));
        }
        Command::Add { id } => {
            let id = key_id(id)?;
            let key = store.add(&id).await?;
            print_key(output, &id, &key)?;
            note(&format!("\"{id}\" was added"));
        }
        Command::Rotate { id, overlap } => {
            let id = key_id(id)?;
            let key = store.rotate(&id, overlap.0).await?;
            print_key(output, &id, &key)?;
            note(&format!("\"{id}\" has a new key; its other keys end in {} s", overlap.0.as_secs()));
        }
        Command::Revoke { id } => {
            let id = key_id(id)?;
            store.revoke(&id).await?;
            output.done(&format!("\"{id}\" was revoked"), &json!({"revoked": id.to_string()}));
        }
        Command::List => {
            let mut unreadable = 0;
            for listed in store.list().await? {
                let mut line = format!("{}\t{} valid", listed.id, listed.valid);
                if listed.revoked {
                    line += "\trevoked";
                }
                if listed.is_unreadable {
                    line += "\tunreadable";
                    unreadable += 1;
                }
                let value = json!({
                    "id": listed.id.to_string(), "valid": listed.valid, "revoked": listed.revoked,
                    "next_end": listed.next_end, "unreadable": listed.is_unreadable,
                });
                output.row(&line, &value)?;
            }
            if unreadable > 0 {
                return Err(
                    format!("{unreadable} ids have values that cannot be opened with this secret").into()
                );
            }
        }
        Command::Export { file } => {
            let entries = store.export().await?;
            let mut text = Zeroizing::new(String::new());
            for entry in &entries {
                for part in [&entry.id().to_string(), ":", &entry.key().to_hex(), "\n"] {
                    text.push_str(part);
                }
            }
            write_new(file, text.as_bytes())?;
            let said = format!("{} keys were written to {}", entries.len(), file.display());
            output.done(&said, &json!({"keys": entries.len()}));
        }
        Command::Import { file } => {
            let entries = KeyFile::new(file).read()?;
            let ids = store.import(&entries).await?;
            output.done(&format!("the keys of {ids} ids were set"), &json!({"ids": ids}));
        }
        Command::Status => {
            for server in store.status().await? {
                let current = if server.is_current { "current" } else { "behind" };
                let (age, staleness) = (seconds(server.age), seconds(server.staleness));
                let line = format!(
                    "{}\t{current}\t{} ids\t{} revoked\tstale {staleness} s\tsaid {age} s ago",
                    server.name, server.ids, server.revoked
                );
                let value = json!({
                    "name": server.name, "current": server.is_current, "ids": server.ids,
                    "revoked": server.revoked, "staleness": server.staleness.as_secs_f64(),
                    "age": server.age.as_secs_f64(),
                });
                output.row(&line, &value)?;
            }
        }
    }
    Ok(())
}

/// Reads the secret, or makes it.
fn init_secret(path: &Path) -> Result<StoreSecret, Error> {
    if path.exists() {
        return StoreSecret::read(path);
    }
    let secret = StoreSecret::create(path)?;
    note(&format!("{} was made; keep a copy: without it the keys in the store are lost", path.display()));
    Ok(secret)
}

fn key_id(text: &str) -> Result<KeyId, BoxError> {
    KeyId::from_text(text).map_err(|error| format!("the id: {error}").into())
}

/// Prints the line for a key file, and nothing else.
fn print_key(output: Output, id: &KeyId, key: &Key) -> Result<(), String> {
    let digits = key.to_hex();
    let line = Zeroizing::new(if output.is_json() {
        json!({"id": id.to_string(), "key": *digits}).to_string()
    } else {
        format!("{id}:{}", *digits)
    });
    let mut out = io::stdout().lock();
    let printed =
        out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    printed.map_err(|error| {
        format!("the new key of \"{id}\" is valid, but was not printed ({error}): rotate or revoke it")
    })
}

/// Writes a file of mode 0600 that does not exist yet.
fn write_new(path: &Path, content: &[u8]) -> Result<(), String> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written =
        options.open(path).and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

fn seconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64())
}
