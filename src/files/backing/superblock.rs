//! The size that an ext4 file system has by its own account.
//!
//! Called by `image`, to which it is the truth about a volume's size, whatever the file's length or the store
//! says. What is no superblock is an error and never a size.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::BackingError;

const OFFSET: u64 = 1024;
const MAGIC: u16 = 0xEF53;

/// The bytes that the file system in an image spans.
pub(super) fn size_bytes(image: &File) -> Result<u64, BackingError> {
    let mut block = [0; 0x160];
    image
        .read_exact_at(&mut block, OFFSET)
        .map_err(|source| BackingError::io("read the image", source))?;
    parse(&block).ok_or_else(|| BackingError::Damaged { said: "it has no superblock".to_owned() })
}

fn parse(block: &[u8]) -> Option<u64> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(block.get(at..at + 4)?.try_into().ok()?));
    let magic = u16::from_le_bytes(block.get(0x38..0x3A)?.try_into().ok()?);
    let block_bytes = 1024_u64.checked_shl(u32_at(0x18)?)?;
    let blocks = u64::from(u32_at(0x04)?) | u64::from(u32_at(0x150)?) << 32;
    if magic != MAGIC || block_bytes > 1 << 16 {
        return None;
    }
    blocks.checked_mul(block_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_read_from_its_place_and_nonsense_is_none() {
        let mut block = [0; 0x160];
        assert_eq!(parse(&block), None);
        block[0x38..0x3A].copy_from_slice(&MAGIC.to_le_bytes());
        block[0x04..0x08].copy_from_slice(&16384_u32.to_le_bytes());
        block[0x18] = 2;
        assert_eq!(parse(&block), Some(64 << 20));
        block[0x150] = 1;
        assert_eq!(parse(&block), Some((1 << 44) + (64 << 20)));
        block[0x18] = 40;
        assert_eq!(parse(&block), None);
        assert_eq!(parse(&block[..10]), None);
    }
}
