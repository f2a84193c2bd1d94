//! A "guest": the process that has the tap open and speaks raw frames, as a
//! virtual machine's monitor would.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use paddock_net::TapName;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::ioctl::{Setter, ioctl, opcode};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use super::namespace::run;

/// Longest wait for something that must come.
const DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of the virtio header before each frame of a tap.
const HEADER_BYTES: usize = 10;

pub struct Guest {
    tap: File,
}

impl Guest {
    /// Opens a tap by its name with the flags that the monitor uses.
    pub fn open(tap: &TapName) -> Self {
        let guest = Self::open_interface(tap.as_str());
        // The bridge learns of the tap's carrier a moment later.
        let start = Instant::now();
        while !run("bridge", &["link", "show", "dev", tap.as_str()]).contains("state forwarding") {
            assert!(start.elapsed() < DEADLINE, "{tap} does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        guest
    }

    pub fn open_interface(name: &str) -> Self {
        let tap = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .unwrap();
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: TUNSETIFF takes a struct ifreq, which is 40 bytes: a name,
        // then flags.
        unsafe {
            let set = Setter::<{ opcode::write::<libc::c_int>(b'T', 202) }, [u8; 40]>::new(request);
            ioctl(tap.as_fd(), set).unwrap();
        }
        Self { tap }
    }

    pub fn send(&mut self, frame: &[u8]) {
        let bytes = [&[0; HEADER_BYTES][..], frame].concat();
        assert_eq!(self.tap.write(&bytes).unwrap(), bytes.len());
    }

    /// Reads frames up to the one that satisfies the condition; returns all
    /// of them.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let read = |file: &mut File, buffer: &mut [u8]| file.read(buffer);
        until(&mut self.tap, read, HEADER_BYTES, what, wanted)
    }

    pub fn as_file(&self) -> &File {
        &self.tap
    }
}

/// A raw socket on an interface: the far side of an uplink, or the host.
pub struct Wire {
    socket: Socket,
}

impl Wire {
    pub fn open(interface: &str) -> Self {
        let index = interface_index(interface);
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None).unwrap();
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: sockaddr_ll fits the zeroed storage, and its length is given.
        let address = unsafe {
            let link = storage.view_as::<libc::sockaddr_ll>();
            link.sll_family = libc::AF_PACKET as u16;
            link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            link.sll_ifindex = index;
            SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32)
        };
        socket.bind(&address).unwrap();
        Self { socket }
    }

    pub fn send(&mut self, frame: &[u8]) {
        assert_eq!(self.socket.send(frame).unwrap(), frame.len());
    }

    pub fn until(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let read = |socket: &mut Socket, buffer: &mut [u8]| socket.read(buffer);
        until(&mut self.socket, read, 0, what, wanted)
    }
}

fn interface_index(name: &str) -> i32 {
    let text = run("ip", &["-o", "link", "show", "dev", name]);
    text.split(':').next().unwrap().trim().parse().unwrap()
}

fn until<T: AsFd>(
    source: &mut T,
    read: impl Fn(&mut T, &mut [u8]) -> std::io::Result<usize>,
    header: usize,
    what: &str,
    wanted: impl Fn(&[u8]) -> bool,
) -> Vec<Vec<u8>> {
    let start = Instant::now();
    let mut frames = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match read(source, &mut buffer) {
            Ok(length) => {
                let frame = buffer[header..length].to_vec();
                let last = wanted(&frame);
                frames.push(frame);
                if last {
                    return frames;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(
                    start.elapsed() < DEADLINE,
                    "{what} did not come; heard {frames:02x?}"
                );
                let mut fds = [PollFd::new(source, PollFlags::IN)];
                let pause = rustix::event::Timespec {
                    tv_sec: 0,
                    tv_nsec: 100_000_000,
                };
                poll(&mut fds, Some(&pause)).unwrap();
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
}
