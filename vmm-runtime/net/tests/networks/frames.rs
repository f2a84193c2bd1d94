//! Frames that a guest could send, written by hand.

use std::net::Ipv4Addr;

pub type Mac = [u8; 6];
pub const BROADCAST: Mac = [0xff; 6];

/// Not padded to the 60 bytes of a cable: the bridge would cut the padding off.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// An ARP request with these sender fields, in a frame from `from`.
pub fn arp(from: Mac, sender: Mac, sender_ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let body = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &sender,
        &sender_ip.octets(),
        &[0; 6],
        &target.octets(),
    ]
    .concat();
    ethernet(BROADCAST, from, 0x0806, &body)
}

/// A UDP datagram over IPv4.
pub struct Udp {
    pub from: Mac,
    pub to: Mac,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Udp {
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(self.to, self.from, 0x0800, &self.packet(payload))
    }

    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let udp_bytes = 8 + payload.len() as u16;
        let mut header = vec![0x45, 0];
        header.extend((20 + udp_bytes).to_be_bytes());
        header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        let mut sum: u32 = header
            .chunks(2)
            .map(|p| u32::from(u16::from_be_bytes([p[0], p[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        header.extend(self.source_port.to_be_bytes());
        header.extend(self.destination_port.to_be_bytes());
        header.extend(udp_bytes.to_be_bytes());
        header.extend([0, 0]);
        header.extend(payload);
        header
    }
}

/// A link-local IPv6 packet to all nodes with this next header and payload.
fn ipv6(from: Mac, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next_header, 255];
    packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, from[5]]);
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(payload);
    ethernet([0x33, 0x33, 0, 0, 0, 1], from, 0x86dd, &packet)
}

/// An ICMPv6 message of this type.
pub fn icmpv6(from: Mac, kind: u8) -> Vec<u8> {
    ipv6(
        from,
        58,
        &[kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
}

/// A UDP datagram over IPv6 from this port.
pub fn udpv6(from: Mac, source_port: u16) -> Vec<u8> {
    let [high, low] = source_port.to_be_bytes();
    ipv6(from, 17, &[high, low, 2, 34, 0, 8, 0, 0])
}

/// The payload of a UDP datagram to this port, if the frame is one.
pub fn udp_payload(frame: &[u8], port: u16) -> Option<&[u8]> {
    let udp = frame.get(34..)?;
    let is_udp = frame[12..14] == [8, 0] && frame[14] == 0x45 && frame[23] == 17;
    let end = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    (is_udp && udp[2..4] == port.to_be_bytes())
        .then(|| udp.get(8..end))
        .flatten()
}
