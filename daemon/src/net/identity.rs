//! Who this device is: an ed25519 key and a storage id, made on first start and kept in the data directory.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use libp2p::{PeerId, identity::Keypair};
use rand::Rng;

/// Name of the key file inside the data directory.
pub(super) const KEY_FILE: &str = "identity.key";
/// Name of the storage id file inside the data directory.
pub(super) const STORAGE_FILE: &str = "storage.id";
/// Replicated state, which belongs to the identity that wrote it.
const STATE_FILE: &str = "cluster.redb";
/// No identity file is near this long; longer ones are not read.
const MAX_FILE_BYTES: u64 = 4096;
const STORAGE_ID_BYTES: usize = 16;

/// Why the identity could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system said no.
    #[error("cannot {what} {}: check that the data directory exists, has space and belongs to the user that runs mesh", path.display())]
    Io {
        /// "read" or "write".
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Other users can read the key.
    #[error("{} can be read by others (mode {mode:o}): run `chmod 600 {}`", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The device has run before, and its key is gone.
    #[error(
        "{} is missing, but the data directory holds the state of a device: restore the file from a backup, or move the whole data directory away and restart, which makes this a new device (then remove the old one with `mesh node remove`)",
        path.display()
    )]
    Lost {
        /// Which file.
        path: PathBuf,
    },
    /// The file does not hold what it should.
    #[error(
        "{} is damaged and was left as it is: restore it from a backup, or move the whole data directory away and restart, which makes this a new device (then remove the old one with `mesh node remove`)",
        path.display()
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
    },
}

/// A device's identity.
#[derive(Debug, Clone)]
pub struct Identity {
    keypair: Keypair,
    storage_id: [u8; STORAGE_ID_BYTES],
}

impl Identity {
    /// Reads the identity kept in `data_dir`, or makes and keeps a new one.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, IdentityError> {
        std::fs::create_dir_all(data_dir).map_err(|source| IdentityError::Io {
            what: "create",
            path: data_dir.to_owned(),
            source,
        })?;
        let key = data_dir.join(KEY_FILE);
        if !key.exists() && data_dir.join(STATE_FILE).exists() {
            return Err(IdentityError::Lost { path: key });
        }
        Ok(Self { keypair: load_key(&key)?, storage_id: load_storage_id(&data_dir.join(STORAGE_FILE))? })
    }

    /// An identity that is kept nowhere, for tests and tools.
    pub fn ephemeral() -> Self {
        Self { keypair: Keypair::generate_ed25519(), storage_id: random_id() }
    }

    /// The public name of this device.
    pub fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    /// Names this device's storage; changes when the storage is lost.
    pub fn storage_id(&self) -> [u8; STORAGE_ID_BYTES] {
        self.storage_id
    }

    pub(super) fn keypair(&self) -> &Keypair {
        &self.keypair
    }
}

fn random_id() -> [u8; STORAGE_ID_BYTES] {
    let mut id = [0; STORAGE_ID_BYTES];
    rand::rng().fill_bytes(&mut id);
    id
}

fn load_key(path: &Path) -> Result<Keypair, IdentityError> {
    let Some(bytes) = read_private(path)? else {
        let keypair = Keypair::generate_ed25519();
        let bytes = keypair.to_protobuf_encoding().map_err(|_| corrupt(path))?;
        write_private(path, &bytes)?;
        return Ok(keypair);
    };
    Keypair::from_protobuf_encoding(&bytes).map_err(|_| corrupt(path))
}

fn load_storage_id(path: &Path) -> Result<[u8; STORAGE_ID_BYTES], IdentityError> {
    let Some(bytes) = read_private(path)? else {
        let id = random_id();
        write_private(path, &id)?;
        return Ok(id);
    };
    bytes.try_into().map_err(|_| corrupt(path))
}

fn corrupt(path: &Path) -> IdentityError {
    IdentityError::Corrupt { path: path.to_owned() }
}

/// Reads a file that only its owner may read; `None` when it is not there.
fn read_private(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let failed = |source| IdentityError::Io { what: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// Writes a new file that appears whole or not at all, readable by its owner only.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| IdentityError::Io { what: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_survives_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(folder.path()).unwrap();
        let second = Identity::load_or_create(folder.path()).unwrap();
        assert_eq!(first.peer_id(), second.peer_id());
        assert_eq!(first.storage_id(), second.storage_id());
        let mode = std::fs::metadata(folder.path().join(KEY_FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn damaged_files_are_refused_and_kept() {
        for name in [KEY_FILE, STORAGE_FILE] {
            let folder = tempfile::tempdir().unwrap();
            Identity::load_or_create(folder.path()).unwrap();
            let path = folder.path().join(name);
            File::options().write(true).open(&path).unwrap().set_len(5).unwrap();
            let error = Identity::load_or_create(folder.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Corrupt { .. }), "{error}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 5);
        }
    }

    #[test]
    fn a_lost_key_is_not_replaced_where_a_device_has_run() {
        let folder = tempfile::tempdir().unwrap();
        Identity::load_or_create(folder.path()).unwrap();
        File::create(folder.path().join(STATE_FILE)).unwrap();
        std::fs::remove_file(folder.path().join(KEY_FILE)).unwrap();
        let error = Identity::load_or_create(folder.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Lost { .. }), "{error}");
        assert!(!folder.path().join(KEY_FILE).exists());
    }

    #[test]
    fn exposed_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Identity::load_or_create(folder.path()).unwrap();
        let path = folder.path().join(KEY_FILE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load_or_create(folder.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}
