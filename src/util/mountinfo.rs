//! Paths as the kernel's tables of mounts (`/proc/*/mountinfo`) write them.
//!
//! Used by whoever looks for a mount. What is no path is read as it stands, and then is none that is looked
//! for.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Reads a path of the table, where blanks and the like stand as octal numbers (`\040`).
pub(crate) fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, behind)) = rest.split_first() {
        let number = if byte == b'\\' { behind.get(..3).and_then(octal) } else { None };
        path.push(number.unwrap_or(byte));
        rest = if number.is_some() { &behind[3..] } else { behind };
    }
    PathBuf::from(OsString::from_vec(path))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn blanks_and_backslashes_are_read_and_nonsense_stands_as_it_is() {
        for (field, want) in [
            (r"/a\040b/c", "/a b/c"),
            (r"/tab\011line\012back\134\043", "/tab\tline\nback\\#"),
            (r"/\134040", r"/\040"),
            (r"/a\04", r"/a\04"),
            (r"/a\999", r"/a\999"),
            ("", ""),
        ] {
            assert_eq!(unescaped(field.as_bytes()), Path::new(want), "{field}");
        }
    }
}
