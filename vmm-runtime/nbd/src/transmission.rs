//! What is done for a request.

use paddock_vhd::{self as vhd, BlockDevice, Buffer, Extent, ExtentKind, IoError};

use crate::handshake::Session;
use crate::outbox::Outgoing;
use crate::protocol::{
    BASE_ALLOCATION_ID, Command, MAX_REQUEST_BYTES, Request, WireError, allocation, chunk,
    command_flag,
};
use crate::reply::{put_chunk, put_data_header, put_done, put_error};

/// Reads of at least this many bytes ask the disk for holes first, and holes of at least this many bytes are told
/// instead of sent. Smaller ones cost more to find than to send.
const HOLE_BYTES: u32 = 64 << 10;
/// A prefetch reads in steps of this many bytes.
const CACHE_STEP_BYTES: u32 = 256 << 10;

/// Does what a request asks, with the bytes that came with it, and appends the whole reply; the data of a read in one
/// piece go to `apart`, if there is such a buffer, an empty one: at its begin they need not be copied on their way past
/// the page cache. An error of the disk is part of the reply; it is also returned, for the log.
pub(crate) fn execute(
    session: &Session,
    request: &Request,
    payload: &[u8],
    reply: &mut Buffer,
    mut apart: Option<&mut Buffer>,
) -> Result<(), IoError> {
    if let Err((error, message)) = check(request, session) {
        put_error(reply, request, session, error, message);
        return Ok(());
    }
    let start = reply.len();
    let done = work(session, request, payload, reply, apart.as_deref_mut());
    if let Err(error) = &done {
        reply.truncate(start);
        if let Some(apart) = apart {
            apart.truncate(0);
        }
        put_failure(reply, request, session, error);
    }
    done
}

/// What a request asks of the disk if that is one call without more ado, for the disk's queue; `payload`, the bytes that
/// came with it, is empty for a read, and room for what is read. It comes back if the request takes more, or is refused.
pub(crate) fn single_call(
    session: &Session,
    request: &Request,
    mut payload: Buffer,
) -> Result<vhd::Request, Buffer> {
    let offset = request.offset;
    let whole = !session.structured_replies || request.length < HOLE_BYTES;
    match request.command {
        _ if check(request, session).is_err() => Err(payload),
        Command::Flush => Ok(vhd::Request::Flush),
        _ if request.length == 0 => Err(payload),
        Command::Read if whole => {
            payload.space(request.length as usize);
            Ok(vhd::Request::Read {
                offset,
                buf: payload,
            })
        }
        Command::Write => Ok(vhd::Request::Write {
            offset,
            buf: payload,
            fua: request.flags & command_flag::FUA != 0,
        }),
        _ => Err(payload),
    }
}

/// The reply to a [`single_call`], once that is over, with the buffer that came back of it; begun in `head`.
pub(crate) fn reply_to_call(
    session: &Session,
    request: &Request,
    done: Result<Buffer, IoError>,
    mut head: Buffer,
) -> Outgoing {
    let body = match done {
        Ok(bytes) if request.command == Command::Read => {
            put_data_header(&mut head, request, session);
            bytes
        }
        Ok(mut written) => {
            put_done(&mut head, request, session);
            // Kept for its memory.
            written.truncate(0);
            written
        }
        Err(error) => {
            put_failure(&mut head, request, session, &error);
            Buffer::default()
        }
    };
    Outgoing { head, body }
}

fn put_failure(reply: &mut Buffer, request: &Request, session: &Session, error: &IoError) {
    let number = error.kind().into();
    put_error(reply, request, session, number, &error.to_string());
}

fn work(
    session: &Session,
    request: &Request,
    payload: &[u8],
    reply: &mut Buffer,
    apart: Option<&mut Buffer>,
) -> Result<(), IoError> {
    let disk = &*session.export.disk;
    match request.command {
        Command::Read => return read(disk, request, session, reply, apart),
        Command::BlockStatus => return block_status(disk, request, session, reply),
        Command::Cache => prefetch(disk, request, reply)?,
        Command::Write => disk.write_at(payload, request.offset)?,
        Command::Flush => disk.flush()?,
        Command::Trim => disk.discard(request.offset, request.length.into())?,
        // NO_HOLE or not: zeroing never gives space back, and that is allowed either way.
        Command::WriteZeroes => disk.write_zeroes(request.offset, request.length.into())?,
        // Refused by `check`.
        Command::Disconnect | Command::Other(_) => {}
    }
    let changes = matches!(
        request.command,
        Command::Write | Command::Trim | Command::WriteZeroes
    );
    if changes && request.flags & command_flag::FUA != 0 {
        // Durable before it is answered. A flush covers more than is asked; the disk groups its commits.
        disk.flush()?;
    }
    put_done(reply, request, session);
    Ok(())
}

/// What can be refused without asking the disk, and why.
fn check(request: &Request, session: &Session) -> Result<(), (WireError, &'static str)> {
    use command_flag::{DF, FUA, NO_HOLE, REQ_ONE};
    let (flags, changes) = match request.command {
        Command::Read if session.structured_replies => (DF | FUA, false),
        Command::Read | Command::Flush | Command::Cache => (FUA, false),
        Command::Write | Command::Trim => (FUA, true),
        Command::WriteZeroes => (FUA | NO_HOLE, true),
        Command::BlockStatus if session.base_allocation => (REQ_ONE | FUA, false),
        Command::BlockStatus => {
            return Err((WireError::Invalid, "base:allocation was not asked for"));
        }
        Command::Disconnect | Command::Other(_) => {
            return Err((WireError::Invalid, "unknown command"));
        }
    };
    if request.flags & !flags != 0 {
        return Err((WireError::Invalid, "unknown flags for this command"));
    }
    if changes && session.export.refuses_changes() {
        return Err((WireError::NotPermitted, "the export is for reading only"));
    }
    if request.command == Command::Flush {
        return Ok(());
    }
    if request.command == Command::Read && request.length > MAX_REQUEST_BYTES {
        return Err((WireError::Overflow, "a read has at most 32 MiB"));
    }
    if request.command == Command::BlockStatus && request.length == 0 {
        return Err((WireError::Invalid, "an empty range has no status"));
    }
    match request.offset.checked_add(request.length.into()) {
        Some(end) if end <= session.export.disk.size() => Ok(()),
        _ => Err((WireError::Invalid, "the range passes the disk's end")),
    }
}

/// Header and data of all chunks go out in one write.
fn read(
    disk: &dyn BlockDevice,
    request: &Request,
    session: &Session,
    reply: &mut Buffer,
    apart: Option<&mut Buffer>,
) -> Result<(), IoError> {
    if session.structured_replies && request.length == 0 {
        put_done(reply, request, session);
        return Ok(());
    }
    let runs = match session.structured_replies {
        true => runs(disk, request)?,
        false => vec![Run::Data(request.length)],
    };
    if let [Run::Data(_)] = *runs {
        put_data_header(reply, request, session);
        let bytes = apart.unwrap_or(reply).space(request.length as usize);
        return disk.read_at(bytes, request.offset);
    }
    let last = runs.len() - 1;
    let mut offset = request.offset;
    for (index, run) in runs.into_iter().enumerate() {
        let flags = if index == last { chunk::FLAG_DONE } else { 0 };
        match run {
            Run::Data(length) => {
                put_chunk(reply, request, flags, chunk::OFFSET_DATA, 8 + length);
                reply.put(&offset.to_be_bytes());
                disk.read_at(reply.space(length as usize), offset)?;
                offset += u64::from(length);
            }
            Run::Hole(length) => {
                put_chunk(reply, request, flags, chunk::OFFSET_HOLE, 12);
                reply.put(&offset.to_be_bytes());
                reply.put(&length.to_be_bytes());
                offset += u64::from(length);
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Data(u32),
    Hole(u32),
}

/// How a read that is not empty is cut into chunks. What is a hole now may be written to before the reply is sent: then
/// the two were under way at the same time, and the read may see either.
fn runs(disk: &dyn BlockDevice, request: &Request) -> Result<Vec<Run>, IoError> {
    let whole = vec![Run::Data(request.length)];
    if request.length < HOLE_BYTES {
        return Ok(whole);
    }
    let extents = disk.block_status(request.offset, request.length.into())?;
    let mut runs: Vec<Run> = Vec::new();
    let mut described = 0;
    for (length, flags) in merge(&extents, request.length) {
        described += length;
        let hole = flags & allocation::ZERO != 0 && length >= HOLE_BYTES;
        match runs.last_mut() {
            // No overflow: all runs together are at most the request's length.
            Some(Run::Data(before)) if !hole => *before += length,
            _ if hole => runs.push(Run::Hole(length)),
            _ => runs.push(Run::Data(length)),
        }
    }
    match (request.length - described, runs.last_mut()) {
        (0, _) => {}
        (rest, Some(Run::Data(before))) => *before += rest,
        (rest, _) => runs.push(Run::Data(rest)),
    }
    let one_chunk = request.flags & command_flag::DF != 0;
    Ok(if one_chunk && runs.len() > 1 {
        whole
    } else {
        runs
    })
}

/// Reads and forgets: the host's page cache remembers. No more than a read may have; the rest is not worth the wait.
fn prefetch(
    disk: &dyn BlockDevice,
    request: &Request,
    scratch: &mut Buffer,
) -> Result<(), IoError> {
    let start = scratch.len();
    let length = request.length.min(MAX_REQUEST_BYTES);
    let mut done = 0;
    while done < length {
        let step = CACHE_STEP_BYTES.min(length - done);
        let offset = request.offset + u64::from(done);
        disk.read_at(scratch.space(step as usize), offset)?;
        scratch.truncate(start);
        done += step;
    }
    Ok(())
}

fn block_status(
    disk: &dyn BlockDevice,
    request: &Request,
    session: &Session,
    reply: &mut Buffer,
) -> Result<(), IoError> {
    let extents = disk.block_status(request.offset, request.length.into())?;
    let mut descriptors = merge(&extents, request.length);
    if request.flags & command_flag::REQ_ONE != 0 {
        descriptors.truncate(1);
    }
    if descriptors.is_empty() {
        // A disk that knows nothing about a range that is not empty breaks its contract; a client would ask for ever.
        let message = "the disk does not know what is allocated";
        put_error(reply, request, session, WireError::Io, message);
        return Ok(());
    }
    // At most `Extent::MAX_PER_CALL`.
    let length = 4 + 8 * descriptors.len() as u32;
    put_chunk(
        reply,
        request,
        chunk::FLAG_DONE,
        chunk::BLOCK_STATUS,
        length,
    );
    reply.put(&BASE_ALLOCATION_ID.to_be_bytes());
    for (length, flags) in descriptors {
        reply.put(&length.to_be_bytes());
        reply.put(&flags.to_be_bytes());
    }
    Ok(())
}

/// Lengths and flags of the extents, neighbours of a kind in one, none past the request's end.
fn merge(extents: &[Extent], length: u32) -> Vec<(u32, u32)> {
    let mut merged: Vec<(u32, u32)> = Vec::new();
    let mut left = length;
    for extent in extents.iter().take(Extent::MAX_PER_CALL) {
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
