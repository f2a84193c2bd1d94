//! From the Rust types to the CRDs' YAML.

use crate::{
    Host, VirtualHardDisk, VirtualHardDiskTask, VirtualMachine, VirtualMachineInstance,
    VirtualNetwork,
};
use kube::{
    CustomResourceExt,
    core::object::{HasSpec, HasStatus},
};
use schemars::{JsonSchema, generate::SchemaSettings};
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
        described::<Host>(),
        described::<VirtualHardDisk>(),
        described::<VirtualHardDiskTask>(),
        described::<VirtualMachineInstance>(),
        described::<VirtualMachine>(),
        described::<VirtualNetwork>(),
    ]
    .into_iter()
    .collect()
}

/// A CustomResourceDefinition whose properties are described by the comments of their fields.
fn described<K>() -> Result<Value, serde_json::Error>
where
    K: CustomResourceExt + HasSpec<Spec: JsonSchema> + HasStatus<Status: JsonSchema>,
{
    let mut crd = serde_json::to_value(K::crd())?;
    for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let parts = &mut version["schema"]["openAPIV3Schema"]["properties"];
        describe(&mut parts["spec"], &fields_of::<K::Spec>());
        describe(&mut parts["status"], &fields_of::<K::Status>());
    }
    tidy(&mut crd);
    Ok(crd)
}

/// The schema of a type as its fields describe it, before it is brought into the form that Kubernetes asks for. That
/// puts an optional field and its type into one, and lets the description of the type win.
fn fields_of<T: JsonSchema>() -> Value {
    let inline = |settings: &mut SchemaSettings| settings.inline_subschemas = true;
    let settings = SchemaSettings::draft07().with(inline);
    settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// Gives the properties of `schema` the descriptions of `fields`.
fn describe(schema: &mut Value, fields: &Value) {
    // An optional type is one of two: itself, or null.
    let fields = fields.pointer("/anyOf/0").unwrap_or(fields);
    if let Some(items) = schema.get_mut("items") {
        describe(items, &fields["items"]);
    }
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for (name, property) in properties.into_iter().flatten() {
        let field = &fields["properties"][name];
        if let Some(description) = field.get("description") {
            property["description"] = description.clone();
        }
        describe(property, field);
    }
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
