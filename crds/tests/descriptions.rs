//! What `kubectl explain` says of a field is what the field's comment says, and not that of its type.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// The comments of fields, by the name that a field has in the API.
type Comments = BTreeMap<String, BTreeSet<String>>;

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let (head, tail) = part.split_at(1);
        name + &head.to_ascii_uppercase() + tail
    })
}

/// The name in `rename = "…"`, but not that of a rule for all of a type.
fn renamed(line: &str) -> Option<String> {
    let (_, name) = line.split_once("rename = \"")?;
    Some(name.split_once('"')?.0.to_owned())
}

/// Reads the comments of public fields out of the sources, line by line: rustfmt has put one on each.
fn comments() -> Comments {
    let mut comments = Comments::new();
    for entry in fs::read_dir("src").unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let (mut comment, mut name, mut in_attribute) = (Vec::new(), None, false);
        for line in fs::read_to_string(path).unwrap().lines().map(str::trim) {
            if let Some(text) = line.strip_prefix("///") {
                comment.push(text.trim().to_owned());
            } else if in_attribute || line.starts_with("#[") {
                name = renamed(line).or(name);
                in_attribute = !line.ends_with(']');
            } else {
                let field = line.strip_prefix("pub ").and_then(|l| l.split_once(": "));
                if let Some((field, _)) = field.filter(|(field, _)| !field.contains(' ')) {
                    let name = name.unwrap_or_else(|| camel_case(field));
                    comments.entry(name).or_default().insert(comment.join(" "));
                }
                (comment, name) = (Vec::new(), None);
            }
        }
    }
    comments
}

/// Notes each property below `schema` that is described by no comment of a field of its name.
fn compare(schema: &Value, at: &str, comments: &Comments, wrong: &mut Vec<String>) -> usize {
    let mut seen = 0;
    if let Some(items) = schema.get("items") {
        seen += compare(items, &format!("{at}[]"), comments, wrong);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        let said = property["description"].as_str().unwrap_or_default();
        if !comments.get(name).is_some_and(|all| all.contains(said)) {
            wrong.push(format!("{at}: {said:?}"));
        }
        seen += 1;
        // What is in these is Kubernetes' own.
        if !matches!(&**name, "conditions" | "hostSelector") {
            seen += compare(property, &at, comments, wrong);
        }
    }
    seen
}

#[test]
fn every_property_is_described_by_its_field() {
    let comments = comments();
    let backend =
        "How guests are run: Qemu, or Hollow when they are only pretended, for tests of scale.";
    assert!(
        comments["backend"].contains(backend),
        "{:?}",
        comments["backend"]
    );
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for crd in paddock_crds::crds().unwrap() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let parts = &version["schema"]["openAPIV3Schema"]["properties"];
            for part in ["spec", "status"] {
                let at = format!("{kind}.{part}");
                seen += compare(&parts[part], &at, &comments, &mut wrong);
            }
        }
    }
    assert!(seen > 250, "{seen} properties");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
