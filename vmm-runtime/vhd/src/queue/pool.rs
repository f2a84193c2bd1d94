//! A few threads that carry requests out, started as they are needed.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::{Shared, Task};

/// Of the threads; none recurses deeper than a chain is long.
const STACK_BYTES: usize = 512 << 10;

/// What a thread does.
pub(super) type Work = Box<dyn FnOnce() + Send>;

/// Starts a thread.
pub(super) type Spawn = fn(Work) -> io::Result<JoinHandle<()>>;

pub(super) fn spawn(work: Work) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name("disk-queue".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(work)
}

pub(super) struct Pool {
    spawn: Spawn,
    limit: NonZeroUsize,
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    /// No more than the queue's depth.
    tasks: VecDeque<(Arc<Shared>, Task)>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    ending: bool,
}

impl Pool {
    pub(super) fn new(limit: NonZeroUsize, spawn: Spawn) -> Pool {
        Pool {
            spawn,
            limit,
            state: Mutex::default(),
            more: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a first thread, so that whoever has a request carried out never
    /// does so itself: a ring's thread, which others wait for, must not.
    pub(super) fn start(self: &Arc<Pool>) -> io::Result<()> {
        let thread = self.thread()?;
        self.lock().threads.push(thread);
        Ok(())
    }

    fn thread(self: &Arc<Pool>) -> io::Result<JoinHandle<()>> {
        let pool = Arc::clone(self);
        (self.spawn)(Box::new(move || pool.work()))
    }

    /// Has a request carried out by a thread; by this one if there is none
    /// and none can be started.
    pub(super) fn push(self: &Arc<Pool>, shared: &Arc<Shared>, task: Task) {
        let mut state = self.lock();
        state.tasks.push_back((Arc::clone(shared), task));
        if state.idle >= state.tasks.len() {
            self.more.notify_one();
            return;
        }
        if state.threads.len() < self.limit.get() {
            state.threads.extend(self.thread().ok());
        }
        if state.threads.is_empty()
            && let Some((shared, task)) = state.tasks.pop_front()
        {
            drop(state);
            shared.execute(task);
            return;
        }
        self.more.notify_one();
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some((shared, task)) = state.tasks.pop_front() {
                drop(state);
                // A completion that panics is its owner's business, and must
                // not take a thread from the others.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    shared.execute(task);
                }));
                state = self.lock();
            } else if state.ending {
                return;
            } else {
                state.idle += 1;
                state = self
                    .more
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Ends the threads once they have nothing to do.
    pub(super) fn end(&self) {
        let threads = {
            let mut state = self.lock();
            state.ending = true;
            self.more.notify_all();
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            let _ = thread.join();
        }
    }
}
