//! Which steps follow from which fact: one table. Pure.
//!
//! The loop waits for a fact and takes the steps that follow from it, each once, in their order. It also takes the
//! steps of the facts that a step brings to light. Nothing else decides what is done when.

use std::collections::BTreeSet;

/// Something that has become known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fact {
    /// The agent has started.
    Started,
    /// It is time to serve for the first time.
    BootDue,
    /// It is time to compare the kernel with its intended state.
    DriftDue,
    /// It is time to repeat a write that has failed.
    RetryDue,
    /// It is time to judge again what Pods were granted beyond their own addresses, because a source has changed.
    GrantsDue,
    /// The snapshot in force has changed, or whether it is fresh.
    SourcesSpoke,
    /// The Pods of this node have changed, by the snapshot in force.
    OwnPodsChanged,
    /// The ledger was written, or a device, a default route or a filter on a device has changed.
    PodsStirred,
    /// The entries of the ledger have changed.
    LedgerChanged,
    /// The guard did nothing, because the ledger has changed since its order.
    GuardOutdated,
    /// The guard has carried out its order.
    GuardDone,
    /// Translation has carried out its order.
    TranslationDone,
    /// The places of this node's Pods have changed, or the source decides them again.
    WhereaboutsChanged,
    /// The first table is in force, and packets are to be served by it.
    PacketsDue,
    /// The packet path was brought in step.
    PacketsDone,
    /// A Pod no longer answers, or answers again.
    ProbeEnded,
    /// The backends that are left out because they do not answer have changed.
    FailingChanged,
    /// An address, a link or a route of this node has changed.
    NetworkStirred,
    /// This node's addresses have changed.
    AddressesChanged,
    /// The known addresses of the apiservers have changed.
    ServersChanged,
    /// The clients of this node have been looked for.
    ClientsFound,
    /// It is time to look for the peers of this node again.
    PeersDue,
    /// A scan of the sockets has found some, or has ended.
    SocketsFound,
    /// The disk has delivered a checkpoint that was unknown at the start, or a save is due or has ended.
    CheckpointStirred,
    /// A question about the agent has arrived.
    Asked,
    /// The configuration file has changed.
    ConfigurationWritten,
    /// Other settings for the table than before are in force.
    PolicyChanged,
}

/// Something to do. Steps are taken in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Serve for the first time, or keep what an earlier agent left in force.
    Boot,
    /// Take up what the configuration file says.
    TakeConfiguration,
    /// Ask the servers again that the network kept from answering.
    AskAgain,
    /// Claim what has taken the place of something that this agent had claimed.
    Claim,
    /// Take the addresses of the apiservers.
    TakeServers,
    /// Read this node's addresses.
    ReadAddresses,
    /// Begin or end a save, or take up what the disk holds.
    TendCheckpoint,
    /// Mend the kernel's maps and programs.
    Repair,
    /// See whether the checkpoint is still the one that was saved.
    LookAtCheckpoint,
    /// Leave the flags for `load`.
    Record,
    /// Compare the Pods of the snapshot with those that are known.
    ReadOwnPods,
    /// Tell the keeper of this node's devices what the cloud says of this node.
    TellDevices,
    /// Tell the mender of tunnel entries who the peers are.
    TellPeers,
    /// Read the ledger and the devices.
    ReadLedger,
    /// Have the Pods of this node listed anew.
    RefreshPods,
    /// Note that Services may claim what Pods were granted.
    DoubtGrants,
    /// Have the guard brought in step.
    Guard,
    /// Have translation brought in step.
    Translate,
    /// Have the packet path brought in step.
    ServePackets,
    /// Have the addresses of deleted Pods released.
    Release,
    /// Decide where this node's Pods are.
    Locate,
    /// Tell the prober which Pods to ask.
    Probe,
    /// Take which backends do not answer.
    TakeFailing,
    /// Tell the search for clients what is known of this node.
    TellClients,
    /// Write the clients that were found.
    WriteClients,
    /// Compile what the sources say, and write the difference.
    Sync,
    /// Judge the result of a scan.
    Judge,
    /// Answer a question.
    Answer,
}

/// How far the agent has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No table is in force.
    Waiting,
    /// The table of an earlier agent is in force.
    Holding,
    /// A table of this agent is in force.
    Serving,
}

impl Step {
    /// Whether this step has anything to do yet.
    fn applies(self, phase: Phase) -> bool {
        match self {
            // The first table is written by `Boot`.
            Self::Sync => phase == Phase::Serving,
            Self::Repair => phase != Phase::Waiting,
            _ => true,
        }
    }
}

/// The steps after a change of this node's Pods, or of what is known about them.
const PODS: &[Step] = &[
    // Settings for plugins are left beside the ledger.
    Step::Claim,
    Step::ReadLedger,
    Step::Guard,
    Step::Translate,
    Step::ServePackets,
    Step::Release,
    Step::Locate,
    Step::Probe,
    Step::TakeFailing,
    Step::TellClients,
];
/// The steps that inform the thread of the node's own devices.
const DEVICES: &[Step] = &[Step::TellDevices, Step::TellPeers];

/// The steps that follow from a fact.
fn row(fact: Fact) -> &'static [&'static [Step]] {
    use Step::{
        Answer, AskAgain, Boot, Claim, DoubtGrants, Guard, Judge, Locate, LookAtCheckpoint, Probe,
        ReadAddresses, ReadLedger, ReadOwnPods, Record, RefreshPods, Repair, ServePackets, Sync,
        TakeConfiguration, TakeFailing, TakeServers, TellClients, TellPeers, TendCheckpoint,
        Translate, WriteClients,
    };
    match fact {
        Fact::Started => &[PODS, DEVICES],
        Fact::BootDue => &[&[Boot, Record]],
        Fact::PacketsDue => &[&[Claim, ReadLedger, ServePackets]],
        Fact::DriftDue => &[&[Repair, LookAtCheckpoint, Record], PODS, DEVICES],
        Fact::RetryDue | Fact::WhereaboutsChanged | Fact::FailingChanged => &[&[Sync]],
        Fact::GrantsDue => &[&[Guard]],
        Fact::SourcesSpoke => &[
            &[ReadOwnPods, DoubtGrants, Locate, Probe, TakeFailing, Sync],
            DEVICES,
        ],
        Fact::OwnPodsChanged | Fact::PodsStirred | Fact::GuardOutdated => &[PODS],
        Fact::LedgerChanged => &[&[RefreshPods]],
        // Whoever asks for the status learns how they fared.
        Fact::GuardDone | Fact::TranslationDone => &[],
        // Where packets are served, the sockets of Pods may be left alone.
        Fact::PacketsDone => &[&[TellClients]],
        Fact::ProbeEnded => &[&[TakeFailing]],
        Fact::NetworkStirred => &[&[AskAgain, ReadAddresses]],
        // Pods must not have this node's addresses.
        Fact::AddressesChanged => &[&[
            Claim,
            ReadLedger,
            Guard,
            Translate,
            ServePackets,
            TellClients,
            Sync,
        ]],
        Fact::ServersChanged => &[&[TakeServers, Guard, Sync]],
        Fact::ClientsFound => &[&[WriteClients]],
        Fact::PeersDue => &[&[TellPeers]],
        Fact::SocketsFound => &[&[Judge]],
        Fact::CheckpointStirred => &[&[Claim, TendCheckpoint]],
        Fact::Asked => &[&[Answer]],
        Fact::ConfigurationWritten => &[&[TakeConfiguration, Record]],
        Fact::PolicyChanged => &[&[Guard, Sync]],
    }
}

/// Steps that are due.
#[derive(Debug, Default)]
pub(super) struct Due(BTreeSet<Step>);

impl Due {
    /// Adds the steps that follow from a fact.
    pub(super) fn add(&mut self, fact: Fact, phase: Phase) {
        let steps = row(fact).iter().copied().flatten().copied();
        self.0.extend(steps.filter(|step| step.applies(phase)));
    }

    /// Takes the next step.
    pub(super) fn next(&mut self) -> Option<Step> {
        self.0.pop_first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps that follow from these facts, in the order in which they are taken.
    fn steps(facts: &[Fact], phase: Phase) -> Vec<Step> {
        let mut due = Due::default();
        for fact in facts {
            due.add(*fact, phase);
        }
        std::iter::from_fn(|| due.next()).collect()
    }

    fn serving(fact: Fact) -> Vec<Step> {
        steps(&[fact], Phase::Serving)
    }

    /// Which steps follow from each fact that the loop waits for: a change of the table has to change this, too.
    #[test]
    fn each_fact_that_the_loop_waits_for_has_what_must_follow() {
        use Step::*;
        let pods = vec![
            Claim,
            ReadLedger,
            Guard,
            Translate,
            ServePackets,
            Release,
            Locate,
            Probe,
            TakeFailing,
            TellClients,
        ];
        let rows: [(Fact, Vec<Step>); 23] = [
            (
                Fact::Started,
                [&[Claim, TellDevices, TellPeers][..], &pods[1..]].concat(),
            ),
            (Fact::BootDue, vec![Boot, Record]),
            (Fact::PacketsDue, vec![Claim, ReadLedger, ServePackets]),
            (
                Fact::DriftDue,
                [
                    &[
                        Claim,
                        Repair,
                        LookAtCheckpoint,
                        Record,
                        TellDevices,
                        TellPeers,
                    ][..],
                    &pods[1..],
                ]
                .concat(),
            ),
            (Fact::RetryDue, vec![Sync]),
            (Fact::GrantsDue, vec![Guard]),
            (
                Fact::SourcesSpoke,
                vec![
                    ReadOwnPods,
                    TellDevices,
                    TellPeers,
                    DoubtGrants,
                    Locate,
                    Probe,
                    TakeFailing,
                    Sync,
                ],
            ),
            (Fact::PodsStirred, pods.clone()),
            (Fact::GuardOutdated, pods),
            (Fact::GuardDone, vec![]),
            (Fact::TranslationDone, vec![]),
            (Fact::PacketsDone, vec![TellClients]),
            (Fact::ProbeEnded, vec![TakeFailing]),
            (Fact::NetworkStirred, vec![AskAgain, ReadAddresses]),
            (
                Fact::AddressesChanged,
                vec![
                    Claim,
                    ReadLedger,
                    Guard,
                    Translate,
                    ServePackets,
                    TellClients,
                    Sync,
                ],
            ),
            (Fact::ServersChanged, vec![TakeServers, Guard, Sync]),
            (Fact::ClientsFound, vec![WriteClients]),
            (Fact::PeersDue, vec![TellPeers]),
            (Fact::SocketsFound, vec![Judge]),
            (Fact::CheckpointStirred, vec![Claim, TendCheckpoint]),
            (Fact::Asked, vec![Answer]),
            (Fact::ConfigurationWritten, vec![TakeConfiguration, Record]),
            (Fact::PolicyChanged, vec![Guard, Sync]),
        ];
        for (fact, expected) in rows {
            assert_eq!(serving(fact), expected, "{fact:?}");
        }
    }

    #[test]
    fn whatever_changes_the_table_is_written_while_the_agent_serves_and_only_then() {
        let facts = [
            Fact::SourcesSpoke,
            Fact::AddressesChanged,
            Fact::ServersChanged,
            Fact::PolicyChanged,
            Fact::WhereaboutsChanged,
            Fact::FailingChanged,
            Fact::RetryDue,
        ];
        for fact in facts {
            assert!(serving(fact).contains(&Step::Sync), "{fact:?}");
            for phase in [Phase::Waiting, Phase::Holding] {
                assert!(!steps(&[fact], phase).contains(&Step::Sync), "{fact:?}");
            }
        }
    }

    #[test]
    fn the_kernel_is_mended_as_soon_as_anything_is_in_force() {
        let has = |phase| steps(&[Fact::DriftDue], phase).contains(&Step::Repair);
        assert_eq!(
            [Phase::Waiting, Phase::Holding, Phase::Serving].map(has),
            [false, true, true]
        );
    }

    #[test]
    fn pods_are_guarded_by_the_ledger_that_was_read_just_before_and_the_table_is_written_last() {
        let all = [
            Fact::SourcesSpoke,
            Fact::OwnPodsChanged,
            Fact::LedgerChanged,
        ];
        let steps = steps(&all, Phase::Serving);
        let at = |step| steps.iter().position(|taken| *taken == step).unwrap();
        let order = [
            Step::ReadOwnPods,
            Step::ReadLedger,
            Step::RefreshPods,
            Step::Guard,
            Step::Translate,
            Step::Locate,
            Step::Probe,
            Step::Sync,
        ];
        assert!(order.is_sorted_by_key(|step| at(*step)), "{steps:?}");
    }

    #[test]
    fn what_follows_from_several_facts_is_done_once() {
        let once = steps(&[Fact::PodsStirred], Phase::Serving);
        let several = [Fact::OwnPodsChanged, Fact::PodsStirred, Fact::GuardOutdated];
        assert_eq!(steps(&several, Phase::Serving), once);
    }
}
