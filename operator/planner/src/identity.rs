//! Names and identities derived from objects, never from chance.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};
use std::fmt;

/// Namespace and name of an object. The namespace of a Host is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// The key of `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key in an object's metadata; parts that are absent are empty.
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self::new(
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The UID in an object's metadata, or empty.
#[must_use]
pub fn uid(metadata: &ObjectMeta) -> &str {
    metadata.uid.as_deref().unwrap_or_default()
}

/// The name in an object's metadata, or empty.
#[must_use]
pub fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

/// Whether an object is being deleted.
#[must_use]
pub fn deleting(metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_some()
}

/// Whether an object carries a finalizer.
#[must_use]
pub fn has_finalizer(metadata: &ObjectMeta, finalizer: &str) -> bool {
    metadata
        .finalizers
        .as_ref()
        .is_some_and(|all| all.iter().any(|f| f == finalizer))
}

/// SHA-256 of parts, each ended by a zero byte so that no two lists of parts give the same input.
pub(crate) fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SMBIOS UUID of a machine: the UID of its object, which the API server makes as a UUID. A UID of
/// another form (a server may choose) is hashed into a UUID of version 8 (RFC 9562).
#[must_use]
pub fn machine_uuid(uid: &str) -> String {
    let is_uuid = uid.len() == 36
        && uid.char_indices().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        });
    if is_uuid {
        return uid.to_ascii_lowercase();
    }
    let mut bytes = digest(&["machine-uuid", uid]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes[..16]);
    format!(
        "{}-{}-{}-{}-{}",
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..]
    )
}

/// The host name that a guest is told: the machine's name with dots replaced, since one label is meant.
#[must_use]
pub fn hostname(name: &str) -> String {
    name.chars()
        .map(|c| if c == '.' { '-' } else { c })
        .take(63)
        .collect()
}

/// The path of a disk's file when its spec names none: `<namespace>/<name>-<12 digits of its identity>.vhd`.
/// The digits keep a disk that is deleted and made again from meeting the file it left behind.
#[must_use]
pub fn disk_path(key: &ObjectKey, uid: &str) -> String {
    let digits = hex(&digest(&["disk-path", uid])[..6]);
    format!("{}/{}-{digits}.vhd", key.namespace, key.name)
}

/// The name of a disk's task: `<disk>-<action>-<disk epoch>`, shortened with a hash where it would pass 253 characters.
#[must_use]
pub fn task_name(disk: &str, action: &str, disk_epoch: i64) -> String {
    let tail = format!("-{action}-{disk_epoch}");
    if disk.len() + tail.len() <= 253 {
        return format!("{disk}{tail}");
    }
    // Names are ASCII (DNS subdomains), so that any cut is between characters.
    let head: String = disk.chars().take(200).collect();
    let hash = hex(&digest(&["task-name", disk])[..4]);
    format!("{}-{hash}{tail}", head.trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_keeps_the_uuid_of_its_object() {
        assert_eq!(
            machine_uuid("0F8FAD5B-D9CB-469F-A165-70867728950E"),
            "0f8fad5b-d9cb-469f-a165-70867728950e"
        );
        let made = machine_uuid("not-a-uuid");
        assert_eq!(made.len(), 36);
        assert_eq!(&made[14..15], "8");
        assert!(["8", "9", "a", "b"].contains(&&made[19..20]));
        assert_eq!(made, machine_uuid("not-a-uuid"));
        assert_ne!(made, machine_uuid("not-a-uuid2"));
    }

    #[test]
    fn names_stay_within_their_limits() {
        assert_eq!(task_name("web-1", "create", 1), "web-1-create-1");
        let long = "a".repeat(253);
        let name = task_name(&long, "create", i64::MAX);
        assert!(name.len() <= 253, "{} characters", name.len());
        assert_ne!(name, task_name(&"b".repeat(253), "create", i64::MAX));
        assert_eq!(hostname("web.1"), "web-1");
    }

    #[test]
    fn a_disk_made_again_gets_another_file() {
        let key = ObjectKey::new("default", "web-1");
        let path = disk_path(&key, "u1");
        assert!(path.starts_with("default/web-1-") && path.ends_with(".vhd"));
        assert_eq!(path.len(), "default/web-1-.vhd".len() + 12);
        assert_ne!(path, disk_path(&key, "u2"));
    }
}
