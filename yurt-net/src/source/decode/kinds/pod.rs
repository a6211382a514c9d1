//! What is read of a Pod.

use super::fields::{OURS, annotations, port_number, required};
use crate::model::{LocalPod, NamespacedName, Question, ReadinessProbe};
use crate::source::decode::names::Names;
use crate::source::decode::value::Keep::{self, All, Only};
use crate::source::decode::value::{Value, Wrong, at, each, name_of, text};

/// What is kept of a container.
pub(super) const CONTAINER: Keep = Only(&[
    ("restartPolicy", All),
    ("ports", Only(&[("name", All), ("containerPort", All)])),
    (
        "readinessProbe",
        Only(&[
            ("periodSeconds", All),
            ("timeoutSeconds", All),
            ("failureThreshold", All),
            ("successThreshold", All),
            ("tcpSocket", Only(&[("host", All), ("port", All)])),
            (
                "httpGet",
                Only(&[
                    ("host", All),
                    ("port", All),
                    ("path", All),
                    ("scheme", All),
                    ("httpHeaders", Only(&[("name", All), ("value", All)])),
                ]),
            ),
            ("grpc", Only(&[("port", All), ("service", All)])),
        ]),
    ),
]);

/// Bytes of the path of a probe, and its headers: a Pod may have thousands of probes.
const MAX_PATH: usize = 4096;
const MAX_HEADERS: usize = 32;

pub(super) fn pod(
    value: &Value<'_>,
    name: NamespacedName,
    names: &mut Names,
) -> Result<LocalPod, Wrong> {
    let uid = at(value, "metadata", |metadata| at(metadata, "uid", name_of))?;
    let node_name = at(value, "spec", |spec| at(spec, "nodeName", name_of))?;
    Ok(LocalPod {
        uid: uid.unwrap_or_default().into(),
        node_name: names.intern(node_name.unwrap_or_default()),
        annotations: annotations(value, &OURS)?,
        readiness: readiness(value, &name),
        name,
    })
}

/// The probes of the containers that decide on a Pod's readiness. One that cannot be read costs only itself, because
/// other things depend on the Pod.
fn readiness(value: &Value<'_>, name: &NamespacedName) -> Box<[ReadinessProbe]> {
    let containers = |field, is_counted: fn(&Value<'_>) -> bool| {
        at(value, "spec", |spec| {
            at(spec, field, |all| {
                each(all, |container| {
                    let probe = is_counted(container).then(|| readiness_probe(container));
                    Ok(probe.transpose().unwrap_or_else(|wrong| {
                        tracing::debug!(pod = %name, %wrong, "readinessProbe ignored");
                        None
                    }))
                })
            })
        })
        .unwrap_or_default()
    };
    // An init container counts if it runs on beside the others (KEP-753).
    let is_sidecar = |container: &Value<'_>| {
        at(container, "restartPolicy", text).is_ok_and(|policy| policy == Some("Always"))
    };
    let mut all = containers("containers", |_| true);
    all.extend(containers("initContainers", is_sidecar));
    all.into_iter().flatten().flatten().collect()
}

/// `None`: there is no probe, or none that can be asked here.
fn readiness_probe(container: &Value<'_>) -> Result<Option<ReadinessProbe>, Wrong> {
    at(container, "readinessProbe", |probe| {
        let is_given = |handler| at(probe, handler, |handler| Ok(*handler != Value::Null));
        let (question, port) = if is_given("tcpSocket")? {
            let port = at(probe, "tcpSocket", |tcp| own_port(tcp, container))?;
            (Question::Connect, port)
        } else if is_given("httpGet")? {
            at(probe, "httpGet", |get| {
                // Without a client certificate the answer shows no more than that a server is there.
                let question = match at(get, "scheme", text)? {
                    Some("HTTPS") => Question::Connect,
                    _ => self::get(get)?,
                };
                Ok((question, own_port(get, container)?))
            })?
        } else if is_given("grpc")? {
            at(probe, "grpc", |grpc| {
                let service = at(grpc, "service", name_of)?.unwrap_or_default().to_owned();
                Ok((Question::Grpc { service }, own_port(grpc, container)?))
            })?
        } else {
            return Ok(None);
        };
        let Some(port) = port else {
            return Ok(None);
        };
        let defaults = ReadinessProbe::connect(port);
        let number = |field, default| at(probe, field, |value| positive(value, default));
        Ok(Some(ReadinessProbe {
            question,
            port,
            period_seconds: number("periodSeconds", defaults.period_seconds)?,
            timeout_seconds: number("timeoutSeconds", defaults.timeout_seconds)?,
            failure_threshold: number("failureThreshold", defaults.failure_threshold)?,
            success_threshold: number("successThreshold", defaults.success_threshold)?,
        }))
    })
}

/// The port of a handler, by its number or its name in the container; `None` if another host than the Pod is to be
/// asked.
fn own_port(handler: &Value<'_>, container: &Value<'_>) -> Result<Option<u16>, Wrong> {
    if at(handler, "host", text)?.is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let port = at(handler, "port", |port| match port {
        Value::Text(name) => named_port(container, name)?
            .or_else(|| name.parse().ok())
            .ok_or_else(|| Wrong::new("a port of the container", port)),
        _ => port_number(port),
    })?;
    Ok((port != 0).then_some(port))
}

fn named_port(container: &Value<'_>, name: &str) -> Result<Option<u16>, Wrong> {
    let ports = at(container, "ports", |ports| {
        each(ports, |port| {
            let is_it = at(port, "name", text)? == Some(name);
            let number = at(port, "containerPort", port_number)?;
            Ok(is_it.then_some(number))
        })
    })?;
    Ok(ports.into_iter().flatten().next())
}

fn get(get: &Value<'_>) -> Result<Question, Wrong> {
    let path = at(get, "path", |path| {
        let is_target = |path: &&str| path.bytes().all(|byte| byte.is_ascii_graphic());
        let Some(text) = text(path)?.filter(|path| !path.is_empty()) else {
            return Ok("/".to_owned());
        };
        if text.len() > MAX_PATH {
            return Err(Wrong::new("a path of at most 4096 bytes", path));
        }
        match (Some(text).filter(is_target), text.starts_with('/')) {
            (Some(text), true) => Ok(text.to_owned()),
            (Some(text), false) => Ok(format!("/{text}")),
            (None, _) => Err(Wrong::new("a path without spaces, of ASCII", path)),
        }
    })?;
    let headers = at(get, "httpHeaders", |headers| {
        each(headers, |header| {
            let name = at(header, "name", |name| {
                one_line(required(name, "the name of the header")?, name)
            })?;
            let content = at(header, "value", |value| {
                one_line(name_of(value)?.unwrap_or_default(), value)
            })?;
            Ok((name, content))
        })
    })?;
    if headers.len() > MAX_HEADERS {
        return Err(Wrong::new("at most 32 headers", get));
    }
    Ok(Question::Get { path, headers })
}

fn one_line(text: &str, value: &Value<'_>) -> Result<String, Wrong> {
    match text.contains(char::is_control) {
        true => Err(Wrong::new("one line", value)),
        false => Ok(text.to_owned()),
    }
}

/// Nothing and 0 stand for the default, as in the API.
fn positive(value: &Value<'_>, default: u32) -> Result<u32, Wrong> {
    let number = match value {
        Value::Null => Some(0),
        Value::Int(number) => u32::try_from(*number).ok(),
        _ => None,
    };
    match number {
        Some(0) => Ok(default),
        Some(number) => Ok(number),
        None => Err(Wrong::new("a number above 0", value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::decode::Object;

    fn readiness(containers: &str) -> Vec<ReadinessProbe> {
        let pod = format!(
            r#"{{"metadata": {{"name": "web-0"}}, "spec": {{"nodeName": "a1", {containers}}}}}"#
        );
        let object =
            crate::source::decode::item(pod.as_bytes(), "Pod", "v1", &mut Names::default());
        let Ok(Some(Object::Pod(pod))) = object else {
            panic!("{object:?}");
        };
        pod.readiness.to_vec()
    }

    fn of(probe: &str) -> Vec<ReadinessProbe> {
        readiness(&format!(
            r#""containers": [{{"ports": [{{"containerPort": 53}}, {{"name": "web", "containerPort": 8080}}],
                "readinessProbe": {probe}}}]"#
        ))
    }

    #[test]
    fn a_probe_is_read_with_the_api_s_defaults() {
        let get = |path: &str, headers: &[(&str, &str)]| Question::Get {
            path: path.to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let grpc = |service: &str| Question::Grpc {
            service: service.to_owned(),
        };
        for (handler, question, port) in [
            (r#""tcpSocket": {"port": 81}"#, Question::Connect, 81),
            (r#""tcpSocket": {"port": "web"}"#, Question::Connect, 8080),
            (r#""tcpSocket": {"port": "82"}"#, Question::Connect, 82),
            (r#""httpGet": {"port": 83}"#, get("/", &[]), 83),
            (
                r#""httpGet": {"port": 83, "path": "ok?a=1", "scheme": "HTTP",
                    "httpHeaders": [{"name": "Host", "value": "shop"}]}"#,
                get("/ok?a=1", &[("Host", "shop")]),
                83,
            ),
            (
                r#""httpGet": {"port": 84, "scheme": "HTTPS"}"#,
                Question::Connect,
                84,
            ),
            (r#""grpc": {"port": 85}"#, grpc(""), 85),
            (r#""grpc": {"port": 86, "service": null}"#, grpc(""), 86),
            (
                r#""grpc": {"port": 87, "service": "shop.Cart"}"#,
                grpc("shop.Cart"),
                87,
            ),
        ] {
            let expected = ReadinessProbe {
                question,
                ..ReadinessProbe::connect(port)
            };
            assert_eq!(of(&format!("{{{handler}}}")), [expected], "{handler}");
        }
        let patient = r#"{"tcpSocket": {"port": 81}, "periodSeconds": 5, "timeoutSeconds": 2,
            "failureThreshold": 4, "successThreshold": 6}"#;
        let expected = ReadinessProbe {
            question: Question::Connect,
            port: 81,
            period_seconds: 5,
            timeout_seconds: 2,
            failure_threshold: 4,
            success_threshold: 6,
        };
        assert_eq!(of(patient), [expected]);
    }

    #[test]
    fn what_cannot_be_asked_or_read_is_no_probe_and_costs_nothing_else() {
        for probe in [
            r#"{"exec": {"command": ["true"]}}"#,
            r#"{"tcpSocket": {"port": 81, "host": "example.com"}}"#,
            r#"{"tcpSocket": {"port": "no-such"}}"#,
            r#"{"tcpSocket": {"port": 81}, "periodSeconds": -1}"#,
            r#"{"httpGet": {"port": 81, "path": "/a b"}}"#,
            r#"{"grpc": {"port": 81, "service": 7}}"#,
            r#"{"httpGet": {"port": 81, "httpHeaders": [{"name": "A", "value": "x\r\nB: y"}]}}"#,
            "{}",
            "7",
        ] {
            assert_eq!(of(probe), [], "{probe}");
        }
        let second = r#"{"readinessProbe": {"tcpSocket": {"port": 81}}}"#;
        for first in ["7", r#"{"readinessProbe": 7}"#, "{}"] {
            let all = format!(r#""containers": [{first}, {second}]"#);
            assert_eq!(readiness(&all), [ReadinessProbe::connect(81)], "{first}");
        }
    }

    #[test]
    fn of_init_containers_those_that_stay_count() {
        let init = |policy| {
            readiness(&format!(
                r#""initContainers": [{{"restartPolicy": {policy}, "readinessProbe": {{"tcpSocket": {{"port": 81}}}}}}]"#
            ))
        };
        assert_eq!(init(r#""Always""#), [ReadinessProbe::connect(81)]);
        assert_eq!(init("null"), []);
    }
}
