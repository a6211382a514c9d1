//! The document of our own: a field for each flag of `run`, of the same name in camelCase. Pure.

use clap::{Arg, ArgAction, Command};

use super::said::{Decoded, Remark, Setting};
use super::values::boolean;
use super::yaml::{Name, Node, Value};

/// Flags that no file has: which file it is, and what is asked of clap itself.
const NOT_IN_FILES: &[&str] = &["config", "help", "version"];

/// Takes a document in. `run` has the flags.
pub(super) fn decode(document: &[(Name, Node)], run: &Command, decoded: &mut Decoded) {
    let flags = || {
        let flags = run
            .get_arguments()
            .filter_map(|arg| Some((arg, arg.get_long()?)));
        flags.filter(|(arg, long)| !arg.is_hide_set() && !NOT_IN_FILES.contains(long))
    };
    let mut seen: Vec<&str> = Vec::new();
    for (name, node) in document {
        if ["apiVersion", "kind"].contains(&&*name.text) {
            continue;
        }
        if seen.contains(&&*name.text) {
            decoded
                .problems
                .push(wrong(name.line, name, "it is there twice".to_owned()));
            continue;
        }
        seen.push(&name.text);
        let Some((arg, flag)) = flags().find(|(_, flag)| camel_case(flag) == name.text) else {
            let known: Vec<String> = flags().map(|(_, flag)| camel_case(flag)).collect();
            decoded.unknown(name.line, &name.text, known.iter().map(String::as_str));
            continue;
        };
        match words(arg, node) {
            Ok(values) => decoded
                .settings
                .extend(values.into_iter().map(|(line, value)| Setting {
                    flag: flag.to_owned(),
                    value,
                    line,
                    field: name.text.clone(),
                })),
            Err(what) => decoded.problems.push(wrong(node.line, name, what)),
        }
    }
}

fn wrong(line: usize, name: &Name, what: String) -> Remark {
    Remark {
        line,
        field: name.text.clone(),
        what,
    }
}

/// The values that a flag is given, each with its line.
fn words(arg: &Arg, node: &Node) -> Result<Vec<(usize, String)>, String> {
    match (&node.value, arg.get_action()) {
        (Value::Null, _) => Ok(Vec::new()),
        (Value::Text(text), ArgAction::SetTrue) => {
            let is_on = boolean(text).ok_or("expected true or false")?;
            Ok(vec![(node.line, is_on.to_string())])
        }
        (Value::Text(text), _) => Ok(vec![(node.line, text.clone())]),
        (Value::List(items), ArgAction::Append) => {
            // An empty list says that there is none, as an empty flag does.
            let items = items.iter().map(|item| {
                let text = item
                    .text()
                    .ok_or("expected a list of texts: one with a colon at its end needs quotes")?;
                Ok((item.line, text.to_owned()))
            });
            items.collect()
        }
        (Value::List(_), _) => Err("expected one value, and no list".to_owned()),
        (Value::Map(_), _) => {
            Err("expected a value, and no map: one with a colon at its end needs quotes".to_owned())
        }
    }
}

/// `max-slots4` is `maxSlots4`.
pub(crate) fn camel_case(flag: &str) -> String {
    let mut name = String::with_capacity(flag.len());
    let mut is_next_large = false;
    for c in flag.chars() {
        match (c, is_next_large) {
            ('-', _) => is_next_large = true,
            (c, true) => {
                name.push(c.to_ascii_uppercase());
                is_next_large = false;
            }
            (c, false) => name.push(c),
        }
    }
    name
}
