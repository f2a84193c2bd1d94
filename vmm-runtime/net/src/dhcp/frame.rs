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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(destination: Ipv4Addr) -> Addresses {
        Addresses {
            source_mac: "02:00:00:00:00:01".parse().unwrap(),
            client_mac: "02:00:00:00:00:02".parse().unwrap(),
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination,
        }
    }

    /// Turns a server's frame into a client's: ports swapped, which leaves
    /// both checksums as they are.
    fn turned(mut frame: Vec<u8>) -> Vec<u8> {
        let (from, to) = (SERVER_PORT.to_be_bytes(), CLIENT_PORT.to_be_bytes());
        frame[34..36].copy_from_slice(&to);
        frame[36..38].copy_from_slice(&from);
        frame
    }

    #[test]
    fn a_frame_is_as_written_down() {
        let frame = build(&addresses(Ipv4Addr::new(10, 0, 0, 2)), b"abc").unwrap();
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0,
            0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x26, 0xcc, 10, 0, 0, 1, 10, 0, 0, 2,
            0, 67, 0, 68, 0, 11, 0x26, 0xec, b'a', b'b', b'c',
        ];
        assert_eq!(frame, expected);
        let broadcast = build(&addresses(Ipv4Addr::BROADCAST), b"").unwrap();
        assert_eq!(broadcast[..6], [0xff; 6]);
        assert_eq!(build(&addresses(Ipv4Addr::BROADCAST), &[0; 65_508]), None);
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(
            checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
        assert_eq!(checksum(&[&[0xff]]), 0x00ff);
    }

    #[test]
    fn only_whole_datagrams_to_the_server_are_taken() {
        let frame = turned(build(&addresses(Ipv4Addr::BROADCAST), b"payload").unwrap());
        let expected = Datagram {
            source: [2, 0, 0, 0, 0, 1],
            payload: b"payload",
        };
        assert_eq!(parse(&frame), Some(expected));
        // Padding behind it is no part of it.
        let padded = [&frame[..], &[0; 9]].concat();
        assert_eq!(parse(&padded), Some(expected));
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), None, "{length} bytes");
        }
        // Type, version, header length, total length, fragment, protocol,
        // checksum, port, UDP length.
        for (at, value) in [
            (12, 0x86),
            (14, 0x65),
            (14, 0x44),
            (17, 0xff),
            (20, 0x60),
            (23, 6),
            (24, 0),
            (37, 68),
            (39, 7),
            (39, 200),
        ] {
            let mut odd = frame.clone();
            odd[at] = value;
            if at > 13 && at < 24 {
                odd[24..26].fill(0);
                let sum = checksum(&[&odd[14..34]]);
                odd[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            assert_eq!(parse(&odd), None, "byte {at} = {value}");
        }
    }

    #[test]
    fn a_header_with_options_is_skipped_whole() {
        let frame = turned(build(&addresses(Ipv4Addr::BROADCAST), b"payload").unwrap());
        let mut long = [&frame[..34], &[1; 4], &frame[34..]].concat();
        long[14] = 0x46;
        long[17] += 4;
        long[24..26].fill(0);
        let sum = checksum(&[&long[14..38]]);
        long[24..26].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(parse(&long).unwrap().payload, b"payload");
    }

    proptest! {
        #[test]
        fn what_is_built_is_read(payload in proptest::collection::vec(any::<u8>(), 0..600), to: u32) {
            let frame = build(&addresses(to.into()), &payload).unwrap();
            // The whole datagram with its pseudo header sums to nothing.
            let length = ((payload.len() + 8) as u16).to_be_bytes();
            prop_assert_eq!(checksum(&[&frame[26..34], &[0, 17], &length, &frame[34..]]), 0);
            let client = turned(frame);
            prop_assert_eq!(parse(&client).unwrap().payload, &payload[..]);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..14) {
            let _ = parse(&bytes);
            let mut frame = turned(build(&addresses(Ipv4Addr::BROADCAST), &bytes).unwrap());
            frame.truncate(frame.len().saturating_sub(cut));
            let _ = parse(&frame);
        }
    }
}
