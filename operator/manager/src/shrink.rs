//! Memory that a burst took and that is given back after it.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

/// Room for this many is kept.
const KEPT: usize = 64;

/// The capacity to shrink to, if most of it is unused.
pub(crate) fn smaller(used: usize, capacity: usize) -> Option<usize> {
    (capacity > KEPT && used < capacity / 8).then_some(used * 2)
}

/// Shrinks a map that is nearly empty.
pub(crate) fn give_back<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if let Some(room) = smaller(map.len(), map.capacity()) {
        map.shrink_to(room);
    }
}

/// Shrinks a set that is nearly empty.
pub(crate) fn give_back_set<K: Eq + Hash>(set: &mut HashSet<K>) {
    if let Some(room) = smaller(set.len(), set.capacity()) {
        set.shrink_to(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_small_again_after_a_burst() {
        let mut map: HashMap<u32, u32> = (0..10_000).map(|n| (n, n)).collect();
        for n in 1..10_000 {
            map.remove(&n);
            give_back(&mut map);
        }
        assert!(map.capacity() <= KEPT, "{}", map.capacity());
        assert_eq!(map.get(&0), Some(&0));
    }
}
