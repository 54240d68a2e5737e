//! Secrets from files that only their owner can read. They are never printed.

use std::fmt;
use std::io::{Error, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Defect, Place};

/// Larger secret files are refused unread.
const MAX_BYTES: u64 = 4096;
/// A shorter token could be guessed.
const MIN_TOKEN: usize = 16;

/// What to say of a file behind its name.
pub(crate) const DENIED: &str =
    "may not be read by this user; run mesh as the user that owns it, for example with `sudo -u mesh`";

/// The 32 bytes that every device of a cluster holds.
#[derive(Clone)]
pub struct ClusterKey([u8; 32]);

impl ClusterKey {
    /// Makes a key of its bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for keyed hashing.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(['\r', '\n']).as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(hidden)")
    }
}

/// A text that must not be shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for handing it to the other side.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in a time that depends on the lengths alone.
    #[must_use]
    pub fn matches(&self, other: &str) -> bool {
        let pairs = self.0.bytes().zip(other.bytes());
        let difference = pairs.fold(0, |difference, (a, b)| difference | (a ^ b));
        difference == 0 && self.0.len() == other.len()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Why a file gives no secret.
#[derive(Debug)]
pub(crate) struct Unread {
    message: String,
    is_denied: bool,
}

impl Unread {
    /// The same as a defect of the place that names the file.
    pub(crate) fn at(self, place: Place) -> Defect {
        Defect { place, message: self.message, is_denied: self.is_denied }
    }
}

impl From<String> for Unread {
    fn from(message: String) -> Self {
        Self { message, is_denied: false }
    }
}

/// Reads the cluster key; on failure, what to say about it.
pub(crate) fn read_key(path: &Path) -> Result<ClusterKey, Unread> {
    let absent = "copy it from the device that ran `mesh init`";
    let text = read(path, absent)?;
    ClusterKey::parse(&text).ok_or_else(|| {
        let held = text.trim_end().len();
        let path = path.display();
        format!("{path} must hold 64 hexadecimal digits; it holds {held} characters, not all fit: {absent}")
            .into()
    })
}

/// Reads an API token; on failure, what to say about it.
pub(crate) fn read_token(path: &Path) -> Result<Secret, Unread> {
    let absent = "write a long random text into it, for example with `openssl rand -hex 32`";
    let text = read(path, absent)?;
    let token = text.trim_end_matches(['\r', '\n']);
    if token.len() < MIN_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let path = path.display();
        let message =
            format!("{path} must hold one line of at least {MIN_TOKEN} letters, digits and signs: {absent}");
        return Err(message.into());
    }
    Ok(Secret(token.to_owned()))
}

fn read(path: &Path, absent: &str) -> Result<String, Unread> {
    let shown = path.display();
    let failed = |error: Error| unread(path, absent, &error);
    // Looked at before it is opened: opening a pipe would wait.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("{shown} is not a file; {absent}").into());
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let message =
            format!("{shown} can be used by others than its owner (mode {mode:04o}); run: chmod 600 {shown}");
        return Err(message.into());
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn unread(path: &Path, absent: &str, error: &Error) -> Unread {
    let shown = path.display();
    if error.kind() == ErrorKind::NotFound {
        return format!("{shown} does not exist; {absent}").into();
    }
    if error.kind() == ErrorKind::PermissionDenied {
        return Unread { message: format!("{shown} {DENIED}"), is_denied: true };
    }
    format!("{shown} cannot be read: {error}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_read_is_told_from_what_is_wrong() {
        let path = Path::new("/etc/mesh/cluster.key");
        for (kind, is_denied, says) in [
            (
                ErrorKind::PermissionDenied,
                true,
                "/etc/mesh/cluster.key may not be read by this user; run mesh as",
            ),
            (ErrorKind::NotFound, false, "/etc/mesh/cluster.key does not exist; copy it"),
            (ErrorKind::InvalidData, false, "/etc/mesh/cluster.key cannot be read"),
        ] {
            let defect = unread(path, "copy it", &Error::from(kind)).at(Place::Search);
            assert_eq!(defect.is_denied, is_denied, "{defect}");
            assert!(defect.message.starts_with(says), "{defect}");
        }
    }
}
