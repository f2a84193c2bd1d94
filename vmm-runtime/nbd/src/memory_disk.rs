//! A disk in memory that tests can look into.

use std::sync::Mutex;

use paddock_vhd::{BlockDevice, Extent, ExtentKind, IoError};

/// What was called, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read(u64, usize),
    Write(u64, usize),
    Flush,
    Discard(u64, u64),
    WriteZeroes(u64, u64),
}

#[derive(Default)]
pub(crate) struct State {
    pub bytes: Vec<u8>,
    pub calls: Vec<Call>,
    /// What every further call returns.
    pub fail: Option<IoError>,
}

/// Asked before each call; an error is what the call returns.
type Hook = Box<dyn Fn(&Call) -> Result<(), IoError> + Send + Sync>;

pub(crate) struct MemoryDisk {
    pub state: Mutex<State>,
    pub read_only: bool,
    hook: Hook,
}

impl MemoryDisk {
    pub fn new(size: usize) -> Self {
        MemoryDisk {
            state: Mutex::new(State {
                bytes: vec![0; size],
                ..State::default()
            }),
            read_only: false,
            hook: Box::new(|_| Ok(())),
        }
    }

    pub fn hooked(
        size: usize,
        hook: impl Fn(&Call) -> Result<(), IoError> + Send + Sync + 'static,
    ) -> Self {
        MemoryDisk {
            hook: Box::new(hook),
            ..MemoryDisk::new(size)
        }
    }

    fn with<T>(&self, call: Call, work: impl FnOnce(&mut [u8]) -> T) -> Result<T, IoError> {
        (self.hook)(&call)?;
        let mut state = self.state.lock().unwrap();
        state.calls.push(call);
        match &state.fail {
            Some(error) => Err(error.clone()),
            None => Ok(work(&mut state.bytes)),
        }
    }
}

impl BlockDevice for MemoryDisk {
    fn size(&self) -> u64 {
        self.state.lock().unwrap().bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), IoError> {
        let offset_ = offset as usize;
        self.with(Call::Read(offset, buf.len()), |bytes| {
            buf.copy_from_slice(&bytes[offset_..offset_ + buf.len()]);
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), IoError> {
        let offset_ = offset as usize;
        self.with(Call::Write(offset, buf.len()), |bytes| {
            bytes[offset_..offset_ + buf.len()].copy_from_slice(buf);
        })
    }

    fn flush(&self) -> Result<(), IoError> {
        self.with(Call::Flush, |_| ())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.with(Call::Discard(offset, len), |bytes| {
            bytes[offset as usize..(offset + len) as usize].fill(0);
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.with(Call::WriteZeroes(offset, len), |bytes| {
            bytes[offset as usize..(offset + len) as usize].fill(0);
        })
    }

    /// In runs of 4 KiB: holes where all is zero.
    fn block_status(&self, offset: u64, len: u64) -> Result<Vec<Extent>, IoError> {
        let state = self.state.lock().unwrap();
        if let Some(error) = &state.fail {
            return Err(error.clone());
        }
        let mut extents = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let next = ((at / 4096 + 1) * 4096).min(end);
            let zero = state.bytes[at as usize..next as usize]
                .iter()
                .all(|&byte| byte == 0);
            let kind = if zero {
                ExtentKind::Hole
            } else {
                ExtentKind::Data
            };
            extents.push(Extent {
                offset: at,
                len: next - at,
                kind,
            });
            at = next;
        }
        Ok(extents)
    }
}
