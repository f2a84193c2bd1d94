//! An unprivileged user for each machine's QEMU: a guest that breaks out of one cannot touch another.

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    sync::{Mutex, PoisonError},
};

/// First user id. Above what distributions give to people, system users and their subordinate ranges of containers.
pub const FIRST: u32 = 2_000_000;
/// How many there are.
pub const COUNT: u32 = 60_000;

/// Who has which user.
#[derive(Debug, Default)]
pub struct Users {
    taken: Mutex<HashMap<u32, String>>,
}

impl Users {
    /// Notes that the instance `uid` has `user`, as an earlier agent recorded.
    pub fn note(&self, user: u32, uid: &str) {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(user, uid.to_owned());
    }

    /// The user of the instance `uid`: the one that it has, else the one that follows from it, or the next one that is
    /// free.
    ///
    /// `None` when all are taken.
    pub fn take(&self, uid: &str) -> Option<u32> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((user, _)) = taken.iter().find(|(_, owner)| *owner == uid) {
            return Some(*user);
        }
        let start = slot(uid);
        let user = (0..COUNT)
            .map(|step| FIRST + (start + step) % COUNT)
            .find(|user| !taken.contains_key(user))?;
        taken.insert(user, uid.to_owned());
        Some(user)
    }

    /// Gives back what the instance `uid` has.
    pub fn give_back(&self, uid: &str) {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, owner| owner != uid);
    }
}

/// FNV-1a, 32 bits (draft-eastlake-fnv): the same uid has the same slot in every agent.
fn slot(uid: &str) -> u32 {
    let hash = uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash % COUNT
}

/// The group of a machine's QEMU: that of `/dev/kvm` where that gives access, else the user's own number.
#[must_use]
pub fn group(user: u32) -> u32 {
    match std::fs::metadata("/dev/kvm") {
        Ok(device) if device.gid() != 0 && device.mode() & 0o060 == 0o060 => device.gid(),
        _ => user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_from_the_uid_and_is_never_shared() {
        let users = Users::default();
        let first = users.take("a").unwrap();
        assert_eq!(users.take("a"), Some(first));
        assert!((FIRST..FIRST + COUNT).contains(&first));
        assert_eq!(Users::default().take("a"), Some(first));
        // Somebody has it already.
        let other = Users::default();
        other.note(first, "b");
        assert_eq!(other.take("a"), Some(first + 1));
        other.give_back("b");
        // While it has one it keeps it.
        assert_eq!(other.take("a"), Some(first + 1));
        other.give_back("a");
        assert_eq!(other.take("a"), Some(first));
    }
}
