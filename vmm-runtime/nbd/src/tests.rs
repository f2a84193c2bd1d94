//! A client written by hand, from the protocol's text, against the server on a real socket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command as Process;
use std::sync::Arc;

use paddock_vhd::{BlockDevice, IoError};

use crate::memory_disk::{Call, MemoryDisk};
use crate::{MAX_CONNECTIONS, MAX_REQUEST_BYTES, NbdServer};

struct Setup {
    directory: tempfile::TempDir,
    disk: Arc<MemoryDisk>,
    server: NbdServer,
}

fn serve(disk: MemoryDisk) -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let disk = Arc::new(disk);
    let server = NbdServer::start(listener, "root", disk.clone()).unwrap();
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
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        Client { stream }
    }

    fn connect_simple(&self) -> Client {
        let mut client = self.connect();
        client.go("root");
        client
    }

    fn connect_structured(&self) -> Client {
        let mut client = self.connect();
        client.option(8, &[]);
        assert_eq!(client.option_reply(), (8, 1, vec![]));
        let mut query = vec![0, 0, 0, 4];
        query.extend(b"root");
        query.extend([0, 0, 0, 1, 0, 0, 0, 15]);
        query.extend(b"base:allocation");
        client.option(10, &query);
        let mut context = vec![0, 0, 0, 1];
        context.extend(b"base:allocation");
        assert_eq!(client.option_reply(), (10, 4, context));
        assert_eq!(client.option_reply(), (10, 1, vec![]));
        client.go("");
        client
    }
}

struct Client {
    stream: UnixStream,
}

impl Client {
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
        assert_eq!(self.u32(), 0x668e33ef);
        assert_eq!(u16::from_be_bytes(self.bytes()), 1, "the only chunk");
        let kind = u16::from_be_bytes(self.bytes());
        assert_eq!(u64::from_be_bytes(self.bytes()), cookie);
        let len = self.u32();
        (kind, self.vec(len as usize))
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
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
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
    // Past the end: an error chunk with EINVAL and no message.
    client.send(0, READ, 9, 16384, 1);
    assert_eq!(client.chunk(9), (0x8001, vec![0, 0, 0, 22, 0, 0]));
    // Other commands are answered simply.
    assert_eq!(client.call(0, FLUSH, 0, 0), 0);
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
        (0, 5, 0, 1, 22),
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
    let setup = serve(MemoryDisk {
        read_only: true,
        ..MemoryDisk::new(4096)
    });
    let mut client = setup.connect();
    assert_eq!(client.go("root"), (4096, 0b1_0000_0111));
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
    struct NoFlush(MemoryDisk);
    impl BlockDevice for NoFlush {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_only(&self) -> bool {
            false
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
            self.0.write_at(buf, offset)
        }
        fn flush(&self) -> Result<(), IoError> {
            Err(IoError::GateClosed)
        }
        fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
            self.0.discard(offset, len)
        }
        fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
            self.0.write_zeroes(offset, len)
        }
        fn block_status(&self, offset: u64, len: u64) -> Result<Vec<paddock_vhd::Extent>, IoError> {
            self.0.block_status(offset, len)
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let server =
        NbdServer::start(listener, "root", Arc::new(NoFlush(MemoryDisk::new(512)))).unwrap();
    let mut client = Client {
        stream: UnixStream::connect(directory.path().join("s")).unwrap(),
    };
    client.bytes::<18>();
    client.stream.write_all(&[0, 0, 0, 3]).unwrap();
    client.go("root");
    assert_eq!(client.call(0, ZERO, 0, 512), 0);
    assert_eq!(client.call(FUA, ZERO, 0, 512), 108);
    server.stop();
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
    assert_eq!(client.go("root"), (4096, 0b1_1110_1101));
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
    assert_eq!(u16::from_be_bytes(client.bytes()), 0b1_0110_1101);
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
    leaving.send(0, 2, 0, 0, 0);
    assert!(leaving.is_closed());
    // The place is free once that connection's thread has ended, a moment after it closed the socket.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let mut stream = UnixStream::connect(setup.socket()).unwrap();
        if stream.read(&mut [0; 18]).unwrap() == 18 {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "no place was given back"
        );
        std::thread::yield_now();
    }
    setup.server.stop();
}

#[test]
fn clients_of_others_agree() {
    let have = |tool: &str| {
        Process::new(tool)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let setup = serve(MemoryDisk::new(4 << 20));
    setup.disk.state.lock().unwrap().bytes[65536..131072].fill(0xa5);
    let uri = format!("nbd+unix:///root?socket={}", setup.socket().display());
    let run = |tool: &str, arguments: &[&str]| {
        let output = Process::new(tool).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{tool} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    if have("nbdinfo") {
        assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "4194304");
        let map: Vec<String> = run("nbdinfo", &["--map", &uri])
            .lines()
            .map(|line| {
                line.split_whitespace()
                    .take(3)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        assert_eq!(map, ["0 65536 3", "65536 65536 0", "131072 4063232 3"]);
    } else {
        eprintln!("skipped: nbdinfo is not installed");
    }
    if have("nbdcopy") {
        let copy = setup.directory.path().join("copy");
        run("nbdcopy", &[&uri, copy.to_str().unwrap()]);
        assert!(std::fs::read(&copy).unwrap() == setup.disk.state.lock().unwrap().bytes);
        let pattern: Vec<u8> = (0..4_u32 << 20).map(|i| (i / 4096 % 251) as u8).collect();
        std::fs::write(&copy, &pattern).unwrap();
        run("nbdcopy", &["--flush", copy.to_str().unwrap(), &uri]);
        assert!(setup.disk.state.lock().unwrap().bytes == pattern);
        assert!(
            setup
                .disk
                .state
                .lock()
                .unwrap()
                .calls
                .contains(&Call::Flush)
        );
    } else {
        eprintln!("skipped: nbdcopy is not installed");
    }
    if have("qemu-io") {
        let commands = [
            "-f",
            "raw",
            "-c",
            "write -P 0x5a -f 4096 8192",
            "-c",
            "discard 0 4096",
            &uri,
        ];
        run("qemu-io", &commands);
        let bytes = &setup.disk.state.lock().unwrap().bytes;
        assert!(bytes[4096..12288].iter().all(|&byte| byte == 0x5a));
        assert!(bytes[..4096].iter().all(|&byte| byte == 0));
    } else {
        eprintln!("skipped: qemu-io is not installed");
    }
    setup.server.stop();
}
