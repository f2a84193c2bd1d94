//! The fixed newstyle handshake.

use std::io::{self, Read, Write};

use crate::protocol::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Fields, INIT_MAGIC,
    MAX_OPTION_BYTES, MAX_REQUEST_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, info, option, reply,
    transmission_flag as flag,
};

/// A client haggles in a handful of options; more than this many is not a client.
const MAX_OPTIONS: u32 = 64;

/// What is offered to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The export's name. The empty name means it, too.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
}

impl Export {
    fn transmission_flags(&self, structured_replies: bool) -> u16 {
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::CAN_MULTI_CONN;
        if structured_replies {
            flags |= flag::SEND_DF;
        }
        if self.read_only {
            flags | flag::READ_ONLY
        } else {
            flags | flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES
        }
    }

    fn is_called(&self, name: &str) -> bool {
        name.is_empty() || name == self.name
    }
}

/// What client and server have agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Reads are answered in chunks.
    pub structured_replies: bool,
    /// The client may ask what is allocated.
    pub base_allocation: bool,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
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
    /// The client went away in good order.
    #[error("the client gave up the handshake")]
    Aborted,
}

/// Shakes hands on `stream` until the client has chosen the export.
pub fn negotiate(
    stream: &mut (impl Read + Write),
    export: &Export,
) -> Result<Negotiated, HandshakeError> {
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

    let mut agreed = Negotiated::default();
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
                if !std::str::from_utf8(&data).is_ok_and(|name| export.is_called(name)) {
                    // This option has no way to refuse but to hang up.
                    return Err(unexpected(
                        "NBD_OPT_EXPORT_NAME",
                        "the name of this export",
                        data.len() as u64,
                    ));
                }
                let mut answer = Vec::with_capacity(134);
                answer.extend(export.size.to_be_bytes());
                answer.extend(
                    export
                        .transmission_flags(agreed.structured_replies)
                        .to_be_bytes(),
                );
                if !no_zeroes {
                    answer.extend([0; 124]);
                }
                stream.write_all(&answer)?;
                return Ok(agreed);
            }
            option::ABORT => {
                // The client may have hung up already.
                let _ = send_reply(stream, number, reply::ACK, &[]);
                return Err(HandshakeError::Aborted);
            }
            option::LIST if data.is_empty() => {
                let name = export.name.as_bytes();
                let mut entry = (name.len() as u32).to_be_bytes().to_vec();
                entry.extend(name);
                send_reply(stream, number, reply::SERVER, &entry)?;
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
            option::INFO | option::GO => match parse_info_request(&data) {
                None => send_reply(stream, number, reply::ERR_INVALID, b"malformed")?,
                Some(name) if !export.is_called(name) => {
                    send_reply(
                        stream,
                        number,
                        reply::ERR_UNKNOWN,
                        b"there is no export of that name",
                    )?;
                }
                Some(_) => {
                    send_info(stream, number, export, agreed)?;
                    if number == option::GO {
                        return Ok(agreed);
                    }
                }
            },
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let set = number == option::SET_META_CONTEXT;
                match parse_meta_context_request(&data) {
                    _ if !agreed.structured_replies => {
                        send_reply(
                            stream,
                            number,
                            reply::ERR_INVALID,
                            b"structured replies come first",
                        )?;
                    }
                    None => send_reply(stream, number, reply::ERR_INVALID, b"malformed")?,
                    Some(request) if !export.is_called(request.name) => {
                        send_reply(
                            stream,
                            number,
                            reply::ERR_UNKNOWN,
                            b"there is no export of that name",
                        )?;
                    }
                    Some(request) => {
                        let asked = request.asks_for_base_allocation(set);
                        if set {
                            agreed.base_allocation = asked;
                        }
                        if asked {
                            let id = if set { BASE_ALLOCATION_ID } else { 0 };
                            let mut context = id.to_be_bytes().to_vec();
                            context.extend(BASE_ALLOCATION.as_bytes());
                            send_reply(stream, number, reply::META_CONTEXT, &context)?;
                        }
                        send_reply(stream, number, reply::ACK, &[])?;
                    }
                }
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

/// An option's number and data; no data when it is too long, and then it has been read over.
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

/// The export's name in `NBD_OPT_INFO` or `NBD_OPT_GO`. What information the client would like does not matter: all
/// there is is sent.
fn parse_info_request(data: &[u8]) -> Option<&str> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let count = fields.u16()?;
    fields.bytes(usize::from(count) * 2)?;
    fields.0.is_empty().then_some(name)
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
    agreed: Negotiated,
) -> io::Result<()> {
    let mut block_size = info::BLOCK_SIZE.to_be_bytes().to_vec();
    // Any byte may be addressed; whole 4 KiB blocks are what the disk behind is fast with.
    for size in [1, 4096, MAX_REQUEST_BYTES] {
        block_size.extend(size.to_be_bytes());
    }
    send_reply(stream, number, reply::INFO, &block_size)?;
    let mut description = info::EXPORT.to_be_bytes().to_vec();
    description.extend(export.size.to_be_bytes());
    description.extend(
        export
            .transmission_flags(agreed.structured_replies)
            .to_be_bytes(),
    );
    send_reply(stream, number, reply::INFO, &description)?;
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
