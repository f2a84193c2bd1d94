//! The bytes of a descriptor: five lines of text, the last one the sum of the
//! others.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::LinkedInfo;

/// What a descriptor begins with, whatever its version.
pub(crate) const MAGIC: &str = "paddock linked disk, version ";
const VERSION: &str = "1";
/// No descriptor is longer.
pub(crate) const MAX_LEN: usize = 4096;
/// The longest path of a device, and the longest serial number.
const MAX_TEXT: usize = 1024;

/// The text of a descriptor. The error says what can't be written.
pub(crate) fn encode(info: &LinkedInfo) -> Result<String, String> {
    let device = info
        .device
        .to_str()
        .filter(|device| is_text(device) && !device.is_empty())
        .ok_or("the path of the physical disk is not printable ASCII, or too long")?;
    if !is_text(&info.serial) {
        return Err("the serial number is not printable ASCII, or too long".to_owned());
    }
    let mut text = format!(
        "{MAGIC}{VERSION}\ndevice {device}\nsize {}\nserial {}\n",
        info.size, info.serial
    );
    let sum = sum(&text);
    text.push_str("sha256 ");
    text.push_str(&sum);
    text.push('\n');
    Ok(text)
}

/// Reads a descriptor. The error says what is wrong.
pub(crate) fn parse(bytes: &[u8]) -> Result<LinkedInfo, String> {
    if bytes.len() > MAX_LEN {
        return Err(format!("it is longer than {MAX_LEN} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    let rest = text
        .strip_prefix(MAGIC)
        .ok_or("it does not begin like one")?;
    let (version, lines) = rest.split_once('\n').unwrap_or((rest, ""));
    if version != VERSION {
        return Err(format!(
            "its version is '{}', expected {VERSION}; a newer release may read it",
            version.escape_debug()
        ));
    }
    let malformed = || "it has other lines than device, size, serial and sha256".to_owned();
    let (device, lines) = line(lines, "device ").ok_or_else(malformed)?;
    let (size, lines) = line(lines, "size ").ok_or_else(malformed)?;
    let (serial, lines) = line(lines, "serial ").ok_or_else(malformed)?;
    let summed = &text[..text.len() - lines.len()];
    let (stored, rest) = line(lines, "sha256 ").ok_or_else(malformed)?;
    if !rest.is_empty() {
        return Err(malformed());
    }
    let computed = sum(summed);
    if stored != computed {
        return Err(format!("its sum is not {computed}: it was changed"));
    }
    let info = LinkedInfo {
        device: PathBuf::from(device),
        size: size.parse().map_err(|_| malformed())?,
        serial: serial.to_owned(),
    };
    // What we would not have written is not what was meant.
    match encode(&info) {
        Ok(own) if own == text => Ok(info),
        _ => Err(malformed()),
    }
}

/// The first line without its key, and the lines after it.
fn line<'a>(lines: &'a str, key: &str) -> Option<(&'a str, &'a str)> {
    lines.strip_prefix(key)?.split_once('\n')
}

fn is_text(text: &str) -> bool {
    text.len() <= MAX_TEXT && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

fn sum(text: &str) -> String {
    let sum = Sha256::digest(text);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes with the right sum behind them.
#[cfg(fuzzing)]
pub(crate) fn summed(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    format!("{text}sha256 {}\n", sum(&text)).into_bytes()
}
