//! The fixed newstyle handshake.

use std::io::{self, Read, Write};
use std::sync::Arc;

use crate::export::{Export, Exports};
use crate::protocol::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Fields, INIT_MAGIC,
    MAX_OPTION_BYTES, MAX_REQUEST_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, info, option, reply,
};

/// A client haggles in a handful of options; more than this many is not a client.
const MAX_OPTIONS: u32 = 64;

/// The most of an option that is read over to refuse it and go on, in bytes; who sends more is not a client.
const MAX_SKIPPED_BYTES: u32 = 1 << 20;

/// What client and server have agreed on.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// What the client has chosen.
    pub export: Arc<Export>,
    /// Reads are answered in chunks.
    pub structured_replies: bool,
    /// The client may ask what is allocated.
    pub base_allocation: bool,
}

/// What has been agreed on before an export is chosen.
#[derive(Default)]
struct Agreed {
    structured_replies: bool,
    /// The export whose allocation the client wants to ask for.
    base_allocation: Option<Arc<Export>>,
}

impl Agreed {
    fn choose(self, export: &Arc<Export>) -> Session {
        Session {
            export: export.clone(),
            structured_replies: self.structured_replies,
            // For another export than the chosen one it does not count.
            base_allocation: self
                .base_allocation
                .is_some_and(|other| Arc::ptr_eq(&other, export)),
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The connection failed or was closed.
    #[error("the connection: {0}")]
    Io(#[from] io::Error),
    /// The client does not speak this handshake.
    #[error("{what}: expected {expected}, found {found:#x}")]
    Protocol {
        /// The field.
        what: &'static str,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: u64,
    },
    /// The client asked for what is not there, in the way that cannot be answered.
    #[error("there is no export called {0:?}")]
    NoSuchExport(String),
    /// The client went away in good order.
    #[error("the client gave up the handshake")]
    Aborted,
}

/// Shakes hands on `stream` until the client has chosen an export.
pub(crate) fn negotiate(
    stream: &mut (impl Read + Write),
    exports: &Exports,
) -> Result<Session, HandshakeError> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(INIT_MAGIC.to_be_bytes());
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting)?;

    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let client_flags = u32::from_be_bytes(flags);
    if client_flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Err(unexpected(
            "client flags",
            "bits 0 and 1 only",
            client_flags.into(),
        ));
    }
    let no_zeroes = client_flags & u32::from(FLAG_NO_ZEROES) != 0;

    let mut agreed = Agreed::default();
    for _ in 0..MAX_OPTIONS {
        let (number, data) = read_option(stream)?;
        let data = match data {
            Some(data) => data,
            None => {
                send_reply(
                    stream,
                    number,
                    reply::ERR_TOO_BIG,
                    b"the option is too long",
                )?;
                continue;
            }
        };
        match number {
            option::EXPORT_NAME => {
                let name = std::str::from_utf8(&data).ok();
                let Some(export) = name.and_then(|name| exports.find(name)) else {
                    // This option has no way to refuse but to hang up.
                    return Err(HandshakeError::NoSuchExport(
                        String::from_utf8_lossy(&data).into_owned(),
                    ));
                };
                let mut answer = Vec::with_capacity(134);
                answer.extend(export.disk.size().to_be_bytes());
                answer.extend(
                    export
                        .transmission_flags(agreed.structured_replies)
                        .to_be_bytes(),
                );
                if !no_zeroes {
                    answer.extend([0; 124]);
                }
                stream.write_all(&answer)?;
                return Ok(agreed.choose(export));
            }
            option::ABORT => {
                // The client may have hung up already.
                let _ = send_reply(stream, number, reply::ACK, &[]);
                return Err(HandshakeError::Aborted);
            }
            option::LIST if data.is_empty() => {
                for export in exports.iter() {
                    let mut entry = (export.name.len() as u32).to_be_bytes().to_vec();
                    entry.extend(export.name.as_bytes());
                    entry.extend(export.description.as_bytes());
                    send_reply(stream, number, reply::SERVER, &entry)?;
                }
                send_reply(stream, number, reply::ACK, &[])?;
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                agreed.structured_replies = true;
                send_reply(stream, number, reply::ACK, &[])?;
            }
            option::LIST | option::STRUCTURED_REPLY => {
                send_reply(
                    stream,
                    number,
                    reply::ERR_INVALID,
                    b"the option takes no data",
                )?;
            }
            option::INFO | option::GO => {
                let Some(request) = parse_info_request(&data) else {
                    refuse_malformed(stream, number)?;
                    continue;
                };
                let Some(export) = exports.find(request.name) else {
                    refuse_unknown(stream, number)?;
                    continue;
                };
                send_info(stream, number, export, &request, agreed.structured_replies)?;
                if number == option::GO {
                    return Ok(agreed.choose(export));
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let set = number == option::SET_META_CONTEXT;
                if set {
                    // Each attempt replaces the one before, even if it fails.
                    agreed.base_allocation = None;
                }
                if !agreed.structured_replies {
                    let message = b"structured replies come first";
                    send_reply(stream, number, reply::ERR_INVALID, message)?;
                    continue;
                }
                let Some(request) = parse_meta_context_request(&data) else {
                    refuse_malformed(stream, number)?;
                    continue;
                };
                let Some(export) = exports.find(request.name) else {
                    refuse_unknown(stream, number)?;
                    continue;
                };
                if request.asks_for_base_allocation(set) {
                    let id = if set { BASE_ALLOCATION_ID } else { 0 };
                    let mut context = id.to_be_bytes().to_vec();
                    context.extend(BASE_ALLOCATION.as_bytes());
                    send_reply(stream, number, reply::META_CONTEXT, &context)?;
                    if set {
                        agreed.base_allocation = Some(export.clone());
                    }
                }
                send_reply(stream, number, reply::ACK, &[])?;
            }
            _ => send_reply(stream, number, reply::ERR_UNSUP, b"unknown option")?,
        }
    }
    Err(unexpected(
        "options",
        "at most 64",
        u64::from(MAX_OPTIONS) + 1,
    ))
}

/// An option's number and data; no data when it is too long, and then it has been read over. An error when it is far too
/// long.
fn read_option(stream: &mut impl Read) -> Result<(u32, Option<Vec<u8>>), HandshakeError> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    let mut fields = Fields(&header);
    let magic = fields.u64().unwrap_or(0);
    if magic != OPTION_MAGIC {
        return Err(unexpected("option", "IHAVEOPT", magic));
    }
    let number = fields.u32().unwrap_or(0);
    let len = fields.u32().unwrap_or(0);
    if len > MAX_SKIPPED_BYTES {
        let expected = "at most 65536 bytes";
        return Err(unexpected("the length of an option", expected, len.into()));
    }
    if len > MAX_OPTION_BYTES {
        let skipped = io::copy(&mut stream.take(len.into()), &mut io::sink())?;
        if skipped < len.into() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        return Ok((number, None));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((number, Some(data)))
}

fn refuse_malformed(stream: &mut impl Write, number: u32) -> io::Result<()> {
    send_reply(stream, number, reply::ERR_INVALID, b"malformed")
}

fn refuse_unknown(stream: &mut impl Write, number: u32) -> io::Result<()> {
    let message = b"there is no export of that name";
    send_reply(stream, number, reply::ERR_UNKNOWN, message)
}

/// What `NBD_OPT_INFO` or `NBD_OPT_GO` ask for. Size, flags and block sizes are told in any case.
struct InfoRequest<'a> {
    name: &'a str,
    wants_name: bool,
    wants_description: bool,
}

fn parse_info_request(data: &[u8]) -> Option<InfoRequest<'_>> {
    let mut fields = Fields(data);
    let mut request = InfoRequest {
        name: fields.text()?,
        wants_name: false,
        wants_description: false,
    };
    for _ in 0..fields.u16()? {
        match fields.u16()? {
            info::NAME => request.wants_name = true,
            info::DESCRIPTION => request.wants_description = true,
            _ => {}
        }
    }
    fields.0.is_empty().then_some(request)
}

struct MetaContextRequest<'a> {
    name: &'a str,
    queries: Vec<&'a str>,
}

impl MetaContextRequest<'_> {
    fn asks_for_base_allocation(&self, set: bool) -> bool {
        match self.queries.as_slice() {
            // A list without queries asks for everything; a set without queries chooses nothing.
            [] => !set,
            queries => queries
                .iter()
                .any(|&query| query == BASE_ALLOCATION || (!set && query == "base:")),
        }
    }
}

fn parse_meta_context_request(data: &[u8]) -> Option<MetaContextRequest<'_>> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let count = fields.u32()?;
    // Not `with_capacity(count)`: the number is the client's.
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.text()?);
    }
    fields
        .0
        .is_empty()
        .then_some(MetaContextRequest { name, queries })
}

fn send_info(
    stream: &mut impl Write,
    number: u32,
    export: &Export,
    request: &InfoRequest<'_>,
    structured_replies: bool,
) -> io::Result<()> {
    let mut send = |kind: u16, content: &[u8]| {
        let data = [&kind.to_be_bytes()[..], content].concat();
        send_reply(stream, number, reply::INFO, &data)
    };
    if request.wants_name {
        send(info::NAME, export.name.as_bytes())?;
    }
    if request.wants_description && !export.description.is_empty() {
        send(info::DESCRIPTION, export.description.as_bytes())?;
    }
    // Any byte may be addressed; whole 4 KiB blocks are what the disk behind is fast with.
    let sizes = [1, 4096, MAX_REQUEST_BYTES].map(u32::to_be_bytes);
    send(info::BLOCK_SIZE, sizes.as_flattened())?;
    let mut description = export.disk.size().to_be_bytes().to_vec();
    description.extend(export.transmission_flags(structured_replies).to_be_bytes());
    send(info::EXPORT, &description)?;
    send_reply(stream, number, reply::ACK, &[])
}

fn send_reply(stream: &mut impl Write, number: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(20 + data.len());
    message.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    message.extend(number.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    stream.write_all(&message)
}

fn unexpected(what: &'static str, expected: &'static str, found: u64) -> HandshakeError {
    HandshakeError::Protocol {
        what,
        expected,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(len: u32) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(7u32.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    }

    #[test]
    fn what_is_far_too_long_is_not_read_over() {
        let mut bytes = option(MAX_OPTION_BYTES + 1);
        bytes.resize(16 + MAX_OPTION_BYTES as usize + 1, 0);
        let (number, data) = read_option(&mut bytes.as_slice()).unwrap();
        assert_eq!((number, data), (7, None));
        for len in [MAX_SKIPPED_BYTES + 1, u32::MAX] {
            let refused = read_option(&mut option(len).as_slice());
            assert!(
                matches!(refused, Err(HandshakeError::Protocol { found, .. }) if found == len.into()),
                "{refused:?}"
            );
        }
    }
}
