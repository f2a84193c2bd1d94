//! What requests do, and how they are answered.

use std::io::Write;
use std::sync::Arc;

use paddock_vhd::IoError;

use super::{CACHE, FLUSH, FUA, READ, STATUS, TRIM, WRITE, ZERO, serve};
use crate::MAX_REQUEST_BYTES;
use crate::memory_disk::{Call, MemoryDisk};

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
