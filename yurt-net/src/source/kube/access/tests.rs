//! Ways to name an apiserver, right and wrong, on disks that answer and on one that does not.

use std::path::Path;

use super::*;
use crate::source::spec::Api;

fn nothing() -> Access {
    Access {
        ca_file: None,
        service_account: "/nowhere".into(),
        in_cluster: None,
        kubeconfig: Some("/nowhere".into()),
    }
}

fn kubeconfig(server: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: edge\n\
         contexts: [{{name: cloud, context: {{cluster: cloud, user: node}}}}, {{name: edge, context: {{cluster: edge, user: node}}}}]\n\
         clusters: [{{name: cloud, cluster: {{server: 'https://192.0.2.1:6443'}}}}, {{name: edge, cluster: {{server: '{server}'}}}}]\n\
         users: [{{name: node, user: {{}}}}]\n"
    )
}

fn token_in(file: &Path) -> Credentials {
    Credentials {
        user: AuthInfo::default(),
        token_file: Some(file.to_owned()),
        tokens: Arc::default(),
    }
}

#[tokio::test]
async fn a_proxy_that_a_kubeconfig_names_is_refused_and_not_passed_by() {
    let text = kubeconfig("https://192.0.2.1:6443");
    for (proxy, is_refused) in [
        ("http://user:secret@192.0.2.9:3128", true),
        ("socks5://192.0.2.9", true),
        ("", false),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let server = "server: 'https://192.0.2.1:6443'}}]\nusers";
        assert!(text.contains(server));
        let text = text.replace(
            server,
            &format!("server: 'http://192.0.2.1:6443', proxy-url: '{proxy}'}}}}]\nusers"),
        );
        std::fs::write(file.path(), text).unwrap();
        let access = Access {
            kubeconfig: Some(file.path().to_owned()),
            // It is the kubeconfig's server that was meant.
            in_cluster: Some("http://192.0.2.2".to_owned()),
            ..nothing()
        };
        let read = tokio::task::spawn_blocking(move || Origin::Inferred.read(&access)).await;
        let url = read
            .unwrap()
            .map(|named| named.config.cluster_url.to_string());
        match is_refused {
            true => {
                let reason = chain(&url.unwrap_err());
                assert!(reason.contains("proxy-url"), "{reason}");
                assert!(!reason.contains("secret"), "{reason}");
            }
            false => assert_eq!(url.unwrap(), "http://192.0.2.1:6443/"),
        }
    }
}

#[tokio::test]
async fn a_token_of_a_file_asks_as_whom_the_kubeconfig_says() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "t\r\n").unwrap();
    let way = Way {
        url: "https://192.0.2.1:6443".parse().unwrap(),
        tls: None,
        credentials: Credentials {
            user: AuthInfo {
                impersonate: Some("edge".to_owned()),
                impersonate_groups: Some(vec!["a".to_owned(), "b".to_owned()]),
                ..AuthInfo::default()
            },
            ..token_in(token.path())
        },
    };
    let signed = loop {
        match way.sign(Request::new(())).await {
            // The machine is busy.
            Err(AccessError::Silent) => {}
            signed => break signed.unwrap(),
        }
    };
    let all = |name: &str| -> Vec<_> { signed.headers().get_all(name).iter().cloned().collect() };
    assert_eq!(all("authorization"), ["Bearer t"]);
    assert_eq!(all("impersonate-user"), ["edge"]);
    assert_eq!(all("impersonate-group"), ["a", "b"]);
}

#[tokio::test]
async fn a_file_that_a_crash_has_made_long_is_an_error_that_names_it_whichever_it_is() {
    let long = tempfile::NamedTempFile::new().unwrap();
    // More than this machine has memory for.
    long.as_file().set_len(1 << 40).unwrap();
    let path = long.path().display().to_string();
    let text = kubeconfig("https://192.0.2.1:6443");
    let text = |place: &str, file: &str| {
        assert!(text.contains(place));
        text.replace(place, &format!("{place}{file}: '{path}'"))
    };
    let server = "server: 'https://192.0.2.1:6443'";
    let user = "users: [{name: node, user: {";
    let inferred = |kubeconfig: &Path| Access {
        kubeconfig: Some(kubeconfig.to_owned()),
        ..nothing()
    };
    let mut ways = vec![(Origin::Inferred, inferred(long.path()))];
    let mut files = Vec::new();
    for text in [
        text(server, ", certificate-authority"),
        text(user, "client-certificate"),
        text(user, "client-key"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ways.push((Origin::Inferred, inferred(file.path())));
        files.push(file);
    }
    let url: Uri = "https://192.0.2.1:6443".parse().unwrap();
    let has_token = false;
    let ca_file = Some(long.path().to_owned());
    let access = Access {
        ca_file,
        ..nothing()
    };
    ways.push((
        Origin::Url {
            url: url.clone(),
            has_token,
        },
        access,
    ));
    for (origin, access) in ways {
        let refused = origin
            .way(&access, &Files::default())
            .await
            .map(|way| way.url);
        let reason = chain(&refused.unwrap_err());
        assert!(reason.contains(&path), "{reason}");
        let sizes = "it has 1099511627776 bytes, and no more than 1048576 are read";
        assert!(reason.contains(sizes), "{reason}");
    }
    let way = Way {
        url,
        tls: None,
        credentials: token_in(long.path()),
    };
    let refused = way.sign(Request::new(())).await.map(drop);
    let reason = chain(&refused.unwrap_err());
    assert!(reason.contains(&path), "{reason}");
    assert!(reason.contains("no more than 65536 are read"), "{reason}");
}

/// On one thread: whoever waits for a disk there keeps all others waiting.
#[tokio::test]
async fn a_disk_that_does_not_answer_is_an_error_and_keeps_nobody_else_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    // Who opens it waits until somebody writes to it.
    let answer = || drop(std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
    let file = directory.path().join("kubeconfig");
    let certificate = format!("{{client-certificate: '{}'}}", pipe.display());
    let text = kubeconfig("https://192.0.2.1:6443").replace("user: {}", "user: ");
    std::fs::write(
        &file,
        text.replace("user: }", &format!("user: {certificate}}}")),
    )
    .unwrap();
    let inferred = |kubeconfig: &Path| Access {
        kubeconfig: Some(kubeconfig.to_owned()),
        ..nothing()
    };
    let silence = "the disk with the kubeconfig, certificates or token does not answer";

    for access in [inferred(&pipe), inferred(&file)] {
        let way = Origin::Inferred.way(&access, &Files::default()).await;
        assert_eq!(chain(&way.map(drop).unwrap_err()), silence);
        answer();
    }
    let way = Way {
        url: "https://192.0.2.1:6443".parse().unwrap(),
        tls: None,
        credentials: token_in(&pipe),
    };
    let signed = way.sign(Request::new(())).await;
    assert_eq!(chain(&signed.map(drop).unwrap_err()), silence);
    answer();
    assert!(!inferred(&pipe).leads_to_hub().await);
    answer();
}

#[test]
fn paths_in_a_kubeconfig_are_those_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let text = kubeconfig("https://192.0.2.1:6443");
    let text = text.replace("user: {}", "user: {tokenFile: token}");
    std::fs::write(&path, text).unwrap();
    let access = Access {
        kubeconfig: Some(path),
        ..nothing()
    };
    let read = access.read_kubeconfig().unwrap();
    let token = read.auth_infos[0].auth_info.as_ref().unwrap();
    let expected = directory.path().join("token").display().to_string();
    assert_eq!(token.token_file.as_ref(), Some(&expected));
}

#[tokio::test]
async fn credentials_in_the_url_of_a_kubeconfig_are_refused_and_not_repeated() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kubeconfig("http://user:secret@192.0.2.1:8080")).unwrap();
    let access = Access {
        kubeconfig: Some(file.path().to_owned()),
        ..nothing()
    };
    let refused = Origin::Inferred
        .way(&access, &Files::default())
        .await
        .map(|way| way.url);
    let reason = chain(&refused.unwrap_err());
    assert!(reason.contains("names a user or a password"), "{reason}");
    assert!(!reason.contains("secret"), "{reason}");
}

#[tokio::test]
async fn a_hub_that_the_environment_or_a_kubeconfig_names_is_one() {
    for (server, expected) in [
        ("https://169.254.2.1:10268", true),
        ("http://127.0.0.1:10261", true),
        ("https://192.0.2.1:6443", false),
    ] {
        let in_cluster = Access {
            in_cluster: Some(server.to_owned()),
            ..nothing()
        };
        assert_eq!(in_cluster.leads_to_hub().await, expected, "{server}");

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), kubeconfig(server)).unwrap();
        // A kubeconfig comes before the environment.
        let named = Access {
            kubeconfig: Some(file.path().to_owned()),
            in_cluster: Some("https://169.254.2.1:10268".to_owned()),
            ..nothing()
        };
        assert_eq!(named.leads_to_hub().await, expected, "{server}");

        let api = Api::Server(server.parse().unwrap());
        assert_eq!(api.is_hub(false), expected, "{server}");
    }
    assert!(Api::Hub(None).is_hub(false));
    assert!(!nothing().leads_to_hub().await);
}
