//! Requests that the kernel carries out by itself: io_uring.
//!
//! Submitted by any thread, one at a time; completed by a thread of the
//! ring's own. What the kernel does not do completely is done again with the
//! disk's own calls, which know what the error means.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use io_uring::{EnterFlags, IoUring, opcode, types};

use super::place::Place;
use super::pool::Pool;
use super::{Job, Reply, Request, Shared};
use crate::gate::Gate;

/// Of the thread that completes.
const STACK_BYTES: usize = 256 << 10;

/// Not a flight: ends the thread.
const END: u64 = u64::MAX;

/// A read or a write on its way, with all that the kernel uses meanwhile.
pub(super) struct Flight {
    place: Place,
    job: Job,
    started: Instant,
}

impl Flight {
    /// A flight, or the job back if its buffer is not as the place needs it.
    pub(super) fn new(place: Place, job: Job) -> Result<Flight, Job> {
        let (Request::Read { buf, .. } | Request::Write { buf, .. }) = &job.request else {
            return Err(job);
        };
        let fits = |value: usize| value.is_multiple_of(place.alignment);
        // One call of the kernel's takes no more.
        if u32::try_from(buf.len()).is_err()
            || !fits(buf.len())
            || !fits(buf.as_ptr() as usize)
            || !place.offset.is_multiple_of(place.alignment as u64)
        {
            return Err(job);
        }
        Ok(Flight {
            place,
            job,
            started: Instant::now(),
        })
    }

    pub(super) fn into_job(self) -> Job {
        self.job
    }
}

pub(super) struct Ring {
    shared: Arc<RingShared>,
    thread: Option<JoinHandle<()>>,
}

struct RingShared {
    ring: IoUring,
    queue: Arc<Shared>,
    pool: Arc<Pool>,
    /// Held while the submission queue is used.
    submitting: Mutex<()>,
    flights: Mutex<Flights>,
    /// The kernel refused to be entered: nothing is submitted any more.
    broken: AtomicBool,
    #[cfg(test)]
    submitted: std::sync::atomic::AtomicU64,
}

struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl Flights {
    fn take(&mut self, index: usize) -> Option<Flight> {
        let flight = self.slots.get_mut(index)?.take()?;
        self.free.push(index);
        Some(flight)
    }
}

impl Ring {
    pub(super) fn new(depth: usize, queue: &Arc<Shared>, pool: &Arc<Pool>) -> io::Result<Ring> {
        // One more, for the end. Bounded by the queue's options.
        let ring = IoUring::builder().dontfork().build(depth as u32 + 1)?;
        let shared = Arc::new(RingShared {
            ring,
            queue: Arc::clone(queue),
            pool: Arc::clone(pool),
            submitting: Mutex::new(()),
            flights: Mutex::new(Flights {
                slots: (0..depth).map(|_| None).collect(),
                free: (0..depth).collect(),
            }),
            broken: AtomicBool::new(false),
            #[cfg(test)]
            submitted: Default::default(),
        });
        let thread = Builder::new()
            .name("disk-ring".to_owned())
            .stack_size(STACK_BYTES)
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.complete_all()
            })?;
        Ok(Ring {
            shared,
            thread: Some(thread),
        })
    }

    /// Submits a flight. The job comes back if the kernel does not take it.
    pub(super) fn start(&self, flight: Flight) -> Option<Job> {
        self.shared.start(flight)
    }

    /// Nothing is submitted for as long as this is held.
    #[cfg(test)]
    pub(super) fn hold_up(&self) -> MutexGuard<'_, ()> {
        self.shared.submitting.lock().unwrap()
    }

    #[cfg(test)]
    pub(super) fn submitted(&self) -> u64 {
        self.shared.submitted.load(Ordering::SeqCst)
    }
}

impl Drop for Ring {
    /// Nothing is in flight any more.
    fn drop(&mut self) {
        let entry = opcode::Nop::new().build().user_data(END);
        // SAFETY: the entry refers to no memory.
        let pushed = unsafe { self.shared.push(&entry, &|| true) };
        if let Some(thread) = self.thread.take()
            && pushed
        {
            let _ = thread.join();
        }
    }
}

impl RingShared {
    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, flight: Flight) -> Option<Job> {
        let gate = flight.place.gate();
        let (index, entry) = {
            let mut flights = self.flights();
            let Some(index) = flights.free.pop() else {
                return Some(flight.into_job());
            };
            // Where its bytes are doesn't change when a vector is moved.
            let Some(slot) = flights.slots.get_mut(index) else {
                return Some(flight.into_job());
            };
            let flight = slot.insert(flight);
            let file = types::Fd(flight.place.file.as_raw_fd());
            let offset = flight.place.offset;
            let entry = match &mut flight.job.request {
                // Their lengths were looked at when the flight was made.
                Request::Read { buf, .. } => {
                    opcode::Read::new(file, buf.as_mut_ptr(), buf.len() as u32)
                        .offset(offset)
                        .build()
                }
                Request::Write { buf, .. } => {
                    opcode::Write::new(file, buf.as_ptr(), buf.len() as u32)
                        .offset(offset)
                        .build()
                }
                // No flight has others.
                _ => opcode::Nop::new().build(),
            };
            (index, entry.user_data(index as u64))
        };
        // SAFETY: the file and the buffer belong to the flight, which stays
        // in its slot, untouched, until the kernel has completed the entry,
        // or has not been given it and never will be.
        if unsafe { self.push(&entry, &|| gate.as_ref().is_none_or(Gate::is_open)) } {
            #[cfg(test)]
            self.submitted.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        self.flights().take(index).map(Flight::into_job)
    }

    /// Gives an entry to the kernel, if it may be given then: others may have
    /// to be waited for. False if the kernel does not have it and never will.
    ///
    /// # Safety
    ///
    /// What the entry refers to must stay until it is completed.
    unsafe fn push(
        &self,
        entry: &io_uring::squeue::Entry,
        may_be_given: &dyn Fn() -> bool,
    ) -> bool {
        let _submitting = self
            .submitting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.broken.load(Ordering::SeqCst) || !may_be_given() {
            return false;
        }
        {
            // SAFETY: the lock is held wherever the submission queue is used.
            let mut queue = unsafe { self.ring.submission_shared() };
            // SAFETY: as the caller promises.
            if unsafe { queue.push(entry) }.is_err() {
                return false;
            }
        }
        loop {
            match self.ring.submit() {
                Ok(_) => return true,
                Err(error)
                    if may_be_given()
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                        ) =>
                {
                    // Out of memory for a moment.
                    std::thread::yield_now();
                }
                Err(_) => {
                    // The entry stays where it is, and nobody enters the
                    // kernel to submit any more.
                    self.broken.store(true, Ordering::SeqCst);
                    return false;
                }
            }
        }
    }

    /// Completes what the kernel has done, until the end.
    fn complete_all(&self) {
        let mut done = Vec::new();
        loop {
            // SAFETY: no argument that would have to be valid. Submits
            // nothing, only waits.
            let waited = unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(
                    0,
                    1,
                    EnterFlags::GETEVENTS.bits(),
                    None,
                )
            };
            if let Err(error) = waited
                && !matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                )
            {
                // Can't be; and to spin would help nobody.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            {
                // SAFETY: this thread alone uses the completion queue.
                let queue = unsafe { self.ring.completion_shared() };
                done.extend(queue.map(|entry| (entry.user_data(), entry.result())));
            }
            let mut end = false;
            for (id, result) in done.drain(..) {
                if id == END {
                    end = true;
                } else {
                    self.complete(id as usize, result);
                }
            }
            if end {
                return;
            }
        }
    }

    fn complete(&self, index: usize, result: i32) {
        let Some(Flight {
            place,
            job,
            started,
        }) = self.flights().take(index)
        else {
            return;
        };
        let (Request::Read { buf, .. } | Request::Write { buf, .. }) = &job.request else {
            return;
        };
        let complete = usize::try_from(result).is_ok_and(|done| done == buf.len());
        // Before anyone hears of it: what was written counts as unsynced, and
        // the gate and the block are free.
        drop(place);
        match job {
            Job {
                request:
                    Request::Read { buf, .. }
                    | Request::Write {
                        buf, fua: false, ..
                    },
                completion,
            } if complete => {
                let reply = Reply {
                    buf,
                    took: started.elapsed(),
                    ..Reply::default()
                };
                let finish = || self.queue.finish(completion, Ok(reply));
                // See the pool: a panic is its owner's business.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(finish));
            }
            Job {
                request: Request::Write { buf, .. },
                completion,
            } if complete => {
                // Durable first, and its buffer with the answer to that.
                let completion = Box::new(move |result: Result<Reply, _>| {
                    completion(result.map(|reply| Reply { buf, ..reply }));
                });
                let job = Job {
                    request: Request::Flush,
                    completion,
                };
                self.queue.carry_out(&self.pool, job);
            }
            job => self.queue.carry_out(&self.pool, job),
        }
    }
}
