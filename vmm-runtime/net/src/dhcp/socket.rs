//! A packet socket on one tap, for DHCP requests alone.

use std::io::{self, Read as _};

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH,
    BPF_RET,
};
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::error::DhcpSocketError;

/// Largest frame that is read whole; a longer one is cut and thereby invalid.
pub(crate) const FRAME_BYTES: usize = 2048;

/// The socket. It hears what the guest sends before the packet filter drops
/// it, and what it sends goes to the guest alone.
#[derive(Debug)]
pub(crate) struct TapSocket {
    socket: AsyncFd<Socket>,
}

impl TapSocket {
    /// Opens the socket on an interface.
    pub fn open(interface: &str, index: u32) -> Result<Self, DhcpSocketError> {
        let error = |action| {
            move |source| DhcpSocketError {
                action,
                interface: interface.to_owned(),
                source,
            }
        };
        // Protocol 0: it hears nothing until it is bound, so nothing gets
        // past the filter.
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)
            .map_err(error("open"))?;
        socket.attach_filter(&filter()).map_err(error("filter"))?;
        socket
            .bind(&address(index).map_err(error("bind"))?)
            .map_err(error("bind"))?;
        // SAFETY: the socket owns its descriptor and is neither replaced nor
        // closed while AsyncFd owns it: it is reached by shared reference only.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(|e| error("watch")(e.into()))?;
        Ok(Self { socket })
    }

    /// Waits for a frame; returns its part of the buffer.
    pub async fn receive<'a>(&self, buffer: &'a mut [u8; FRAME_BYTES]) -> io::Result<&'a [u8]> {
        let length = loop {
            let mut ready = self.socket.readable().await?;
            let read = ready.try_io(|socket| (&mut socket.get_ref()).read(&mut buffer[..]));
            if let Ok(result) = read {
                break result?;
            }
        };
        Ok(&buffer[..length])
    }

    /// Sends a frame to the guest. Never waits: a guest that does not read
    /// asks again.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(frame).map(|_| ())
    }
}

fn address(index: u32) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is an address type of the kernel's and fits the
    // storage, which is zeroed: all its fields may be zero.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as libc::sa_family_t;
    // All protocols, not IPv4 alone: a socket for one protocol comes after
    // the bridge, which has taken the frame by then.
    link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    link.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds a valid sockaddr_ll of that length.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// Lets through incoming, unfragmented IPv4 UDP datagrams to port 67, so that
/// a guest's other traffic is never copied.
fn filter() -> [SockFilter; 11] {
    const DROP: u8 = 10;
    // linux/filter.h: SKF_AD_OFF + SKF_AD_PKTTYPE.
    const PACKET_TYPE: u32 = (-0x1000i32 + 4) as u32;
    // linux/if_packet.h.
    const PACKET_OUTGOING: u32 = 4;
    let op = |code: u32, jump_true, jump_false, k| {
        SockFilter::new(code as u16, jump_true, jump_false, k)
    };
    // Jumps count from the next instruction.
    let to_drop = |at: u8| DROP - at - 1;
    [
        op(BPF_LD | BPF_B | BPF_ABS, 0, 0, PACKET_TYPE),
        op(BPF_JMP | BPF_JEQ | BPF_K, to_drop(1), 0, PACKET_OUTGOING),
        op(BPF_LD | BPF_H | BPF_ABS, 0, 0, 12),
        op(
            BPF_JMP | BPF_JEQ | BPF_K,
            0,
            to_drop(3),
            libc::ETH_P_IP as u32,
        ),
        op(BPF_LD | BPF_H | BPF_ABS, 0, 0, 20),
        op(BPF_JMP | BPF_JSET | BPF_K, to_drop(5), 0, 0x3fff),
        // The IPv4 header's length into the index register.
        op(BPF_LDX | BPF_B | BPF_MSH, 0, 0, 14),
        // The destination port. That it is UDP is checked by the parser.
        op(BPF_LD | BPF_H | BPF_IND, 0, 0, 16),
        op(
            BPF_JMP | BPF_JEQ | BPF_K,
            0,
            to_drop(8),
            u32::from(super::frame::SERVER_PORT),
        ),
        op(BPF_RET | BPF_K, 0, 0, FRAME_BYTES as u32),
        op(BPF_RET | BPF_K, 0, 0, 0),
    ]
}
