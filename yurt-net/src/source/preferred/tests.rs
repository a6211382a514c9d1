//! The sources as the agent's loop follows them: beside other branches, and dropped at any moment. Under a clock that
//! stands still while anything runs.

use std::fs;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::time::{advance, sleep};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::observe::status::health::Health;
use crate::source::kube::{Access, Resource};

const MANIFEST: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
/// By the clock that stands still.
const LONG: Duration = Duration::from_secs(300);

/// A first source that is not there, and a second one that is.
struct Lab {
    directory: TempDir,
    specs: Vec<SourceSpec>,
}

impl Lab {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let specs = ["first", "second"].map(|name| SourceSpec::File(directory.path().join(name)));
        let lab = Self {
            directory,
            specs: specs.into(),
        };
        lab.make("second");
        lab
    }

    fn make(&self, name: &str) {
        let directory = self.directory.path().join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("web.yaml"), MANIFEST).unwrap();
    }

    async fn start(&self, checkpoint: Option<Loaded>) -> Sources {
        let started = Sources::start(&self.specs, scope(), checkpoint).await;
        started.unwrap()
    }
}

fn scope() -> Scope {
    Scope {
        node: "edge-a1".to_owned(),
        pool: None,
        pool_label: String::new(),
        with_pods: false,
        access: Access {
            ca_file: None,
            service_account: "/nowhere".into(),
            in_cluster: None,
            kubeconfig: Some("/nowhere".into()),
        },
    }
}

/// Of the first source: no other.
fn checkpoint(lab: &Lab) -> Loaded {
    Loaded {
        snapshot: Snapshot::default(),
        provenance: Provenance {
            source: lab.specs[0].to_string(),
            ..Provenance::default()
        },
    }
}

/// What else the agent's loop has to do.
#[derive(Clone, Copy, Debug)]
struct Other {
    /// How often it is due.
    every: Duration,
    /// How long it then keeps the loop.
    takes: Duration,
}

/// Every rhythm that hits the sources' own deadlines, or keeps the loop while they pass.
fn others() -> impl Iterator<Item = Other> {
    let every = [100, 1_000, 2_500, 5_000, 10_000, 15_000];
    let takes = [0, 1, 900, 12_000];
    let all = every
        .into_iter()
        .flat_map(move |every| takes.map(|takes| (every, takes)));
    all.map(|(every, takes)| Other {
        every: Duration::from_millis(every),
        takes: Duration::from_millis(takes),
    })
}

/// The agent's loop, in which the other branch wins whenever both are due.
async fn follow(sources: &mut Sources, other: Other, mut is_over: impl FnMut(&Sources) -> bool) {
    let started = Instant::now();
    let mut next = started + other.every;
    while !is_over(sources) {
        assert!(started.elapsed() < LONG, "never, beside {other:?}");
        tokio::select! {
            biased;
            () = sleep_until(next) => {
                advance(other.takes).await;
                while next <= Instant::now() {
                    next += other.every;
                }
            }
            () = sources.changed() => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_source_is_asked_although_another_branch_wins_at_every_deadline() {
    for other in others() {
        let lab = Lab::new();
        let mut sources = lab.start(Some(checkpoint(&lab))).await;
        assert_eq!(sources.origin(), Origin::Checkpoint);
        follow(&mut sources, other, |sources| sources.active[1].is_some()).await;
        assert_eq!(sources.origin(), Origin::File, "{other:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_source_is_let_go_although_another_branch_wins_at_every_deadline() {
    for other in others() {
        let lab = Lab::new();
        let mut sources = lab.start(None).await;
        follow(&mut sources, other, |sources| {
            sources.charge.in_charge() == Some(1)
        })
        .await;
        lab.make("first");
        follow(&mut sources, other, |sources| {
            sources.charge.in_charge() == Some(0)
        })
        .await;
        follow(&mut sources, other, |sources| sources.active[1].is_none()).await;
    }
}

/// A link that is bad for a moment now and then must not shrink a table to what a file has for an emergency.
#[tokio::test(start_paused = true)]
async fn a_blip_of_a_first_source_leaves_it_in_charge_although_a_file_behind_it_is_good() {
    let is_good = |sources: &Sources| sources.active[0].as_ref().is_some_and(Source::is_good);
    let in_charge = |index| move |sources: &Sources| sources.charge.in_charge() == Some(index);
    // It is looked at in this rhythm.
    let is_close = |other: &Other| other.takes.is_zero() && other.every <= Duration::from_secs(1);
    for other in others().filter(is_close) {
        let lab = Lab::new();
        let [first, away] = ["first", "away"].map(|name| lab.directory.path().join(name));
        let mut sources = lab.start(None).await;
        follow(&mut sources, other, in_charge(1)).await;
        lab.make("first");
        follow(&mut sources, other, in_charge(0)).await;
        for _ in 0..3 {
            fs::rename(&first, &away).unwrap();
            follow(&mut sources, other, |sources| !is_good(sources)).await;
            assert_eq!(sources.charge.in_charge(), Some(0), "{other:?}");
            fs::rename(&away, &first).unwrap();
            follow(&mut sources, other, |sources| {
                assert_eq!(sources.charge.in_charge(), Some(0), "{other:?}");
                is_good(sources)
            })
            .await;
        }
        // It stays away.
        fs::rename(&first, &away).unwrap();
        follow(&mut sources, other, |sources| !is_good(sources)).await;
        let lost = Instant::now();
        follow(&mut sources, other, in_charge(1)).await;
        assert!(
            lost.elapsed() + other.every >= charge::PATIENCE,
            "{other:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_and_a_source_that_was_never_asked_are_degraded_until_it_is_asked() {
    let lab = Lab::new();
    let mut sources = lab.start(Some(checkpoint(&lab))).await;
    let faults = |sources: &Sources| {
        let health = Health {
            is_serving: true,
            unasked: sources.unasked(),
            ..Health::default()
        };
        assert!(health.is_ready());
        health.degraded()
    };
    let [fault] = &*faults(&sources) else {
        panic!("{:?}", faults(&sources));
    };
    assert_eq!(fault.what, "source");
    assert!(
        fault.reason.contains(&lab.specs[1].to_string()),
        "{}",
        fault.reason
    );
    sources.changed().await;
    assert_eq!(faults(&sources), []);
}

/// A node without a battery boots in 1970, and is told the time when the cloud is back.
#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_at_least_as_old_as_the_agent_whatever_the_clock_says() {
    let lab = Lab::new();
    let mut loaded = checkpoint(&lab);
    loaded.provenance.synced_at = 1_800_000_000;
    let sources = lab.start(Some(loaded)).await;
    advance(Duration::from_secs(700)).await;
    for (now, age) in [(1_800_000_900, 900), (1_800_000_000, 700), (17, 700)] {
        assert_eq!(sources.status(now).age_seconds, age, "{now}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_after_a_restart_leaves_what_it_said_in_force() {
    let lab = Lab::new();
    let specs = &lab.specs[1..];
    let sources = Sources::start(specs, scope(), None).await.unwrap();
    let loaded = Loaded {
        snapshot: sources.snapshot().unwrap().clone(),
        provenance: sources.provenance(1, Edition::first(1)).unwrap(),
    };
    assert_eq!(loaded.provenance.source, specs[0].to_string());
    let away = lab.directory.path().join("away");
    let second = lab.directory.path().join("second");
    fs::rename(&second, &away).unwrap();
    // Without a checkpoint it is a mistake, which shows at once.
    assert!(Sources::start(specs, scope(), None).await.is_err());
    let mut sources = Sources::start(specs, scope(), Some(loaded)).await.unwrap();
    assert_eq!(sources.origin(), Origin::Checkpoint);
    assert_eq!(sources.snapshot().unwrap().services.len(), 1);
    let stale = sources.stale_manifests();
    assert!(stale.len() == 1 && stale[0].contains("second"), "{stale:?}");
    fs::rename(&away, &second).unwrap();
    sources.changed().await;
    assert_eq!(sources.origin(), Origin::File);
    assert_eq!(sources.stale_manifests(), Vec::<String>::new());
}

/// Lines of the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn one_line_is_written_when_a_source_is_lost_and_one_with_how_long_it_was_away_when_it_is_back()
 {
    let lines = Lines::default();
    let log = tracing_subscriber::fmt()
        .with_writer(lines.clone())
        .with_ansi(false);
    let _log = tracing::subscriber::set_default(log.finish());
    let lab = Lab::new();
    let mut sources = Sources::start(&lab.specs[1..], scope(), None)
        .await
        .unwrap();
    lines.0.lock().unwrap().clear();
    let is_good = |sources: &Sources| sources.status(0).sources[0].is_good;
    let second = lab.directory.path().join("second");
    let away = lab.directory.path().join("away");
    let quiet = Other {
        every: Duration::from_secs(1),
        takes: Duration::ZERO,
    };

    fs::rename(&second, &away).unwrap();
    follow(&mut sources, quiet, |sources| !is_good(sources)).await;
    let lost = Instant::now();
    // It fails on, in other ways too.
    fs::write(&second, "x: [").unwrap();
    fs::remove_file(&second).unwrap();
    let later = lost + Duration::from_secs(123);
    follow(&mut sources, quiet, |_| Instant::now() >= later).await;
    fs::rename(&away, &second).unwrap();
    follow(&mut sources, quiet, is_good).await;
    let away_seconds = lost.elapsed().as_secs();
    sleep(Duration::from_secs(1)).await;

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let all: Vec<&str> = text.lines().collect();
    let [first, last] = &*all else {
        panic!("{text}");
    };
    assert!(
        first.contains("WARN") && first.contains("source: lost"),
        "{first}"
    );
    assert!(
        last.contains("INFO") && last.contains("source: back"),
        "{last}"
    );
    assert!(
        last.contains(&format!("away_seconds={away_seconds}")),
        "{last}"
    );
    assert!(away_seconds >= 123, "{last}");
}

/// A source that has just been asked, and the log.
struct Heard {
    sources: Sources,
    lines: Lines,
    _log: DefaultGuard,
}

impl Heard {
    async fn new() -> Self {
        let lines = Lines::default();
        let log = tracing_subscriber::fmt()
            .with_writer(lines.clone())
            .with_ansi(false);
        let log = tracing::subscriber::set_default(log.finish());
        let spec = "kube:http://192.0.2.1".parse().unwrap();
        let sources = Sources::start(&[spec], scope(), None).await.unwrap();
        let mut heard = Self {
            sources,
            lines,
            _log: log,
        };
        heard.hear(KubeSource::pretend_to_ask);
        heard
    }

    fn hear(&mut self, tell: impl FnOnce(&mut KubeSource)) {
        if let Some(Source::Kube(source)) = &mut self.sources.active[0] {
            tell(source);
        }
        self.sources.decide();
    }

    fn hear_all(&mut self) {
        for resource in Resource::ALL {
            self.hear(|source| source.hear_empty_list(resource));
        }
    }

    /// What the log says of it, in a word for each line.
    fn told(&self) -> Vec<&'static str> {
        let text = String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap();
        let words = [
            "no answer yet",
            "lost",
            "back",
            "keeping what is known",
            "in charge",
        ];
        let word = |line: &str| words.into_iter().find(|word| line.contains(word));
        let told = text.lines().map(|line| word(line).unwrap_or("else"));
        told.filter(|word| *word != "in charge").collect()
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_table_can_do_without_never_makes_a_source_lost() {
    for resource in Resource::ALL {
        let mut heard = Heard::new().await;
        heard.hear(|source| source.hear_refusal(resource));
        heard.hear_all();
        heard.hear(|source| source.hear_refusal(resource));
        heard.hear_all();
        let once = "keeping what is known";
        let expected: &[&str] = match resource {
            Resource::Services | Resource::EndpointSlices => {
                &[once, "no answer yet", "back", "lost", "back"]
            }
            _ => &[once, once],
        };
        assert_eq!(heard.told(), expected, "{resource}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_goes_makes_one_line_and_one_when_it_is_back_whoever_notices_first() {
    for first in 0..Resource::ALL.len() {
        let mut heard = Heard::new().await;
        heard.hear_all();
        for _ in 0..2 {
            let mut all = Resource::ALL;
            all.rotate_left(first);
            for resource in all {
                heard.hear(|source| source.hear_cut(resource));
            }
            heard.hear_all();
        }
        assert_eq!(heard.told(), ["lost", "back", "lost", "back"], "{first}");
    }
}
