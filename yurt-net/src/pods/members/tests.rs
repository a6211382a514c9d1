use std::sync::Arc;

use super::*;
use crate::device::{HostSide, Link, Mac};
use crate::ledger::Record;
use crate::ledger::tests::{entry, key};
use crate::model::LocalPod;
use crate::pods::guard::{self, Reserved, compile};

/// What a test says of the node; nothing is known of any Pod at first.
#[derive(Default)]
struct Node {
    ledger: Ledger,
    snapshot: Option<Snapshot>,
    translation: Policy,
    now: u64,
}

impl Node {
    fn has(&mut self, name: &str, entry: Entry) -> &mut Self {
        let key = key(name);
        self.ledger.apply(Record::Put { key, entry });
        self
    }

    /// There is an object of this Pod, with this annotation.
    fn reads(&mut self, name: &str, annotation: Option<(&str, &str)>) -> &mut Self {
        let annotations = annotation.iter();
        let annotations = annotations.map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        let pod = LocalPod {
            name: NamespacedName::new("shop", name),
            uid: "5f0c".into(),
            node_name: "edge-1".into(),
            annotations: annotations.collect(),
            readiness: Box::default(),
        };
        let snapshot = self.snapshot.get_or_insert_default();
        snapshot.pods.insert(pod.name.clone(), Arc::new(pod));
        self
    }

    fn members(&self) -> Members<'_> {
        Members {
            ledger: &self.ledger,
            now: Now {
                at: self.now,
                since: 0,
            },
            snapshot: self.snapshot.as_ref(),
            translation: &self.translation,
        }
    }

    #[track_caller]
    fn guarded(&self) -> Vec<GuardedPod> {
        let (pods, complaints) = self.members().guarded();
        assert_eq!(complaints, []);
        pods
    }

    #[track_caller]
    fn wish(&self) -> Wish {
        let (pods, complaints) = self.members().candidates();
        assert_eq!((pods.len(), complaints), (1, Vec::new()));
        pods[0].wish
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// On the device of this index.
fn here(address: &str, ifindex: u32) -> Entry {
    let other_end = Some(2);
    Entry {
        host: Some(HostSide { ifindex, other_end }),
        mac: Some(Mac([2, 0, 0, 0, 0, 7])),
        ..entry(address, "c1")
    }
}

/// On device 7 with an address that another IPAM gave it in the place of another one of its own.
fn moved(live: &str, promised: &str) -> Entry {
    Entry {
        promised: vec![ip(promised)],
        ..here(live, 7)
    }
}

fn away(address: &str, state: State) -> Entry {
    Entry {
        state,
        ..entry(address, "c1")
    }
}

fn veth(ifindex: u32) -> Link {
    Link {
        ifindex,
        name: format!("veth{ifindex}"),
        kind: "veth".to_owned(),
        other_end: Some(2),
        other_end_netns: Some(0),
        ..Link::default()
    }
}

#[test]
fn a_pod_that_is_here_has_its_addresses_on_its_device() {
    let mut node = Node::default();
    let pods = node.has("web", here("10.1.0.2", 7)).guarded();
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].addresses, [ip("10.1.0.2")]);
    assert_eq!(pods[0].mac, Some([2, 0, 0, 0, 0, 7]));
    assert_eq!(pods[0].host.map(|host| host.ifindex), Some(7));
    assert_eq!(node.members().owners()[&ip("10.1.0.2")], "shop/web");
}

#[test]
fn a_pod_of_which_no_device_is_known_owns_its_addresses_and_is_not_guarded() {
    let mut node = Node::default();
    node.has("web", entry("10.1.0.2", "c1"));
    assert_eq!(node.guarded(), []);
    assert_eq!(node.members().owners()[&ip("10.1.0.2")], "shop/web");
}

#[test]
fn a_pod_whose_device_has_gone_is_a_member_and_its_addresses_are_nobody_elses() {
    let mut node = Node::default();
    node.has("web", here("10.1.0.2", 7));
    let pods = node.guarded();
    assert_eq!(pods.len(), 1);
    let policy = guard::Policy::default();
    let (image, complaints) = compile(&pods, &[veth(8)], &Reserved::default(), &policy);
    assert_eq!((image.rows.len(), complaints), (0, Vec::new()));
    assert_eq!(image.owners[&ip("10.1.0.2").into()].ifindex, None);
}

#[test]
fn what_is_retained_is_kept_from_others_and_what_is_released_is_not() {
    let mut node = Node::default();
    node.has("away", away("10.1.0.3", State::Retained));
    node.has("old", away("10.1.0.4", State::Released));
    let pods = node.guarded();
    assert_eq!(pods.len(), 1);
    assert_eq!((&*pods[0].name, pods[0].host), ("away", None));
    let owners = node.members().owners();
    assert_eq!(owners, [(ip("10.1.0.3"), "shop/away".to_owned())].into());
}

#[test]
fn a_pod_that_is_not_in_the_ledger_is_no_member_as_one_on_the_hosts_network() {
    let mut node = Node::default();
    node.reads("host", Some((EXTRA, "192.0.2.7")));
    node.reads("host", Some((KEEP, "true")));
    assert_eq!(node.guarded(), []);
    assert_eq!(node.members().candidates(), (Vec::new(), Vec::new()));
}

#[test]
fn an_annotation_is_the_pods_own_and_one_that_cannot_be_read_is_told_and_gives_nothing() {
    let mut node = Node::default();
    node.has("vpn", here("10.1.0.2", 7));
    node.has("web", here("10.1.0.3", 8));
    // Nobody has said anything of objects yet.
    assert!(node.guarded().iter().all(|pod| pod.extra.is_empty()));
    node.reads("vpn", Some((EXTRA, "192.0.2.7")));
    let pods = node.guarded();
    assert_eq!(pods[0].extra, "192.0.2.7".parse().unwrap());
    assert!(pods[1].extra.is_empty());
    node.reads("vpn", Some((EXTRA, "192.0.2.7, all")));
    let (pods, complaints) = node.members().guarded();
    assert!(pods[0].extra.is_empty());
    assert_eq!(complaints.len(), 1);
    assert_eq!(
        (&*complaints[0].pod, &*complaints[0].interface),
        ("shop/vpn", "eth0")
    );
    assert!(
        complaints[0]
            .reason
            .contains("ignores the whole annotation")
    );
}

#[test]
fn a_pods_sockets_are_left_alone_only_at_its_own_word_and_only_where_it_runs() {
    let mut node = Node::default();
    node.has("vm", here("10.1.0.2", 7));
    node.has("away", away("10.1.0.3", State::Retained));
    let wishes = |node: &Node| {
        let (wishes, complaints) = node.members().socket_wishes();
        let wishes = wishes.into_iter();
        let wishes: Vec<_> = wishes
            .map(|wish| (wish.pod, wish.host.ifindex, wish.is_off))
            .collect();
        (wishes, complaints.len())
    };
    let vm = |is_off| vec![("shop/vm".to_owned(), 7, is_off)];
    assert_eq!(wishes(&node), (vm(None), 0));
    node.reads("away", Some((SOCKET_LB, "off")));
    for (annotation, is_off, complaints) in [
        (None, false, 0),
        (Some((SOCKET_LB, "off")), true, 0),
        (Some((SOCKET_LB, "Off")), false, 1),
        (Some((SOCKET_LB, "")), false, 1),
    ] {
        node.reads("vm", annotation);
        assert_eq!(wishes(&node), (vm(Some(is_off)), complaints));
    }
}

#[test]
fn two_pods_may_ask_for_one_address_that_is_nobodys_and_not_for_each_others() {
    let mut node = Node::default();
    node.has("a", here("10.1.0.2", 7))
        .reads("a", Some((EXTRA, "192.0.2.7, 10.1.0.3")));
    node.has("b", here("10.1.0.3", 8))
        .reads("b", Some((EXTRA, "192.0.2.7, 10.1.0.2")));
    let links = [veth(7), veth(8)];
    let policy = guard::Policy::default();
    let (image, complaints) = compile(&node.guarded(), &links, &Reserved::default(), &policy);
    for (row, other) in [(7, "Pod shop/b"), (8, "Pod shop/a")] {
        // As the members of a VRRP group do.
        assert_eq!(image.rows[&row].extra, ["192.0.2.7/32".parse().unwrap()]);
        let is_told = |reason: &str| reason.ends_with(&format!("belongs to {other}"));
        assert!(
            complaints
                .iter()
                .any(|complaint| is_told(&complaint.reason))
        );
    }
    assert!(!image.owners.contains_key(&ip("192.0.2.7").into()));
}

#[test]
fn a_promised_address_is_the_pods_to_use_only_where_nobody_else_can_be_given_it() {
    let mut node = Node::default();
    node.has("web", moved("10.9.0.2", "10.1.0.2"));
    // Another IPAM gave it, and may give it to somebody else.
    assert_eq!(node.guarded()[0].addresses, [ip("10.9.0.2")]);
    node.translation.exclusive = vec!["10.1.0.0/24".parse().unwrap()];
    let both = [ip("10.9.0.2"), ip("10.1.0.2")];
    assert_eq!(node.guarded()[0].addresses, both);
    // `yurt-ipam` gave it, and gives it to nobody else.
    node.translation.exclusive.clear();
    let ours = Entry {
        promised_by: Assigner::Ours,
        ..moved("10.9.0.2", "10.1.0.2")
    };
    node.has("web", ours);
    assert_eq!(node.guarded()[0].addresses, both);
}

#[test]
fn only_a_pod_that_runs_with_another_address_than_it_had_is_a_candidate() {
    let mut node = Node::default();
    node.has("same", here("10.1.0.3", 8));
    let mut away = away("10.1.0.4", State::Retained);
    away.promised = vec![ip("10.1.0.5")];
    node.has("away", away);
    assert_eq!(node.members().candidates(), (Vec::new(), Vec::new()));
    node.has("web", moved("10.9.0.2", "10.1.0.2"));
    let (pods, _) = node.members().candidates();
    assert_eq!(pods.len(), 1);
    assert_eq!((&*pods[0].pod, pods[0].is_ours), ("shop/web", false));
    assert_eq!(pods[0].live, [ip("10.9.0.2")]);
    assert_eq!(pods[0].promised, [ip("10.1.0.2")]);
    // What is promised is its own all the same.
    let owners = node.members().owners();
    assert_eq!(
        (&*owners[&ip("10.1.0.2")], &*owners[&ip("10.9.0.2")]),
        ("shop/web", "shop/web")
    );
}

#[test]
fn a_pod_is_no_candidate_while_it_is_made_and_one_that_no_plugin_sees_is_after_that() {
    let mut node = Node::default();
    let unseen = Entry {
        host: None,
        ..moved("10.9.0.2", "10.1.0.2")
    };
    node.now = unseen.at + MAKING;
    node.has("web", unseen);
    assert_eq!(node.members().candidates().0, []);
    node.now += 1;
    let (pods, _) = node.members().candidates();
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].host, None);
}

#[test]
fn a_pod_without_an_object_keeps_what_it_has_and_one_with_an_object_says_what_it_wants() {
    let mut node = Node::default();
    node.has("web", moved("10.9.0.2", "10.1.0.2"));
    assert_eq!(node.wish(), Wish::Unknown);
    // Objects of others say nothing of this one.
    node.reads("other", Some((KEEP, "true")));
    assert_eq!(node.wish(), Wish::Unknown);
    node.reads("web", None);
    assert_eq!(node.wish(), Wish::Nodes);
    node.reads("web", Some((KEEP, "true")));
    assert_eq!(node.wish(), Wish::Pods(true));
    node.reads("web", Some((KEEP, "false")));
    assert_eq!(node.wish(), Wish::Pods(false));
    node.reads("web", Some((KEEP, "yes")));
    let (pods, complaints) = node.members().candidates();
    assert_eq!(pods[0].wish, Wish::Nodes);
    assert!(
        complaints[0].reason.contains("\"yes\" is neither"),
        "{complaints:?}"
    );
}
