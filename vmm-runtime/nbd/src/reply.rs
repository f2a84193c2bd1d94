//! Replies: simple ones, and structured ones in chunks.

use paddock_vhd::Buffer;

use crate::handshake::Session;
use crate::protocol::{
    Command, Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, WireError, chunk,
};

/// The longest message with an error, in bytes.
const MAX_MESSAGE_BYTES: usize = 512;

pub(crate) fn put_simple(reply: &mut Buffer, request: &Request, error: u32) {
    let mut header = [0; 16];
    let (magic, rest) = header.split_at_mut(4);
    let (number, cookie) = rest.split_at_mut(4);
    magic.copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    number.copy_from_slice(&error.to_be_bytes());
    cookie.copy_from_slice(&request.cookie.to_be_bytes());
    reply.put(&header);
}

/// A chunk's header; `length` bytes follow.
pub(crate) fn put_chunk(reply: &mut Buffer, request: &Request, flags: u16, kind: u16, length: u32) {
    let kind_and_flags = u32::from(flags) << 16 | u32::from(kind);
    let start = u64::from(STRUCTURED_REPLY_MAGIC) << 32 | u64::from(kind_and_flags);
    let header = u128::from(start) << 64 | u128::from(request.cookie);
    reply.put(&header.to_be_bytes());
    reply.put(&length.to_be_bytes());
}

/// What comes before the data of a read that is answered in one piece.
pub(crate) fn put_data_header(reply: &mut Buffer, request: &Request, session: &Session) {
    if !session.structured_replies {
        put_simple(reply, request, 0);
        return;
    }
    // No overflow: a read is bounded.
    let length = 8 + request.length;
    put_chunk(reply, request, chunk::FLAG_DONE, chunk::OFFSET_DATA, length);
    reply.put(&request.offset.to_be_bytes());
}

/// A refusal or failure, the only or the last chunk. The message is for whoever reads the client's log.
pub(crate) fn put_error(
    reply: &mut Buffer,
    request: &Request,
    session: &Session,
    error: WireError,
    message: &str,
) {
    if !session.structured_replies {
        put_simple(reply, request, error as u32);
        return;
    }
    let mut end = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = message.get(..end).unwrap_or_default();
    let length = 6 + message.len() as u32;
    put_chunk(reply, request, chunk::FLAG_DONE, chunk::ERROR, length);
    reply.put(&(error as u32).to_be_bytes());
    reply.put(&(message.len() as u16).to_be_bytes());
    reply.put(message.as_bytes());
}

/// Success without content.
pub(crate) fn put_done(reply: &mut Buffer, request: &Request, session: &Session) {
    // Only reads must be answered in chunks, and a simple reply is shorter.
    if session.structured_replies && request.command == Command::Read {
        put_chunk(reply, request, chunk::FLAG_DONE, chunk::NONE, 0);
    } else {
        put_simple(reply, request, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_laid_out_as_the_protocol_says() {
        let request = Request {
            flags: 0,
            command: Command::Read,
            cookie: 0x0102_0304_0506_0708,
            offset: 0,
            length: 0,
        };
        let mut reply = Buffer::default();
        put_simple(&mut reply, &request, 5);
        put_chunk(&mut reply, &request, chunk::FLAG_DONE, chunk::ERROR, 9);
        assert_eq!(
            *reply,
            *b"\x67\x44\x66\x98\0\0\0\x05\x01\x02\x03\x04\x05\x06\x07\x08\
              \x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x09"
        );
    }
}
