//! A client written by hand, from the protocol's text, against the server on a real socket.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use paddock_vhd::IoError;

use crate::memory_disk::{Call, MemoryDisk};
use crate::{Export, MAX_CONNECTIONS, MAX_REQUEST_BYTES, ServeError, Server};

struct Setup {
    directory: tempfile::TempDir,
    disk: Arc<MemoryDisk>,
    server: Server,
}

fn serve(disk: MemoryDisk) -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(disk);
    let exports = vec![Export::new("root", disk.clone())];
    let server = Server::unix(&directory.path().join("s"), exports).unwrap();
    Setup {
        directory,
        disk,
        server,
    }
}

impl Setup {
    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("s")
    }

    fn connect(&self) -> Client {
        Client::connect(&self.socket())
    }

    fn connect_simple(&self) -> Client {
        let mut client = self.connect();
        client.go("root");
        client
    }

    fn connect_structured(&self) -> Client {
        let mut client = self.connect();
        client.choose_structured();
        client
    }
}

struct Client {
    stream: UnixStream,
}

impl Client {
    fn connect(path: &std::path::Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        Client { stream }
    }

    fn choose_structured(&mut self) {
        self.option(8, &[]);
        assert_eq!(self.option_reply(), (8, 1, vec![]));
        let mut query = vec![0, 0, 0, 4];
        query.extend(b"root");
        query.extend([0, 0, 0, 1, 0, 0, 0, 15]);
        query.extend(b"base:allocation");
        self.option(10, &query);
        let mut context = vec![0, 0, 0, 1];
        context.extend(b"base:allocation");
        assert_eq!(self.option_reply(), (10, 4, context));
        assert_eq!(self.option_reply(), (10, 1, vec![]));
        self.go("");
    }

    fn option(&mut self, number: u32, data: &[u8]) {
        self.stream.write_all(b"IHAVEOPT").unwrap();
        self.stream.write_all(&number.to_be_bytes()).unwrap();
        self.stream
            .write_all(&(data.len() as u32).to_be_bytes())
            .unwrap();
        self.stream.write_all(data).unwrap();
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes())
    }

    fn vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        assert_eq!(u64::from_be_bytes(self.bytes()), 0x3e889045565a9);
        let (number, kind, len) = (self.u32(), self.u32(), self.u32());
        (number, kind, self.vec(len as usize))
    }

    /// The size and the flags of the export.
    fn go(&mut self, name: &str) -> (u64, u16) {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend([0, 0]);
        self.option(7, &data);
        let (number, kind, block_size) = self.option_reply();
        assert_eq!((number, kind), (7, 3));
        assert_eq!(block_size, [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]);
        let (number, kind, export) = self.option_reply();
        assert_eq!((number, kind, export.len()), (7, 3, 12));
        assert_eq!(export[..2], [0, 0]);
        assert_eq!(self.option_reply(), (7, 1, vec![]));
        (
            u64::from_be_bytes(export[2..10].try_into().unwrap()),
            u16::from_be_bytes(export[10..].try_into().unwrap()),
        )
    }

    fn send(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        let mut request = vec![0x25, 0x60, 0x95, 0x13];
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        self.stream.write_all(&request).unwrap();
    }

    /// The error of a simple reply.
    fn simple_reply(&mut self, cookie: u64) -> u32 {
        assert_eq!(self.u32(), 0x67446698);
        let error = self.u32();
        assert_eq!(u64::from_be_bytes(self.bytes()), cookie);
        error
    }

    /// The type and the content of a structured reply of one chunk.
    fn chunk(&mut self, cookie: u64) -> (u16, Vec<u8>) {
        let (flags, kind, content) = self.next_chunk(cookie);
        assert_eq!(flags, 1, "the only chunk");
        (kind, content)
    }

    /// Flags, type and content of a chunk.
    fn next_chunk(&mut self, cookie: u64) -> (u16, u16, Vec<u8>) {
        assert_eq!(self.u32(), 0x668e33ef);
        let flags = u16::from_be_bytes(self.bytes());
        let kind = u16::from_be_bytes(self.bytes());
        assert_eq!(u64::from_be_bytes(self.bytes()), cookie);
        let len = self.u32();
        (flags, kind, self.vec(len as usize))
    }

    fn call(&mut self, flags: u16, command: u16, offset: u64, length: u32) -> u32 {
        self.send(flags, command, 7, offset, length);
        self.simple_reply(7)
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZERO: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;

#[test]
fn writes_are_read_back_and_fua_flushes() {
    let setup = serve(MemoryDisk::new(1 << 20));
    let mut client = setup.connect_simple();
    client.send(0, WRITE, 1, 1000, 3);
    client.stream.write_all(b"abc").unwrap();
    assert_eq!(client.simple_reply(1), 0);
    client.send(FUA, WRITE, 2, 1003, 1);
    client.stream.write_all(b"d").unwrap();
    assert_eq!(client.simple_reply(2), 0);
    client.send(0, READ, 3, 999, 6);
    assert_eq!(client.simple_reply(3), 0);
    assert_eq!(client.bytes(), *b"\0abcd\0");
    assert_eq!(client.call(0, FLUSH, 0, 0), 0);
    assert_eq!(client.call(FUA, TRIM, 1000, 2), 0);
    assert_eq!(client.call(FUA | 2, ZERO, 1002, 1), 0);
    assert_eq!(
        setup.disk.state.lock().unwrap().bytes[1000..1004],
        *b"\0\0\0d"
    );
    assert_eq!(
        setup.disk.state.lock().unwrap().calls,
        [
            Call::Write(1000, 3),
            Call::Write(1003, 1),
            Call::Flush,
            Call::Read(999, 6),
            Call::Flush,
            Call::Discard(1000, 2),
            Call::Flush,
            Call::WriteZeroes(1002, 1),
            Call::Flush,
        ]
    );
    setup.server.stop();
    assert!(client.is_closed());
    assert_eq!(
        Arc::strong_count(&setup.disk),
        1,
        "a stopped server lets go of the disk"
    );
}

#[test]
fn structured_reads_and_block_status() {
    let setup = serve(MemoryDisk::new(16384));
    setup.disk.state.lock().unwrap().bytes[4096..8192].fill(9);
    let mut client = setup.connect_structured();
    client.send(0, READ, 5, 4095, 2);
    assert_eq!(
        client.chunk(5),
        (1, [&4095_u64.to_be_bytes()[..], &[0, 9]].concat())
    );
    client.send(0, READ, 6, 0, 0);
    assert_eq!(client.chunk(6), (0, vec![]));
    client.send(0, STATUS, 7, 0, 16384);
    let all = [1_u32, 4096, 3, 4096, 0, 8192, 3]
        .map(u32::to_be_bytes)
        .concat();
    assert_eq!(client.chunk(7), (5, all));
    client.send(8, STATUS, 8, 8000, 8000);
    let one = [1_u32, 192, 0].map(u32::to_be_bytes).concat();
    assert_eq!(client.chunk(8), (5, one));
    // Past the end: an error chunk with EINVAL and the reason, whatever the command.
    for command in [READ, STATUS, TRIM, ZERO] {
        client.send(0, command, 9, 16384, 1);
        let message = b"the range passes the disk's end";
        let error = [&[0, 0, 0, 22, 0, message.len() as u8], &message[..]].concat();
        assert_eq!(client.chunk(9), (0x8001, error));
    }
    setup.disk.state.lock().unwrap().fail = Some(IoError::GateClosed);
    client.send(0, READ, 9, 0, 1);
    let message = IoError::GateClosed.to_string();
    let error = [&[0, 0, 0, 108, 0, message.len() as u8], message.as_bytes()].concat();
    assert_eq!(client.chunk(9), (0x8001, error));
    setup.disk.state.lock().unwrap().fail = None;
    // What other commands have done is said simply.
    assert_eq!(client.call(0, FLUSH, 0, 0), 0);
    setup.server.stop();
}

/// A hole of 128 KiB, 64 KiB of data, 32 KiB of zeros, 32 KiB of data, a hole of 64 KiB.
fn disk_with_holes() -> MemoryDisk {
    let mut disk = MemoryDisk::new(320 << 10);
    let bytes = &mut disk.state.get_mut().unwrap().bytes;
    bytes[128 << 10..192 << 10].fill(1);
    bytes[224 << 10..256 << 10].fill(2);
    disk
}

#[test]
fn long_reads_tell_holes_instead_of_sending_zeros() {
    let setup = serve(disk_with_holes());
    let mut client = setup.connect_structured();
    client.send(0, READ, 1, 0, 320 << 10);
    let hole =
        |offset: u64, length: u32| [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    assert_eq!(client.next_chunk(1), (0, 2, hole(0, 128 << 10)));
    let (flags, kind, data) = client.next_chunk(1);
    assert_eq!((flags, kind), (0, 1));
    assert_eq!(data[..8], (128_u64 << 10).to_be_bytes());
    assert!(data[8..] == setup.disk.state.lock().unwrap().bytes[128 << 10..256 << 10]);
    assert_eq!(client.next_chunk(1), (1, 2, hole(256 << 10, 64 << 10)));
    // All of it one hole, in one chunk.
    client.send(4, READ, 2, 0, 128 << 10);
    assert_eq!(client.chunk(2), (2, hole(0, 128 << 10)));
    // Not in fragments: the zeros are sent.
    client.send(4, READ, 3, 64 << 10, 128 << 10);
    let (kind, data) = client.chunk(3);
    assert_eq!((kind, data.len()), (1, 8 + (128 << 10)));
    // A short read is one piece, and the disk is not asked what is there.
    client.send(0, READ, 4, 0, 4096);
    let (kind, data) = client.chunk(4);
    assert_eq!((kind, data.len()), (1, 8 + 4096));
    setup.server.stop();
}

#[test]
fn a_read_that_fails_half_way_is_only_an_error() {
    let setup = serve(MemoryDisk::hooked(320 << 10, |call| match call {
        Call::Read(offset, _) if *offset >= 160 << 10 => Err(IoError::GateClosed),
        _ => Ok(()),
    }));
    let fill = |range: std::ops::Range<usize>| {
        setup.disk.state.lock().unwrap().bytes[range].fill(1);
    };
    fill(0..64 << 10);
    fill(160 << 10..320 << 10);
    let mut client = setup.connect_structured();
    client.send(0, READ, 1, 0, 320 << 10);
    let (kind, error) = client.chunk(1);
    assert_eq!((kind, &error[..4]), (0x8001, &[0, 0, 0, 108][..]));
    setup.server.stop();
}

#[test]
fn a_prefetch_reads_and_sends_nothing() {
    let setup = serve(MemoryDisk::new(1 << 20));
    let mut client = setup.connect_simple();
    assert_eq!(client.call(0, CACHE, 4096, 300 << 10), 0);
    assert_eq!(
        setup.disk.state.lock().unwrap().calls,
        [
            Call::Read(4096, 256 << 10),
            Call::Read(4096 + (256 << 10), 44 << 10)
        ]
    );
    setup.server.stop();
}

#[test]
fn exports_are_listed_and_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let disk = Arc::new(MemoryDisk::new(8192));
    let exports = vec![
        Export::new("a", Arc::new(MemoryDisk::new(4096))),
        Export {
            read_only: true,
            description: "the second".to_owned(),
            ..Export::new("b", disk.clone())
        },
    ];
    let server = Server::unix(&path, exports).unwrap();
    let mut client = Client::connect(&path);
    client.option(3, &[]);
    assert_eq!(client.option_reply(), (3, 2, b"\0\0\0\x01a".to_vec()));
    assert_eq!(
        client.option_reply(),
        (3, 2, b"\0\0\0\x01bthe second".to_vec())
    );
    assert_eq!(client.option_reply(), (3, 1, vec![]));
    // INFO, with name and description.
    client.option(6, b"\0\0\0\x01b\0\x02\0\x01\0\x02");
    assert_eq!(client.option_reply(), (6, 3, b"\0\x01b".to_vec()));
    assert_eq!(client.option_reply(), (6, 3, b"\0\x02the second".to_vec()));
    assert_eq!(client.option_reply().2[..2], [0, 3]);
    assert_eq!(client.option_reply().2[..2], [0, 0]);
    assert_eq!(client.option_reply(), (6, 1, vec![]));
    // A context for one export does not count for another.
    client.option(8, &[]);
    assert_eq!(client.option_reply().1, 1);
    client.option(10, b"\0\0\0\x01a\0\0\0\x01\0\0\0\x0fbase:allocation");
    assert_eq!(client.option_reply().1, 4);
    assert_eq!(client.option_reply().1, 1);
    assert_eq!(client.go("b"), (8192, 0b101_1000_0111));
    client.send(0, STATUS, 1, 0, 512);
    assert_eq!(client.chunk(1).1[..4], [0, 0, 0, 22]);
    // An export for reading refuses changes to a disk that would take them.
    client.send(0, TRIM, 2, 0, 512);
    assert_eq!(client.chunk(2).1[..4], [0, 0, 0, 1]);
    assert_eq!(disk.state.lock().unwrap().calls, []);
    server.stop();
    assert!(!path.exists(), "a stopped server removes its socket");
}

#[test]
fn a_port_is_served_to_this_machine_alone() {
    let export = || vec![Export::new("root", Arc::new(MemoryDisk::new(4096)))];
    let refused = Server::tcp("0.0.0.0:0".parse().unwrap(), export());
    assert!(matches!(refused, Err(ServeError::NotLoopback(_))));
    let everywhere = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let refused = Server::on(everywhere, export());
    assert!(matches!(refused, Err(ServeError::NotLoopback(_))));
    let server = Server::tcp("127.0.0.1:0".parse().unwrap(), export()).unwrap();
    let mut stream = TcpStream::connect(server.address().unwrap()).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
    server.stop();
    assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
}

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
    client.stream.read_to_end(&mut received).unwrap();
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
fn refusals_do_not_reach_the_disk() {
    let setup = serve(MemoryDisk::new(4096));
    let mut client = setup.connect_simple();
    for (flags, command, offset, length, error) in [
        (0, READ, 4095, 2, 22),
        (0, READ, u64::MAX, 1, 22),
        (0, READ, 0, MAX_REQUEST_BYTES + 1, 75),
        (0, TRIM, 0, 4097, 22),
        (0, ZERO, 1, u32::MAX, 22),
        (0, STATUS, 0, 1, 22),
        (4, READ, 0, 1, 22),
        (1 << 4, ZERO, 0, 1, 22),
        (0, 5, 4096, 1, 22),
        (0, 8, 0, 1, 22),
        (0, 99, 0, 1, 22),
    ] {
        assert_eq!(
            client.call(flags, command, offset, length),
            error,
            "{command} {offset} {length}"
        );
    }
    assert_eq!(setup.disk.state.lock().unwrap().calls, []);
    setup.server.stop();
}

#[test]
fn a_read_only_disk_refuses_changes_and_says_so() {
    let mut disk = MemoryDisk::new(4096);
    disk.read_only = true;
    let setup = serve(disk);
    let mut client = setup.connect();
    assert_eq!(client.go("root"), (4096, 0b101_0000_0111));
    for command in [TRIM, ZERO] {
        assert_eq!(client.call(0, command, 0, 1), 1);
    }
    client.send(0, WRITE, 7, 0, 1);
    client.stream.write_all(b"x").unwrap();
    assert_eq!(client.simple_reply(7), 1);
    assert_eq!(setup.disk.state.lock().unwrap().calls, []);
    assert_eq!(client.call(0, FLUSH, 0, 0), 0);
    setup.server.stop();
}

#[test]
fn errors_of_the_disk_have_their_numbers() {
    let setup = serve(MemoryDisk::new(4096));
    let mut client = setup.connect_simple();
    let io = |error: &str| Arc::new(std::io::Error::other(error.to_owned()));
    for (error, number) in [
        (IoError::GateClosed, 108),
        (
            IoError::NoSpace {
                disk: "d".into(),
                operation: "grow",
                reason: "full".into(),
            },
            28,
        ),
        (
            IoError::SyncFailed {
                disk: "d".into(),
                source: io("sync"),
            },
            5,
        ),
        (
            IoError::Io {
                disk: "d".into(),
                operation: "write",
                source: io("write"),
            },
            5,
        ),
        (IoError::ReadOnly, 1),
        (
            IoError::OutOfRange {
                offset: 0,
                len: 1,
                size: 0,
            },
            22,
        ),
    ] {
        setup.disk.state.lock().unwrap().fail = Some(error);
        for (command, length) in [(READ, 1), (ZERO, 1), (TRIM, 1), (FLUSH, 0)] {
            assert_eq!(client.call(0, command, 0, length), number);
        }
    }
    setup.disk.state.lock().unwrap().fail = None;
    assert_eq!(client.call(0, FLUSH, 0, 0), 0);
    setup.server.stop();
}

#[test]
fn a_flush_that_fails_fails_the_fua_write() {
    let setup = serve(MemoryDisk::hooked(512, |call| match call {
        Call::Flush => Err(IoError::GateClosed),
        _ => Ok(()),
    }));
    let mut client = setup.connect_simple();
    assert_eq!(client.call(0, ZERO, 0, 512), 0);
    assert_eq!(client.call(FUA, ZERO, 0, 512), 108);
    setup.server.stop();
}

#[test]
fn options_are_answered_as_the_protocol_says() {
    let setup = serve(MemoryDisk::new(4096));
    let mut client = setup.connect();
    let kind = |client: &mut Client, number, data: &[u8]| {
        client.option(number, data);
        client.option_reply().1
    };
    const UNSUP: u32 = 0x8000_0001;
    const INVALID: u32 = 0x8000_0003;
    const UNKNOWN: u32 = 0x8000_0006;
    const TOO_BIG: u32 = 0x8000_0009;
    assert_eq!(kind(&mut client, 5, &[]), UNSUP);
    assert_eq!(kind(&mut client, 77, b"what"), UNSUP);
    assert_eq!(kind(&mut client, 3, b"x"), INVALID);
    assert_eq!(kind(&mut client, 7, b"\0\0\0\x05other\0\0"), UNKNOWN);
    assert_eq!(kind(&mut client, 7, b"\0\0\0\x05oth"), INVALID);
    assert_eq!(kind(&mut client, 7, b"\0\0\0\0\0\0trailing"), INVALID);
    assert_eq!(kind(&mut client, 7, b"\0\0\0\0\xff\xff"), INVALID);
    assert_eq!(
        kind(&mut client, 10, b"\0\0\0\0\0\0\0\0"),
        INVALID,
        "structured replies come first"
    );
    assert_eq!(kind(&mut client, 3 << 16, &vec![0; 65537]), TOO_BIG);
    assert_eq!(kind(&mut client, 8, &[]), 1);
    assert_eq!(kind(&mut client, 10, b"\0\0\0\0\xff\xff\xff\xff"), INVALID);
    assert_eq!(kind(&mut client, 10, b"\0\0\0\x01x\0\0\0\0"), UNKNOWN);
    assert_eq!(
        kind(&mut client, 10, b"\0\0\0\0\0\0\0\x01\0\0\0\x02x:"),
        1,
        "no context of that name"
    );
    client.option(3, &[]);
    assert_eq!(client.option_reply(), (3, 2, b"\0\0\0\x04root".to_vec()));
    assert_eq!(client.option_reply(), (3, 1, vec![]));
    assert_eq!(client.go("root"), (4096, 0b101_1110_1101));
    assert_eq!(client.call(0, FLUSH, 0, 0), 0);
    let mut aborting = setup.connect();
    aborting.option(2, &[]);
    assert_eq!(aborting.option_reply(), (2, 1, vec![]));
    assert!(aborting.is_closed());
    setup.server.stop();
}

#[test]
fn the_old_way_to_choose_an_export_works() {
    let setup = serve(MemoryDisk::new(4096));
    let mut client = setup.connect();
    client.option(1, b"root");
    assert_eq!(u64::from_be_bytes(client.bytes()), 4096);
    assert_eq!(u16::from_be_bytes(client.bytes()), 0b101_0110_1101);
    assert_eq!(client.call(0, FLUSH, 0, 0), 0);
    let mut stranger = setup.connect();
    stranger.option(1, b"boot");
    assert!(stranger.is_closed());
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
