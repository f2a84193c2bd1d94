//! What requests may take of memory while they are under way.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of the requests and replies of one connection that somebody works on. A single one may be larger.
const MAX_BYTES: usize = 16 << 20;

/// Counts bytes, and lets whoever wants more of them wait.
#[derive(Debug, Default)]
pub(crate) struct Room {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// Threads that wait for room.
    waiting: usize,
}

/// Bytes that are taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    room: Arc<Room>,
    bytes: usize,
}

impl Room {
    /// No code that can panic runs under the lock, so a poisoned one is still consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so many bytes are free, or all are.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Taken {
        let mut state = self.lock();
        while state.used > 0 && state.used.saturating_add(bytes) > MAX_BYTES {
            state.waiting += 1;
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        // No overflow: a request's size is bounded, and so are those under way.
        state.used += bytes;
        Taken {
            room: self.clone(),
            bytes,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        state.used -= self.bytes;
        // A notification is a system call even if nobody waits.
        let awaited = state.waiting > 0;
        drop(state);
        if awaited {
            self.room.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_but_for_one() {
        let room = Arc::new(Room::default());
        let large = room.take(MAX_BYTES + 1);
        let waiting = {
            let room = room.clone();
            std::thread::spawn(move || room.take(1))
        };
        while room.lock().waiting == 0 {
            assert!(!waiting.is_finished(), "there was no room");
            std::thread::yield_now();
        }
        drop(large);
        let small = waiting.join().unwrap();
        let rest = room.take(MAX_BYTES - 1);
        assert_eq!(room.lock().used, MAX_BYTES);
        drop((small, rest));
        assert_eq!(room.lock().used, 0);
    }
}
