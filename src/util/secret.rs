//! Secrets in memory and at rest.
//!
//! [`Secret`] is a text that no log line, debug print or JSON answer shows. [`Sealer`] encrypts what
//! has to be stored (registry credentials, users' variables) with a key that lies in a file of its own
//! beside the store, so that a copy of the store alone gives nothing away.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::atomic_file;

/// A text that prints and serialises as `***`; an empty one as itself, so that one sees that it is
/// not set.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn digest(&self) -> SecretDigest {
        SecretDigest::of(&self.0)
    }

    fn mask(&self) -> &'static str {
        if self.0.is_empty() { "" } else { "***" }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mask())
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mask())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.mask())
    }
}

/// The SHA-256 of a secret: what is stored of an issued one, and what is compared.
#[derive(Clone, Copy)]
pub(crate) struct SecretDigest([u8; 32]);

impl SecretDigest {
    pub(crate) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// One that was stored; `None` where that has another length.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// In constant time, so that how long a refusal takes tells nothing about the secret.
impl PartialEq for SecretDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretDigest {}

impl Hash for SecretDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error("cannot read or make the key file {path}")]
    KeyFile { path: PathBuf, source: io::Error },
    #[error("the key file {path} must hold 64 hexadecimal digits")]
    BadKey { path: PathBuf },
    #[error("cannot encrypt")]
    Seal,
    /// Another key, another context, or changed bytes: they cannot be told apart.
    #[error("what was encrypted cannot be opened with this node's key")]
    Open,
}

/// The first byte of everything sealed, so that a later format can be told from this one.
const SEAL_VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;

/// Encrypts with the key in one file, which is made (0600) when the first secret is sealed.
pub(crate) struct Sealer {
    path: PathBuf,
    key: Mutex<Option<[u8; 32]>>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Sealer {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), key: Mutex::new(None) }
    }

    /// Encrypts for one context (`aad`, such as the container's id): opened with any other it fails,
    /// so that a sealed value cannot be moved to another row. Reads the key file once: blocking.
    pub(crate) fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let sealed = self
            .cipher(true)?
            .encrypt(&XNonce::from(nonce), Payload { msg: plaintext, aad })
            .map_err(|_| SealError::Seal)?;
        Ok([&[SEAL_VERSION], &nonce[..], &sealed].concat())
    }

    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let Some((&[SEAL_VERSION], rest)) = sealed.split_first_chunk::<1>() else {
            return Err(SealError::Open);
        };
        let Some((nonce, ciphertext)) = rest.split_first_chunk::<NONCE_BYTES>() else {
            return Err(SealError::Open);
        };
        self.cipher(false)?
            .decrypt(&XNonce::from(*nonce), Payload { msg: ciphertext, aad })
            .map_err(|_| SealError::Open)
    }

    fn cipher(&self, may_create: bool) -> Result<XChaCha20Poly1305, SealError> {
        let mut held = self.key.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = match *held {
            Some(key) => key,
            None => *held.insert(self.read_key(may_create)?),
        };
        Ok(XChaCha20Poly1305::new(&key.into()))
    }

    fn read_key(&self, may_create: bool) -> Result<[u8; 32], SealError> {
        let failed = |source| SealError::KeyFile { path: self.path.clone(), source };
        match std::fs::read_to_string(&self.path) {
            Ok(text) => {
                parse_key(&text).ok_or_else(|| SealError::BadKey { path: self.path.clone() })
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound && may_create => {
                create_key(&self.path).map_err(failed)
            }
            Err(why) => Err(failed(why)),
        }
    }
}

fn parse_key(text: &str) -> Option<[u8; 32]> {
    hex::decode(text.trim()).ok()?.try_into().ok()
}

fn create_key(path: &Path) -> io::Result<[u8; 32]> {
    let key: [u8; 32] = rand::random();
    atomic_file::create(path, format!("{}\n", hex::encode(key)).as_bytes(), 0o600)?;
    Ok(key)
}

/// Random text of 256 bits in `[A-Za-z0-9_-]`.
pub(crate) fn random_text() -> String {
    use base64::Engine as _;
    let bytes: [u8; 32] = rand::random();
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_secret_shows_nowhere() {
        let secret = Secret::new("lightd_abc");
        let shown = format!("{secret} {secret:?} {}", serde_json::to_string(&secret).unwrap());
        assert_eq!(shown, r#"*** *** "***""#);
        assert_eq!(serde_json::to_string(&Secret::default()).unwrap(), r#""""#);
    }

    #[test]
    fn what_is_sealed_opens_only_with_its_key_and_context() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret.key");
        let sealed = Sealer::new(&path).seal(b"server-1", b"password").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!sealed.windows(8).any(|part| part == b"password"));

        let again = Sealer::new(&path);
        assert_eq!(again.open(b"server-1", &sealed).unwrap(), b"password");
        assert!(matches!(again.open(b"server-2", &sealed), Err(SealError::Open)));
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(matches!(again.open(b"server-1", &changed), Err(SealError::Open)));
        assert!(matches!(again.open(b"server-1", b""), Err(SealError::Open)));

        let other = Sealer::new(folder.path().join("other.key"));
        other.seal(b"", b"").unwrap();
        assert!(matches!(other.open(b"server-1", &sealed), Err(SealError::Open)));
    }

    #[test]
    fn a_lost_key_is_an_error_and_not_replaced_on_reading() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret.key");
        let sealed = Sealer::new(&path).seal(b"", b"x").unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Sealer::new(&path).open(b"", &sealed), Err(SealError::KeyFile { .. })));
        assert!(!path.exists());
    }
}
