//! The services of a process: started, replaced at a reload, and stopped.

use std::io;
use std::process::ExitCode;

use metrics::counter;
use metrics_exporter_prometheus::PrometheusBuilder;
use sd_notify::NotifyState;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower_challenge::BoxError;
use tower_challenge::serve::Shutdown;
use tracing::{error, info, warn};

use crate::activation::Activated;
use crate::admin::{self, Health};
use crate::args::ProcessArgs;
use crate::capacity::share_of_open_files;
use crate::config::{Config, Service};
use crate::listener::{Bound, Retire};
use crate::mode::Mode;
use crate::service::{Lifetime, Prepared, prepare};
use crate::signals::{Request, Signals};
use crate::{names, systemd};

/// Runs the services until they are stopped.
pub(crate) async fn run(config: Config, activated: Activated) -> Result<ExitCode, BoxError> {
    let mut signals = Signals::new()?;
    let health = Health::default();
    // The recorder comes first: services keep handles of their metrics.
    let _admin = start_admin(&config.process, &activated, &health)?;
    let mut supervisor = Supervisor::new(activated);
    tokio::select! {
        started = supervisor.apply(&config) => started?,
        // A key file that is a pipe, or a file system that hangs.
        () = signals.stop() => {
            info!("stopped before the services were started");
            return Ok(ExitCode::SUCCESS);
        }
    }
    health.set(true);
    systemd::notify(&[NotifyState::Ready]);
    let _watchdog = AbortOnDropHandle::new(tokio::spawn(systemd::feed_watchdog()));
    loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::Reload => tokio::select! {
                    () = supervisor.reload(&config) => {}
                    () = signals.stop() => break,
                },
                Request::Stop => break,
            },
            Some(ended) = supervisor.tasks.join_next() => {
                if let (_, Err(error)) = ended? {
                    return Err(error.into());
                }
            }
        }
    }
    health.set(false);
    systemd::notify(&[NotifyState::Stopping]);
    supervisor.stop(&mut signals, &config.process).await
}

/// Starts the metrics and the health check, if they have an address.
fn start_admin(
    args: &ProcessArgs,
    activated: &Activated,
    health: &Health,
) -> Result<Option<AbortOnDropHandle<()>>, BoxError> {
    let Some(address) = &args.admin else { return Ok(None) };
    // Without buckets the exporter turns the histogram into a summary: quantiles of the last minute.
    let prometheus = PrometheusBuilder::new().install_recorder()?;
    names::describe();
    let bound = Bound::bind(address, Mode(0o600), activated);
    let bound = bound.map_err(|error| format!("--admin {address}: {error}"))?;
    let (listener, retire) = bound.listener()?;
    info!(address = bound.address(), "metrics and health check");
    let health = health.clone();
    Ok(Some(AbortOnDropHandle::new(tokio::spawn(async move {
        admin::run(listener, prometheus, health).await;
        drop((bound, retire));
    }))))
}

/// One generation of a service.
struct Generation {
    service: Service,
    bound: Bound,
    retire: Retire,
    retired: CancellationToken,
}

impl Generation {
    /// Leaves new connections to the next generation.
    fn retire(&self) {
        self.retire.close();
        self.retired.cancel();
    }
}

struct Supervisor {
    activated: Activated,
    current: Vec<Generation>,
    tasks: JoinSet<(String, io::Result<Shutdown>)>,
    stopping: CancellationToken,
    forced: CancellationToken,
}

impl Supervisor {
    fn new(activated: Activated) -> Self {
        Self {
            activated,
            current: Vec::new(),
            tasks: JoinSet::new(),
            stopping: CancellationToken::new(),
            forced: CancellationToken::new(),
        }
    }

    /// Starts the services that are new or have changed, and retires those that are gone. Nothing changes after an error,
    /// or if the future is dropped.
    async fn apply(&mut self, config: &Config) -> Result<(), BoxError> {
        let share = share_of_open_files(config.services.len())?;
        let mut prepared: Vec<(Service, Bound, Prepared)> = Vec::new();
        for service in &config.services {
            if self.current.iter().any(|generation| generation.service == *service) {
                continue;
            }
            let named = |error: BoxError| match &config.file {
                Some(_) => format!("service \"{}\": {error}", service.name()).into(),
                None => error,
            };
            let run = prepare(service, share).await.map_err(named)?;
            let staying = |generation: &&Generation| config.services.contains(&generation.service);
            let taken = |bound: &Bound| {
                self.current.iter().filter(staying).any(|generation| generation.bound.is(bound))
                    || prepared.iter().any(|(_, other, _)| other.is(bound))
            };
            let bound = self.bind(service, &taken).map_err(named)?;
            prepared.push((service.clone(), bound, run));
        }
        self.current.retain(|generation| {
            let stays = config.services.contains(&generation.service);
            if !stays {
                generation.retire();
            }
            stays
        });
        for (service, bound, run) in prepared {
            bound.set_mode(service.common().listen_mode)?;
            self.start(service, bound, run)?;
        }
        Ok(())
    }

    /// Binds the address of a service, unless it is bound already.
    fn bind(&self, service: &Service, is_taken: &dyn Fn(&Bound) -> bool) -> Result<Bound, BoxError> {
        let args = service.common();
        let is_bound = |generation: &&Generation| {
            generation.service.common().listen == args.listen && !is_taken(&generation.bound)
        };
        let bound = match self.current.iter().find(is_bound) {
            Some(generation) => Ok(generation.bound.clone()),
            None => Bound::bind(&args.listen, args.listen_mode, &self.activated),
        };
        bound.map_err(|error| format!("--listen {}: {error}", args.listen).into())
    }

    fn start(&mut self, service: Service, bound: Bound, run: Prepared) -> io::Result<()> {
        let retired = CancellationToken::new();
        let (stopping, forced) = (self.stopping.clone(), self.forced.clone());
        let lifetime = Lifetime { retired: retired.clone(), stopping, forced };
        let (listener, retire) = bound.listener()?;
        let running = run(listener, lifetime);
        let name = service.name().to_owned();
        info!(service = name, address = bound.address(), "listening");
        self.tasks.spawn(async move { (name, running.await) });
        self.current.push(Generation { service, bound, retire, retired });
        Ok(())
    }

    async fn reload(&mut self, config: &Config) {
        let Some(file) = &config.file else {
            warn!("there is no configuration file to read again; keys are read whenever they change");
            return;
        };
        systemd::reloading();
        let path = file.clone();
        // A file system that hangs blocks the thread.
        let read = spawn_blocking(move || Config::read(&path).map_err(|error| error.to_string())).await;
        let applied = match read.map_err(|error| error.to_string()).and_then(|read| read) {
            Ok(new) => {
                if new.process != config.process {
                    warn!(
                        "the settings of the process (log, admin, shutdown-timeout) change at its next start only"
                    );
                }
                self.apply(&new).await
            }
            Err(error) => Err(error.into()),
        };
        let label = if applied.is_ok() { "ok" } else { "error" };
        counter!(names::RELOADS, "what" => "config", "outcome" => label).increment(1);
        match applied {
            Ok(()) => info!(services = self.current.len(), "configuration read"),
            Err(error) => error!(%error, "configuration unchanged"),
        }
        systemd::notify(&[NotifyState::Ready]);
    }

    /// Waits for the sessions to end, until the deadline or the second signal.
    async fn stop(mut self, signals: &mut Signals, args: &ProcessArgs) -> Result<ExitCode, BoxError> {
        // Closes the listeners.
        self.current.drain(..).for_each(|generation| generation.retire.close());
        info!("stopping");
        self.stopping.cancel();
        let mut total = Shutdown::default();
        let mut code = ExitCode::SUCCESS;
        let deadline = sleep(args.shutdown_timeout.0);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                ended = self.tasks.join_next() => match ended {
                    Some(ended) => {
                        let (_, shutdown) = ended?;
                        let shutdown = shutdown?;
                        total.completed += shutdown.completed;
                        total.failed += shutdown.failed;
                        total.aborted += shutdown.aborted;
                    }
                    None => break,
                },
                () = signals.stop() => {
                    code = ExitCode::FAILURE;
                    self.forced.cancel();
                }
                () = &mut deadline, if !self.forced.is_cancelled() => self.forced.cancel(),
            }
        }
        info!(completed = total.completed, failed = total.failed, aborted = total.aborted, "stopped");
        Ok(code)
    }
}
