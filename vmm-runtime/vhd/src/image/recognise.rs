//! What a file is, by its footer and the footer's copy.
//!
//! A dynamic disk has both, and the copy at the beginning rules: it is never
//! moved, while a crash may take the one at the end. But the beginning of a
//! fixed disk is the guest's, who may write there whatever it likes. So the
//! end is asked first, and the beginning believed only if the end isn't the
//! footer of a fixed disk.

use crate::format::bat::{self, Layout};
use crate::format::footer::{self, Footer, FooterError, Kind};
use crate::format::header::{self, Header};
use crate::format::{DiskType, SECTOR, foreign};
use crate::image::{Mutant, Refusal, Tuning};
use crate::linked;
use crate::size::DiskSize;
use crate::storage::Backing;

/// A disk that can be opened, as its metadata describes it. The table of a
/// dynamic disk isn't read yet.
#[derive(Debug)]
pub(crate) struct Recognised {
    pub(crate) disk_type: DiskType,
    pub(crate) footer: Footer,
    /// The footer's bytes, to be written where it is missing.
    pub(crate) footer_bytes: [u8; footer::LEN],
    /// Where data may end: at the footer at the end of the file, or where
    /// the file ends if there is none.
    pub(crate) data_end: u64,
    /// Whether the copy at the beginning has to be written again.
    pub(crate) head_is_lost: bool,
    /// Whether the footer at the end has to be written again.
    pub(crate) tail_is_lost: bool,
    /// Present in dynamic and differencing disks.
    pub(crate) header: Option<(u64, Header)>,
}

impl Recognised {
    /// Where the parts of a dynamic or differencing disk are said to lie.
    pub(crate) fn layout(&self) -> Option<Layout> {
        let (header_offset, header) = self.header.as_ref()?;
        let mut layout = Layout::of(self.footer.current_size, *header_offset, header);
        if self.disk_type == DiskType::Differencing {
            // One that can't be anywhere is of no use, and of no harm either.
            layout.locators = header
                .parent
                .locators
                .map(|locator| locator.range().unwrap_or_default());
        }
        Some(layout)
    }

    /// How many entries its table is said to have, as far as that may be.
    pub(crate) fn entries(&self) -> u32 {
        let header = self.header.as_ref();
        // What has more is refused when it is opened.
        header.map_or(0, |(_, header)| header.bat_entries.min(bat::MAX_ENTRIES))
    }

    /// The parent's name as the header has it, to be shown.
    pub(crate) fn parent_name(&self) -> String {
        let name = self
            .header
            .iter()
            .flat_map(|(_, header)| header.parent.name.chars());
        name.filter(|c| !c.is_control()).collect()
    }
}

struct Tail {
    offset: u64,
    bytes: [u8; footer::LEN],
    footer: Result<Footer, FooterError>,
}

/// Reads footers and header of what `backing` holds.
pub(crate) fn recognise(backing: &Backing, tuning: Tuning) -> Result<Recognised, Refusal> {
    let len = backing.len()?;
    let tail = read_tail(backing, len)?;
    if let Some(Tail {
        offset,
        bytes,
        footer: Ok(footer),
    }) = &tail
        && footer.kind == Kind::Fixed
    {
        return fixed(footer, *bytes, *offset);
    }
    let mut start = [0; footer::LEN];
    let start_len = len.min(start.len() as u64) as usize;
    backing.read(&mut start[..start_len], 0)?;
    let head = match Footer::parse(&start[..start_len]) {
        _ if tuning.is(Mutant::ForgetHeadCopy) => Err(FooterError::NoCookie),
        Ok(footer) if footer.kind == Kind::Fixed => Err(FooterError::NoCookie),
        head => head,
    };
    let (footer, footer_bytes) = match (&head, &tail) {
        (Ok(head), _) => (head, start),
        (
            Err(_),
            Some(Tail {
                footer: Ok(footer),
                bytes,
                ..
            }),
        ) => (footer, *bytes),
        (Err(head), _) => return Err(no_footer(head, tail.as_ref(), &start[..start_len], len)),
    };
    let (data_end, tail_is_lost) = match &tail {
        Some(Tail {
            offset,
            footer: Ok(_),
            bytes,
        }) => (*offset, *bytes != footer_bytes),
        _ => (len, true),
    };
    dynamic(
        backing,
        footer,
        footer_bytes,
        data_end,
        head.is_err(),
        tail_is_lost,
    )
}

/// The footer at the end of the file: 512 bytes, or 511 in old files.
fn read_tail(backing: &Backing, len: u64) -> Result<Option<Tail>, Refusal> {
    let mut tail = None;
    for footer_len in [footer::LEN, footer::OLD_LEN] {
        let Some(offset) = len.checked_sub(footer_len as u64) else {
            continue;
        };
        let mut bytes = [0; footer::LEN];
        backing.read(&mut bytes[..footer_len], offset)?;
        let footer = Footer::parse(&bytes[..footer_len]);
        let found = footer.is_ok();
        // Of two failures, the one that has at least the mark says more.
        if found || tail.is_none() || footer != Err(FooterError::NoCookie) {
            tail = Some(Tail {
                offset,
                bytes,
                footer,
            });
        }
        if found {
            break;
        }
    }
    Ok(tail)
}

fn no_footer(head: &FooterError, tail: Option<&Tail>, start: &[u8], len: u64) -> Refusal {
    let tail = match tail {
        Some(Tail {
            footer: Err(error), ..
        }) => error,
        _ => &FooterError::NoCookie,
    };
    match (head, tail) {
        (FooterError::NoCookie, FooterError::NoCookie) => {
            Refusal::Unsupported(match foreign::name(start) {
                _ if linked::is_descriptor(start) => {
                    "it is a linked disk: it stands for a physical one, and can only be imported"
                        .to_owned()
                }
                Some(name) => {
                    format!("it is {name}, not a VHD; convert it to a raw image and import that")
                }
                None if len == 0 => "the file is empty".to_owned(),
                None => {
                    "it has no VHD footer at its end or beginning; if it is a raw image, import it"
                        .to_owned()
                }
            })
        }
        (FooterError::Kind(_) | FooterError::Version(_), _) => {
            Refusal::Unsupported(format!("it is a VHD, but {head}"))
        }
        (_, FooterError::Kind(_) | FooterError::Version(_)) => {
            Refusal::Unsupported(format!("it is a VHD, but {tail}"))
        }
        (head, FooterError::NoCookie) => Refusal::Corrupt(format!(
            "its footer at the beginning: {head}; at the end there is none"
        )),
        (FooterError::NoCookie, tail) => Refusal::Corrupt(format!(
            "its footer at the end: {tail}; at the beginning there is none"
        )),
        (head, tail) => Refusal::Corrupt(format!(
            "its footer at the beginning: {head}; at the end: {tail}"
        )),
    }
}

fn check_size(size: u64) -> Result<(), Refusal> {
    if size == 0 || !size.is_multiple_of(SECTOR) || size > DiskSize::MAX.bytes() {
        return Err(Refusal::Corrupt(format!(
            "its footer gives a size of {size} bytes, expected a multiple of 512 up to 2040 GiB"
        )));
    }
    Ok(())
}

fn fixed(
    footer: &Footer,
    footer_bytes: [u8; footer::LEN],
    data_end: u64,
) -> Result<Recognised, Refusal> {
    check_size(footer.current_size)?;
    if footer.current_size > data_end {
        return Err(Refusal::Corrupt(format!(
            "it is a fixed disk of {} bytes, but only {data_end} bytes lie before its footer",
            footer.current_size
        )));
    }
    Ok(Recognised {
        disk_type: DiskType::Fixed,
        footer: footer.clone(),
        footer_bytes,
        data_end,
        head_is_lost: false,
        tail_is_lost: false,
        header: None,
    })
}

fn dynamic(
    backing: &Backing,
    footer: &Footer,
    footer_bytes: [u8; footer::LEN],
    data_end: u64,
    head_is_lost: bool,
    tail_is_lost: bool,
) -> Result<Recognised, Refusal> {
    check_size(footer.current_size)?;
    let offset = footer.header_offset.unwrap_or_default();
    if offset < SECTOR
        || offset
            .checked_add(header::LEN as u64)
            .is_none_or(|end| end > data_end)
    {
        return Err(Refusal::Corrupt(format!(
            "its footer places the dynamic header at byte {offset}, outside of the file's {data_end} bytes of content"
        )));
    }
    let mut bytes = [0; header::LEN];
    backing.read(&mut bytes, offset)?;
    let header = Header::parse(&bytes).map_err(|error| {
        Refusal::Corrupt(format!("its dynamic header at byte {offset}: {error}"))
    })?;
    Ok(Recognised {
        disk_type: match footer.kind {
            Kind::Differencing => DiskType::Differencing,
            _ => DiskType::Dynamic,
        },
        footer: footer.clone(),
        footer_bytes,
        data_end,
        head_is_lost,
        tail_is_lost,
        header: Some((offset, header)),
    })
}
