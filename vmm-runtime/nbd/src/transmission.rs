//! Requests and their replies.

use std::io::{self, Read};

use paddock_vhd::{BlockDevice, Extent, ExtentKind, IoError};

use crate::handshake::Negotiated;
use crate::protocol::{
    BASE_ALLOCATION_ID, Command, MAX_REQUEST_BYTES, ProtocolError, REQUEST_HEADER_BYTES, Request,
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, WireError, allocation, chunk, command_flag,
};

/// A request with the bytes to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The request.
    pub request: Request,
    /// The bytes, for a write.
    pub payload: Vec<u8>,
}

impl Job {
    /// The memory that the job takes while it is worked on, in bytes.
    pub(crate) fn weight(&self) -> usize {
        match self.request.command {
            Command::Read => self.request.length.min(MAX_REQUEST_BYTES) as usize,
            _ => self.payload.len(),
        }
    }
}

/// Reads the next request. `None` when the client disconnected or hung up between two requests.
pub fn read_job(stream: &mut impl Read) -> io::Result<Option<Job>> {
    let mut header = [0; REQUEST_HEADER_BYTES];
    if !read_exact_or_end(stream, &mut header)? {
        return Ok(None);
    }
    let request =
        Request::parse(&header).map_err(|error: ProtocolError| io::Error::other(error))?;
    if request.command == Command::Disconnect {
        return Ok(None);
    }
    let mut payload = vec![0; request.payload_bytes()];
    stream.read_exact(&mut payload)?;
    Ok(Some(Job { request, payload }))
}

/// False at the end of the stream; an error if it ends within `buffer`.
fn read_exact_or_end(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Does what a job asks and leaves the whole reply in `reply`, which is cleared first. An error of the disk is part of
/// the reply; it is also returned, for the log.
pub fn execute(
    device: &dyn BlockDevice,
    agreed: Negotiated,
    job: &Job,
    reply: &mut Vec<u8>,
) -> Result<(), IoError> {
    reply.clear();
    let request = &job.request;
    if let Err(error) = check(request, device, agreed) {
        put_error(reply, request, agreed, error);
        return Ok(());
    }
    let done = match request.command {
        Command::Read => return read(device, request, agreed, reply),
        Command::BlockStatus => return block_status(device, request, agreed, reply),
        Command::Write => device.write_at(&job.payload, request.offset),
        Command::Flush => device.flush(),
        Command::Trim => device.discard(request.offset, request.length.into()),
        Command::WriteZeroes => device.write_zeroes(request.offset, request.length.into()),
        // Refused by `check`.
        Command::Disconnect | Command::Other(_) => Ok(()),
    };
    let done = match done {
        // FUA: durable before it is answered. A flush covers more than is asked; the disk groups its commits.
        Ok(()) if request.flags & command_flag::FUA != 0 && request.command != Command::Flush => {
            device.flush()
        }
        done => done,
    };
    match &done {
        Ok(()) => put_simple(reply, request, 0),
        Err(error) => put_error(reply, request, agreed, error.kind().into()),
    }
    done
}

/// What can be refused without asking the disk.
fn check(request: &Request, device: &dyn BlockDevice, agreed: Negotiated) -> Result<(), WireError> {
    use command_flag::{DF, FUA, NO_HOLE, REQ_ONE};
    let (flags, writes) = match request.command {
        Command::Read => (
            if agreed.structured_replies {
                DF | FUA
            } else {
                FUA
            },
            false,
        ),
        Command::Flush => (FUA, false),
        Command::Write | Command::Trim => (FUA, true),
        Command::WriteZeroes => (FUA | NO_HOLE, true),
        Command::BlockStatus if agreed.base_allocation => (REQ_ONE | FUA, false),
        _ => return Err(WireError::Invalid),
    };
    if request.flags & !flags != 0 {
        return Err(WireError::Invalid);
    }
    if writes && device.read_only() {
        return Err(WireError::NotPermitted);
    }
    if request.command == Command::Flush {
        return Ok(());
    }
    if request.command == Command::Read && request.length > MAX_REQUEST_BYTES {
        return Err(WireError::Overflow);
    }
    if request.command == Command::BlockStatus && request.length == 0 {
        return Err(WireError::Invalid);
    }
    match request.offset.checked_add(request.length.into()) {
        Some(end) if end <= device.size() => Ok(()),
        _ => Err(WireError::Invalid),
    }
}

fn read(
    device: &dyn BlockDevice,
    request: &Request,
    agreed: Negotiated,
    reply: &mut Vec<u8>,
) -> Result<(), IoError> {
    // Header and data go out in one write.
    if !agreed.structured_replies {
        put_simple(reply, request, 0);
    } else if request.length == 0 {
        put_chunk(reply, request, chunk::NONE, 0);
        return Ok(());
    } else {
        put_chunk(reply, request, chunk::OFFSET_DATA, 8 + request.length);
        reply.extend(request.offset.to_be_bytes());
    }
    let data = reply.len();
    reply.resize(data + request.length as usize, 0);
    // In bounds: the vector was just made that long.
    let done = device.read_at(reply.get_mut(data..).unwrap_or_default(), request.offset);
    if let Err(error) = &done {
        reply.clear();
        put_error(reply, request, agreed, error.kind().into());
    }
    done
}

fn block_status(
    device: &dyn BlockDevice,
    request: &Request,
    agreed: Negotiated,
    reply: &mut Vec<u8>,
) -> Result<(), IoError> {
    let extents = match device.block_status(request.offset, request.length.into()) {
        Ok(extents) => extents,
        Err(error) => {
            put_error(reply, request, agreed, error.kind().into());
            return Err(error);
        }
    };
    let mut descriptors = merge(&extents, request.length);
    if request.flags & command_flag::REQ_ONE != 0 {
        descriptors.truncate(1);
    }
    if descriptors.is_empty() {
        // A disk that knows nothing about a range that is not empty breaks its contract; a client would ask for ever.
        put_error(reply, request, agreed, WireError::Io);
        return Ok(());
    }
    put_chunk(
        reply,
        request,
        chunk::BLOCK_STATUS,
        4 + 8 * descriptors.len() as u32,
    );
    reply.extend(BASE_ALLOCATION_ID.to_be_bytes());
    for (length, flags) in descriptors {
        reply.extend(length.to_be_bytes());
        reply.extend(flags.to_be_bytes());
    }
    Ok(())
}

/// Lengths and flags of the extents, neighbours of a kind in one, none past the request's end.
fn merge(extents: &[Extent], length: u32) -> Vec<(u32, u32)> {
    let mut merged: Vec<(u32, u32)> = Vec::new();
    let mut left = length;
    for extent in extents {
        let flags = match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Zero => allocation::ZERO,
            ExtentKind::Hole => allocation::HOLE | allocation::ZERO,
        };
        let run = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        if run == 0 {
            continue;
        }
        left -= run;
        match merged.last_mut() {
            // No overflow: all runs together are at most `length`.
            Some((last, last_flags)) if *last_flags == flags => *last += run,
            _ => merged.push((run, flags)),
        }
    }
    merged
}

fn put_simple(reply: &mut Vec<u8>, request: &Request, error: u32) {
    reply.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply.extend(error.to_be_bytes());
    reply.extend(request.cookie.to_be_bytes());
}

/// Each reply is a single chunk, hence the last one.
fn put_chunk(reply: &mut Vec<u8>, request: &Request, kind: u16, length: u32) {
    reply.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
    reply.extend(chunk::FLAG_DONE.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(request.cookie.to_be_bytes());
    reply.extend(length.to_be_bytes());
}

fn put_error(reply: &mut Vec<u8>, request: &Request, agreed: Negotiated, error: WireError) {
    let chunked = matches!(request.command, Command::Read | Command::BlockStatus);
    if agreed.structured_replies && chunked {
        put_chunk(reply, request, chunk::ERROR, 6);
        reply.extend((error as u32).to_be_bytes());
        reply.extend(0_u16.to_be_bytes());
    } else {
        put_simple(reply, request, error as u32);
    }
}
