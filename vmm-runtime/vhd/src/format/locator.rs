//! Where a differencing disk says its parent lies: up to eight locators, each
//! a short text somewhere in the file. `W2ru` is a path relative to the
//! child's folder and begins with `.\`, `W2ku` an absolute one, both in
//! UTF-16LE; `MacX` is a `file:` URL in UTF-8.

use super::SECTOR;
use super::header::Locator;

/// A path relative to the child's folder.
pub(crate) const RELATIVE: [u8; 4] = *b"W2ru";
/// An absolute path.
pub(crate) const ABSOLUTE: [u8; 4] = *b"W2ku";
/// A URL, as Virtual PC for Mac and Xen write it.
pub(crate) const URL: [u8; 4] = *b"MacX";

/// The longest text that is read, in bytes: twice the longest path of Linux
/// in UTF-16.
const LONGEST: u32 = 16 << 10;

impl Locator {
    /// First byte of the text and the one behind its last; `None` if there
    /// is none, or if it can't be.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        if self.platform == [0; 4] || self.length == 0 || self.length > LONGEST {
            return None;
        }
        let end = self.offset.checked_add(self.length.into())?;
        (self.offset >= SECTOR).then_some((self.offset, end))
    }

    /// The text in the locator's bytes. `None` for those of other systems.
    pub(crate) fn text(&self, bytes: &[u8]) -> Option<String> {
        let text = match self.platform {
            RELATIVE | ABSOLUTE => {
                let units: Vec<u16> = bytes
                    .chunks_exact(2)
                    .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
                    .collect();
                String::from_utf16(&units).ok()?
            }
            URL => decode_url(std::str::from_utf8(bytes).ok()?)?,
            _ => return None,
        };
        // Some writers count a NUL at the end.
        let text = text.trim_end_matches('\0');
        (!text.is_empty() && !text.contains('\0')).then(|| text.to_owned())
    }
}

/// The bytes of a `W2ru` or `W2ku` locator.
pub(crate) fn encode(path: &str) -> Vec<u8> {
    path.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The path of a `file:` URL.
fn decode_url(url: &str) -> Option<String> {
    let rest = url.strip_prefix("file://")?;
    let rest = rest.strip_prefix("localhost").unwrap_or(rest);
    let mut bytes = Vec::with_capacity(rest.len());
    let mut left = rest.as_bytes();
    while let Some((&first, behind)) = left.split_first() {
        if first == b'%' {
            let (digits, behind) = behind.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            left = behind;
        } else {
            bytes.push(first);
            left = behind;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locator(platform: [u8; 4]) -> Locator {
        Locator {
            platform,
            space: 512,
            length: 10,
            offset: 2048,
        }
    }

    #[test]
    fn texts_are_read_as_their_platform_writes_them() {
        let relative = locator(RELATIVE);
        assert_eq!(encode(".\\ä"), [b'.', 0, b'\\', 0, 0xe4, 0]);
        assert_eq!(relative.text(&encode(".\\ä")).as_deref(), Some(".\\ä"));
        assert_eq!(relative.text(&encode(".\\a\0")).as_deref(), Some(".\\a"));
        assert_eq!(relative.text(&encode("a\0b")), None);
        assert_eq!(relative.text(&[0, 0xd8]), None);
        assert_eq!(relative.text(&[]), None);
        let url = locator(URL);
        assert_eq!(url.text(b"file:///a/b%20c").as_deref(), Some("/a/b c"));
        assert_eq!(url.text(b"file://localhost/a").as_deref(), Some("/a"));
        for bad in [
            &b"/a"[..],
            b"file:///%",
            b"file:///%4",
            b"file:///%zz",
            b"file:///%ff",
        ] {
            assert_eq!(url.text(bad), None);
        }
        assert_eq!(locator(*b"Wi2r").text(b"ab"), None);
    }

    #[test]
    fn impossible_places_are_none() {
        assert_eq!(locator(RELATIVE).range(), Some((2048, 2058)));
        let with = |platform, length, offset| {
            Locator {
                platform,
                space: 512,
                length,
                offset,
            }
            .range()
        };
        assert_eq!(with([0; 4], 10, 2048), None);
        assert_eq!(with(RELATIVE, 0, 2048), None);
        assert_eq!(with(RELATIVE, LONGEST + 1, 2048), None);
        assert_eq!(with(RELATIVE, 10, 511), None);
        assert_eq!(with(RELATIVE, 10, u64::MAX - 5), None);
    }
}
