//! What the fuzz targets do with their input.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use paddock_vhd::{self as vhd, BlockDevice, Buffer, Extent, ExtentKind, IoError};

use crate::export::{Export, Exports};
use crate::handshake::{Session, negotiate};
use crate::incoming::{Incoming, Next};
use crate::outbox::Outgoing;
use crate::protocol::{Command, Fields, MAX_REQUEST_BYTES, Request};
use crate::transmission::{execute, reply_to_call, single_call};

/// Of the disk: two blocks of 128 KiB of data, each followed by a hole as long.
const SIZE: u64 = 512 << 10;
const BLOCK: u64 = 128 << 10;
/// Written to the data: a client sees where its bytes come from.
const PATTERN: u8 = 0xda;

struct Disk(Mutex<Vec<u8>>);

impl Disk {
    fn with<T>(
        &self,
        offset: u64,
        len: u64,
        work: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, IoError> {
        let end = offset
            .checked_add(len)
            .expect("the server has checked the range");
        let mut bytes = self.0.lock().expect("no panic goes on");
        let range = offset as usize..end as usize;
        Ok(work(
            bytes
                .get_mut(range)
                .expect("the server has checked the range"),
        ))
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        self.with(offset, buf.len() as u64, |bytes| buf.copy_from_slice(bytes))
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        self.with(offset, buf.len() as u64, |bytes| bytes.copy_from_slice(buf))
    }
    fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.with(offset, len, |bytes| bytes.fill(0))
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.with(offset, len, |bytes| bytes.fill(0))
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        self.with(offset, len, |bytes| {
            let mut extents = Vec::new();
            let mut at = 0;
            while at < bytes.len() {
                let end = (((offset + at as u64) / 4096 + 1) * 4096 - offset).min(len) as usize;
                let zero = bytes[at..end].iter().all(|&byte| byte == 0);
                extents.push(Extent {
                    offset: offset + at as u64,
                    len: (end - at) as u64,
                    kind: if zero {
                        ExtentKind::Hole
                    } else {
                        ExtentKind::Data
                    },
                });
                at = end;
            }
            extents
        })
    }
}

fn disk() -> Arc<Disk> {
    let mut bytes = vec![0; SIZE as usize];
    for block in bytes.chunks_mut(BLOCK as usize).step_by(2) {
        block.fill(PATTERN);
    }
    Arc::new(Disk(Mutex::new(bytes)))
}

/// Reads what the fuzzer made, and keeps what the server says.
struct Client<'a> {
    sends: &'a [u8],
    gets: Vec<u8>,
}

impl Read for Client<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.sends.read(buf)
    }
}

impl Write for Client<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.gets.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A handshake, and the requests after it.
pub fn handshake(input: &[u8]) {
    let exports = Exports::new(vec![
        Export::new("root", disk()),
        Export {
            read_only: true,
            description: "a second one".to_owned(),
            ..Export::new("data", disk())
        },
    ])
    .expect("two exports");
    let mut client = Client {
        sends: input,
        gets: Vec::new(),
    };
    let agreed = negotiate(&mut client, &exports);
    // An answer to each option, at most: two exports, or four kinds of information, and one more.
    assert!(
        client.gets.len() <= 18 + 64 * 5 * 256,
        "{} bytes",
        client.gets.len()
    );
    if let Ok(session) = agreed {
        answer(client.sends, &session);
    }
}

/// Requests alone; the first byte says what was agreed on.
pub fn requests(input: &[u8]) {
    let Some((agreed, input)) = input.split_first() else {
        return;
    };
    let structured_replies = agreed & 1 != 0;
    let session = Session {
        export: Arc::new(Export {
            read_only: agreed & 4 != 0,
            ..Export::new("root", disk())
        }),
        structured_replies,
        base_allocation: structured_replies && agreed & 2 != 0,
    };
    answer(input, &session);
}

/// What one client may ask for here, in bytes: a run stays short.
const MOST: u64 = 64 << 20;

fn answer(mut stream: &[u8], session: &Session) {
    let mut incoming = Incoming::new();
    let (mut reply, mut large) = (Buffer::default(), Buffer::default());
    let mut asked = 0;
    while asked < MOST {
        let (request, payload) = match incoming.next() {
            Err(_) => return,
            Ok(Next::Whole(request, payload)) => (request, payload),
            Ok(Next::Large(request)) => {
                large.truncate(0);
                if incoming
                    .take(request.payload_bytes(), &mut large, &mut stream)
                    .is_err()
                {
                    return;
                }
                (request, &*large)
            }
            Ok(Next::Partial) => match incoming.fill(&mut stream) {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            },
        };
        if request.command == Command::Disconnect {
            return;
        }
        asked += u64::from(request.length.min(MAX_REQUEST_BYTES));
        assert_eq!(payload.len(), request.payload_bytes());
        reply.truncate(0);
        execute(session, &request, payload, &mut reply, None).expect("this disk has no errors");
        verify(&request, session, &reply);
        verify_workers(&request, payload, session, &reply);
    }
}

/// Workers and the disk's queue answer the same in two pieces. Every change may be made twice.
fn verify_workers(request: &Request, payload: &[u8], session: &Session, expected: &[u8]) {
    let disk = &session.export.disk;
    let payload = Buffer::from(payload.to_vec());
    let outgoing = match single_call(session, request, payload) {
        Err(payload) => {
            let mut outgoing = Outgoing::default();
            let apart = Some(&mut outgoing.body);
            execute(session, request, &payload, &mut outgoing.head, apart)
                .expect("this disk has no errors");
            outgoing
        }
        Ok(call) => {
            let (done, buf) = match call {
                vhd::Request::Read { offset, mut buf } => (disk.read_at(&mut buf, offset), buf),
                vhd::Request::Write { offset, buf, .. } => (disk.write_at(&buf, offset), buf),
                vhd::Request::Flush => (disk.flush(), Buffer::default()),
                other => panic!("a single call of {other:?}"),
            };
            done.expect("this disk has no errors");
            reply_to_call(session, request, Ok(buf), Buffer::default())
        }
    };
    assert!([&*outgoing.head, &*outgoing.body].concat() == expected);
}

/// The reply is a whole one to this request, and a read's chunks are the disk's bytes, each once.
fn verify(request: &Request, session: &Session, reply: &[u8]) {
    let mut fields = Fields(reply);
    let fits = request
        .offset
        .checked_add(request.length.into())
        .is_some_and(|end| end <= SIZE);
    if !session.structured_replies || reply.starts_with(&0x6744_6698_u32.to_be_bytes()) {
        assert_eq!(fields.u32(), Some(0x6744_6698));
        let error = fields.u32().expect("an error number");
        assert_eq!(fields.u64(), Some(request.cookie));
        let data = if request.command == Command::Read && error == 0 {
            request.length as usize
        } else {
            0
        };
        assert_eq!(fields.0.len(), data);
        assert!(fits || error != 0 || request.command == Command::Flush);
        return;
    }
    let mut expected = vec![
        0;
        if fits {
            request.length.min(MAX_REQUEST_BYTES) as usize
        } else {
            0
        }
    ];
    let start = request.offset.min(SIZE - expected.len() as u64);
    let disk = &session.export.disk;
    disk.read_at(&mut expected, start).expect("in range");
    let mut next = request.offset;
    loop {
        assert_eq!(fields.u32(), Some(0x668e_33ef));
        let (flags, kind) = (fields.u16().expect("flags"), fields.u16().expect("a kind"));
        assert_eq!(fields.u64(), Some(request.cookie));
        let len = fields.u32().expect("a length") as usize;
        let mut content = Fields(fields.bytes(len).expect("the content"));
        match (request.command, kind) {
            (_, 0x8001) => {
                assert_ne!(content.u32(), Some(0));
                let message = content.u16().expect("a message");
                assert!(
                    std::str::from_utf8(content.bytes(message.into()).expect("all of it")).is_ok()
                );
                next = request.offset + u64::from(if fits { request.length } else { 0 });
            }
            (Command::Read, 0) => assert_eq!(request.length, 0),
            (Command::Read, 1 | 2) => {
                assert_eq!(content.u64(), Some(next));
                let at = (next - request.offset) as usize;
                let run = if kind == 1 {
                    let run = content.0.len();
                    assert!(content.bytes(run) == expected.get(at..at + run));
                    run
                } else {
                    let run = content.u32().expect("a length") as usize;
                    let zeros = expected.get(at..at + run).expect("within the read");
                    assert!(run > 0 && zeros.iter().all(|&byte| byte == 0));
                    run
                };
                next += run as u64;
            }
            (Command::BlockStatus, 5) => {
                assert_eq!(content.u32(), Some(1));
                let mut described = 0;
                while let Some(run) = content.u32() {
                    assert!(run > 0 && content.u32().is_some_and(|flags| flags <= 3));
                    described += u64::from(run);
                }
                assert!(described > 0 && described <= request.length.into());
            }
            other => panic!("a chunk of {other:?}"),
        }
        assert!(content.0.is_empty());
        if flags & 1 != 0 {
            break;
        }
    }
    assert!(fields.0.is_empty(), "nothing follows the last chunk");
    if request.command == Command::Read && fits {
        assert_eq!(next, request.offset + u64::from(request.length));
    }
}
