//! Sets of objects by key, small in memory.

use crate::shrink::give_back;
use paddock_planner::ObjectKey;
use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap, hash_map::Entry},
    hash::Hash,
};

/// Sets by key; an empty set takes no room.
pub(super) struct Sets<K>(HashMap<K, Members>);

/// A set's members. Nearly all sets have one, and a tree's smallest node has room for eleven.
enum Members {
    One(ObjectKey),
    Many(BTreeSet<ObjectKey>),
}

impl Members {
    fn len(&self) -> usize {
        match self {
            Members::One(_) => 1,
            Members::Many(set) => set.len(),
        }
    }
}

impl<K> Default for Sets<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Sets<K> {
    pub(super) fn insert(&mut self, key: K, member: &ObjectKey) {
        match self.0.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Members::One(member.clone()));
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Members::One(only) if only == member => {}
                Members::One(only) => {
                    let both = BTreeSet::from([only.clone(), member.clone()]);
                    entry.insert(Members::Many(both));
                }
                Members::Many(set) => {
                    set.insert(member.clone());
                }
            },
        }
    }

    pub(super) fn remove(&mut self, key: &K, member: &ObjectKey) {
        let is_empty = match self.0.get_mut(key) {
            None => return,
            Some(Members::One(only)) => only == member,
            Some(Members::Many(set)) => {
                set.remove(member);
                set.is_empty()
            }
        };
        if is_empty {
            self.0.remove(key);
            give_back(&mut self.0);
        }
    }

    /// The members of a key's set.
    pub(super) fn get<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> impl Iterator<Item = &ObjectKey>
    where
        K: Borrow<Q>,
    {
        let (one, many) = match self.0.get(key) {
            None => (None, None),
            Some(Members::One(only)) => (Some(only), None),
            Some(Members::Many(set)) => (None, Some(set)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// How many members each key's set has.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (&K, usize)> {
        self.0.iter().map(|(key, members)| (key, members.len()))
    }
}
