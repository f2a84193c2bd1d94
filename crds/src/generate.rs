//! From the Rust types to the CRDs' YAML.

use crate::{
    Host, VirtualHardDisk, VirtualHardDiskTask, VirtualMachine, VirtualMachineInstance,
    VirtualNetwork,
};
use kube::CustomResourceExt;
use serde_json::Value;

const HEADER: &str = "# Generated from the types in crds/src by `make generate`. Do not edit.";

/// A file of the repository that is made from the types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Path from the repository's root.
    pub path: String,
    /// Content.
    pub content: String,
}

/// Every CustomResourceDefinition as JSON, in the order of their names, ready to be applied.
///
/// # Errors
/// When a type cannot be written as JSON, which is a fault in this crate.
pub fn crds() -> Result<Vec<Value>, serde_json::Error> {
    [
        Host::crd(),
        VirtualHardDisk::crd(),
        VirtualHardDiskTask::crd(),
        VirtualMachineInstance::crd(),
        VirtualMachine::crd(),
        VirtualNetwork::crd(),
    ]
    .into_iter()
    .map(|crd| {
        let mut value = serde_json::to_value(crd)?;
        tidy(&mut value);
        Ok(value)
    })
    .collect()
}

/// The files that hold the CRDs: one copy for kubectl and kustomize, one for the chart.
///
/// # Errors
/// When a type cannot be written as YAML, which is a fault in this crate.
pub fn generated_files() -> Result<Vec<GeneratedFile>, Box<dyn std::error::Error + Send + Sync>> {
    let mut files = Vec::new();
    for mut crd in crds()? {
        let plural = crd["spec"]["names"]["plural"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let plain = serde_yaml::to_string(&crd)?;
        files.push(GeneratedFile {
            path: format!("crds/generated/{plural}.yaml"),
            content: format!("{HEADER}\n{plain}"),
        });
        // Removing the chart must not remove every machine and disk object with it.
        crd["metadata"]["annotations"]["helm.sh/resource-policy"] = Value::from("keep");
        let kept = serde_yaml::to_string(&crd)?;
        files.push(GeneratedFile {
            path: format!("charts/paddock/templates/crds/{plural}.yaml"),
            content: format!(
                "{HEADER}\n{{{{- if .Values.crds.install }}}}\n{kept}{{{{- end }}}}\n"
            ),
        });
    }
    Ok(files)
}

/// Drops what Kubernetes conventions do without: `nullable` (an absent field says it) and the
/// non-structural number formats.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // A property may itself be named `nullable`; only the boolean is the schema keyword.
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
