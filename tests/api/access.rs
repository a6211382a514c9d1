//! Every way to name an apiserver, against one whose certificate a private authority has signed.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use yurt_net::source::kube::Access;
use yurt_net::source::preferred::Origin;
use yurt_net_tests::apiserver::{Authority, FakeApiserver, Fault, On, Resource, Validity};

use crate::followed::{Followed, PATIENCE, nothing, services};
use crate::{cluster, kube, web, yurthub};

const TOKEN: &str = "a.secret.token";

/// An apiserver with TLS, who signed its certificate, and a directory.
fn world() -> Result<(FakeApiserver, Authority, TempDir)> {
    let api = cluster(&["a"])?;
    let authority = Authority::new("kubernetes")?;
    api.http().set_tls(authority.server(Validity::Valid)?);
    Ok((api, authority, tempfile::tempdir()?))
}

fn write(dir: &Path, name: &str, text: &str) -> Result<String> {
    let path = dir.join(name);
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// A Pod's directory with the token and the CA.
fn service_account(dir: &Path, authority: &Authority) -> Result<Access> {
    write(dir, "token", TOKEN)?;
    write(dir, "ca.crt", authority.pem())?;
    Ok(Access {
        service_account: dir.to_owned(),
        ..nothing()
    })
}

fn is_served(access: Access, spec: String) -> Result<Followed> {
    let mut followed = Followed::reaching(access, &[spec])?;
    followed.until("the service", |s| services(s) == ["a"])?;
    Ok(followed)
}

/// All requests had this token, or none.
fn had(api: &FakeApiserver, token: Option<&str>) -> Result<()> {
    let expected = token
        .map(|token| format!("Bearer {token}"))
        .unwrap_or_default();
    let requests = api.http().requests();
    ensure!(!requests.is_empty());
    for request in requests {
        let header = request.header("authorization");
        ensure!(header == expected, "{header:?} instead of {expected:?}");
    }
    Ok(())
}

/// A kubeconfig with these lines about its cluster and its user.
fn kubeconfig(api: &FakeApiserver, dir: &Path, cluster: &str, user: &str) -> Result<Access> {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: edge\n\
         contexts: [{{name: edge, context: {{cluster: edge, user: edge}}}}]\n\
         clusters: [{{name: edge, cluster: {{server: \"{}\", {cluster}}}}}]\n\
         users: [{{name: edge, user: {{{user}}}}}]\n",
        api.http().url()
    );
    let path = write(dir, "kubeconfig", &text)?;
    Ok(Access {
        kubeconfig: Some(path.into()),
        ..nothing()
    })
}

/// As `kubectl config view --raw` has it.
fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let index = usize::try_from(word >> (18 - 6 * digit) & 63).unwrap_or_default();
            let is_padding = digit > u32::try_from(chunk.len()).unwrap_or_default();
            encoded.push(if is_padding {
                '='
            } else {
                char::from(DIGITS[index])
            });
        }
    }
    encoded
}

#[test]
fn a_url_is_verified_by_the_service_accounts_ca_and_gets_its_token() -> Result<()> {
    let (api, authority, dir) = world()?;
    let access = service_account(dir.path(), &authority)?;
    is_served(access, kube(&api))?;
    had(&api, Some(TOKEN))
}

#[test]
fn a_url_is_verified_by_the_ca_that_a_flag_names() -> Result<()> {
    let (api, authority, dir) = world()?;
    let mut access = nothing();
    access.ca_file = Some(write(dir.path(), "own.pem", authority.pem())?.into());
    is_served(access, kube(&api))?;
    had(&api, None)
}

#[test]
fn a_pod_finds_its_apiserver_in_the_environment() -> Result<()> {
    let (api, authority, dir) = world()?;
    let mut access = service_account(dir.path(), &authority)?;
    access.in_cluster = Some(api.http().url());
    is_served(access, "kube:".to_owned())?;
    had(&api, Some(TOKEN))
}

#[test]
fn a_kubeconfig_may_name_files_whose_token_ends_with_a_newline() -> Result<()> {
    let (api, authority, dir) = world()?;
    let ca = write(dir.path(), "ca.pem", authority.pem())?;
    let token = write(dir.path(), "token", &format!("{TOKEN}\r\n\n"))?;
    let cluster = format!("certificate-authority: {ca}");
    let access = kubeconfig(&api, dir.path(), &cluster, &format!("tokenFile: {token}"))?;
    is_served(access, "kube:".to_owned())?;
    had(&api, Some(TOKEN))
}

#[test]
fn a_kubeconfig_may_hold_certificates_and_a_token() -> Result<()> {
    let (api, authority, dir) = world()?;
    let ca = format!("certificate-authority-data: {}", base64(authority.pem()));
    let access = kubeconfig(&api, dir.path(), &ca, &format!("token: {TOKEN}"))?;
    is_served(access, "kube:".to_owned())?;
    had(&api, Some(TOKEN))
}

#[test]
fn a_client_certificate_says_who_we_are_inline_and_in_files() -> Result<()> {
    let (api, authority, dir) = world()?;
    api.http().set_tls(authority.server_for_clients()?);
    let us = authority.sign(&["system:node:edge-a1"], Validity::Valid)?;
    let ca = format!("certificate-authority-data: {}", base64(authority.pem()));
    let inline = format!(
        "client-certificate-data: {}, client-key-data: {}",
        base64(&us.certificate),
        base64(&us.key)
    );
    let access = kubeconfig(&api, dir.path(), &ca, &inline)?;
    is_served(access, "kube:".to_owned())?;
    let certificate = write(dir.path(), "us.pem", &us.certificate)?;
    let key = write(dir.path(), "us.key", &us.key)?;
    let files = format!("client-certificate: {certificate}, client-key: {key}");
    let access = kubeconfig(&api, dir.path(), &ca, &files)?;
    is_served(access, "kube:".to_owned())?;
    Ok(())
}

#[test]
fn a_server_that_another_authority_has_signed_is_told_nothing() -> Result<()> {
    let (api, _authority, dir) = world()?;
    let access = service_account(dir.path(), &Authority::new("kubernetes")?)?;
    let mut followed = Followed::reaching(access, &[kube(&api)])?;
    followed.until_status("why not", |status| {
        let error = status.source_error.as_deref().unwrap_or_default();
        error.contains("UnknownIssuer") || error.contains("BadSignature")
    })?;
    ensure!(api.http().requests().is_empty());
    Ok(())
}

#[test]
fn a_token_goes_to_nobody_whom_a_kubeconfig_leaves_unverified() -> Result<()> {
    let (api, _authority, dir) = world()?;
    let cluster = "insecure-skip-tls-verify: true";
    let access = kubeconfig(&api, dir.path(), cluster, &format!("token: {TOKEN}"))?;
    let mut followed = is_served(access, "kube:".to_owned())?;
    had(&api, None)?;
    // Who is refused without it is told why it was not sent.
    api.http()
        .fail_always(On::resource(Resource::Services), Fault::Status(401));
    api.end_watches(Resource::Services);
    followed.until_status("why not", |status| {
        let error = status.source_error.as_deref().unwrap_or_default();
        error.contains("401") && error.contains("no credentials are sent")
    })
}

#[test]
fn an_exec_plugin_that_hangs_keeps_no_other_source_waiting_nor_the_next_run_of_it() -> Result<()> {
    let (api, authority, dir) = world()?;
    let hang = write(dir.path(), "hang", "")?;
    let credential = r#"{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "a.token"}}"#;
    // The first run waits for a child that never ends by itself, and each other one leaves such a child behind. All of
    // them hold the plugin's output open.
    let lives = format!(
        "(while [ -d {} ]; do sleep 0.5; done) &",
        dir.path().display()
    );
    let child = dir.path().join("child");
    let script = format!(
        "if [ -e {hang} ]; then rm {hang}; {lives} echo $! > {}; wait; fi; {lives} echo '{credential}'",
        child.display()
    );
    let script = write(dir.path(), "plugin", &script)?;
    let user = format!(
        "exec: {{apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: sh, args: [{script}]}}"
    );
    let tls = "tls-server-name: localhost";
    let access = Access {
        ca_file: Some(write(dir.path(), "ca.crt", authority.pem())?.into()),
        ..kubeconfig(&api, dir.path(), tls, &user)?
    };
    let second = cluster(&["b"])?;
    let sources = ["kube:".to_owned(), kube(&second)];
    let mut followed = Followed::reaching(access, &sources)?;
    followed.until("the second one's", |s| services(s) == ["b"])?;
    followed.until_status("why not the first", |status| {
        let error = status.source_error.as_deref().unwrap_or_default();
        error.contains("has not answered")
    })?;
    followed.until("the first one's", |s| services(s) == ["a"])?;
    let process = fs::read_to_string(child)?;
    followed.until_status("its child is ended, too", |_| {
        // Or nobody has waited for it yet.
        let line = fs::read(Path::new("/proc").join(process.trim()).join("cmdline"));
        line.map_or(true, |line| line.is_empty())
    })
}

/// A plugin that writes down each of its runs, and gives a token until then.
fn counted_plugin(dir: &Path, until: &str) -> Result<(String, impl Fn() -> usize)> {
    let runs = dir.join("runs");
    let credential = format!(
        r#"{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {{"token": "a.token"{until}}}}}"#
    );
    let script = format!(
        "echo run >> {}; sleep 0.2; echo '{credential}'",
        runs.display()
    );
    let script = write(dir, "plugin", &script)?;
    let user = format!(
        "exec: {{apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: sh, args: [{script}]}}"
    );
    let count = move || fs::read_to_string(&runs).map_or(0, |runs| runs.lines().count());
    Ok((user, count))
}

#[test]
fn an_exec_plugin_is_asked_once_until_its_credential_ends_or_is_refused() -> Result<()> {
    const TO_COME: &str = r#", "expirationTimestamp": "2999-01-01T00:00:00Z""#;
    const PAST: &str = r#", "expirationTimestamp": "2001-01-01T00:00:00Z""#;
    for (until, is_kept) in [("", true), (TO_COME, true), (PAST, false)] {
        let (api, authority, dir) = world()?;
        let (user, runs) = counted_plugin(dir.path(), until)?;
        let access = Access {
            ca_file: Some(write(dir.path(), "ca.crt", authority.pem())?.into()),
            ..kubeconfig(&api, dir.path(), "tls-server-name: localhost", &user)?
        };
        let mut followed = Followed::reaching(access, &["kube:".to_owned()])?;
        followed.until("the service", |s| services(s) == ["a"])?;
        followed.until_watched(&api)?;
        ensure!(!is_kept || runs() == 1, "{until}: {} runs", runs());
        let before = runs();
        api.http().drop_connections()?;
        followed.until_watched(&api)?;
        api.put_all(web("b", 2))?;
        followed.until("what is new", |s| services(s) == ["a", "b"])?;
        ensure!((runs() == before) == is_kept, "{until}: {} runs", runs());

        let before = runs();
        api.http()
            .fail_next(On::list(Resource::Services), [Fault::Status(401)]);
        api.expire_watches(Resource::Services);
        followed.until_status("it is asked again", |_| runs() > before)?;
    }
    Ok(())
}

#[test]
fn an_exec_plugin_that_fails_is_told_by_its_complaint_and_by_nothing_that_may_be_secret()
-> Result<()> {
    let (api, _authority, dir) = world()?;
    let script = "echo SECRET-1; echo a lot of words >&2; echo no network >&2; exit 7";
    let script = write(dir.path(), "plugin", script)?;
    let user = format!(
        "exec: {{apiVersion: client.authentication.k8s.io/v1, command: sh, args: [{script}, SECRET-2], env: [{{name: A, value: SECRET-3}}]}}"
    );
    let access = kubeconfig(&api, dir.path(), "tls-server-name: localhost", &user)?;
    let mut followed = Followed::reaching(access, &["kube:".to_owned()])?;
    followed.until_status("why not", |status| status.source_error.is_some())?;
    let error = followed.status().source_error.unwrap_or_default();
    ensure!(error.ends_with("sh: exit status: 7: no network"), "{error}");
    ensure!(!error.contains("SECRET"), "{error}");
    Ok(())
}

/// A kubeconfig whose files are missing cannot be used, and what it names says nothing of who is asked instead.
#[test]
fn a_server_is_a_hub_or_not_by_where_it_was_dialled() -> Result<()> {
    let api = cluster(&["a"])?;
    let dir = TempDir::new()?;
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: edge\n\
        contexts: [{name: edge, context: {cluster: edge, user: edge}}]\n\
        clusters: [{name: edge, cluster: {server: 'https://127.0.0.1:10268', certificate-authority: /nowhere/ca.crt}}]\n\
        users: [{name: edge, user: {}}]\n";
    let access = Access {
        kubeconfig: Some(write(dir.path(), "kubeconfig", text)?.into()),
        in_cluster: Some(api.http().url()),
        ..nothing()
    };
    let mut followed = Followed::reaching(access, &["kube:".to_owned()])?;
    followed.until("the service", |s| services(s) == ["a"])?;
    ensure!(followed.sources().origin() == Origin::Live);
    ensure!(followed.sources().freshness().is_fresh());
    Ok(())
}

#[test]
fn a_certificate_that_has_expired_is_refused_until_it_is_renewed() -> Result<()> {
    let (api, authority, dir) = world()?;
    api.http().set_tls(authority.server(Validity::Expired)?);
    let access = service_account(dir.path(), &authority)?;
    let mut followed = Followed::reaching(access, &[kube(&api)])?;
    followed.until_status("why not", |status| {
        let error = status.source_error.as_deref().unwrap_or_default();
        error.contains("expired")
    })?;
    api.http().set_tls(authority.server(Validity::Valid)?);
    followed.until("the service", |s| services(s) == ["a"])
}

#[test]
fn an_authority_and_a_token_are_rotated_under_a_running_agent() -> Result<()> {
    let (api, authority, dir) = world()?;
    let access = service_account(dir.path(), &authority)?;
    let mut followed = is_served(access, kube(&api))?;
    let next = Authority::new("kubernetes")?;
    api.http().set_tls(next.server(Validity::Valid)?);
    api.http().drop_connections()?;
    followed.until_status("the old one is not believed", |status| {
        status.source_error.is_some()
    })?;
    // As kubelet does it: a file at once.
    write(dir.path(), "new", next.pem())?;
    fs::rename(dir.path().join("new"), dir.path().join("ca.crt"))?;
    write(dir.path(), "token", "another.token")?;
    api.http().forget_requests();
    api.put_all(web("b", 2))?;
    followed.until("what is new", |s| services(s) == ["a", "b"])?;
    had(&api, Some("another.token"))
}

/// A client certificate is shown when the connection is made: who is refused shows the one that is there now.
#[test]
fn who_is_not_accepted_any_more_makes_a_new_connection() -> Result<()> {
    let (api, authority, dir) = world()?;
    let access = service_account(dir.path(), &authority)?;
    let mut followed = is_served(access, kube(&api))?;
    followed.until_watched(&api)?;
    let connections = api.http().connections();
    api.http()
        .fail_next(On::watch(Resource::Services), [Fault::Status(401)]);
    api.end_watches(Resource::Services);
    followed.until_status("it is watched again", |_| {
        api.http().pending_faults() == 0 && api.http().open_watches(Resource::Services) == 1
    })?;
    ensure!(
        api.http().connections() == connections + 1,
        "{} connections after {connections}",
        api.http().connections()
    );
    Ok(())
}

/// As over a bad link: what connects is answered after a while.
fn slowly(to: SocketAddr, from: TcpListener) {
    std::thread::spawn(move || {
        for near in from.incoming().flatten() {
            std::thread::spawn(move || -> Result<()> {
                std::thread::sleep(Duration::from_millis(400));
                let far = TcpStream::connect(to)?;
                let (mut back, mut forth) = (near.try_clone()?, far.try_clone()?);
                std::thread::spawn(move || std::io::copy(&mut forth, &mut back));
                std::io::copy(&mut &near, &mut &far)?;
                Ok(())
            });
        }
    });
}

#[test]
fn a_network_that_changes_all_the_time_keeps_no_attempt_from_its_end() -> Result<()> {
    let (api, authority, dir) = world()?;
    let access = service_account(dir.path(), &authority)?;
    // Nobody listens there yet.
    let free = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let mut followed = Followed::reaching(access, &[format!("kube:https://{free}")])?;
    followed.until_status("it is missed", |status| status.source_error.is_some())?;
    slowly(api.http().address(), TcpListener::bind(free)?);
    let started = Instant::now();
    while followed.sources().snapshot().is_none() {
        ensure!(started.elapsed() < PATIENCE, "{:?}", followed.status());
        followed.sources().network_changed();
        followed.follow(Duration::from_millis(50))?;
    }
    Ok(())
}

#[test]
fn a_token_is_read_for_each_request_on_a_connection_that_stays() -> Result<()> {
    let (api, authority, dir) = world()?;
    let access = service_account(dir.path(), &authority)?;
    let mut followed = is_served(access, kube(&api))?;
    followed.until_watched(&api)?;
    let connections = api.http().connections();
    write(dir.path(), "token", "another.token\n")?;
    api.http().forget_requests();
    api.end_watches(Resource::Services);
    // The one that was open is not forgotten.
    let watches = || api.http().requests_on(On::watch(Resource::Services));
    followed.until_status("another watch", |_| watches().len() > 1)?;
    let watches = watches();
    let another = watches.get(1).context("another watch")?;
    ensure!(another.header("authorization") == "Bearer another.token");
    ensure!(
        api.http().connections() == connections,
        "another connection"
    );
    Ok(())
}

#[test]
fn a_source_without_tls_needs_no_certificates_and_one_with_it_says_what_to_give() -> Result<()> {
    const ALONE: &str = "YURT_TEST_WITHOUT_CERTIFICATES";
    if std::env::var_os(ALONE).is_none() {
        // Once more, in a process that finds none of the system's.
        let name =
            "access::a_source_without_tls_needs_no_certificates_and_one_with_it_says_what_to_give";
        let output = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", name, "--nocapture"])
            .envs([
                (ALONE, "yes"),
                ("SSL_CERT_FILE", "/nowhere"),
                ("SSL_CERT_DIR", "/nowhere"),
            ])
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return Ok(());
    }
    let plain = cluster(&["a"])?;
    is_served(nothing(), yurthub(&plain))?;
    is_served(nothing(), kube(&plain))?;
    let (api, authority, dir) = world()?;
    let mut followed = Followed::reaching(nothing(), &[kube(&api)])?;
    followed.until_status("the remedy", |status| {
        let error = status.source_error.as_deref().unwrap_or_default();
        error.contains("--kube-ca")
    })?;
    is_served(service_account(dir.path(), &authority)?, kube(&api))?;
    Ok(())
}
