//! Secrets from files that only their owner can read. They are never printed.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Larger secret files are refused unread.
const MAX_BYTES: u64 = 4096;
/// A shorter token could be guessed.
const MIN_TOKEN: usize = 16;

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

/// Reads the cluster key; on failure, what to say about it.
pub(crate) fn read_key(path: &Path) -> Result<ClusterKey, String> {
    let absent = "copy it from the device that ran `mesh init`";
    let text = read(path, absent)?;
    ClusterKey::parse(&text).ok_or_else(|| {
        let held = text.trim_end().len();
        format!(
            "{} must hold 64 hexadecimal digits; it holds {held} characters, not all fit: {absent}",
            path.display()
        )
    })
}

/// Reads an API token; on failure, what to say about it.
pub(crate) fn read_token(path: &Path) -> Result<Secret, String> {
    let absent = "write a long random text into it, for example with `openssl rand -hex 32`";
    let text = read(path, absent)?;
    let token = text.trim_end_matches(['\r', '\n']);
    if token.len() < MIN_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let path = path.display();
        return Err(format!(
            "{path} must hold one line of at least {MIN_TOKEN} letters, digits and signs: {absent}"
        ));
    }
    Ok(Secret(token.to_owned()))
}

fn read(path: &Path, absent: &str) -> Result<String, String> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            return format!("{shown} does not exist; {absent}");
        }
        format!("{shown} cannot be read: {error}")
    };
    // Looked at before it is opened: opening a pipe would wait.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("{shown} is not a file; {absent}"));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{shown} can be used by others than its owner (mode {mode:04o}); run: chmod 600 {shown}"
        ));
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
