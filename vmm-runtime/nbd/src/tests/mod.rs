//! A client written by hand, from the protocol's text, against the server on a real socket.

mod connections;
mod handshake;
mod past_cache;
mod requests;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::memory_disk::MemoryDisk;
use crate::{Export, Server};

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

    /// The cookie of whatever simple reply comes next, which must be without an error.
    fn any_simple_reply(&mut self) -> u64 {
        assert_eq!((self.u32(), self.u32()), (0x67446698, 0));
        u64::from_be_bytes(self.bytes())
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
