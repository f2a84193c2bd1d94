//! The work to do: each object at most once in the queue and at most once at work.
//!
//! Its length is bounded by the number of objects. An object that is added while it is at work comes again after that.

use crate::shrink::{give_back, give_back_set, smaller};
use paddock_planner::ObjectKey;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// An object to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// A VirtualMachine, by its key, which is its instance's too.
    Machine(ObjectKey),
    /// A VirtualHardDisk.
    Disk(ObjectKey),
    /// A VirtualNetwork.
    Network(ObjectKey),
    /// A Host.
    Host(String),
}

impl Work {
    /// The kind, for labels.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Machine(_) => "VirtualMachine",
            Self::Disk(_) => "VirtualHardDisk",
            Self::Network(_) => "VirtualNetwork",
            Self::Host(_) => "Host",
        }
    }
}

#[derive(Default)]
struct State {
    ready: VecDeque<Work>,
    queued: HashSet<Work>,
    active: HashSet<Work>,
    again: HashSet<Work>,
    later: BinaryHeap<Reverse<(Instant, Work)>>,
    due: HashMap<Work, Instant>,
    done: u64,
    closed: bool,
}

/// The queue.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock, so a poisoned state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds work for now.
    pub fn add(&self, work: Work) {
        let mut state = self.state();
        state.add(work);
        drop(state);
        self.changed.notify_one();
    }

    /// Adds work for later; an earlier time that is already set stays.
    pub fn add_after(&self, work: Work, delay: Duration) {
        if delay.is_zero() {
            self.add(work);
            return;
        }
        let at = Instant::now() + delay;
        let mut state = self.state();
        if state.due.get(&work).is_none_or(|due| at < *due) {
            state.due.insert(work.clone(), at);
            state.later.push(Reverse((at, work)));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Takes the next work; `None` once the queue is closed.
    pub async fn take(&self) -> Option<Work> {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut state = self.state();
                if state.closed {
                    drop(state);
                    self.changed.notify_one();
                    return None;
                }
                state.wake(Instant::now());
                if let Some(work) = state.ready.pop_front() {
                    state.queued.remove(&work);
                    state.active.insert(work.clone());
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        self.changed.notify_one();
                    }
                    return Some(work);
                }
                state.later.peek().map(|Reverse((at, _))| *at)
            };
            match next {
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Ends work that was taken.
    pub fn done(&self, work: &Work) {
        let mut state = self.state();
        state.active.remove(work);
        state.done = state.done.wrapping_add(1);
        if state.again.remove(work) {
            state.add(work.clone());
        }
        if state.ready.is_empty() {
            state.give_back();
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Lets every taker go.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// How much work was done so far.
    #[must_use]
    pub fn done_so_far(&self) -> u64 {
        self.state().done
    }

    /// How much waits for now.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.state().ready.len()
    }
}

impl State {
    fn add(&mut self, work: Work) {
        if self.active.contains(&work) {
            self.again.insert(work);
        } else if self.queued.insert(work.clone()) {
            self.ready.push_back(work);
        }
    }

    /// Gives the memory back that a burst took.
    fn give_back(&mut self) {
        give_back_set(&mut self.queued);
        give_back_set(&mut self.active);
        give_back_set(&mut self.again);
        give_back(&mut self.due);
        if let Some(room) = smaller(self.ready.len(), self.ready.capacity()) {
            self.ready.shrink_to(room);
        }
        if let Some(room) = smaller(self.later.len(), self.later.capacity()) {
            self.later.shrink_to(room);
        }
    }

    fn wake(&mut self, now: Instant) {
        while let Some(Reverse((at, _))) = self.later.peek() {
            if *at > now {
                return;
            }
            if let Some(Reverse((at, work))) = self.later.pop()
                && self.due.get(&work) == Some(&at)
            {
                self.due.remove(&work);
                self.add(work);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str) -> Work {
        Work::Machine(ObjectKey::new("n", name))
    }

    #[tokio::test]
    async fn each_object_waits_once_and_works_once() {
        let queue = Queue::default();
        for name in ["a", "b", "a"] {
            queue.add(machine(name));
        }
        assert_eq!(queue.depth(), 2);
        assert_eq!(queue.take().await, Some(machine("a")));
        queue.add(machine("a"));
        queue.add(machine("a"));
        assert_eq!(queue.take().await, Some(machine("b")));
        assert_eq!(queue.depth(), 0);
        queue.done(&machine("a"));
        assert_eq!(queue.depth(), 1);
        assert_eq!(queue.take().await, Some(machine("a")));
        queue.done(&machine("a"));
        assert_eq!(queue.depth(), 0);
        queue.close();
        assert_eq!(queue.take().await, None);
        assert_eq!(queue.take().await, None);
    }

    #[tokio::test]
    async fn a_burst_leaves_no_memory_taken() {
        let queue = Queue::default();
        for n in 0..10_000 {
            queue.add(machine(&n.to_string()));
        }
        for _ in 0..10_000 {
            let work = queue.take().await.unwrap();
            queue.done(&work);
        }
        assert_eq!(queue.done_so_far(), 10_000);
        let state = queue.state();
        assert!(state.ready.capacity() <= 64 && state.queued.capacity() <= 64);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_time_counts() {
        let queue = Queue::default();
        let begin = Instant::now();
        queue.add_after(machine("a"), Duration::from_secs(9));
        queue.add_after(machine("a"), Duration::from_secs(3));
        queue.add_after(machine("a"), Duration::from_secs(5));
        queue.add_after(machine("b"), Duration::from_secs(4));
        assert_eq!(queue.take().await, Some(machine("a")));
        assert_eq!(begin.elapsed().as_secs(), 3);
        queue.done(&machine("a"));
        assert_eq!(queue.take().await, Some(machine("b")));
        queue.done(&machine("b"));
        queue.add_after(machine("c"), Duration::from_secs(60));
        assert_eq!(queue.take().await, Some(machine("c")));
        assert_eq!(begin.elapsed().as_secs(), 64);
    }
}
