//! Choosing an export.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use super::{Client, FLUSH, STATUS, TRIM, WRITE, ZERO, serve};
use crate::memory_disk::MemoryDisk;
use crate::{Export, ServeError, Server};

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
