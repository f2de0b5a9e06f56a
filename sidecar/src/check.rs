//! Checks a configuration without running it.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use tokio::net::lookup_host;
use tower_challenge::BoxError;

use crate::address::{Address, ListenAddress};
use crate::capacity::share_of_open_files;
use crate::config::{Config, Service};
use crate::service::prepare;

/// Prints what is wrong, or what was checked.
pub(crate) async fn run(config: &Config) -> Result<ExitCode, BoxError> {
    let Config { services, process, .. } = config;
    let share = share_of_open_files(services.len())?;
    let mut problems = Problems(0);
    if let Some(admin) = &process.admin {
        problems.check(&format!("--admin {admin}"), check_listen(admin).await);
    }
    for service in services {
        let name = service.name();
        // Reads the keys and checks the audience and the limits.
        problems.check(name, prepare(service, share).await.map(drop));
        let args = service.common();
        problems.check(&format!("{name}: --listen {}", args.listen), check_listen(&args.listen).await);
        for target in &args.target {
            problems.check(&format!("{name}: --target {target}"), check_address(&target.0).await);
        }
    }
    if problems.0 > 0 {
        return Ok(ExitCode::FAILURE);
    }
    let names: Vec<_> = services.iter().map(Service::name).collect();
    // The reader may be gone.
    let _ = writeln!(io::stdout(), "ok: {}", names.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// The number of problems that were printed.
struct Problems(usize);

impl Problems {
    fn check<E: Display>(&mut self, what: &str, outcome: Result<(), E>) {
        if let Err(error) = outcome {
            self.0 += 1;
            let _ = writeln!(io::stderr(), "error: {what}: {error}");
        }
    }
}

async fn check_listen(address: &ListenAddress) -> Result<(), String> {
    match address {
        ListenAddress::Bind(address @ (Address::Tcp(_) | Address::Abstract(_))) => {
            check_address(address).await
        }
        ListenAddress::Bind(Address::Unix(path)) => match path.parent() {
            Some(directory) if directory.is_dir() => Ok(()),
            _ => Err("the directory does not exist".to_owned()),
        },
        // Known only when systemd starts the process.
        ListenAddress::Systemd(_) => Ok(()),
    }
}

/// Resolves a name. Nothing is connected: the target may be started later.
async fn check_address(address: &Address) -> Result<(), String> {
    let Address::Tcp(host_port) = address else { return Ok(()) };
    let mut found = lookup_host(host_port).await.map_err(|error| error.to_string())?;
    found.next().map(drop).ok_or_else(|| "the name has no address".to_owned())
}
