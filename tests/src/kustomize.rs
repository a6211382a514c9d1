//! As much of kustomize as `deploy/` uses: resources, components, images, and patches by JSON Patch (RFC 6902: `add`,
//! `replace`). What it does not know is an error.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::apiserver::objects::documents;

/// The objects that `kubectl kustomize DIRECTORY` prints.
pub fn render(directory: &Path) -> Result<Vec<Value>> {
    build(directory, &kustomization(directory)?)
}

/// The objects of a kustomization that lies in this directory.
pub fn build(directory: &Path, kustomization: &Value) -> Result<Vec<Value>> {
    ensure!(kustomization["kind"] == "Kustomization", "{kustomization}");
    let mut objects = Vec::new();
    for resource in words(&kustomization["resources"]) {
        let path = directory.join(resource);
        if path.is_dir() {
            // kustomize takes this for a circle.
            let (base, own) = (path.canonicalize()?, directory.canonicalize()?);
            ensure!(
                !own.starts_with(&base),
                "{} is below its base",
                own.display()
            );
            objects.extend(render(&path)?);
        } else {
            ensure!(!resource.contains(".."), "{resource} is outside");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            objects.extend(documents(&text)?);
        }
    }
    for component in words(&kustomization["components"]) {
        let component = self::kustomization(&directory.join(component))?;
        ensure!(component["kind"] == "Component", "{component}");
        transform(&component, &mut objects)?;
    }
    transform(kustomization, &mut objects)?;
    Ok(objects)
}

fn kustomization(directory: &Path) -> Result<Value> {
    let path = directory.join("kustomization.yaml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut documents = documents(&text)?.into_iter();
    documents
        .next()
        .with_context(|| format!("{} is empty", path.display()))
}

fn words(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn transform(kustomization: &Value, objects: &mut [Value]) -> Result<()> {
    let fields = kustomization.as_object().context("no object")?;
    for field in fields.keys() {
        let known = [
            "apiVersion",
            "kind",
            "resources",
            "components",
            "images",
            "patches",
        ];
        ensure!(known.contains(&field.as_str()), "{field} is not known here");
    }
    for patch in kustomization["patches"].as_array().into_iter().flatten() {
        let target = &patch["target"];
        let operations = patch["patch"].as_str().context("no patch")?;
        let operations: Vec<Value> = serde_saphyr::from_str(operations)?;
        let is_meant = |object: &&mut Value| {
            let name = &target["name"];
            object["kind"] == target["kind"]
                && (name.is_null() || object["metadata"]["name"] == *name)
        };
        let mut count = 0;
        for object in objects.iter_mut().filter(is_meant) {
            count += 1;
            for operation in &operations {
                apply(operation, object).with_context(|| operation.to_string())?;
            }
        }
        ensure!(count > 0, "no object is {target}");
    }
    for image in kustomization["images"].as_array().into_iter().flatten() {
        for object in objects.iter_mut() {
            if let Some(pod) = object.pointer_mut("/spec/template/spec") {
                name_image(image, pod);
            }
        }
    }
    Ok(())
}

/// One operation of a JSON Patch.
fn apply(operation: &Value, object: &mut Value) -> Result<()> {
    let path = operation["path"].as_str().context("no path")?;
    let (parent, last) = path.rsplit_once('/').context("no path")?;
    let is_new = match operation["op"].as_str() {
        Some("add") => true,
        Some("replace") => false,
        _ => bail!("not known here"),
    };
    let value = operation["value"].clone();
    match object.pointer_mut(parent).context("nothing is there")? {
        Value::Array(list) if is_new => {
            ensure!(last == "-", "only the end of a list is known here");
            list.push(value);
        }
        Value::Array(list) => {
            *list
                .get_mut(last.parse::<usize>()?)
                .context("no such one")? = value
        }
        Value::Object(map) => {
            let before = map.insert(last.to_owned(), value);
            ensure!(is_new || before.is_some(), "nothing is there");
        }
        _ => bail!("neither a list nor an object"),
    }
    Ok(())
}

fn name_image(image: &Value, pod: &mut Value) {
    for containers in ["initContainers", "containers"] {
        let containers = pod.get_mut(containers).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if container["image"] == image["name"]
                && let (Some(name), Some(tag)) =
                    (image["newName"].as_str(), image["newTag"].as_str())
            {
                container["image"] = format!("{name}:{tag}").into();
            }
        }
    }
}
