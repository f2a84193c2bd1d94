//! Ethernet frames around DHCP messages: IPv4 (RFC 791) and UDP (RFC 768).

use std::net::Ipv4Addr;

use crate::names::MacAddress;

/// The server's and the client's UDP ports.
pub const SERVER_PORT: u16 = 67;
/// The client's UDP port.
pub const CLIENT_PORT: u16 = 68;

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const PROTOCOL_UDP: u8 = 17;
const TIME_TO_LIVE: u8 = 64;

/// A datagram to the server's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The frame's source address.
    pub source: [u8; 6],
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// Takes a frame apart; `None` for anything but a whole, unfragmented UDP
/// datagram to port 67.
///
/// The UDP checksum is not looked at: a guest whose virtual card offers
/// checksum offload leaves it unfinished, and a frame from a tap has crossed
/// memory alone.
pub fn parse(frame: &[u8]) -> Option<Datagram<'_>> {
    let (ethernet, packet) = frame.split_first_chunk::<ETHERNET_BYTES>()?;
    if ethernet[12..] != ETHERTYPE_IPV4 {
        return None;
    }
    let first = *packet.first()?;
    let header_bytes = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_bytes < IPV4_BYTES {
        return None;
    }
    let header = packet.get(..header_bytes)?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if fragment != 0 || header[9] != PROTOCOL_UDP || !sums_to_zero(&[header]) {
        return None;
    }
    // Short frames are padded behind the packet's end.
    let datagram = packet.get(header_bytes..total)?;
    let (udp, rest) = datagram.split_first_chunk::<UDP_BYTES>()?;
    let length = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    if u16::from_be_bytes([udp[2], udp[3]]) != SERVER_PORT {
        return None;
    }
    let payload = rest.get(..length.checked_sub(UDP_BYTES)?)?;
    let source = [
        ethernet[6],
        ethernet[7],
        ethernet[8],
        ethernet[9],
        ethernet[10],
        ethernet[11],
    ];
    Some(Datagram { source, payload })
}

/// Addresses of a frame to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The server's MAC address.
    pub source_mac: MacAddress,
    /// The client's MAC address; not used for a broadcast.
    pub client_mac: MacAddress,
    /// The server's address.
    pub source: Ipv4Addr,
    /// The client's address, or 255.255.255.255.
    pub destination: Ipv4Addr,
}

/// Builds a frame from the server's port to the client's; `None` when the
/// payload does not fit a datagram.
pub fn build(addresses: &Addresses, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_bytes = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let total = udp_bytes.checked_add(IPV4_BYTES as u16)?;
    let source = addresses.source.octets();
    let destination = addresses.destination.octets();

    let mut header = [0; IPV4_BYTES];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    // Do not fragment.
    header[6] = 0x40;
    header[8] = TIME_TO_LIVE;
    header[9] = PROTOCOL_UDP;
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut udp = [0; UDP_BYTES];
    udp[..2].copy_from_slice(&SERVER_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_bytes.to_be_bytes());
    let pseudo = [0, PROTOCOL_UDP];
    let length = udp_bytes.to_be_bytes();
    // 0 would mean "no checksum"; its other form says the same sum.
    let sum = match checksum(&[&source, &destination, &pseudo, &length, &udp, payload]) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..].copy_from_slice(&sum.to_be_bytes());

    let to = if addresses.destination == Ipv4Addr::BROADCAST {
        [0xff; 6]
    } else {
        addresses.client_mac.bytes()
    };
    let mut frame = Vec::with_capacity(ETHERNET_BYTES + usize::from(total));
    frame.extend(to);
    frame.extend(addresses.source_mac.bytes());
    frame.extend(ETHERTYPE_IPV4);
    frame.extend(header);
    frame.extend(udp);
    frame.extend(payload);
    Some(frame)
}

/// The Internet checksum (RFC 1071). All parts but the last have even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether parts that hold their checksum are whole.
fn sums_to_zero(parts: &[&[u8]]) -> bool {
    checksum(parts) == 0
}
