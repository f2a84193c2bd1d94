//! Requests as they come in.

use std::io::{self, Read};

use paddock_vhd::Buffer;

use crate::protocol::{ProtocolError, REQUEST_HEADER_BYTES, Request};

/// What one read of the socket may bring.
const BUFFER_BYTES: usize = 256 << 10;
/// A write of at most this many bytes is worked on where it was received. A fuzzer's input is short, and should have
/// some that are not.
pub(crate) const MAX_BUFFERED_PAYLOAD: usize = if cfg!(fuzzing) { 4 << 10 } else { 64 << 10 };

/// What a client has sent and nobody has looked at yet.
pub(crate) struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// The next request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// All of it.
    Whole(Request, &'a [u8]),
    /// A write whose bytes are to be taken with [`Incoming::take`].
    Large(Request),
    /// Not there yet: [`Incoming::fill`].
    Partial,
}

impl Incoming {
    pub fn new() -> Self {
        Incoming {
            bytes: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    fn held(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Whether the client has sent part of a request.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The next request, if it has been received.
    pub fn next(&mut self) -> Result<Next<'_>, ProtocolError> {
        let Some(header) = self.held().first_chunk::<REQUEST_HEADER_BYTES>() else {
            return Ok(Next::Partial);
        };
        let request = Request::parse(header)?;
        let payload = request.payload_bytes();
        if payload > MAX_BUFFERED_PAYLOAD {
            self.start += REQUEST_HEADER_BYTES;
            return Ok(Next::Large(request));
        }
        let whole = REQUEST_HEADER_BYTES + payload;
        if self.held().len() < whole {
            return Ok(Next::Partial);
        }
        let start = self.start + REQUEST_HEADER_BYTES;
        self.start += whole;
        Ok(Next::Whole(
            request,
            self.bytes.get(start..self.start).unwrap_or_default(),
        ))
    }

    /// Waits for more bytes. 0: there will be none.
    pub fn fill(&mut self, mut stream: impl Read) -> io::Result<usize> {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.start < REQUEST_HEADER_BYTES + MAX_BUFFERED_PAYLOAD {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            let room = self.bytes.get_mut(self.end..).unwrap_or_default();
            match stream.read(room) {
                Ok(read) => {
                    self.end += read;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends the next `len` bytes to `payload`; waits for those that have not been received.
    pub fn take(
        &mut self,
        len: usize,
        payload: &mut Buffer,
        mut stream: impl Read,
    ) -> io::Result<()> {
        let held = self.held();
        let held = held.get(..len).unwrap_or(held);
        payload.put(held);
        let received = held.len();
        self.start += received;
        stream.read_exact(payload.space(len - received))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Command;

    fn write(cookie: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1];
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(0_u64.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Brings a few bytes at a time.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let len = buf.len().min(self.1);
            self.0.read(&mut buf[..len])
        }
    }

    #[test]
    fn requests_are_the_same_however_they_arrive() {
        let mut lengths = vec![0, 1, 4096, 65536, 65537, 300_000, 5];
        // Some of these end in the next buffer.
        lengths.extend([65536; 12]);
        let payloads: Vec<Vec<u8>> = lengths
            .iter()
            .enumerate()
            .map(|(index, &len)| vec![index as u8 + 1; len])
            .collect();
        let sent: Vec<u8> = payloads
            .iter()
            .enumerate()
            .flat_map(|(cookie, payload)| write(cookie as u64, payload))
            .collect();
        for step in [1, 27, 4096, 1 << 20] {
            let mut stream = Dribble(&sent, step);
            let mut incoming = Incoming::new();
            let mut seen = Vec::new();
            loop {
                match incoming.next().unwrap() {
                    Next::Whole(request, payload) => seen.push((request.cookie, payload.to_vec())),
                    Next::Large(request) => {
                        let mut payload = Buffer::default();
                        incoming
                            .take(request.length as usize, &mut payload, &mut stream)
                            .unwrap();
                        seen.push((request.cookie, payload.to_vec()));
                    }
                    Next::Partial => {
                        if incoming.fill(&mut stream).unwrap() == 0 {
                            break;
                        }
                    }
                }
            }
            assert!(incoming.is_empty());
            let expected: Vec<(u64, Vec<u8>)> = (0..).zip(payloads.iter().cloned()).collect();
            assert!(seen == expected, "in steps of {step}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let mut incoming = Incoming::new();
        incoming.fill(&[0xff; 28][..]).unwrap();
        assert_eq!(
            incoming.next(),
            Err(ProtocolError::RequestMagic { found: u32::MAX })
        );
        let mut incoming = Incoming::new();
        incoming.fill(&write(1, b"abc")[..30]).unwrap();
        assert_eq!(incoming.next(), Ok(Next::Partial));
        assert_eq!(incoming.fill(&b"c"[..]).unwrap(), 1);
        assert!(
            matches!(incoming.next(), Ok(Next::Whole(request, b"abc")) if request.command == Command::Write)
        );
    }
}
