use std::fs;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// A state directory and a run directory, and an agent's loop that answers every call.
fn agent() -> (TempDir, Places, mpsc::Sender<Call>) {
    let dir = TempDir::new().unwrap();
    let places = ["state", "run"].map(|name| dir.path().join(name).join("agent.sock"));
    let (sender, mut calls) = mpsc::channel::<Call>(1);
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            call.reply.send(serde_json::json!({"pid": 42})).unwrap();
        }
    });
    (dir, places, sender)
}

async fn answers(places: &Places) -> bool {
    ask(places, &Request::Status).await.is_ok()
}

/// Until the server has looked again, however long that takes by the clock on the wall.
async fn becomes_true(mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.unwrap();
}

#[tokio::test]
async fn a_state_directory_that_is_a_file_leaves_the_socket_to_the_run_directory() {
    let (dir, places, calls) = agent();
    fs::write(dir.path().join("state"), "a file").unwrap();
    let server = serve(places.clone(), calls).await;
    assert!(answers(&places).await);
    let problem = server.problem().unwrap();
    assert!(
        problem.contains("run/agent.sock") && problem.contains("state/agent.sock"),
        "{problem}"
    );
    // It goes back as soon as it can.
    fs::remove_file(dir.path().join("state")).unwrap();
    becomes_true(async || server.problem().is_none()).await;
    assert!(places[0].exists() && !places[1].exists());
    assert!(answers(&places).await);
    drop(server);
    assert!(!places[0].exists());
}

#[tokio::test]
async fn an_agent_whose_socket_can_be_made_nowhere_says_so_and_makes_it_later() {
    let (dir, places, calls) = agent();
    for name in ["state", "run"] {
        fs::write(dir.path().join(name), "a file").unwrap();
    }
    let server = serve(places.clone(), calls).await;
    assert!(!answers(&places).await);
    assert!(server.problem().unwrap().contains("find no agent"));
    fs::remove_file(dir.path().join("run")).unwrap();
    becomes_true(async || answers(&places).await).await;
    assert!(server.problem().unwrap().starts_with("is at "));
}

#[tokio::test]
async fn a_socket_is_made_again_when_it_or_its_directory_goes_however_often_it_is_asked() {
    let (dir, places, calls) = agent();
    let server = serve(places.clone(), calls).await;
    for remove in [
        |dir: &Path| fs::remove_file(dir.join("state/agent.sock")).unwrap(),
        |dir: &Path| fs::remove_dir_all(dir.join("state")).unwrap(),
        |dir: &Path| fs::rename(dir.join("state"), dir.join("elsewhere")).unwrap(),
    ] {
        remove(dir.path());
        assert!(!answers(&places).await);
        becomes_true(async || answers(&places).await).await;
        assert_eq!(server.problem(), None);
    }
}

#[tokio::test]
async fn a_dead_agents_socket_in_the_first_place_does_not_hide_the_one_that_answers() {
    let (dir, places, calls) = agent();
    fs::create_dir(dir.path().join("state")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&places[0]).unwrap());
    let [_, run] = &places;
    let server = serve([dir.path().join("absent\0"), run.clone()], calls).await;
    assert!(answers(&places).await);
    drop(server);
    let error = ask(&places, &Request::Status).await.unwrap_err();
    let said = crate::error::chain(&error);
    for part in ["state/agent.sock", "run/agent.sock", "refused"] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn an_agent_leaves_the_socket_of_another_one_alone_and_takes_its_place_when_it_has_ended() {
    let (_dir, places, calls) = agent();
    let (_other, _, others) = agent();
    let first = serve(places.clone(), calls).await;
    let pid = std::process::id().to_string();
    let of_others = [PathBuf::from("/proc/nowhere/agent.sock"), places[0].clone()];
    let second = serve(of_others.clone(), others).await;
    let problem = second.problem().unwrap();
    for part in ["find no agent", "another agent", &pid, "of its own"] {
        assert!(problem.contains(part), "{problem}");
    }
    assert_eq!(first.problem(), None);
    assert!(answers(&places).await);
    drop(first);
    becomes_true(async || answers(&of_others).await).await;
    assert!(second.problem().unwrap().starts_with("is at "));
}

#[tokio::test]
async fn an_agent_that_is_too_busy_to_take_anybody_up_is_an_agent() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("agent.sock");
    let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    assert_eq!(who_listens(&path), None);
    socket.listen(0).unwrap();
    let mut waiting = Vec::new();
    let ask = || {
        let one = RawSocket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        let result = one.connect(&SockAddr::unix(&path).unwrap());
        (one, result)
    };
    while let (one, Ok(())) = ask() {
        waiting.push(one);
    }
    assert_eq!(who_listens(&path).as_deref(), Some("another agent"));
}

#[tokio::test]
async fn a_socket_lies_at_a_path_of_any_length() {
    let (dir, _, calls) = agent();
    let places = ["a", "b"].map(|name| dir.path().join(name.repeat(200)).join("agent.sock"));
    let server = serve(places.clone(), calls).await;
    assert_eq!(server.problem(), None);
    assert!(answers(&places).await);
}

#[tokio::test]
async fn what_lies_in_its_place_by_then_is_not_removed_when_the_agent_ends() {
    let (_dir, places, calls) = agent();
    let server = serve(places.clone(), calls).await;
    fs::remove_file(&places[0]).unwrap();
    fs::write(&places[0], "the next agent's").unwrap();
    drop(server);
    assert!(places[0].exists());
}
