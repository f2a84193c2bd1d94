//! The bounded queue between the threads that read requests and those that do the work.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bounded in items and in weight. An item heavier than the whole bound is taken when nothing else is there.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    not_empty: Condvar,
    not_full: Condvar,
    max_items: usize,
    max_weight: usize,
}

struct State<T> {
    waiting: VecDeque<(T, usize)>,
    /// Of what waits and of what is being worked on.
    weight: usize,
    /// Workers that wait for an item.
    idle: usize,
    /// Threads that wait for room.
    blocked: usize,
    workers: usize,
    closed: bool,
}

/// What [`Queue::push`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// A worker will take it.
    Yes,
    /// No worker is idle: one more would help, if there may be one.
    AllWorkersBusy,
    /// The queue is closed; the item is gone.
    Closed,
}

impl<T> Queue<T> {
    pub fn new(max_items: usize, max_weight: usize) -> Self {
        Queue {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                weight: 0,
                idle: 0,
                blocked: 0,
                workers: 0,
                closed: false,
            }),
            not_empty: Condvar::new(),
            not_full: Condvar::new(),
            max_items,
            max_weight,
        }
    }

    /// No code that can panic runs under the lock, so a poisoned one is still consistent.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room.
    pub fn push(&self, item: T, weight: usize) -> Pushed {
        let mut state = self.lock();
        while !state.closed
            && (state.waiting.len() >= self.max_items
                || (state.weight > 0 && state.weight.saturating_add(weight) > self.max_weight))
        {
            state.blocked += 1;
            state = self
                .not_full
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.blocked -= 1;
        }
        if state.closed {
            return Pushed::Closed;
        }
        state.weight += weight;
        state.waiting.push_back((item, weight));
        let (idle, waiting) = (state.idle, state.waiting.len());
        drop(state);
        // A notification is a system call even if nobody waits.
        if idle > 0 {
            self.not_empty.notify_one();
        }
        if idle >= waiting {
            Pushed::Yes
        } else {
            Pushed::AllWorkersBusy
        }
    }

    /// Counts one more worker if there are fewer than `max`.
    pub fn add_worker(&self, max: usize) -> bool {
        let mut state = self.lock();
        if state.closed || state.workers >= max {
            return false;
        }
        state.workers += 1;
        true
    }

    /// Takes back [`Queue::add_worker`]: the thread could not be started. False if it was the only one.
    pub fn remove_worker(&self) -> bool {
        let mut state = self.lock();
        state.workers -= 1;
        state.workers > 0
    }

    /// Waits for an item, and gives back the weight of the one that this worker had before. `None`: the queue is closed
    /// and empty.
    pub fn pop(&self, finished_weight: usize) -> Option<(T, usize)> {
        let mut state = self.lock();
        state.weight -= finished_weight;
        loop {
            if let Some(item) = state.waiting.pop_front() {
                let blocked = state.blocked;
                drop(state);
                if blocked > 0 {
                    self.not_full.notify_all();
                }
                return Some(item);
            }
            if state.closed {
                return None;
            }
            if state.blocked > 0 {
                self.not_full.notify_all();
            }
            state.idle += 1;
            state = self
                .not_empty
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Takes nothing more in. What waits is still worked on.
    pub fn close(&self) {
        self.lock().closed = true;
        self.not_empty.notify_all();
        self.not_full.notify_all();
    }
}
