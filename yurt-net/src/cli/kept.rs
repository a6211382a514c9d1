//! What an agent left on the disk: the objects that it knew, and with how it was told to run, the table that it had.
//! Asked where no agent answers.

use std::net::SocketAddr;

use super::verbs::interfaces;
use crate::config::{Place, Record};
use crate::explain::services::{Expected, Named, named};
use crate::host::disk::errand::once;
use crate::model::{Protocol, Snapshot, Touched};
use crate::pods::settings::Settings as _;
use crate::policy::{Memo, Memory, NodeView, PolicyConfig, Reasons, compile};
use crate::source::checkpoint::Saver;
use crate::source::preferred::Sources;
use crate::table::ServiceTable;

/// A checkpoint.
pub(super) struct Kept {
    pub(super) snapshot: Snapshot,
    /// `None`: it is not known how the agent was told to run.
    made: Option<Made>,
}

/// The table that the agent would make of it now.
struct Made {
    table: ServiceTable,
    config: PolicyConfig,
    view: NodeView,
}

impl Kept {
    /// Reads it; `None` if there is none.
    pub(super) async fn read(place: &Place) -> Option<Self> {
        let (directory, state_dir) = (place.checkpoint(), place.state_dir.clone());
        let read = once(move || {
            let loaded = Saver::open(directory).1.loaded;
            let record = Record::load(&state_dir).ok().flatten();
            (
                loaded,
                record.and_then(|record| record.config(&state_dir).ok()),
            )
        });
        let (loaded, config) = read.await?;
        let (snapshot, provenance) = loaded.map(|loaded| (loaded.snapshot.clone(), loaded))?;
        let Some(config) = config else {
            let made = None;
            return Some(Self { snapshot, made });
        };
        let sources = Sources::start(&[], config.scope.clone(), Some(provenance)).await;
        let mut config = config.policy;
        config.is_source_hub = sources.is_ok_and(|sources| sources.is_hub());
        let node = snapshot.nodes.get(&*config.node).map(|node| &**node);
        let view = interfaces().await.of(node);
        let (memory, mut memo) = (Memory::default(), Memo::default());
        compile(
            &snapshot,
            &Touched::Anything,
            &config,
            &view,
            &memory,
            &mut memo,
        );
        let table = memo.table().clone();
        let made = Some(Made {
            table,
            config,
            view,
        });
        Some(Self { snapshot, made })
    }

    /// See [`named`]; nothing without a table.
    pub(super) fn named(&self, frontends: &[(SocketAddr, Protocol)]) -> Vec<Option<Named>> {
        let made = self.made.as_ref();
        made.map_or_else(Vec::new, |made| named(&made.table, frontends))
    }

    /// See [`Expected`]; `None` without a table.
    pub(super) fn expected(&self, service: &str) -> Option<Expected> {
        let Made {
            table,
            config,
            view,
        } = self.made.as_ref()?;
        let reasons = Reasons::new(&self.snapshot, config, view, &Memory::default());
        Some(Expected::of(table, &reasons, service))
    }
}
