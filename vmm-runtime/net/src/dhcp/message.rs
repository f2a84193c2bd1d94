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

#[cfg(test)]
mod tests {
    use dhcproto::v4::{DhcpOption, Message, OptionCode};
    use dhcproto::{Decodable, Decoder, Encodable};
    use proptest::prelude::*;

    use super::*;
    use crate::dhcp::core::{Answer, respond};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn fixed() -> Vec<u8> {
        let mut bytes = vec![0; FIXED_BYTES];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[28..34].copy_from_slice(&MAC);
        bytes[236..].copy_from_slice(&MAGIC);
        bytes
    }

    fn with(options: &[u8]) -> Vec<u8> {
        [&fixed()[..], options].concat()
    }

    fn assignment() -> Assignment {
        Assignment {
            mac: MacAddress::new(MAC).unwrap(),
            ip: Ipv4Addr::new(10, 1, 2, 20),
            subnet: "10.1.2.0/24".parse().unwrap(),
            server: Ipv4Addr::new(10, 1, 2, 1),
            lease_seconds: 3600,
            gateway: Some(Ipv4Addr::new(10, 1, 2, 254)),
            dns: vec![Ipv4Addr::new(192, 0, 2, 53), Ipv4Addr::new(192, 0, 2, 54)],
            hostname: Some("vm-1".parse().unwrap()),
            mtu: Some(9000),
        }
    }

    #[test]
    fn a_request_is_read() {
        let mut bytes = with(&[
            0, 53, 1, 3, 12, 2, 0xff, 0xfe, 50, 4, 10, 1, 2, 3, 54, 4, 10, 1, 2, 1, 61, 2, 1, 9,
            255, 53,
        ]);
        bytes[4..8].copy_from_slice(&[1, 2, 3, 4]);
        bytes[10] = 0x80;
        bytes[12..16].copy_from_slice(&[10, 1, 2, 7]);
        bytes[24..28].copy_from_slice(&[10, 1, 2, 8]);
        let expected = Request {
            kind: MessageType::Request,
            xid: 0x0102_0304,
            broadcast: true,
            client_ip: Ipv4Addr::new(10, 1, 2, 7),
            relay: Ipv4Addr::new(10, 1, 2, 8),
            mac: MacAddress::new(MAC).unwrap(),
            requested_ip: Some(Ipv4Addr::new(10, 1, 2, 3)),
            server: Some(Ipv4Addr::new(10, 1, 2, 1)),
            client_id: Some(vec![1, 9]),
        };
        assert_eq!(Request::parse(&bytes), Ok(expected));
    }

    #[test]
    fn options_may_go_on_in_file_and_sname() {
        for (value, file, sname) in [(1, true, false), (2, false, true), (3, true, true)] {
            let mut bytes = with(&[52, 1, value, 53, 1, 1, 255]);
            bytes[FILE.start..FILE.start + 6].copy_from_slice(&[50, 4, 10, 1, 2, 3]);
            bytes[SNAME.start..SNAME.start + 6].copy_from_slice(&[54, 4, 10, 1, 2, 1]);
            let found = Request::parse(&bytes).unwrap();
            assert_eq!(
                (found.requested_ip.is_some(), found.server.is_some()),
                (file, sname),
                "{value}"
            );
        }
        assert_eq!(
            Request::parse(&with(&[52, 1, 4, 53, 1, 1])),
            Err(InvalidRequest::Option(52))
        );
    }

    #[test]
    fn malformed_requests_are_refused() {
        let short = &fixed()[..239];
        assert_eq!(Request::parse(short), Err(InvalidRequest::Short));
        assert_eq!(Request::parse(&[]), Err(InvalidRequest::Short));
        for (at, value) in [(0, 2), (1, 6), (2, 16), (236, 0)] {
            let mut bytes = with(&[53, 1, 1]);
            bytes[at] = value;
            assert_eq!(
                Request::parse(&bytes),
                Err(InvalidRequest::NotRequest),
                "byte {at}"
            );
        }
        let mut group = with(&[53, 1, 1]);
        group[28] = 1;
        assert_eq!(Request::parse(&group), Err(InvalidRequest::Mac));
        for (options, error) in [
            (&[][..], InvalidRequest::Type),
            (&[53, 1, 2], InvalidRequest::Type),
            (&[53, 1, 9], InvalidRequest::Type),
            (&[53, 2, 1, 1], InvalidRequest::Type),
            (&[53], InvalidRequest::Option(53)),
            (&[53, 1], InvalidRequest::Option(53)),
            (&[12, 5, 1], InvalidRequest::Option(12)),
            (&[53, 1, 1, 53, 1, 1], InvalidRequest::Option(53)),
            (&[53, 1, 1, 50, 3, 1, 2, 3], InvalidRequest::Option(50)),
            (
                &[53, 1, 1, 54, 5, 1, 2, 3, 4, 5],
                InvalidRequest::Option(54),
            ),
            (&[53, 1, 1, 61, 0], InvalidRequest::Option(61)),
        ] {
            assert_eq!(Request::parse(&with(options)), Err(error), "{options:?}");
        }
        let long = [&[53, 1, 1, 61, 129][..], &[0; 129]].concat();
        assert_eq!(
            Request::parse(&with(&long)),
            Err(InvalidRequest::Option(61))
        );
    }

    fn parse(payload: &[u8]) -> Message {
        Message::decode(&mut Decoder::new(payload)).unwrap()
    }

    fn request(options: &[u8]) -> Request {
        Request::parse(&with(options)).unwrap()
    }

    #[test]
    fn an_ack_tells_everything() {
        let ask = request(&[53, 1, 3, 61, 3, 1, 2, 3]);
        let ack = Reply::ack(&assignment(), &ask);
        assert_eq!(
            ack.payload.len(),
            MINIMUM_REPLY_BYTES.max(ack.payload.len())
        );
        let message = parse(&ack.payload);
        assert_eq!(message.opcode(), dhcproto::v4::Opcode::BootReply);
        assert_eq!(message.chaddr(), MAC);
        assert_eq!(message.yiaddr(), assignment().ip);
        let address = |host| Ipv4Addr::new(10, 1, 2, host);
        let expected = [
            DhcpOption::MessageType(dhcproto::v4::MessageType::Ack),
            DhcpOption::ServerIdentifier(address(1)),
            DhcpOption::AddressLeaseTime(3600),
            DhcpOption::Renewal(1800),
            DhcpOption::Rebinding(3150),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
            DhcpOption::BroadcastAddr(address(255)),
            DhcpOption::Router(vec![address(254)]),
            DhcpOption::DomainNameServer(assignment().dns),
            DhcpOption::InterfaceMtu(9000),
            DhcpOption::Hostname("vm-1".to_owned()),
            DhcpOption::ClientIdentifier(vec![1, 2, 3]),
        ];
        for option in &expected {
            assert_eq!(message.opts().get(OptionCode::from(option)), Some(option));
        }
        assert_eq!(message.opts().iter().count(), expected.len());
    }

    #[test]
    fn a_nak_gives_nothing() {
        let message = parse(&Reply::nak(&assignment(), &request(&[53, 1, 3])).payload);
        assert_eq!(
            (message.ciaddr(), message.yiaddr()),
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED)
        );
        let mut codes: Vec<u8> = message
            .opts()
            .iter()
            .map(|(code, _)| (*code).into())
            .collect();
        codes.sort_unstable();
        assert_eq!(codes, [53, 54]);
    }

    #[test]
    fn an_inform_gets_no_lease() {
        let mut ask = request(&[53, 1, 8]);
        ask.client_ip = assignment().ip;
        let message = parse(&Reply::inform_ack(&assignment(), &ask).payload);
        assert_eq!(
            (message.ciaddr(), message.yiaddr()),
            (assignment().ip, Ipv4Addr::UNSPECIFIED)
        );
        assert_eq!(message.opts().get(OptionCode::AddressLeaseTime), None);
        assert!(message.opts().get(OptionCode::SubnetMask).is_some());
    }

    #[test]
    fn the_longest_reply_fits_every_client() {
        let long = assignment();
        let name = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(61),
        ]
        .join(".");
        let long = Assignment {
            hostname: Some(name.parse().unwrap()),
            dns: vec![long.server; 8],
            ..long
        };
        let client_id = [&[53, 1, 3, 61, 128][..], &[7; 128]].concat();
        let full = Reply::ack(&long, &request(&client_id)).payload;
        assert!(full.len() <= MAXIMUM_REPLY_BYTES);
        assert_eq!(parse(&full).opts().get(OptionCode::Hostname), None);
        assert_eq!(
            parse(&full).opts().get(OptionCode::ClientIdentifier),
            Some(&DhcpOption::ClientIdentifier(vec![7; 128]))
        );
        // A name of one label is told beside every client id but the longest.
        let one = Assignment {
            hostname: Some("a".repeat(63).parse().unwrap()),
            ..long
        };
        let reply = Reply::ack(&one, &request(&[53, 1, 3, 61, 3, 1, 2, 3])).payload;
        assert_eq!(
            parse(&reply).opts().get(OptionCode::Hostname),
            Some(&DhcpOption::Hostname("a".repeat(63)))
        );
    }

    fn any_options() -> impl Strategy<Value = Vec<u8>> {
        let option = (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(code, value)| [&[code, value.len() as u8][..], &value].concat());
        proptest::collection::vec(option, 0..8).prop_map(|options| options.concat())
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_every_reply_is_well_formed(
            head in proptest::collection::vec(any::<u8>(), 236),
            options in any_options(),
            kind in 0u8..10,
        ) {
            let mut bytes = head;
            bytes[..3].copy_from_slice(&[1, 1, 6]);
            bytes[24..28].fill(0);
            bytes[28..34].copy_from_slice(&MAC);
            bytes.extend(MAGIC);
            bytes.extend([53, 1, kind]);
            bytes.extend(options);
            if let Ok(request) = Request::parse(&bytes)
                && let Answer::Reply(reply) = respond(&assignment(), &request)
            {
                prop_assert!((MINIMUM_REPLY_BYTES..=MAXIMUM_REPLY_BYTES).contains(&reply.payload.len()));
                let message = parse(&reply.payload);
                prop_assert_eq!(message.xid(), request.xid);
                prop_assert!(message.yiaddr().is_unspecified() || message.yiaddr() == assignment().ip);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn what_another_library_writes_is_read(xid: u32, ip: u32, server: u32, broadcast: bool) {
            let zero = Ipv4Addr::UNSPECIFIED;
            let mut message = Message::new_with_id(xid, zero, zero, zero, zero, &MAC);
            if broadcast {
                message.set_flags(dhcproto::v4::Flags::default().set_broadcast());
            }
            message.opts_mut().insert(DhcpOption::MessageType(dhcproto::v4::MessageType::Request));
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(ip.into()));
            message.opts_mut().insert(DhcpOption::ServerIdentifier(server.into()));
            let found = Request::parse(&message.to_vec().unwrap()).unwrap();
            prop_assert_eq!((found.xid, found.broadcast), (xid, broadcast));
            prop_assert_eq!((found.requested_ip, found.server), (Some(ip.into()), Some(server.into())));
        }
    }
}
