//! DHCP messages (RFC 2131, options of RFC 2132): a guest's requests read,
//! the server's replies written.
//!
//! Requests are untrusted. Only the fields that the server decides by are
//! read; a field among them that is wrong makes the whole message invalid.

use std::net::Ipv4Addr;

use super::core::Assignment;
use crate::names::MacAddress;

/// Bytes before the options: the fixed part and the magic cookie.
const FIXED_BYTES: usize = 240;
/// Where `sname` and `file` lie; options may go on there (option 52).
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Old clients drop replies shorter than a BOOTP message.
const MINIMUM_REPLY_BYTES: usize = 300;
/// What every client must take: 576 bytes less IPv4 and UDP headers.
pub const MAXIMUM_REPLY_BYTES: usize = 548;
/// Longest client identifier that is sent back; leaves room for the other
/// options within [`MAXIMUM_REPLY_BYTES`].
const CLIENT_ID_BYTES: usize = 128;

const OPTION_PAD: u8 = 0;
const OPTION_MASK: u8 = 1;
const OPTION_ROUTER: u8 = 3;
const OPTION_DNS: u8 = 6;
const OPTION_HOSTNAME: u8 = 12;
const OPTION_MTU: u8 = 26;
const OPTION_BROADCAST: u8 = 28;
const OPTION_REQUESTED_IP: u8 = 50;
const OPTION_LEASE: u8 = 51;
const OPTION_OVERLOAD: u8 = 52;
const OPTION_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_RENEWAL: u8 = 58;
const OPTION_REBINDING: u8 = 59;
const OPTION_CLIENT_ID: u8 = 61;
const OPTION_END: u8 = 255;

/// A message's type, option 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names of RFC 2132, 9.6")]
pub enum MessageType {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
    Inform = 8,
}

impl MessageType {
    /// The types that a client sends.
    fn of_client(value: u8) -> Option<Self> {
        [
            Self::Discover,
            Self::Request,
            Self::Decline,
            Self::Release,
            Self::Inform,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == value)
    }
}

/// A client's message, as far as the server decides by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its type: one that clients send.
    pub kind: MessageType,
    /// Transaction id, sent back.
    pub xid: u32,
    /// The client cannot take unicast yet.
    pub broadcast: bool,
    /// `ciaddr`: the address it has, or 0.0.0.0.
    pub client_ip: Ipv4Addr,
    /// `giaddr`: the relay's address, or 0.0.0.0.
    pub relay: Ipv4Addr,
    /// `chaddr`.
    pub mac: MacAddress,
    /// Option 50.
    pub requested_ip: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 61, sent back (RFC 6842); at most 128 bytes.
    pub client_id: Option<Vec<u8>>,
}

/// Why bytes are not a request. The server stays silent on all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// Shorter than the fixed part.
    #[error("shorter than the 240 bytes of a DHCP message")]
    Short,
    /// A reply, another kind of hardware, or no DHCP cookie.
    #[error("not a request from an Ethernet client")]
    NotRequest,
    /// No address that an adapter can have.
    #[error("client hardware address is not a unicast MAC address")]
    Mac,
    /// An option runs past the end, comes twice or has a wrong length.
    #[error("option {0} is malformed or repeated")]
    Option(u8),
    /// No option 53, or one that clients do not send.
    #[error("no client's message type")]
    Type,
}

#[derive(Default)]
struct Options<'a> {
    kind: Option<&'a [u8]>,
    requested_ip: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    client_id: Option<&'a [u8]>,
    overload: Option<&'a [u8]>,
}

impl<'a> Options<'a> {
    /// Reads options up to their end; those that do not matter are skipped.
    fn read(&mut self, mut bytes: &'a [u8]) -> Result<(), InvalidRequest> {
        while let Some((&code, rest)) = bytes.split_first() {
            match code {
                OPTION_PAD => bytes = rest,
                OPTION_END => return Ok(()),
                _ => {
                    let (&length, rest) = rest.split_first().ok_or(InvalidRequest::Option(code))?;
                    let (value, rest) = rest
                        .split_at_checked(usize::from(length))
                        .ok_or(InvalidRequest::Option(code))?;
                    self.take(code, value)?;
                    bytes = rest;
                }
            }
        }
        // Without an end mark the field's end is the end.
        Ok(())
    }

    fn take(&mut self, code: u8, value: &'a [u8]) -> Result<(), InvalidRequest> {
        let place = match code {
            OPTION_TYPE => &mut self.kind,
            OPTION_REQUESTED_IP => &mut self.requested_ip,
            OPTION_SERVER => &mut self.server,
            OPTION_CLIENT_ID => &mut self.client_id,
            OPTION_OVERLOAD => &mut self.overload,
            _ => return Ok(()),
        };
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(InvalidRequest::Option(code)),
        }
    }
}

fn address(code: u8, value: Option<&[u8]>) -> Result<Option<Ipv4Addr>, InvalidRequest> {
    value
        .map(|v| {
            <[u8; 4]>::try_from(v)
                .map(Ipv4Addr::from)
                .map_err(|_| InvalidRequest::Option(code))
        })
        .transpose()
}

impl Request {
    /// Reads the payload of a UDP datagram to port 67.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidRequest> {
        let (fixed, options) = bytes
            .split_first_chunk::<FIXED_BYTES>()
            .ok_or(InvalidRequest::Short)?;
        // op 1: request; htype 1, hlen 6: Ethernet.
        if fixed[..3] != [1, 1, 6] || fixed[236..] != MAGIC {
            return Err(InvalidRequest::NotRequest);
        }
        let word = |at: usize| [fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]];
        let mac = [
            fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33],
        ];
        let mut found = Options::default();
        found.read(options)?;
        match found.overload {
            None => {}
            Some([1]) => found.read(&fixed[FILE])?,
            Some([2]) => found.read(&fixed[SNAME])?,
            Some([3]) => {
                found.read(&fixed[FILE])?;
                found.read(&fixed[SNAME])?;
            }
            Some(_) => return Err(InvalidRequest::Option(OPTION_OVERLOAD)),
        }
        let kind = match found.kind {
            Some(&[value]) => MessageType::of_client(value).ok_or(InvalidRequest::Type)?,
            _ => return Err(InvalidRequest::Type),
        };
        if found
            .client_id
            .is_some_and(|id| id.is_empty() || id.len() > CLIENT_ID_BYTES)
        {
            return Err(InvalidRequest::Option(OPTION_CLIENT_ID));
        }
        Ok(Self {
            kind,
            xid: u32::from_be_bytes(word(4)),
            broadcast: fixed[10] & 0x80 != 0,
            client_ip: word(12).into(),
            relay: word(24).into(),
            mac: MacAddress::new(mac).map_err(|_| InvalidRequest::Mac)?,
            requested_ip: address(OPTION_REQUESTED_IP, found.requested_ip)?,
            server: address(OPTION_SERVER, found.server)?,
            client_id: found.client_id.map(<[u8]>::to_vec),
        })
    }
}

/// A server's message and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Offer, Ack or Nak.
    pub kind: MessageType,
    /// The IPv4 destination; 255.255.255.255 for broadcast.
    pub destination: Ipv4Addr,
    /// The UDP payload, 300 to 548 bytes.
    pub payload: Vec<u8>,
}

impl Reply {
    /// Offers the assigned address.
    pub(super) fn offer(assignment: &Assignment, request: &Request) -> Self {
        Self::lease(MessageType::Offer, assignment, request)
    }

    /// Confirms the assigned address.
    pub(super) fn ack(assignment: &Assignment, request: &Request) -> Self {
        Self::lease(MessageType::Ack, assignment, request)
    }

    fn lease(kind: MessageType, assignment: &Assignment, request: &Request) -> Self {
        let mut writer = Writer::new(kind, assignment, request);
        writer.fill(16, assignment.ip.octets());
        // The usual times, told so that all clients agree: renew at a half,
        // rebind at seven eighths (RFC 2131, 4.4.5).
        let lease = assignment.lease_seconds;
        writer.option(OPTION_LEASE, &lease.to_be_bytes());
        writer.option(OPTION_RENEWAL, &(lease / 2).to_be_bytes());
        writer.option(OPTION_REBINDING, &(lease - lease / 8).to_be_bytes());
        writer.configuration(assignment);
        writer.finish(kind, destination(assignment.ip, request))
    }

    /// Answers an INFORM: no address, no lease.
    pub(super) fn inform_ack(assignment: &Assignment, request: &Request) -> Self {
        let mut writer = Writer::new(MessageType::Ack, assignment, request);
        writer.configuration(assignment);
        writer.finish(MessageType::Ack, request.client_ip)
    }

    /// Refuses an address. Always broadcast: the client's own is wrong.
    pub(super) fn nak(assignment: &Assignment, request: &Request) -> Self {
        let mut writer = Writer::new(MessageType::Nak, assignment, request);
        writer.fill(12, [0; 4]);
        writer.finish(MessageType::Nak, Ipv4Addr::BROADCAST)
    }
}

/// RFC 2131, 4.1: to the address the client has, else broadcast when it asks
/// for that, else to the address it is getting.
fn destination(assigned: Ipv4Addr, request: &Request) -> Ipv4Addr {
    if !request.client_ip.is_unspecified() {
        request.client_ip
    } else if request.broadcast {
        Ipv4Addr::BROADCAST
    } else {
        assigned
    }
}

struct Writer {
    bytes: Vec<u8>,
    client_id: Option<Vec<u8>>,
}

impl Writer {
    fn new(kind: MessageType, assignment: &Assignment, request: &Request) -> Self {
        let mut writer = Self {
            bytes: vec![0; FIXED_BYTES],
            client_id: request.client_id.clone(),
        };
        // op 2: reply; htype 1, hlen 6: Ethernet.
        writer.fill(0, [2, 1, 6]);
        writer.fill(4, request.xid.to_be_bytes());
        writer.fill(10, [if request.broadcast { 0x80 } else { 0 }]);
        // An OFFER answers a client without an address, and says so.
        if kind == MessageType::Ack {
            writer.fill(12, request.client_ip.octets());
        }
        writer.fill(28, request.mac.bytes());
        writer.fill(236, MAGIC);
        writer.option(OPTION_TYPE, &[kind as u8]);
        writer.option(OPTION_SERVER, &assignment.server.octets());
        writer
    }

    /// Overwrites bytes of the fixed part.
    fn fill<const N: usize>(&mut self, at: usize, value: [u8; N]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(value) {
            *to = from;
        }
    }

    /// Appends an option; values here have at most 253 bytes.
    fn option(&mut self, code: u8, value: &[u8]) {
        let Ok(length) = u8::try_from(value.len()) else {
            return;
        };
        self.bytes.extend([code, length]);
        self.bytes.extend(value);
    }

    fn configuration(&mut self, assignment: &Assignment) {
        self.option(OPTION_MASK, &assignment.subnet.netmask().octets());
        self.option(OPTION_BROADCAST, &assignment.subnet.broadcast().octets());
        if let Some(gateway) = assignment.gateway {
            self.option(OPTION_ROUTER, &gateway.octets());
        }
        if !assignment.dns.is_empty() {
            let servers: Vec<u8> = assignment.dns.iter().flat_map(|ip| ip.octets()).collect();
            self.option(OPTION_DNS, &servers);
        }
        if let Some(mtu) = assignment.mtu {
            self.option(OPTION_MTU, &mtu.to_be_bytes());
        }
        if let Some(hostname) = &assignment.hostname {
            // The one option that may be too long for every client: left out
            // then. 1 byte for the end mark, 2 for each option's head.
            let client_id = self.client_id.as_ref().map_or(0, |id| id.len() + 2);
            if self.bytes.len() + 2 + hostname.as_str().len() + client_id < MAXIMUM_REPLY_BYTES {
                self.option(OPTION_HOSTNAME, hostname.as_str().as_bytes());
            }
        }
    }

    fn finish(mut self, kind: MessageType, destination: Ipv4Addr) -> Reply {
        if let Some(id) = self.client_id.take() {
            self.option(OPTION_CLIENT_ID, &id);
        }
        self.bytes.push(OPTION_END);
        if self.bytes.len() < MINIMUM_REPLY_BYTES {
            self.bytes.resize(MINIMUM_REPLY_BYTES, OPTION_PAD);
        }
        Reply {
            kind,
            destination,
            payload: self.bytes,
        }
    }
}
