//! The golden cases: manifests and a node in, the table of that node out.
//!
//! A file is a rule: its first line says it, a head says for which node and with which flags, and
//! what the table is; the manifests follow. `YURT_BLESS=1` writes the tables anew, to be read
//! before they are committed.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use clap::Parser;
use serde_json::Value;
use yurt_net::config::Cli;
use yurt_net::config::Command;
use yurt_net::config::flags::PlanArgs;
use yurt_net::explain::rows::plan_json;
use yurt_net::model::Touched;
use yurt_net::policy::Memo;
use yurt_net::policy::Memory;
use yurt_net::policy::NodeView;
use yurt_net::policy::Reasons;
use yurt_net::policy::compile;
use yurt_net::source::SourceSpec;
use yurt_net::source::file::FileSource;

pub(crate) const HEAD_ENDS: &str = "\n---\n";
pub(crate) const EXPECT: &str = "expect: |\n";
const FILE: &str = "cluster.yaml";

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) path: PathBuf,
    pub(crate) rule: String,
    pub(crate) node: String,
    pub(crate) flags: Vec<String>,
    /// An agent can serve it: sockets are to go where the table says.
    pub(crate) has_sockets: bool,
    pub(crate) expect: String,
    pub(crate) manifests: String,
}

impl Case {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let (head, manifests) = text
            .split_once(HEAD_ENDS)
            .context("no `---` after the head")?;
        let (rest, expect) = format!("{head}\n")
            .split_once(EXPECT)
            .map(|(rest, expect)| (rest.to_owned(), expect.to_owned()))
            .context("no `expect: |`")?;
        let mut case = Self {
            path: path.to_owned(),
            rule: String::new(),
            node: String::new(),
            flags: Vec::new(),
            has_sockets: false,
            expect: expect.lines().fold(String::new(), |text, line| {
                text + line.strip_prefix("  ").unwrap_or(line) + "\n"
            }),
            manifests: manifests.to_owned(),
        };
        for line in rest.lines() {
            match line.split_once(": ") {
                _ if line.starts_with("# ") => case.rule += &line[2..],
                Some(("node", node)) => node.clone_into(&mut case.node),
                Some(("flags", flags)) => {
                    case.flags = flags.split(' ').map(str::to_owned).collect();
                }
                Some(("sockets", "true")) => case.has_sockets = true,
                _ => bail!("what is {line:?}?"),
            }
        }
        ensure!(case.rule.ends_with('.'), "the first line says the rule");
        Ok(case)
    }

    /// Writes the manifests to a directory, from which they are read.
    pub(crate) fn write_to(&self, dir: &Path) -> Result<()> {
        fs::write(dir.join(FILE), &self.manifests).with_context(|| dir.display().to_string())
    }

    /// What `plan -o json` prints for it.
    pub(crate) fn plan(&self) -> Result<Value> {
        let dir = tempfile::tempdir()?;
        self.write_to(dir.path())?;
        let source = format!("file:{}", dir.path().display());
        let head = [
            "yurt-net", "plan", "--node", &self.node, "--source", &source,
        ];
        let cli = Cli::try_parse_from(head.into_iter().chain(self.flags.iter().map(|f| &**f)))?;
        let Command::Plan(PlanArgs { policy, source, .. }) = cli.command else {
            bail!("not a plan");
        };
        let SourceSpec::File(path) = source else {
            unreachable!("cases are files");
        };
        let snapshot = FileSource::new(path).load()?;
        let (view, memory) = (NodeView::default(), Memory::default());
        let config = policy.config(&self.node);
        let table = compile(
            &snapshot,
            &Touched::Anything,
            &config,
            &view,
            &memory,
            &mut Memo::default(),
        )
        .table
        .clone();
        let reasons = Reasons::new(&snapshot, &config, &view, &memory);
        Ok(serde_json::to_value(plan_json(&table, &reasons))?)
    }
}

/// All files, by name.
pub(crate) fn all() -> Result<Vec<Case>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut paths = Vec::new();
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| Case::read(path).with_context(|| path.display().to_string()))
        .collect()
}

/// A row for clients of the node.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) protocol: String,
    /// `address:port`.
    pub(crate) to: String,
    pub(crate) kind: String,
    pub(crate) verdict: String,
    pub(crate) endpoints: Vec<String>,
    /// What clients elsewhere get; "" when it is the same, masqueraded.
    others: String,
    /// Whom a load balancer admits; none = all.
    pub(crate) ranges: Vec<String>,
    dropped: Vec<String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn socket_address(row: &Value) -> Result<String> {
    let address = text(&row["address"]).parse()?;
    let port = row["port"].as_u64().context("port")?;
    Ok(std::net::SocketAddr::new(address, u16::try_from(port)?).to_string())
}

/// The rows of one service port for clients of the node, each with what differs for others.
pub(crate) fn rows(service: &Value) -> Result<Vec<Row>> {
    let all: Vec<_> = items(&service["frontends"]).collect();
    let mut rows = Vec::new();
    for pair in all.chunks(2) {
        let [internal, external] = pair else {
            bail!("a frontend has a row for each scope: {pair:?}");
        };
        let path = match &*text(&service["protocol"]) {
            "SCTP" => "packet",
            _ => "socket",
        };
        ensure!(internal["scope"] == "internal" && internal["path"] == path);
        ensure!(external["scope"] == "external" && external["path"] == "packet");
        ensure!(internal["masquerade"] == false);
        for same in ["kind", "address", "port", "sourceRanges"] {
            ensure!(internal[same] == external[same], "{same} of {external}");
        }
        let list = |value: &Value| items(value).map(text).collect::<Vec<_>>();
        let dropped = [internal, external]
            .into_iter()
            .flat_map(|row| items(&row["dropped"]))
            .map(|it| format!("{}: {}", text(&it["endpoint"]), text(&it["reason"])));
        let is_same = ["verdict", "endpoints", "dropped"]
            .iter()
            .all(|field| internal[field] == external[field]);
        let are_themselves = external["masquerade"] == false && external["verdict"] == "forward";
        let mut others = String::new();
        if !is_same || are_themselves {
            others = format!(
                "{} {}",
                text(&external["verdict"]),
                list(&external["endpoints"]).join(", ")
            );
            if are_themselves {
                others += " as themselves";
            }
        }
        rows.push(Row {
            protocol: text(&service["protocol"]),
            to: socket_address(internal)?,
            kind: text(&internal["kind"]),
            verdict: text(&internal["verdict"]),
            endpoints: list(&internal["endpoints"]),
            others: others.split_whitespace().collect::<Vec<_>>().join(" "),
            ranges: list(&internal["sourceRanges"]),
            dropped: dropped.collect(),
        });
    }
    Ok(rows)
}

/// The table in few words.
pub(crate) fn essence(plan: &Value) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "pool {}", plan["pool"])?;
    for service in items(&plan["services"]) {
        let [namespace, name, port, protocol, closure] =
            ["namespace", "name", "port", "protocol", "closure"].map(|key| text(&service[key]));
        write!(
            out,
            "{namespace}/{name}:{port} {protocol} closure {closure}"
        )?;
        match service["affinitySeconds"].as_u64() {
            Some(0) => writeln!(out)?,
            Some(seconds) => writeln!(out, " affinity {seconds}")?,
            None => bail!("affinitySeconds of {service}"),
        }
        let mut dropped = Vec::new();
        for row in rows(service)? {
            ensure!(row.protocol == protocol);
            let Row {
                to,
                kind,
                verdict,
                endpoints,
                others,
                ranges,
                ..
            } = &row;
            let mut line = format!("  {kind} {to} {verdict} {}", endpoints.join(", "));
            if !others.is_empty() {
                line = format!("{}; others {others}", line.trim_end());
            }
            if !ranges.is_empty() {
                line = format!("{}; only from {}", line.trim_end(), ranges.join(", "));
            }
            writeln!(out, "{}", line.trim_end())?;
            dropped.extend(row.dropped);
        }
        dropped.sort();
        dropped.dedup();
        for line in dropped {
            writeln!(out, "  dropped {line}")?;
        }
    }
    for rejection in items(&plan["rejections"]) {
        let [kind, namespace, name, source, reason] =
            ["kind", "namespace", "name", "source", "reason"].map(|key| text(&rejection[key]));
        let object = [namespace, name].join("/");
        let object = object.trim_matches('/');
        writeln!(out, "rejected {source} {kind} {object}: {reason}")?;
    }
    Ok(out)
}
