//! What a source makes of what its tasks tell it. Nobody is dialled.

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde_json::json;
use tokio::sync::oneshot;

use super::follow::Failure;
use super::*;

/// Of a burst.
const SLICES: usize = 60;
/// So that a batch is two of them.
const ENDPOINTS: usize = 1_000;

fn nothing() -> Access {
    Access {
        ca_file: None,
        service_account: "/nowhere".into(),
        in_cluster: None,
        kubeconfig: Some("/nowhere".into()),
    }
}

fn source() -> KubeSource {
    let scope = Scope {
        node: "edge-a1".to_owned(),
        pool: None,
        pool_label: String::new(),
        with_pods: false,
        access: nothing(),
    };
    let mut source = KubeSource::new(
        Api::Inferred,
        false,
        scope,
        Snapshot::default(),
        &BTreeMap::new(),
    );
    source.pretend_to_ask();
    source
}

impl KubeSource {
    /// From now on it hears what tests tell.
    pub(in crate::source) fn pretend_to_ask(&mut self) {
        for resource in Resource::ALL {
            self.tasks.insert(resource, (0, JoinSet::new()));
        }
    }

    /// It may not be read.
    pub(in crate::source) fn hear_refusal(&mut self, resource: Resource) {
        self.hear_failure(resource, "403 Forbidden", Failure::Status(403, None));
    }

    /// The way to the server is cut, and each request notices in its own way.
    pub(in crate::source) fn hear_cut(&mut self, resource: Resource) {
        self.hear_failure(
            resource,
            &format!("no answer to {resource}"),
            Failure::Silence,
        );
    }

    fn hear_failure(&mut self, resource: Resource, why: &str, failure: Failure) {
        self.hear(
            resource,
            News::Failed {
                why: why.to_owned(),
                is_list: true,
                failure,
            },
        );
    }

    /// A list of it had nothing in it.
    pub(in crate::source) fn hear_empty_list(&mut self, resource: Resource) {
        let version = "1".to_owned();
        let (is_held, _answer) = oneshot::channel();
        self.hear(resource, News::Listed { version, is_held });
    }

    fn hear(&mut self, resource: Resource, news: News) {
        self.take_batch(Some(update(resource, news)));
    }
}

fn update(resource: Resource, news: News) -> Update {
    let room = Arc::new(Semaphore::new(1));
    Update {
        resource,
        generation: 0,
        news,
        room: room.try_acquire_owned().unwrap(),
    }
}

/// A source that has told all that there is, and large changes on their way to it as a task brings them.
async fn in_a_burst() -> KubeSource {
    let mut source = source();
    for resource in Resource::ALL {
        source.hear_empty_list(resource);
    }
    source.changed().await;
    assert!(source.is_synced() && source.snapshot().slices.is_empty());
    let sender = source.sender.clone();
    tokio::spawn(async move {
        for index in 0..SLICES {
            let sent = sender.send(update(Resource::EndpointSlices, put(index)));
            sent.await.unwrap();
        }
    });
    source
}

fn put(index: usize) -> News {
    let endpoint =
        |last: usize| json!({"addresses": [format!("10.{}.{}.1", last / 250, last % 250)]});
    let endpoints: Vec<_> = (0..ENDPOINTS).map(endpoint).collect();
    let slice = json!({
        "metadata": {
            "namespace": "default",
            "name": format!("web-{index}"),
            "labels": {"kubernetes.io/service-name": format!("web-{index}")},
            "annotations": {"filler": "x".repeat(BATCH_BYTES / 2)},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    });
    News::Put {
        api_version: "discovery.k8s.io/v1",
        object: slice.to_string().into(),
        version: index.to_string(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_large_changes_is_told_once() {
    let mut source = in_a_burst().await;
    source.changed().await;
    assert_eq!(source.snapshot().slices.len(), SLICES);
    assert_eq!(source.changed().now_or_never(), None);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_taken_up_is_told_although_the_future_is_dropped_at_every_await() {
    let mut source = in_a_burst().await;
    let (mut told, mut seen) = (0, 0);
    while seen < SLICES {
        // As where another branch of the loop is ready whenever this one waits.
        if source.changed().now_or_never().is_some() {
            assert!(!source.has_untold());
            (told, seen) = (told + 1, source.snapshot().slices.len());
        }
        yield_now().await;
    }
    assert_eq!(told, 1);
    assert!(!source.has_untold());
}

#[tokio::test(start_paused = true)]
async fn a_change_does_not_wait_for_a_burst_that_goes_on() {
    let mut source = in_a_burst().await;
    // Decoding takes its time.
    while source.changed().now_or_never().is_none() {
        tokio::time::advance(GATHER_FOR / 4).await;
    }
    let seen = source.snapshot().slices.len();
    assert!(0 < seen && seen < SLICES, "{seen}");
}

#[tokio::test(start_paused = true)]
async fn only_what_a_table_cannot_be_without_keeps_a_source_from_answering() {
    for resource in Resource::ALL {
        let mut source = source();
        source.hear_refusal(resource);
        let expected = format!("{resource}: 403 Forbidden");
        assert_eq!(source.error().as_deref(), Some(&*expected));
        assert_eq!(source.answers(), !resource.is_required(), "{resource}");
        let why_lost = source.why_lost();
        let expected = resource.is_required().then_some(expected);
        assert_eq!(why_lost, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_with_an_item_that_says_it_is_something_else_takes_nothing_and_is_answered_with_why()
{
    let mut source = followed().await;
    let items = |items: &[&'static str]| News::Items {
        api_version: "v1",
        items: items
            .iter()
            .map(|item| Bytes::from_static(item.as_bytes()))
            .collect(),
    };
    let web = r#"{"metadata":{"namespace":"default","name":"web"},"spec":{"clusterIP":"10.96.0.9","ports":[{"port":80}]}}"#;
    let shop = r#"{"metadata":{"namespace":"default","name":"shop"},"spec":{}}"#;
    let secret =
        r#"{"kind":"Secret","apiVersion":"v1","metadata":{"namespace":"default","name":"db"}}"#;
    let listed = || {
        let (is_held, answer) = oneshot::channel();
        let version = "9".to_owned();
        (News::Listed { version, is_held }, answer)
    };
    source.hear(Resource::Services, items(&[web]));
    let (news, answer) = listed();
    source.hear(Resource::Services, news);
    assert_eq!(answer.await.unwrap(), Ok(false));

    for item in [shop, secret, web] {
        source.hear(Resource::Services, items(&[item]));
    }
    let (news, answer) = listed();
    source.hear(Resource::Services, news);
    let why = answer.await.unwrap().unwrap_err().to_string();
    assert_eq!(
        why,
        "the answer is not of Services: an object in it is \"v1 Secret\""
    );
    assert_eq!(source.snapshot().services.len(), 1);
    assert_eq!(source.snapshot().rejections, []);

    // What comes next is a list of its own.
    source.hear_empty_list(Resource::Services);
    assert_eq!(source.snapshot().services.len(), 0);
}

fn watching() -> News {
    let (is_enough, _answer) = oneshot::channel();
    News::Watching { is_enough }
}

/// A source that follows all there is.
async fn followed() -> KubeSource {
    let mut source = source();
    for resource in Resource::ALL {
        source.hear_empty_list(resource);
        source.hear(resource, watching());
    }
    source.changed().await;
    assert!(source.is_synced() && source.answers() && source.is_fresh());
    source
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_list_hangs_after_a_watch_does_not_answer_and_is_not_fresh() {
    let mut source = followed().await;
    let ended = Instant::now();
    source.hear(Resource::Services, News::Ended);
    assert!(source.answers() && source.is_fresh());
    source.changed().await;
    assert!(!source.answers() && !source.is_fresh());
    assert!(ended.elapsed() <= Duration::from_secs(11));
    let why = source.why_lost().unwrap();
    assert_eq!(why, "services: a list of it is on its way");

    source.hear_empty_list(Resource::Services);
    assert!(source.answers());
    source.hear(Resource::Services, watching());
    source.changed().await;
    assert!(source.answers());
    // An optional one says nothing of the table.
    source.hear(Resource::NodePools, News::Ended);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(source.answers());
}

/// Nodes and pools are followed all the while.
#[tokio::test(start_paused = true)]
async fn a_source_whose_services_or_slices_fail_is_not_fresh_however_much_else_it_says() {
    for resource in [Resource::Services, Resource::EndpointSlices] {
        let mut source = followed().await;
        let failed = Instant::now();
        source.hear_failure(resource, "500", Failure::Status(500, None));
        source.changed().await;
        assert!(!source.answers() && source.is_fresh());
        let mut told_at = None;
        while failed.elapsed() < Duration::from_secs(60) {
            let version = "2".to_owned();
            source.hear(Resource::Nodes, News::Bookmark { version });
            source.hear_failure(resource, "500", Failure::Status(500, None));
            let turn = Duration::from_secs(1);
            if tokio::time::timeout(turn, source.changed()).await.is_ok() {
                told_at.get_or_insert(failed.elapsed());
                assert!(!source.is_fresh());
            }
        }
        let told_at = told_at.unwrap();
        assert!(told_at <= Duration::from_secs(11), "{told_at:?}");
        assert!(!source.is_fresh() && source.pods_read_at().is_none());

        source.hear_empty_list(resource);
        source.hear(resource, watching());
        assert!(source.answers() && source.is_fresh());
    }
}
