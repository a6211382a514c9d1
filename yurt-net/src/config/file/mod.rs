//! Configuration files: a KubeProxyConfiguration, a document of our own, or both.
//!
//! A file is decoded into the same settings as the command line: names and values of flags. So what a field takes is
//! what its flag takes, and what it does is told once. All that is wrong is said at once, each with its line. Pure.

mod own;
mod proxy;
mod said;
#[cfg(test)]
mod tests;
mod values;
mod yaml;

use clap::Command;

pub(super) use self::proxy::{FIELDS, FLAGGED};
pub(super) use self::said::{Decoded, Remark, Setting};
pub(super) use self::values::{Shape, bind};
use self::yaml::{Name, Node, Value};

const PROXY: (&str, &str) = ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration");
const OWN: (&str, &str) = ("yurt-net.openyurt.io/v1alpha1", "YurtNetConfiguration");

/// Reads the text of a file, if there is one, and the flags of kube-proxy with their values. `run` has our own flags.
pub(super) fn decode(text: Option<&str>, flags: &[(&str, Vec<String>)], run: &Command) -> Decoded {
    let mut decoded = Decoded::default();
    let documents = match yaml::documents(text.unwrap_or_default()) {
        Ok(documents) => documents,
        Err(problem) => {
            decoded.problems.push(problem);
            return decoded;
        }
    };
    let mut own = Decoded::default();
    let mut proxy: &[(Name, Node)] = &[];
    let mut seen = [false; 2];
    for document in &documents {
        let Node { line, value } = document;
        let mut complain = |what: String| {
            decoded.problems.push(Remark {
                line: *line,
                field: String::new(),
                what,
            });
        };
        let fields = match value {
            Value::Null => continue,
            Value::Map(fields) => fields,
            _ => {
                complain(format!("expected a {} or a {}", PROXY.1, OWN.1));
                continue;
            }
        };
        let said = |name: &str| {
            let field = fields.iter().find(|(field, _)| field.text == name);
            field
                .and_then(|(_, value)| value.text())
                .unwrap_or_default()
        };
        let kind = (said("apiVersion"), said("kind"));
        let Some(which) = [PROXY, OWN].iter().position(|known| *known == kind) else {
            complain(format!(
                "apiVersion {:?}, kind {:?}: expected {} of {} or {} of {}",
                kind.0, kind.1, PROXY.1, PROXY.0, OWN.1, OWN.0
            ));
            continue;
        };
        if std::mem::replace(&mut seen[which], true) {
            complain(format!("a second {}: there may be one", kind.1));
            continue;
        }
        match which {
            0 => proxy = fields,
            _ => own::decode(fields, run, &mut own),
        }
    }
    if text.is_some() && seen == [false; 2] && decoded.problems.is_empty() {
        decoded.problems.push(Remark {
            line: 0,
            field: String::new(),
            what: format!("the file has neither a {} nor a {}", PROXY.1, OWN.1),
        });
    }
    proxy::decode(proxy, flags, &mut decoded);
    // A flag wins over both documents, and ours over kube-proxy's.
    let is_flagged = |ours: &Setting| {
        let mut others = decoded.settings.iter();
        others.any(|other| other.flag == ours.flag && other.line == 0)
    };
    own.settings.retain(|ours| !is_flagged(ours));
    let is_ours = |flag: &str| own.settings.iter().any(|setting| setting.flag == flag);
    decoded.settings.retain(|setting| !is_ours(&setting.flag));
    decoded.settings.append(&mut own.settings);
    decoded.problems.append(&mut own.problems);
    decoded.warnings.append(&mut own.warnings);
    decoded
}
