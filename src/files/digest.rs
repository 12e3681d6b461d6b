//! Checksums of files, by the names that people and protocols know them under.
//!
//! Called for `checksum` and by uploads that bring one. A file that changes while it is read has the checksum of
//! what was read, and the tag that it had when it was opened.

use std::io::Read;

use sha2::Digest as _;

use super::content::CHUNK_BYTES;
use super::error::{During, FileError};
use super::progress::{Progress, Tracked};
use super::volume::{Stat, Volume};
use crate::domain::path::RelPath;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
    Sha1,
    Md5,
    Crc32,
}

impl Algorithm {
    pub(crate) const ALL: &[Algorithm] =
        &[Self::Sha256, Self::Sha512, Self::Sha1, Self::Md5, Self::Crc32];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Sha1 => "sha1",
            Self::Md5 => "md5",
            Self::Crc32 => "crc32",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.as_str() == text)
    }

    pub(crate) fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Self::Sha512 => Hasher::Sha512(Box::new(sha2::Sha512::new())),
            Self::Sha1 => Hasher::Sha1(sha1::Sha1::new()),
            Self::Md5 => Hasher::Md5(md5::Md5::new()),
            Self::Crc32 => Hasher::Crc32(crc32fast::Hasher::new()),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
    Sha1(sha1::Sha1),
    Md5(md5::Md5),
    Crc32(crc32fast::Hasher),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Md5(hasher) => hasher.update(bytes),
            Self::Crc32(hasher) => hasher.update(bytes),
        }
    }

    /// The checksum; a CRC in network order, as it is printed.
    pub(crate) fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
            Self::Sha512(hasher) => hasher.finalize().to_vec(),
            Self::Sha1(hasher) => hasher.finalize().to_vec(),
            Self::Md5(hasher) => hasher.finalize().to_vec(),
            Self::Crc32(hasher) => hasher.finalize().to_be_bytes().to_vec(),
        }
    }
}

impl Volume {
    /// The checksum of a regular file's content, and what the file was when it was opened.
    pub(crate) fn checksum(
        &self,
        path: &RelPath,
        algorithm: Algorithm,
        progress: &Progress,
    ) -> Result<(Vec<u8>, Stat), FileError> {
        let (file, stat) = self.open_read(path)?;
        progress.set_total_bytes(stat.size);
        // A file that grows while it is read would be read for ever.
        let mut content = Tracked { inner: file, progress: progress.clone() }.take(stat.size);
        let mut hasher = algorithm.hasher();
        let mut buffer = vec![0; 4 * CHUNK_BYTES];
        loop {
            match content.read(&mut buffer).during("read", path)? {
                0 => return Ok((hasher.finish(), stat)),
                count => hasher.update(&buffer[..count]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_ones_that_everybody_computes() {
        for (name, want) in [
            ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("md5", "900150983cd24fb0d6963f7d28e17f72"),
            ("crc32", "352441c2"),
        ] {
            let algorithm = Algorithm::parse(name).unwrap();
            let mut hasher = algorithm.hasher();
            hasher.update(b"a");
            hasher.update(b"bc");
            assert_eq!(hex::encode(hasher.finish()), want, "{name}");
        }
        assert_eq!(Algorithm::parse("sha512").unwrap().hasher().finish().len(), 64);
        assert_eq!(Algorithm::parse("SHA256"), None);
    }
}
