//! Who may be asked without TLS: on this machine only who is root's, whatever it says of itself.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use yurt_net::source::SourceSpec;
use yurt_net::source::kube::{Access, Scope};
use yurt_net::source::preferred::{SourceStatus, Sources};
use yurt_net_tests::apiserver::{
    FakeApiserver, FakeYurtHub, HubMode, PodsServer, Settings, objects,
};
use yurt_net_tests::lab::Netns;

use crate::world::PATIENCE;

const NODE: &str = "edge-1";
const NOBODY: libc::uid_t = 65534;
const TOKEN: &str = "a.secret.token";

/// Runs `f` as a user without rights, and what it starts too.
fn as_nobody<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let as_nobody = scope.spawn(|| {
            // The system call itself changes this thread alone; libc's function would change all.
            // SAFETY: no pointers.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            ensure!(changed == 0, "{}", std::io::Error::last_os_error());
            f()
        });
        as_nobody.join().map_err(|_panic| anyhow!("it panicked"))?
    })
}

fn cluster() -> Result<FakeApiserver> {
    let api = FakeApiserver::start()?;
    let own = Ipv4Addr::new(192, 0, 2, 1).into();
    api.put(objects::node(NODE, Some("hangzhou"), own))?;
    api.put(objects::service(
        "web",
        Ipv4Addr::new(10, 96, 0, 1).into(),
        80,
    ))?;
    Ok(api)
}

/// What an agent with a ServiceAccount comes to that asks this source until something holds of it.
fn follow(
    source: &str,
    with_pods: bool,
    holds: impl Fn(&Sources, &SourceStatus) -> bool,
) -> Result<SourceStatus> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("token"), TOKEN)?;
    let scope = Scope {
        node: NODE.to_owned(),
        pool: None,
        pool_label: yurt_net::policy::POOL_LABEL.to_owned(),
        with_pods,
        access: Access {
            ca_file: None,
            service_account: dir.path().to_owned(),
            in_cluster: None,
            kubeconfig: Some("/nowhere".into()),
        },
    };
    let spec: SourceSpec = source.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut sources = Sources::start(&[spec], scope, None).await?;
        let started = Instant::now();
        loop {
            let status = sources.status(0);
            if holds(&sources, &status) {
                return Ok(status);
            }
            ensure!(started.elapsed() < PATIENCE, "not in time: {status:?}");
            let wait = Duration::from_millis(50);
            let _elapsed = tokio::time::timeout(wait, sources.changed()).await;
        }
    })
}

fn is_told(status: &SourceStatus, port: u16) -> bool {
    let error = status.source_error.as_deref().unwrap_or_default();
    error.contains(&format!("uid {NOBODY}")) && error.contains(&format!("port {port}"))
}

#[test]
fn a_process_of_another_user_is_no_hub_and_is_told_nothing() -> Result<()> {
    // A namespace of its own, where YurtHub's ports are free.
    Netns::host()?.run(|| {
        loopback_up()?;
        let cloud = cluster()?;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10261));
        let impostor = as_nobody(|| FakeYurtHub::listen(at, &cloud, HubMode::Online))?;
        follow("yurthub:", false, |sources, status| {
            sources.snapshot().is_some() || is_told(status, 10261)
        })?;
        follow("yurthub:http://127.0.0.1:10261", false, |_, status| {
            is_told(status, 10261)
        })?;
        ensure!(
            impostor.http().requests().is_empty(),
            "{:?}",
            impostor.http().requests()
        );
        Ok(())
    })?
}

#[test]
fn a_process_of_another_user_is_no_apiserver_without_tls_and_gets_no_token() -> Result<()> {
    let impostor = as_nobody(cluster)?;
    let url = impostor.http().url();
    let port = impostor.http().address().port();
    follow(&format!("kube:{url}"), false, |_, status| {
        is_told(status, port)
    })?;
    ensure!(impostor.http().requests().is_empty());
    Ok(())
}

#[test]
fn a_process_of_root_is_asked_and_gets_the_token() -> Result<()> {
    let api = cluster()?;
    follow(
        &format!("kube:{}", api.http().url()),
        false,
        |sources, _| sources.snapshot().is_some_and(|s| s.services.len() == 1),
    )?;
    let requests = api.http().requests();
    let request = requests.first().context("no request")?;
    ensure!(request.header("authorization") == format!("Bearer {TOKEN}"));
    Ok(())
}

#[test]
fn a_process_of_another_user_does_not_say_which_pods_there_are() -> Result<()> {
    Netns::host()?.run(|| {
        loopback_up()?;
        let cloud = cluster()?;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10261));
        let _hub = FakeYurtHub::listen(at, &cloud, HubMode::Online)?;
        let impostor = as_nobody(|| PodsServer::start(Ipv4Addr::LOCALHOST.into()))?;
        impostor.set(&[objects::pod("web-0", NODE)]);
        let status = follow("yurthub:", true, |sources, status| {
            sources.snapshot().is_some_and(|s| !s.pods.is_empty()) || is_told(status, 10267)
        })?;
        ensure!(is_told(&status, 10267), "{status:?}");
        Ok(())
    })?
}

#[test]
fn a_server_that_is_replaced_by_another_users_is_asked_no_more() -> Result<()> {
    let api = cluster()?;
    let at = api.http().address();
    let source = format!("kube:{}", api.http().url());
    let servers = RefCell::new((Some(api), None));
    follow(&source, false, |sources, status| {
        let (api, impostor) = &mut *servers.borrow_mut();
        if sources.snapshot().is_some() && impostor.is_none() {
            drop(api.take());
            let listen = || FakeApiserver::listen(at, Settings::default(), Vec::new());
            *impostor = as_nobody(listen).ok();
        }
        is_told(status, at.port())
    })?;
    let (_, impostor) = servers.into_inner();
    ensure!(
        impostor
            .context("never replaced")?
            .http()
            .requests()
            .is_empty()
    );
    Ok(())
}

/// It leaves by the default route then, or is answered by whoever says on the LAN that it is theirs.
#[test]
fn a_neighbour_at_yurthubs_address_is_no_hub_while_the_node_does_not_have_it() -> Result<()> {
    let (node, neighbour) = (Netns::host()?, Netns::host()?);
    let peer = neighbour.path();
    node.ip(&format!(
        "link set lo up\nlink add up0 type veth peer name lan0 netns {peer}\nlink set up0 up\n\
         addr add 192.0.2.11/24 dev up0\naddr add fd00:9::11/64 dev up0 nodad\n"
    ))?;
    neighbour.ip(
        "link set lo up\nlink set lan0 up\naddr add 192.0.2.1/24 dev lan0\n\
         addr add fd00:9::1/64 dev lan0 nodad\naddr add 169.254.2.1/32 dev lo\n\
         addr add fd00::2:1/128 dev lo nodad\n",
    )?;
    node.ip("route add default via 192.0.2.1\nroute add ::/0 via fd00:9::1\n")?;
    for (hub, source) in [
        ("169.254.2.1:10261", "yurthub:"),
        ("169.254.2.1:10261", "kube:http://169.254.2.1:10261"),
        ("[fd00::2:1]:10261", "yurthub:http://[fd00::2:1]:10261"),
    ] {
        let at: SocketAddr = hub.parse()?;
        let impostor = neighbour.run(|| {
            let cloud = cluster()?;
            anyhow::Ok((FakeYurtHub::listen(at, &cloud, HubMode::Online)?, cloud))
        })??;
        node.run(|| {
            follow(source, false, |_, status| {
                let error = status.source_error.as_deref().unwrap_or_default();
                error.contains("no interface of this node has it")
            })
        })??;
        ensure!(impostor.0.http().requests().is_empty(), "{source}");
    }
    Ok(())
}

fn loopback_up() -> Result<()> {
    let up = std::process::Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()?;
    ensure!(up.success(), "lo");
    Ok(())
}
