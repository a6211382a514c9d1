//! Label and field selectors, to the extent that yurt-net and kube-proxy use them.

use std::collections::BTreeMap;

/// Which objects of a resource a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Is(String, String),
    IsNot(String, String),
    Exists(String),
    Lacks(String),
}

impl Filter {
    /// `Err` names what is not understood.
    pub(super) fn parse(
        namespace: Option<&str>,
        labels: &str,
        fields: &str,
    ) -> Result<Self, String> {
        let filter = Self {
            namespace: namespace.map(str::to_owned),
            labels: requirements(labels)?,
            fields: requirements(fields)?,
        };
        for field in &filter.fields {
            match field {
                Requirement::Is(key, _) | Requirement::IsNot(key, _)
                    if ["metadata.name", "metadata.namespace", "spec.nodeName"]
                        .contains(&key.as_str()) => {}
                other => return Err(format!("field label not supported: {other:?}")),
            }
        }
        Ok(filter)
    }

    pub(super) fn matches(
        &self,
        namespace: &str,
        name: &str,
        node_name: &str,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        let field = |key: &str| {
            Some(match key {
                "metadata.name" => name,
                "spec.nodeName" => node_name,
                _ => namespace,
            })
        };
        let label = |key: &str| labels.get(key).map(String::as_str);
        self.namespace.as_deref().is_none_or(|n| n == namespace)
            && self.fields.iter().all(|r| r.holds(field))
            && self.labels.iter().all(|r| r.holds(label))
    }
}

impl Requirement {
    fn holds<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Is(key, value) => value_of(key) == Some(value),
            Self::IsNot(key, value) => value_of(key) != Some(value),
            Self::Exists(key) => value_of(key).is_some(),
            Self::Lacks(key) => value_of(key).is_none(),
        }
    }
}

fn requirements(text: &str) -> Result<Vec<Requirement>, String> {
    let parts = text.split(',').map(str::trim);
    parts.filter(|part| !part.is_empty()).map(one).collect()
}

fn one(part: &str) -> Result<Requirement, String> {
    if part.contains([' ', '(', '<', '>']) {
        return Err(format!("the fake knows no selector like {part:?}"));
    }
    let own = str::to_owned;
    Ok(if let Some((key, value)) = part.split_once("!=") {
        Requirement::IsNot(own(key), own(value))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        Requirement::Is(own(key), own(value))
    } else if let Some(key) = part.strip_prefix('!') {
        Requirement::Lacks(own(key))
    } else {
        Requirement::Exists(own(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_as_a_table() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        for (selector, fields, expected) in [
            ("", "", true),
            ("app=web", "", true),
            ("app==web", "", true),
            ("app!=web", "", false),
            ("tier!=x", "", true),
            ("app", "", true),
            ("!app", "", false),
            ("!service.kubernetes.io/headless, app=web", "", true),
            ("app=web,tier=x", "", false),
            ("", "metadata.name=a", true),
            ("", "metadata.name=b", false),
            ("", "metadata.name!=a", false),
            ("", "metadata.namespace=default", true),
            ("", "spec.nodeName=edge-a1", true),
            ("", "spec.nodeName=edge-b1", false),
        ] {
            let filter = Filter::parse(None, selector, fields).unwrap();
            let matches = filter.matches("default", "a", "edge-a1", &labels);
            assert_eq!(matches, expected, "{selector} {fields}");
        }
        assert!(Filter::parse(None, "app in (a, b)", "").is_err());
        assert!(Filter::parse(None, "", "status.phase=Running").is_err());
    }
}
