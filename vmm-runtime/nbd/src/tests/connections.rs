//! Several requests and clients at once, and their ends.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Client, DISCONNECT, FLUSH, READ, Setup, TRIM, WRITE, ZERO, serve};
use crate::memory_disk::{Call, MemoryDisk};
use crate::{MAX_CONNECTIONS, MAX_REQUEST_BYTES};

#[test]
fn a_flush_on_one_connection_covers_what_another_has_written() {
    let setup = serve(MemoryDisk::new(4096));
    let (mut writer, mut flusher) = (setup.connect_simple(), setup.connect_simple());
    writer.send(0, WRITE, 1, 0, 1);
    writer.stream.write_all(b"x").unwrap();
    assert_eq!(writer.simple_reply(1), 0);
    assert_eq!(flusher.call(0, FLUSH, 0, 0), 0);
    assert_eq!(
        setup.disk.state.lock().unwrap().calls,
        [Call::Write(0, 1), Call::Flush]
    );
    setup.server.stop();
}

#[test]
fn many_at_once_each_get_their_own_answer() {
    // Small ones are answered by the thread that reads them, large ones by workers.
    let size: u32 = 4 << 20;
    let setup = serve(MemoryDisk::new(size as usize));
    for (at, block) in setup
        .disk
        .state
        .lock()
        .unwrap()
        .bytes
        .chunks_mut(512)
        .enumerate()
    {
        block[..8].copy_from_slice(&(at as u64).to_be_bytes());
    }
    let mut client = setup.connect_simple();
    let lengths: Vec<u32> = (0..300).map(|n| [512, 4096, 128 << 10][n % 3]).collect();
    let offset = |cookie: u64| cookie * 7919 % 4096 * 512;
    let mut sender = Client {
        stream: client.stream.try_clone().unwrap(),
    };
    let to_send = lengths.clone();
    let sending = std::thread::spawn(move || {
        for (cookie, length) in (0..).zip(to_send) {
            sender.send(0, READ, cookie, offset(cookie), length);
        }
    });
    let mut seen = Vec::new();
    for _ in 0..lengths.len() {
        assert_eq!(client.u32(), 0x67446698);
        let error = client.u32();
        let cookie = u64::from_be_bytes(client.bytes());
        let length = lengths[cookie as usize];
        if offset(cookie) + u64::from(length) > size.into() {
            assert_eq!(error, 22);
        } else {
            assert_eq!(error, 0);
            for (at, block) in client.vec(length as usize).chunks(512).enumerate() {
                assert_eq!(block[..8], (offset(cookie) / 512 + at as u64).to_be_bytes());
            }
        }
        seen.push(cookie);
    }
    sending.join().unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (0..300).collect::<Vec<u64>>());
    setup.server.stop();
}

/// A disk whose flushes wait: each says that it has begun, and goes on when it is told to.
fn serve_held_flushes() -> (Setup, Receiver<()>, Sender<()>) {
    let (entered, flushing) = channel();
    let (release, go_on) = channel();
    let go_on = Mutex::new(go_on);
    let setup = serve(MemoryDisk::hooked(4096, move |call| {
        if *call == Call::Flush {
            entered.send(()).unwrap();
            go_on.lock().unwrap().recv().unwrap();
        }
        Ok(())
    }));
    (setup, flushing, release)
}

#[test]
fn what_was_asked_before_a_stop_is_answered() {
    let (setup, flushing, release) = serve_held_flushes();
    let mut client = setup.connect_simple();
    client.send(0, FLUSH, 1, 0, 0);
    flushing.recv().unwrap();
    let stopping = std::thread::spawn(move || setup.server.stop());
    // Empty reads, until the server takes no more of them.
    client.stream.set_nonblocking(true).unwrap();
    let mut received = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut read = vec![0x25, 0x60, 0x95, 0x13];
    read.resize(28, 0);
    loop {
        assert!(Instant::now() < deadline, "it still takes requests");
        match client.stream.write(&read) {
            Ok(written) => assert_eq!(written, read.len()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => break assert_eq!(error.kind(), ErrorKind::BrokenPipe),
        }
        let nothing_yet = client.stream.read_to_end(&mut received).unwrap_err();
        assert_eq!(nothing_yet.kind(), ErrorKind::WouldBlock);
        std::thread::yield_now();
    }
    release.send(()).unwrap();
    client.stream.set_nonblocking(false).unwrap();
    // A request that the server left unread ends the stream so, behind all answers.
    if let Err(error) = client.stream.read_to_end(&mut received) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let flushed = b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01";
    let answers = received.chunks(16).filter(|answer| answer == flushed);
    assert_eq!(answers.count(), 1);
    stopping.join().unwrap();
    assert_eq!(Arc::strong_count(&setup.disk), 1);
}

#[test]
fn a_client_that_disconnects_gets_what_a_worker_still_has() {
    let (setup, flushing, release) = serve_held_flushes();
    let mut client = setup.connect_simple();
    client.send(0, FLUSH, 1, 0, 0);
    client.send(0, DISCONNECT, 0, 0, 0);
    flushing.recv().unwrap();
    let timeout = Duration::from_millis(50);
    client.stream.set_read_timeout(Some(timeout)).unwrap();
    let nothing_yet = client.stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing_yet.kind(), ErrorKind::WouldBlock);
    client.stream.set_read_timeout(None).unwrap();
    release.send(()).unwrap();
    assert_eq!(client.simple_reply(1), 0);
    assert!(client.is_closed());
    setup.server.stop();
}

#[test]
fn a_disk_that_panics_leaves_no_client_waiting() {
    let setup = serve(MemoryDisk::hooked(1 << 20, |call| match call {
        Call::Flush | Call::Discard(..) => panic!("on purpose"),
        _ => Ok(()),
    }));
    let mut client = setup.connect_simple();
    assert_eq!(client.call(0, FLUSH, 0, 0), 5);
    assert_eq!(client.call(0, FLUSH, 0, 0), 5);
    // Not by a call of the queue's own: only the connection can tell.
    client.send(0, TRIM, 1, 0, 512);
    assert!(client.is_closed());
    let mut other = setup.connect_simple();
    assert_eq!(other.call(0, ZERO, 0, 512), 0);
    setup.server.stop();
}

#[test]
fn nonsense_closes_the_connection_and_only_that() {
    let setup = serve(MemoryDisk::new(4096));
    let mut other = setup.connect_simple();
    let mut client = setup.connect_simple();
    client.stream.write_all(&[0xff; 28]).unwrap();
    assert!(client.is_closed());
    let mut client = setup.connect_simple();
    client.send(0, WRITE, 1, 0, MAX_REQUEST_BYTES + 1);
    assert!(client.is_closed());
    let mut client = setup.connect();
    client.stream.write_all(&[0; 16]).unwrap();
    assert!(client.is_closed());
    assert_eq!(other.call(0, FLUSH, 0, 0), 0);
    setup.server.stop();
}

#[test]
fn a_disconnecting_client_still_gets_its_answers() {
    let setup = serve(MemoryDisk::new(1 << 20));
    let mut client = setup.connect_simple();
    let count = 200;
    let mut requests = Vec::new();
    for cookie in 0..count {
        let mut request = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0];
        request.extend((cookie as u64).to_be_bytes());
        request.extend([0; 8]);
        request.extend(16_u32.to_be_bytes());
        requests.extend(request);
    }
    requests.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]);
    requests.extend([0; 20]);
    client.stream.write_all(&requests).unwrap();
    let mut seen = Vec::new();
    for _ in 0..count {
        assert_eq!(client.u32(), 0x67446698);
        assert_eq!(client.u32(), 0);
        seen.push(u64::from_be_bytes(client.bytes()));
        client.bytes::<16>();
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..count as u64).collect::<Vec<_>>());
    assert!(client.is_closed());
    setup.server.stop();
}

#[test]
fn connections_are_bounded_and_places_are_given_back() {
    let setup = serve(MemoryDisk::new(4096));
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS)
        .map(|_| setup.connect_simple())
        .collect();
    let mut refused = UnixStream::connect(setup.socket()).unwrap();
    assert_eq!(refused.read(&mut [0; 1]).unwrap(), 0);
    let mut leaving = clients.remove(0);
    leaving.send(0, DISCONNECT, 0, 0, 0);
    assert!(leaving.is_closed());
    // The place is free once that connection's thread has ended, a moment after it closed the socket.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut stream = UnixStream::connect(setup.socket()).unwrap();
        if stream.read(&mut [0; 18]).unwrap() == 18 {
            break;
        }
        assert!(Instant::now() < deadline, "no place was given back");
        std::thread::yield_now();
    }
    setup.server.stop();
}
