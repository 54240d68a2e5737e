//! `mesh run`: the daemon. Parses, binds, runs, drains; the work is in `control` and `api`.

use std::{future::Future, io, time::Duration};

use mesh_config::Config;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{
    args::{Global, LogFormat, Run},
    exit::{CliError, chain},
    output, settings,
};
use crate::{
    api::{ApiOptions, Server},
    control::{self, RunError, Running},
    data::DataLimits,
    net,
};

/// Time for the API's last requests and the core to end, beyond which the process ends anyway.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Time for a network interface to appear.
const INTERFACES_WAIT: Duration = Duration::from_secs(5);

pub(super) fn run(global: &Global, args: &Run) -> Result<(), CliError> {
    let config = settings::load(global)?;
    log_to_stderr(args.log_format);
    // No more than the device may use at a time: on a part of a core, a second thread only adds hand-overs.
    let cores = mesh_inference::profile::cores().ceil().clamp(1.0, 64.0) as usize;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        .enable_all()
        .build()
        .map_err(|error| CliError::because("the daemon's threads could not be started", &error))?;
    let result = runtime.block_on(daemon(config));
    runtime.shutdown_timeout(STOP_LIMIT);
    result
}

/// What is logged without `RUST_LOG`: libraries only when something is wrong.
const LOG_FILTER: &str = "info,ort=warn,libp2p_swarm=warn";

/// Logs go to stderr, filtered by `RUST_LOG`.
fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(output::error_colours()).init(),
    }
}

async fn daemon(config: Config) -> Result<(), CliError> {
    let limits = DataLimits::for_memory(control::budget::of(&config));
    let options = ApiOptions {
        token: config.api.token.as_ref().map(|token| token.expose().to_owned()),
        grpc_listen: config.api.grpc_listen,
        ..ApiOptions::for_held(limits.held_bytes_max)
    };
    // Ports first: a second daemon on this device must fail before it touches the first one's data.
    let server = Server::bind(&config.api.listen.to_string(), options)
        .await
        .map_err(|error| CliError::failed(chain(&error)))?;
    let stop = stop_signal().map_err(|error| CliError::because("signals cannot be received", &error))?;
    let mut core = start_core(config).await?;
    let (api, grpc) = (server.address(), server.grpc_address().map(tracing::field::display));
    tracing::info!(%api, grpc, peers = %core.listen, "ready");
    notify(NotifyState::Ready);
    let watchdog = tokio::spawn(feed_watchdog());
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let mut serving = tokio::spawn(server.serve(core.app.clone(), async {
        let _ = end.await;
    }));
    let result = tokio::select! {
        () = stop => Ok(()),
        error = core.failure() => {
            // Now: to end takes a while, and systemd starts it again after that.
            tracing::error!(error = %chain(&error), "the daemon cannot go on");
            Err(CliError::because("the daemon cannot go on", &error))
        }
        _ = &mut serving => {
            tracing::error!("the HTTP server has ended by itself");
            Err(CliError::failed("the HTTP server has ended by itself: see the log"))
        }
    };
    notify(NotifyState::Stopping);
    tracing::info!("ending");
    watchdog.abort();
    drop(ended);
    // Open requests have a few seconds; the core stays until they are through.
    if !serving.is_finished() {
        let _ = serving.await;
    }
    core.shutdown().await;
    result
}

/// Ends at SIGTERM (systemd, `kill`) or SIGINT (Ctrl-C).
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Tells systemd, where it listens; elsewhere there is nobody to tell.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

/// As long as the runtime runs tasks, systemd hears so.
async fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(limit / 3);
    loop {
        ticks.tick().await;
        notify(NotifyState::Watchdog);
    }
}

/// Starts the core. A port that is taken, a damaged store, a missing ONNX Runtime are told here.
async fn start_core(config: Config) -> Result<Running, CliError> {
    wait_for_interfaces(&config.network.interfaces).await;
    control::start(config).await.map_err(|error| refused(&error))
}

/// At boot an adapter may come up after this program.
async fn wait_for_interfaces(names: &[String]) {
    let start = std::time::Instant::now();
    let mut is_told = false;
    loop {
        let missing = net::missing_interfaces(names);
        if missing.is_empty() || start.elapsed() > INTERFACES_WAIT {
            return;
        }
        if !is_told {
            tracing::info!(?missing, "waiting for network interfaces that network.interfaces names");
            is_told = true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What the config asks for and this device does not have is its defect, with the exit code at which systemd does not
/// try again.
fn refused(error: &RunError) -> CliError {
    let text = format!("the daemon cannot start: {}", chain(error));
    if error.is_of_config() { CliError::config(text) } else { CliError::failed(text) }
}

#[cfg(test)]
mod tests {
    use mesh_inference::runtime::EngineError;

    use super::{RunError, refused};
    use crate::net::NetStartError;

    #[test]
    fn what_the_config_asks_in_vain_is_78() {
        let (name, path) = (|| "eth7".to_owned(), || "/lib/ort.so".into());
        let provider =
            EngineError::Provider { name: "cuda".into(), reason: "no".into(), available: vec!["cpu".into()] };
        let taken = NetStartError::PortTaken { address: "127.0.0.1:1".parse().unwrap() };
        for (error, code, says) in [
            (provider.into(), 78, "\"cuda\" is not available"),
            (EngineError::Unusable { path: path(), reason: "no".into() }.into(), 78, "/lib/ort.so"),
            (NetStartError::UnknownInterface { name: name() }.into(), 78, "no network interface eth7"),
            // These may pass.
            (EngineError::NotFound { tried: Vec::new() }.into(), 1, "no usable ONNX Runtime"),
            (NetStartError::Interface { name: name() }.into(), 1, "eth7"),
            (taken.into(), 1, "127.0.0.1:1"),
        ] {
            let error: RunError = error;
            let refused = refused(&error);
            assert_eq!(refused.code(), code, "{}", refused.message());
            assert!(refused.message().contains(says), "{}", refused.message());
        }
    }
}
