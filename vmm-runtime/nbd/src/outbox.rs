//! Replies on their way to the client.

use std::io::{self, IoSlice, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use paddock_vhd::Buffer;

use crate::buffer::Spare;

/// Replies that wait for another thread's write, in bytes at most; one more is taken when fewer wait.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// Replies in one write.
const MAX_BATCH: usize = 64;

/// Bytes for the client: one reply or several.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub head: Buffer,
    /// What follows: the bytes of a read, where the disk has put them.
    pub body: Buffer,
}

impl Outgoing {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

impl From<Buffer> for Outgoing {
    fn from(head: Buffer) -> Self {
        Outgoing {
            head,
            body: Buffer::default(),
        }
    }
}

/// Whoever has a reply while nobody writes, writes: its own, and what others have left in the meantime, in one call.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Outgoing>,
    waiting_bytes: usize,
    writing: bool,
    /// Threads that wait for room.
    blocked: usize,
    /// The client is gone; replies are dropped.
    broken: bool,
}

impl Outbox {
    /// No code that can panic runs under the lock, so a poisoned one is still consistent.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a reply, or leaves it to the thread that is writing; waits while too much is left already. The buffers go
    /// to `spare`. An error is told to one caller: the client cannot be written to, now and ever.
    pub fn send(&self, reply: Outgoing, mut stream: impl Write, spare: &Spare) -> io::Result<()> {
        let mut state = self.lock();
        while state.writing && !state.broken && state.waiting_bytes >= MAX_WAITING_BYTES {
            state.blocked += 1;
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.blocked -= 1;
        }
        if state.broken {
            return Ok(());
        }
        state.waiting_bytes += reply.len();
        state.waiting.push(reply);
        if state.writing {
            return Ok(());
        }
        state.writing = true;
        let mut batch = Vec::new();
        while !state.waiting.is_empty() {
            std::mem::swap(&mut batch, &mut state.waiting);
            state.waiting_bytes = 0;
            if state.blocked > 0 {
                self.room.notify_all();
            }
            drop(state);
            let written = batch
                .chunks(MAX_BATCH)
                .try_for_each(|replies| write_all(&mut stream, replies));
            for reply in batch.drain(..) {
                spare.give(reply.head);
                spare.give(reply.body);
            }
            state = self.lock();
            if let Err(error) = written {
                state.broken = true;
                state.writing = false;
                state.waiting.clear();
                self.room.notify_all();
                return Err(error);
            }
        }
        state.writing = false;
        Ok(())
    }
}

fn write_all(stream: &mut impl Write, replies: &[Outgoing]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = replies
        .iter()
        .flat_map(|reply| [&reply.head, &reply.body])
        .filter(|part| !part.is_empty())
        .map(|part| IoSlice::new(part))
        .collect();
    let mut left = slices.as_mut_slice();
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match stream.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(head: &[u8], body: &[u8]) -> Outgoing {
        Outgoing {
            head: head.to_vec().into(),
            body: body.to_vec().into(),
        }
    }

    /// Takes `at_a_time` bytes per call, and while it is in its first call, somebody else has replies.
    struct Slow<'a> {
        outbox: &'a Outbox,
        spare: &'a Spare,
        written: Vec<u8>,
        calls: usize,
    }

    impl Write for Slow<'_> {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(buf)])
        }
        fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls == 1 {
                for (head, body) in [("sec", "ond "), ("third  ", "")] {
                    let never = &mut [0_u8; 0][..];
                    let left = reply(head.as_bytes(), body.as_bytes());
                    self.outbox.send(left, never, self.spare)?;
                }
            }
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            let taken = all.get(..10).unwrap_or(&all);
            self.written.extend(taken);
            Ok(taken.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_writes_takes_what_others_leave() {
        let (outbox, spare) = (Outbox::default(), Spare::default());
        let mut stream = Slow {
            outbox: &outbox,
            spare: &spare,
            written: Vec::new(),
            calls: 0,
        };
        outbox
            .send(reply(b"fir", b"st "), &mut stream, &spare)
            .unwrap();
        assert_eq!(stream.written, b"first second third  ");
        // 6 bytes, then 14 bytes of two replies in steps of 10.
        assert_eq!(stream.calls, 3);
        assert!(!outbox.lock().writing);
    }

    #[test]
    fn a_client_that_is_gone_gets_nothing_more() {
        let (outbox, spare) = (Outbox::default(), Spare::default());
        let full = &mut [0_u8; 0][..];
        let error = outbox.send(reply(b"x", b""), full, &spare).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
        let mut written = Vec::new();
        outbox.send(reply(b"y", b""), &mut written, &spare).unwrap();
        assert_eq!(written, b"");
    }
}
