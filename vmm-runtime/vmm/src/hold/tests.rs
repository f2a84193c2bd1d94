//! Held requests in threads, on a disk that is full until it is told otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use paddock_vhd::{ExtentKind, IoErrorKind};

use super::*;

const LIMIT: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// Has room for so many bytes; keeps what was written.
struct SmallDisk {
    room: AtomicU64,
    gate: Gate,
    written: Mutex<Vec<u64>>,
    refused: AtomicU64,
    flush_needs_room: AtomicBool,
}

impl SmallDisk {
    fn take(&self, bytes: u64, offset: u64) -> Result<(), IoError> {
        let _pass = self.gate.enter()?;
        let taken = self
            .room
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| {
                room.checked_sub(bytes)
            });
        if taken.is_err() {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(IoError::NoSpace {
                disk: "small.vhd".into(),
                operation: "write",
                reason: "full".into(),
            });
        }
        self.written.lock().unwrap().push(offset);
        Ok(())
    }
}

impl BlockDevice for SmallDisk {
    fn size(&self) -> u64 {
        1 << 30
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, buf: &mut [u8], _: u64) -> Result<(), IoError> {
        buf.fill(7);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.take(buf.len() as u64, offset)
    }
    fn flush(&self) -> Result<(), IoError> {
        if self.flush_needs_room.load(Ordering::SeqCst) {
            self.take(1, u64::MAX)
        } else {
            Ok(())
        }
    }
    fn discard(&self, offset: u64, _: u64) -> Result<(), IoError> {
        self.take(1, offset)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.take(len, offset)
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        let kind = ExtentKind::Data;
        Ok(vec![Extent { offset, len, kind }])
    }
}

struct Bench {
    small: Arc<SmallDisk>,
    hold: Arc<Hold>,
    device: Arc<HoldWhenFull<SmallDisk>>,
    told: Receiver<Told>,
}

impl Bench {
    fn new(room: u64) -> Self {
        let gate = Gate::open();
        let small = Arc::new(SmallDisk {
            room: AtomicU64::new(room),
            gate: gate.clone(),
            written: Mutex::default(),
            refused: AtomicU64::new(0),
            flush_needs_room: AtomicBool::new(false),
        });
        let (sender, told) = channel();
        let look = {
            let small = small.clone();
            move || {
                Some(Room {
                    total: 64 * MIB,
                    available: small.room.load(Ordering::SeqCst),
                })
            }
        };
        let tell = move |told| sender.send(told).unwrap();
        let hold = Hold::new("small", gate, Box::new(look), Box::new(tell));
        let device = Arc::new(HoldWhenFull::new(small.clone(), hold.clone()));
        Bench {
            small,
            hold,
            device,
            told,
        }
    }

    fn write(&self, len: usize, offset: u64) -> JoinHandle<Result<(), IoError>> {
        let device = self.device.clone();
        std::thread::spawn(move || device.write_at(&vec![1; len], offset))
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(LIMIT).unwrap()
    }

    fn is_told_full(&self) {
        let expected = "small.vhd: write: no space left (full); free some and repeat the request";
        assert_eq!(self.next(), Told::Full(expected.to_owned()));
    }

    /// Until so many requests are held, after so many refusals.
    fn held(&self, held: usize, refused: u64) {
        let end = Instant::now() + LIMIT;
        loop {
            let now = (
                self.hold.lock().core.held(),
                self.small.refused.load(Ordering::SeqCst),
            );
            if now == (held, refused) {
                return;
            }
            assert!(Instant::now() < end, "{now:?} instead of {held}, {refused}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn nothing_is_held_while_there_is_room() {
    let bench = Bench::new(10);
    bench.device.write_at(&[1; 10], 5).unwrap();
    bench.device.flush().unwrap();
    assert_eq!(*bench.small.written.lock().unwrap(), [5]);
    assert!(bench.told.try_recv().is_err());
    assert!(!bench.hold.lock().watched);
}

#[test]
fn held_requests_are_carried_out_once_there_is_room() {
    let bench = Bench::new(0);
    let writes = [bench.write(10, 1), bench.write(10, 2), bench.write(10, 3)];
    bench.is_told_full();
    bench.held(3, 3);
    // Others go on.
    bench.device.read_at(&mut [0; 10], 0).unwrap();
    bench.device.flush().unwrap();
    // Found by looking, without an order.
    bench.small.room.store(2 * MIB, Ordering::SeqCst);
    for write in writes {
        write.join().unwrap().unwrap();
    }
    assert_eq!(bench.next(), Told::Room);
    let mut written = bench.small.written.lock().unwrap().clone();
    written.sort_unstable();
    assert_eq!(written, [1, 2, 3]);
}

#[test]
fn too_little_room_keeps_what_does_not_fit() {
    let bench = Bench::new(0);
    let small = bench.write(10, 1);
    bench.is_told_full();
    let large = bench.write(1000, 2);
    bench.held(2, 2);
    bench.small.room.store(10, Ordering::SeqCst);
    bench.hold.retry();
    small.join().unwrap().unwrap();
    assert!(!large.is_finished());
    bench.held(1, 3);
    assert!(bench.told.try_recv().is_err(), "one is still held");
    bench.small.room.store(1000, Ordering::SeqCst);
    bench.hold.retry();
    large.join().unwrap().unwrap();
    assert_eq!(bench.next(), Told::Room);
}

#[test]
fn flushes_discards_and_zeroes_are_held_too() {
    let bench = Bench::new(0);
    bench.small.flush_needs_room.store(true, Ordering::SeqCst);
    let spawn = |request: fn(&HoldWhenFull<SmallDisk>) -> Result<(), IoError>| {
        let device = bench.device.clone();
        std::thread::spawn(move || request(&device))
    };
    let requests = [
        spawn(|disk| disk.flush()),
        spawn(|disk| disk.discard(2, 1)),
        spawn(|disk| disk.write_zeroes(3, 1)),
    ];
    bench.is_told_full();
    bench.held(3, 3);
    bench.small.room.store(3, Ordering::SeqCst);
    bench.hold.retry();
    for request in requests {
        request.join().unwrap().unwrap();
    }
    assert_eq!(bench.next(), Told::Room);
    assert_eq!(bench.small.written.lock().unwrap().len(), 3);
}

#[test]
fn a_second_shortage_is_told_like_the_first() {
    let bench = Bench::new(0);
    for _ in 0..3 {
        let write = bench.write(5, 0);
        bench.is_told_full();
        bench.small.room.store(5, Ordering::SeqCst);
        bench.hold.retry();
        write.join().unwrap().unwrap();
        assert_eq!(bench.next(), Told::Room);
    }
}

#[test]
fn given_up_requests_fail_and_so_do_later_ones() {
    let bench = Bench::new(0);
    let write = bench.write(10, 1);
    bench.is_told_full();
    bench.hold.give_up();
    let error = write.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::NoSpace);
    let error = bench.device.write_at(&[1], 2).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::NoSpace);
    assert!(bench.told.try_recv().is_err());
    assert_eq!(*bench.small.written.lock().unwrap(), [0_u64; 0]);
}

#[test]
fn a_gate_that_closes_ends_the_waiting() {
    let bench = Bench::new(0);
    let writes = [bench.write(10, 1), bench.write(10, 2)];
    bench.is_told_full();
    bench.small.gate.close();
    for write in writes {
        let error = write.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), IoErrorKind::GateClosed);
    }
}

/// It was refused for lack of space before the gate closed, and comes to wait when the others have ended that.
#[test]
fn who_is_late_to_wait_hears_of_the_gate_too() {
    let bench = Bench::new(0);
    let write = bench.write(10, 1);
    bench.is_told_full();
    bench.small.gate.close();
    let error = write.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::GateClosed);
    let mut answers = vec![
        IoError::GateClosed,
        IoError::NoSpace {
            disk: "d".into(),
            operation: "grow",
            reason: "full".into(),
        },
    ];
    let answers = Mutex::new(&mut answers);
    let late = bench
        .hold
        .carry_out(|| Err(answers.lock().unwrap().pop().unwrap()));
    assert_eq!(late.unwrap_err().kind(), IoErrorKind::GateClosed);
}
