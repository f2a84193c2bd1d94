//! Checks of single fields.

use std::path::{Component, Path, PathBuf};

use super::{ConfigError, PoolFile};

/// COMMAND_LINE_SIZE of x86 Linux is 2048, NUL included.
const MAX_COMMAND_LINE_BYTES: usize = 2047;
const MAX_NAME_BYTES: usize = 32;

pub(super) fn command_line(line: String) -> Result<String, ConfigError> {
    if line.len() > MAX_COMMAND_LINE_BYTES || line.chars().any(|c| c.is_control()) {
        return Err(malformed(
            "boot.kernel.commandLine".to_owned(),
            &line,
            "at most 2047 bytes without control characters",
        ));
    }
    Ok(line)
}

pub(super) fn pool_file(field: &str, file: PoolFile) -> Result<PoolFile, ConfigError> {
    let pool = absolute(&format!("{field}.pool"), file.pool)?;
    // The pool resolves the path beneath itself again when it opens it; this only gives the better message.
    let stays_inside = file
        .path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if file.path.as_os_str().is_empty() || !stays_inside || has_nul(&file.path) {
        return Err(malformed(
            format!("{field}.path"),
            &file.path.to_string_lossy(),
            "a path within the pool, without a leading / and without ..",
        ));
    }
    Ok(PoolFile {
        pool,
        path: file.path,
    })
}

pub(super) fn absolute(field: &str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || has_nul(&path) {
        return Err(malformed(
            field.to_owned(),
            &path.to_string_lossy(),
            "an absolute path without ..",
        ));
    }
    Ok(path)
}

pub(super) fn has_nul(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

pub(super) fn device_name(field: &str, name: String) -> Result<String, ConfigError> {
    text(
        field,
        name,
        MAX_NAME_BYTES,
        "1 to 32 of a-z, 0-9 and -",
        |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-',
    )
}

pub(super) fn mac(field: &str, value: &str) -> Result<[u8; 6], ConfigError> {
    let wrong = || {
        malformed(
            field.to_owned(),
            value,
            "six hexadecimal pairs with colons, unicast and not all zero",
        )
    };
    let mut mac = [0_u8; 6];
    let mut pairs = value.split(':');
    for byte in &mut mac {
        let pair = pairs
            .next()
            .filter(|pair| pair.len() == 2)
            .ok_or_else(wrong)?;
        if !pair.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    if pairs.next().is_some() || mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(wrong());
    }
    Ok(mac)
}

pub(super) fn text(
    field: &str,
    value: String,
    max: usize,
    expected: &'static str,
    allowed: impl Fn(char) -> bool,
) -> Result<String, ConfigError> {
    if value.is_empty() || value.len() > max || !value.chars().all(allowed) {
        return Err(malformed(field.to_owned(), &value, expected));
    }
    Ok(value)
}

pub(super) fn malformed(field: String, value: &str, expected: &'static str) -> ConfigError {
    ConfigError::Malformed {
        field,
        value: value.chars().take(80).collect(),
        expected,
    }
}

pub(super) fn in_range<T: Into<u64> + Copy>(
    field: &str,
    value: T,
    min: u64,
    max: impl Into<u64>,
) -> Result<u64, ConfigError> {
    let (value, max) = (value.into(), max.into());
    if value < min || value > max {
        return Err(ConfigError::OutOfRange {
            field: field.to_owned(),
            value,
            min,
            max,
        });
    }
    Ok(value)
}
