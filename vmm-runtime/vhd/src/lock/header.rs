//! Who owns a disk among the hosts of a shared folder, as the lock file says
//! it.
//!
//! The kernel's locks end with the process that holds them; on a shared
//! folder a dead host's may end with its lease, and the host come back and
//! write. So the lock file also says which host has the disk open for
//! writing, in which epoch of the disk's attachment. Epochs are given out by
//! who attaches disks to hosts, and rise: a higher one is the proof that the
//! host of a lower one was fenced.
//!
//! Each change writes one sector, and the sector that holds the last change
//! stays as it is until the new one is durable: there are two, used in turns.
//! A torn one is told by its checksum, and its change never happened.

use std::fmt;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Where the first sector lies in the lock file. Before it there is a line
/// for people.
pub(super) const START: u64 = 4096;
/// How far the sectors are from each other, so that they are in different
/// sectors of any disk.
const STRIDE: usize = 4096;
/// Bytes from `START` that hold both.
pub(super) const LEN: usize = STRIDE + SECTOR;

const SECTOR: usize = 512;
const MAGIC: &[u8; 16] = b"paddock lock v1\n";
const SUM: usize = SECTOR - 32;
/// The longest name of a host.
const MAX_HOST: usize = 253;

/// Who opens a disk on a shared folder: a host, in an epoch of the disk's
/// attachment to it. See [`OpenOptions::owner`](crate::OpenOptions::owner).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    disk_epoch: u64,
    host: String,
    boot_id: Uuid,
}

/// Why an owner can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockOwnerError {
    /// The name of the host is empty, too long, or can't be printed.
    #[error("the host's name '{}' must have 1 to 253 printable ASCII characters, and no spaces", host.escape_debug())]
    Host {
        /// The name.
        host: String,
    },
}

impl LockOwner {
    /// `disk_epoch`: of the attachment, higher for each. `host`: the host's
    /// name in the cluster, 1 to 253 printable ASCII characters. `boot_id`:
    /// of the running kernel, see [`LockOwner::this_boot`].
    pub fn new(
        disk_epoch: u64,
        host: impl Into<String>,
        boot_id: Uuid,
    ) -> Result<LockOwner, LockOwnerError> {
        let host = host.into();
        if host.is_empty()
            || host.len() > MAX_HOST
            || !host.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(LockOwnerError::Host { host });
        }
        Ok(LockOwner {
            disk_epoch,
            host,
            boot_id,
        })
    }

    /// The identity that the running kernel gave itself when it booted.
    pub fn this_boot() -> std::io::Result<Uuid> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        text.trim().parse().map_err(std::io::Error::other)
    }

    /// The epoch of the attachment.
    pub fn disk_epoch(&self) -> u64 {
        self.disk_epoch
    }

    /// The name of the host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The boot of the host.
    pub fn boot_id(&self) -> Uuid {
        self.boot_id
    }
}

impl fmt::Display for LockOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {} in epoch {}", self.host, self.disk_epoch)
    }
}

/// What a lock file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Rises with each change.
    sequence: u64,
    /// The highest epoch in which the disk was open for writing.
    pub(crate) disk_epoch: u64,
    /// Who has it open, or died with it open: host and boot.
    pub(crate) holder: Option<(String, Uuid)>,
}

/// Neither of the sectors can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged;

/// A sector that is to be written, and where from `START`. Durable before
/// anything else is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) offset: u64,
    pub(super) bytes: [u8; SECTOR],
}

enum Slot {
    Empty,
    Torn,
    Valid(Record),
}

/// Reads the bytes from `START` on; what is missing at their end is empty.
/// `None`: no owner ever had the disk.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<Record>, Damaged> {
    let slot = |index: usize| {
        let start = index * STRIDE;
        let end = (start + SECTOR).min(bytes.len());
        slot(bytes.get(start..end).unwrap_or_default())
    };
    match (slot(0), slot(1)) {
        (Slot::Valid(a), Slot::Valid(b)) => Ok(Some(if a.sequence > b.sequence { a } else { b })),
        (Slot::Valid(record), _) | (_, Slot::Valid(record)) => Ok(Some(record)),
        // The second one is written first: nobody came further than that.
        (Slot::Empty, _) => Ok(None),
        (Slot::Torn, _) => Err(Damaged),
    }
}

fn slot(bytes: &[u8]) -> Slot {
    if bytes.iter().all(|&byte| byte == 0) {
        return Slot::Empty;
    }
    match Record::decode(bytes) {
        Some(record) => Slot::Valid(record),
        None => Slot::Torn,
    }
}

impl Record {
    fn encode(&self) -> [u8; SECTOR] {
        let mut out = [0; SECTOR];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(16, &self.sequence.to_be_bytes());
        put(24, &self.disk_epoch.to_be_bytes());
        if let Some((host, boot_id)) = &self.holder {
            put(32, boot_id.as_bytes());
            // At most 253.
            put(48, &[host.len() as u8]);
            put(49, host.as_bytes());
        }
        let sum = Sha256::digest(&out[..SUM]);
        out[SUM..].copy_from_slice(&sum);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Record> {
        let bytes: &[u8; SECTOR] = bytes.try_into().ok()?;
        if !bytes.starts_with(MAGIC) || bytes[SUM..] != Sha256::digest(&bytes[..SUM])[..] {
            return None;
        }
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_be_bytes);
        let (sequence, disk_epoch) = (number(16).ok()?, number(24).ok()?);
        let boot_id = Uuid::from_bytes(bytes[32..48].try_into().ok()?);
        let host = bytes.get(49..49 + usize::from(bytes[48]))?;
        let holder = if host.is_empty() {
            None
        } else {
            let host = std::str::from_utf8(host).ok()?;
            let owner = LockOwner::new(disk_epoch, host, boot_id).ok()?;
            Some((owner.host, boot_id))
        };
        Some(Record {
            sequence,
            disk_epoch,
            holder,
        })
    }

    /// Whether it says that `owner` has the disk.
    pub(crate) fn names(&self, owner: &LockOwner) -> bool {
        self.disk_epoch == owner.disk_epoch
            && self
                .holder
                .as_ref()
                .is_some_and(|(host, boot)| *host == owner.host && *boot == owner.boot_id)
    }

    fn change(&self) -> Change {
        Change {
            // Odd ones first: see `read`.
            offset: self.sequence % 2 * STRIDE as u64,
            bytes: self.encode(),
        }
    }
}

/// What is to be written, one after the other, for `owner` to have the disk.
pub(super) fn take(record: Option<&Record>, owner: &LockOwner) -> Vec<Change> {
    if record.is_some_and(|record| record.names(owner)) {
        return Vec::new();
    }
    let first = Record {
        sequence: 1,
        disk_epoch: 0,
        holder: None,
    };
    let mut changes = Vec::new();
    let last = record.unwrap_or_else(|| {
        changes.push(first.change());
        &first
    });
    let next = Record {
        sequence: last.sequence.saturating_add(1),
        disk_epoch: owner.disk_epoch,
        holder: Some((owner.host.clone(), owner.boot_id)),
    };
    changes.push(next.change());
    changes
}

/// What is to be written for `owner` to have the disk no more. `None` if it
/// has been taken over.
pub(super) fn release(record: Option<&Record>, owner: &LockOwner) -> Option<Change> {
    let record = record.filter(|record| record.names(owner))?;
    let next = Record {
        sequence: record.sequence.saturating_add(1),
        disk_epoch: record.disk_epoch,
        holder: None,
    };
    Some(next.change())
}

/// Whether a disk whose lock file says `record` may be opened by `owner`, or
/// by somebody who names none. The kernel's locks are held already, so what
/// ran on this boot, `this_boot`, and held them is gone. The error says who
/// has it, and what to do.
pub(super) fn admit(
    record: Option<&Record>,
    owner: Option<&LockOwner>,
    this_boot: Option<Uuid>,
) -> Result<(), String> {
    let Some(record) = record else {
        return Ok(());
    };
    let epoch = record.disk_epoch;
    match (owner, &record.holder) {
        (Some(owner), _) if owner.disk_epoch < epoch => Err(format!(
            "it was attached again, in epoch {epoch}{}, and {owner} is over; attach it anew",
            match &record.holder {
                Some((host, _)) => format!(" by host {host}"),
                None => String::new(),
            }
        )),
        (Some(owner), Some((host, _))) if *host != owner.host && owner.disk_epoch == epoch => {
            Err(format!(
                "host {host} has it in epoch {epoch}, not {owner}; attach it anew once host {host} is fenced"
            ))
        }
        (None, Some((_, boot))) if this_boot == Some(*boot) => Ok(()),
        (None, Some((host, _))) => Err(format!(
            "host {host} has it in epoch {epoch}, or died with it; attach it anew once host {host} is fenced, and open it in that epoch"
        )),
        (_, None) | (Some(_), Some(_)) => Ok(()),
    }
}

/// The bytes of a lock file after `owner` has taken the disk.
#[cfg(fuzzing)]
pub(crate) fn record_of(record: Option<&Record>, owner: &LockOwner, bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes.to_vec();
    file.resize(file.len().max(LEN), 0);
    for change in take(record, owner) {
        let at = change.offset as usize;
        file[at..at + SECTOR].copy_from_slice(&change.bytes);
    }
    file
}

#[cfg(test)]
mod tests;
