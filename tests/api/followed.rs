//! A source in front of a scripted apiserver, followed as the agent follows it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use yurt_net::model::Snapshot;
use yurt_net::source::SourceSpec;
use yurt_net::source::checkpoint::Loaded;
use yurt_net::source::kube::{Access, Scope};
use yurt_net::source::preferred::{SourceStatus, Sources};
use yurt_net::table::edition::Edition;
use yurt_net_tests::apiserver::{FakeApiserver, Resource};

pub(crate) const NODE: &str = "edge-a1";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Nothing that helps to reach an apiserver.
pub(crate) fn nothing() -> Access {
    Access {
        ca_file: None,
        service_account: "/nowhere".into(),
        in_cluster: None,
        kubeconfig: Some("/nowhere".into()),
    }
}

/// A source, and the runtime that drives it.
pub(crate) struct Followed {
    runtime: Runtime,
    sources: Sources,
}

impl Followed {
    /// Asks these sources, in this order.
    pub(crate) fn start(specs: &[String]) -> Result<Self> {
        Self::from(specs, None)
    }

    /// The same after a restart.
    pub(crate) fn from(specs: &[String], checkpoint: Option<Loaded>) -> Result<Self> {
        Self::with(None, specs, checkpoint)
    }

    /// The same with `--nodepool`.
    pub(crate) fn in_pool(pool: &str, specs: &[String], checkpoint: Loaded) -> Result<Self> {
        Self::with(Some(pool.to_owned()), specs, Some(checkpoint))
    }

    /// The same with what else an agent is given to reach apiservers with.
    pub(crate) fn reaching(access: Access, specs: &[String]) -> Result<Self> {
        Self::all(None, access, specs, None)
    }

    fn with(pool: Option<String>, specs: &[String], checkpoint: Option<Loaded>) -> Result<Self> {
        Self::all(pool, nothing(), specs, checkpoint)
    }

    fn all(
        pool: Option<String>,
        access: Access,
        specs: &[String],
        checkpoint: Option<Loaded>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let specs: Result<Vec<SourceSpec>, _> = specs.iter().map(|spec| spec.parse()).collect();
        let scope = Scope {
            node: NODE.to_owned(),
            pool,
            pool_label: yurt_net::policy::POOL_LABEL.to_owned(),
            with_pods: false,
            access,
        };
        let sources = runtime.block_on(Sources::start(&specs?, scope, checkpoint))?;
        Ok(Self { runtime, sources })
    }

    /// Follows until this holds of the snapshot in force.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Result<()> {
        let started = Instant::now();
        while !self.sources.snapshot().is_some_and(&holds) {
            ensure!(
                started.elapsed() < PATIENCE,
                "not in time: {what}; {:?}",
                self.status()
            );
            self.follow(Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// Follows until Services are watched: a client that nobody drives opens no watch.
    pub(crate) fn until_watched(&mut self, api: &FakeApiserver) -> Result<()> {
        self.until_status("Services are watched", |_| {
            api.http().open_watches(Resource::Services) == 1
        })
    }

    /// Follows until this holds of the status.
    pub(crate) fn until_status(
        &mut self,
        what: &str,
        holds: impl Fn(&SourceStatus) -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        while !holds(&self.status()) {
            ensure!(
                started.elapsed() < PATIENCE,
                "not in time: {what}; {:?}",
                self.status()
            );
            self.follow(Duration::from_millis(50))?;
        }
        Ok(())
    }

    /// Follows for a while, and fails if this ever does not hold of the snapshot in force.
    pub(crate) fn all_the_while(
        &mut self,
        time: Duration,
        what: &str,
        holds: impl Fn(&Snapshot) -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < time {
            self.follow(Duration::from_millis(20))?;
            let snapshot = self.sources.snapshot().context("there is no snapshot")?;
            if !holds(snapshot) {
                bail!("it did not hold: {what}; {:?}", self.status());
            }
        }
        Ok(())
    }

    /// Follows until something changes, no longer than this.
    pub(crate) fn follow(&mut self, time: Duration) -> Result<()> {
        let sources = &mut self.sources;
        self.runtime.block_on(async {
            let _elapsed = timeout(time, sources.changed()).await;
        });
        Ok(())
    }

    /// The sources themselves.
    pub(crate) fn sources(&mut self) -> &mut Sources {
        &mut self.sources
    }

    /// As the agent does once retention is on.
    pub(crate) fn follow_pods(&mut self) {
        let _inside = self.runtime.enter();
        self.sources.follow_pods();
    }

    /// EndpointSlices in force.
    pub(crate) fn slices(&self) -> usize {
        self.sources.snapshot().map_or(0, |s| s.slices.len())
    }

    pub(crate) fn status(&self) -> SourceStatus {
        self.sources.status(yurt_net::host::clock::unix_seconds())
    }

    /// What a checkpoint would hold now.
    pub(crate) fn checkpoint(&self) -> Result<Loaded> {
        let snapshot = self.sources.snapshot().context("there is no snapshot")?;
        let now = yurt_net::host::clock::unix_seconds();
        let provenance = self.sources.provenance(now, Edition::default());
        Ok(Loaded {
            snapshot: snapshot.clone(),
            provenance: provenance.context("no source that is worth a checkpoint is in charge")?,
        })
    }
}

/// Names of the Services.
pub(crate) fn services(snapshot: &Snapshot) -> Vec<&str> {
    let names = snapshot.services.keys();
    names.map(|name| &*name.name).collect()
}
