//! References between objects, and the condition type.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Names another object in the same namespace.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct LocalReference {
    /// Name of the object, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Names a host.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct HostReference {
    /// Name of the Host.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A file in a pool of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct PoolFile {
    /// Name of the pool, as in the Host's `spec.pools`.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// Path within the pool: relative, without `..`, at most 512 characters. A symbolic link on the way is refused by the host.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(PATH_RULE).message(PATH_MESSAGE))]
    pub path: String,
}

/// CEL: a relative path that stays in its pool.
pub const PATH_RULE: &str = "!self.startsWith('/') && !self.endsWith('/') && !self.contains('//') && !self.matches('(^|/)[.]{1,2}(/|$)') && self.matches('^[ -~]+$')";
/// The message of [`PATH_RULE`].
pub const PATH_MESSAGE: &str = "path must be relative and stay in its pool: no leading '/', no '.' or '..' part, printable ASCII only";

/// Whether a path in a pool of disks lies in the folder that a namespace has there: the one of its name. All that a
/// namespace makes, adopts or exports under a name of its choice lies in it, so that none meets another's disks, what
/// lies beside those, or what will once be there.
#[must_use]
pub fn is_in_folder_of(namespace: &str, path: &str) -> bool {
    let inside = path
        .strip_prefix(namespace)
        .and_then(|rest| rest.strip_prefix('/'));
    let leads_on = |part: &str| !matches!(part, "" | "." | "..");
    !namespace.is_empty() && inside.is_some_and(|inside| inside.split('/').all(leads_on))
}

/// What is said of a path that does not, see [`is_in_folder_of`].
#[must_use]
pub fn outside_folder(namespace: &str, pool: &str, path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    format!(
        "{path} in pool {pool}: a namespace's files in a pool of disks lie in the folder of its name: choose a path that begins with {namespace}/, such as {namespace}/{name}, and move a file that is to be adopted there"
    )
}

/// Replaces or adds `new` in a list of conditions; keeps the transition time while the status stays the same.
/// Returns whether anything other than time changed.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) -> bool {
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            let changed = *old != new;
            *old = new;
            changed
        }
        None => {
            conditions.push(new);
            true
        }
    }
}

/// The condition of a type, if present.
#[must_use]
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of a type is `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    condition(conditions, type_).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_the_folder_of_its_name() {
        for inside in ["a/d.vhd", "a/b/d.vhd", "a/a", "a/..d"] {
            assert!(is_in_folder_of("a", inside), "{inside}");
        }
        for outside in [
            "d.vhd",
            "a",
            "a/",
            "/a/d.vhd",
            "A/d.vhd",
            "ab/d.vhd",
            "b/a/d.vhd",
            "./a/d.vhd",
            "a/../b/d.vhd",
            "a/./d.vhd",
            "a//d.vhd",
            "a/..",
            "",
        ] {
            assert!(!is_in_folder_of("a", outside), "{outside}");
        }
        assert!(!is_in_folder_of("", "/d.vhd"));
    }
}
