//! Objects of one kind.

use super::{Follow, World};
use crate::shrink::{give_back, give_back_set};
use kube::Resource;
use paddock_planner::{ObjectKey, identity::uid};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
};

/// Where an object comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A watch or a read.
    Watch,
    /// The answer to an own write.
    Own,
}

/// A kind that is kept in the cache.
pub trait Kept:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
    /// Its plural, for labels.
    const PLURAL: &'static str;
    /// Its table.
    fn table(world: &mut World) -> &mut Table<Self>;
    /// Brings the index up to date and tells what follows.
    fn follow(world: &mut World, change: &Change<Self>) -> Vec<Follow>;
}

/// An object before and after.
pub struct Change<K> {
    /// Its key.
    pub key: ObjectKey,
    /// Before.
    pub old: Option<Arc<K>>,
    /// After.
    pub new: Option<Arc<K>>,
}

struct Entry<K> {
    object: Arc<K>,
    version: u64,
    own: bool,
}

/// Objects of one kind, by key.
pub struct Table<K> {
    entries: HashMap<ObjectKey, Entry<K>>,
    /// UIDs of objects that an own write ended, until the watch has caught up.
    ended: HashSet<String>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            ended: HashSet::new(),
        }
    }
}

impl<K: Resource<DynamicType = ()> + Clone> Table<K> {
    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<K>> {
        self.entries.get(key).map(|e| &e.object)
    }

    /// Every object, in no order.
    pub fn all(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<K>)> {
        self.entries.iter().map(|(k, e)| (k, &e.object))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn put(&mut self, mut object: K, origin: Origin) -> Option<Change<K>> {
        let metadata = object.meta_mut();
        // Neither is read here, and they are most of an object's size.
        metadata.managed_fields = None;
        if let Some(annotations) = &mut metadata.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            if annotations.is_empty() {
                metadata.annotations = None;
            }
        }
        let key = ObjectKey::of(object.meta());
        if self.ended.contains(uid(object.meta())) {
            return None;
        }
        let over = object.meta().deletion_timestamp.is_some()
            && object.meta().finalizers.as_ref().is_none_or(Vec::is_empty);
        if over && origin == Origin::Own {
            let gone = uid(object.meta());
            return self.remove(&key, Some(gone), Origin::Own);
        }
        let version = version(&object);
        let old = self.entries.get(&key);
        if let Some(old) = old
            && version <= old.version
        {
            if version == old.version
                && origin == Origin::Watch
                && let Some(entry) = self.entries.get_mut(&key)
            {
                entry.own = false;
            }
            return None;
        }
        let old = old.map(|e| e.object.clone());
        // A clone: its lists take what their elements need, those of an object that was read take the next power of two.
        let new = Arc::new(object.clone());
        self.entries.insert(
            key.clone(),
            Entry {
                object: new.clone(),
                version,
                own: origin == Origin::Own,
            },
        );
        Some(Change {
            key,
            old,
            new: Some(new),
        })
    }

    pub(super) fn remove(
        &mut self,
        key: &ObjectKey,
        gone: Option<&str>,
        origin: Origin,
    ) -> Option<Change<K>> {
        let known = self.entries.get(key).map(|e| uid(e.object.meta()));
        // Another object of that name may be there by now.
        let is_known = known.is_some_and(|uid| gone.is_none_or(|gone| uid == gone));
        match gone {
            Some(gone) if origin == Origin::Watch => {
                self.ended.remove(gone);
                give_back_set(&mut self.ended);
            }
            // What is not known any more, the watch has ended already: it says no more of it.
            Some(gone) if is_known => {
                self.ended.insert(gone.to_owned());
            }
            _ => {}
        }
        if !is_known {
            return None;
        }
        let old = self.entries.remove(key)?;
        give_back(&mut self.entries);
        Some(Change {
            key: key.clone(),
            old: Some(old.object),
            new: None,
        })
    }

    /// Keys that a listing did not show: those that are gone, and those that were written here and may be newer.
    pub(super) fn unlisted(
        &mut self,
        seen: &HashSet<ObjectKey>,
    ) -> (Vec<ObjectKey>, Vec<ObjectKey>) {
        self.ended.clear();
        let mut gone = Vec::new();
        let mut doubtful = Vec::new();
        for (key, entry) in self.entries.iter().filter(|(key, _)| !seen.contains(*key)) {
            if entry.own {
                doubtful.push(key.clone());
            } else {
                gone.push(key.clone());
            }
        }
        (gone, doubtful)
    }
}

/// An object's version as a number: Kubernetes compares resource versions of one kind this way since 1.35, and
/// etcd's have always risen so. What is no number counts as newest, so that it is taken in.
fn version<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_crds::{Host, HostSpec};

    fn host(uid: &str, version: u64) -> Host {
        let mut host = Host::new("a", HostSpec::default());
        host.metadata.uid = Some(uid.to_owned());
        host.metadata.resource_version = Some(version.to_string());
        host
    }

    fn ending(uid: &str, version: u64) -> Host {
        let mut host = host(uid, version);
        host.metadata.deletion_timestamp = Some(paddock_crds::reference::Time(
            k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        ));
        host
    }

    #[test]
    fn an_older_version_is_passed_over() {
        let mut table = Table::default();
        assert!(table.put(host("u", 5), Origin::Own).is_some());
        assert!(table.put(host("u", 4), Origin::Watch).is_none());
        assert!(table.put(host("u", 5), Origin::Watch).is_none());
        assert!(table.put(host("u", 10), Origin::Watch).is_some());
    }

    #[test]
    fn an_object_that_was_ended_here_does_not_come_back() {
        let key = ObjectKey::new("", "a");
        let mut table = Table::default();
        table.put(host("u", 5), Origin::Watch);
        let change = table.put(ending("u", 7), Origin::Own).unwrap();
        assert!(change.old.is_some() && change.new.is_none());
        assert!(table.put(ending("u", 6), Origin::Watch).is_none());
        assert!(table.get(&key).is_none());
        assert!(table.put(host("u2", 8), Origin::Watch).is_some());
        assert!(table.remove(&key, Some("u"), Origin::Watch).is_none());
        assert!(table.get(&key).is_some());
    }

    #[test]
    fn an_end_that_the_watch_told_first_is_not_remembered() {
        let key = ObjectKey::new("", "a");
        let mut table = Table::default();
        table.put(host("u", 5), Origin::Watch);
        assert!(table.remove(&key, Some("u"), Origin::Watch).is_some());
        assert!(table.put(ending("u", 7), Origin::Own).is_none());
        assert!(table.remove(&key, Some("u"), Origin::Own).is_none());
        assert!(table.ended.is_empty());
        // The answer to an old write does not end the next object of that name.
        table.put(host("u2", 8), Origin::Watch);
        assert!(table.put(ending("u", 9), Origin::Own).is_none());
        assert!(table.get(&key).is_some());
    }

    #[test]
    fn a_listing_leaves_own_writes_in_doubt() {
        let mut table = Table::default();
        table.put(host("u", 5), Origin::Own);
        let key = ObjectKey::new("", "a");
        let nothing = HashSet::new();
        assert_eq!(table.unlisted(&nothing), (vec![], vec![key.clone()]));
        table.put(host("u", 5), Origin::Watch);
        assert_eq!(table.unlisted(&nothing), (vec![key], vec![]));
    }
}
