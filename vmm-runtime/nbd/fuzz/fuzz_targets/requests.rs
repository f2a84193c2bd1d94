//! Everything a client of a disk can send: handshake, then requests, worked on by the real code in front of a disk in
//! memory. No input panics, no request reaches the disk outside of it, and no reply is longer than what was asked for.

#![no_main]

use std::io::{self, Read, Write};
use std::sync::Mutex;

use libfuzzer_sys::fuzz_target;
use paddock_vhd::{BlockDevice, Extent, ExtentKind, IoError};
use paddock_nbd::{Command, Export, execute, negotiate, read_job};

const SIZE: usize = 1 << 16;

struct Disk(Mutex<Vec<u8>>);

impl Disk {
    fn with<T>(&self, offset: u64, len: u64, work: impl FnOnce(&mut [u8]) -> T) -> Result<T, IoError> {
        let end = offset.checked_add(len).expect("the server has checked the range");
        let mut bytes = self.0.lock().expect("no panic goes on");
        Ok(work(bytes.get_mut(offset as usize..end as usize).expect("the server has checked the range")))
    }
}

impl BlockDevice for Disk {
    fn size(&self) -> u64 {
        SIZE as u64
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
        self.with(offset, len, |_| vec![Extent { offset, len, kind: ExtentKind::Data }])
    }
}

struct Client<'a>(&'a [u8]);

impl Read for Client<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Client<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|sent: &[u8]| {
    let export = Export { name: "root".to_owned(), size: SIZE as u64, read_only: false };
    let mut client = Client(sent);
    let Ok(agreed) = negotiate(&mut client, &export) else { return };
    let disk = Disk(Mutex::new(vec![0; SIZE]));
    let mut reply = Vec::new();
    while let Ok(Some(job)) = read_job(&mut client) {
        let _ = execute(&disk, agreed, &job, &mut reply);
        let data = if job.request.command == Command::Read { job.request.length as usize } else { 16 };
        assert!(!reply.is_empty() && reply.len() <= 32 + data);
    }
});
