//! Numbers and fixed-size messages of the protocol. All integers are big-endian.

use paddock_vhd::IoErrorKind;

/// `NBDMAGIC`, the first 8 bytes that a server sends.
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the next 8 bytes, and the start of every option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The start of every option's reply.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// The start of every request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// The start of every simple reply.
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// The start of every structured reply's chunk.
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Server and client: the newstyle handshake in which unknown options are refused, not fatal.
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Server and client: no 124 zero bytes after `NBD_OPT_EXPORT_NAME`.
pub(crate) const FLAG_NO_ZEROES: u16 = 2;

/// Option numbers.
pub(crate) mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of an option's reply.
pub(crate) mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Types of information in answer to `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub(crate) mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub(crate) mod transmission_flag {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
}

/// Flags of a request.
pub(crate) mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
}

/// Flags and types of a structured reply's chunk.
pub(crate) mod chunk {
    /// Of the reply's last chunk.
    pub const FLAG_DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// Bits of a `base:allocation` descriptor.
pub(crate) mod allocation {
    pub const HOLE: u32 = 1;
    pub const ZERO: u32 = 2;
}

/// The only metadata context.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";
/// The number under which [`BASE_ALLOCATION`] is answered.
pub(crate) const BASE_ALLOCATION_ID: u32 = 1;

/// The largest read or write, in bytes. It is what clients assume without being told, and QEMU's own limit.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;
/// The longest name, description or query, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 4096;
/// The longest option that is read, in bytes: a name and a few queries.
pub(crate) const MAX_OPTION_BYTES: u32 = 64 << 10;
/// The size of a request's header, in bytes.
pub(crate) const REQUEST_HEADER_BYTES: usize = 28;

/// Error numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum WireError {
    NotPermitted = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    ShuttingDown = 108,
}

impl From<IoErrorKind> for WireError {
    fn from(kind: IoErrorKind) -> Self {
        match kind {
            IoErrorKind::GateClosed => WireError::ShuttingDown,
            IoErrorKind::ReadOnly => WireError::NotPermitted,
            // Not ENOSPC, as the protocol suggests for writes: that would pause the guest until there is room.
            IoErrorKind::OutOfRange => WireError::Invalid,
            IoErrorKind::NoSpace => WireError::NoSpace,
            _ => WireError::Io,
        }
    }
}

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// The stream does not hold a request where one should begin.
    #[error("a request should begin with magic {REQUEST_MAGIC:#x}, found {found:#x}")]
    RequestMagic {
        /// What is there.
        found: u32,
    },
    /// A write too large to be read over.
    #[error("a write has {found} bytes, at most {MAX_REQUEST_BYTES} are taken")]
    WriteTooLong {
        /// Its length.
        found: u32,
    },
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Read bytes.
    Read,
    /// Write bytes, which follow the header.
    Write,
    /// The client is done.
    Disconnect,
    /// Make all that was answered durable.
    Flush,
    /// Discard a range.
    Trim,
    /// Expect reads of a range.
    Cache,
    /// Zero a range.
    WriteZeroes,
    /// Ask what is allocated.
    BlockStatus,
    /// Something else; it is answered with EINVAL.
    Other(u16),
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Flags, see the protocol's `NBD_CMD_FLAG_*`.
    pub flags: u16,
    /// The command.
    pub command: Command,
    /// The client's name for the request.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl Request {
    /// Reads a header.
    pub fn parse(header: &[u8; REQUEST_HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(header);
        let magic = fields.u32().unwrap_or(0);
        if magic != REQUEST_MAGIC {
            return Err(ProtocolError::RequestMagic { found: magic });
        }
        // The header's length is fixed, so the fields are there.
        let flags = fields.u16().unwrap_or(0);
        let command = match fields.u16().unwrap_or(u16::MAX) {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Other(other),
        };
        let request = Request {
            flags,
            command,
            cookie: fields.u64().unwrap_or(0),
            offset: fields.u64().unwrap_or(0),
            length: fields.u32().unwrap_or(0),
        };
        if request.command == Command::Write && request.length > MAX_REQUEST_BYTES {
            return Err(ProtocolError::WriteTooLong {
                found: request.length,
            });
        }
        Ok(request)
    }

    /// The bytes that follow the header.
    pub fn payload_bytes(&self) -> usize {
        match self.command {
            Command::Write => self.length as usize,
            _ => 0,
        }
    }
}

/// Takes big-endian fields off a slice.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length of 32 bits, then as many bytes of UTF-8.
    pub fn text(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        if len > MAX_TEXT_BYTES {
            return None;
        }
        std::str::from_utf8(self.bytes(len)?).ok()
    }
}
