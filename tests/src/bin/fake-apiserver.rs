//! An apiserver that serves a directory of manifests: for a network namespace of the lab, or to try an agent by hand.

use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use anyhow::Result;
use clap::Parser;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::time::interval;
use yurt_net_tests::apiserver::Directory;
use yurt_net_tests::apiserver::FakeApiserver;
use yurt_net_tests::apiserver::Settings;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Serves the Kubernetes objects of a directory: get, list and watch over plain HTTP.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// YAML and JSON files, read again when one changes. One that cannot be read changes nothing.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Seconds between two bookmarks.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    bookmark_every: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("make a runtime")?;
    runtime.block_on(serve(arguments))
}

#[expect(clippy::disallowed_methods, reason = "versions that only grow")]
fn micros_since_1970() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_micros())?)
}

async fn serve(arguments: Arguments) -> Result<()> {
    // Before any client can know of it.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut directory = Directory::new(arguments.manifests);
    let objects = directory.load_if_changed()?.unwrap_or_default();
    let settings = Settings {
        // If it is started again, even within the same second, its versions go on after all earlier ones: clients of an
        // earlier one get 410.
        first_version: Some(micros_since_1970()?),
        bookmark_every: Duration::from_secs(arguments.bookmark_every),
        ..Settings::default()
    };
    let api = FakeApiserver::listen(arguments.listen, settings, objects)?;
    writeln!(io::stdout(), "{}", api.http().url())?;
    let mut ticks = interval(LOOK_EVERY);
    let mut complaint = String::new();
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let replaced = match directory.load_if_changed() {
            Ok(None) => continue,
            Ok(Some(objects)) => api.replace_all(objects),
            // The file may be half written: it is read again until it is complete.
            Err(error) => Err(error),
        };
        let new = replaced.map_or_else(|error| format!("{error:#}"), |()| String::new());
        if new != complaint && !new.is_empty() {
            eprintln!("{new}");
        }
        complaint = new;
    }
}
