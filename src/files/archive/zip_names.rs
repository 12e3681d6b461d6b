//! Names and times in zip files, which every age and system has written in its own way.

use std::borrow::Cow;

/// What code page 437, in which names stand that are not marked otherwise, has for 0x80 and above.
const CODE_PAGE_437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

const UNICODE_PATH: u16 = 0x7075;
const EXTENDED_TIMESTAMP: u16 = 0x5455;
const NTFS: u16 = 0x000a;
const OLD_UNIX: u16 = 0x5855;
/// From 1601, where NTFS begins to count, to 1970.
const NTFS_EPOCH_SECONDS: i64 = 11_644_473_600;

/// The fields of an extra block, as far as it is sound.
pub(super) fn fields(mut extra: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = extra.split_first_chunk::<4>()?;
        let id = u16::from_le_bytes([head[0], head[1]]);
        let (field, rest) =
            rest.split_at_checked(usize::from(u16::from_le_bytes([head[2], head[3]])))?;
        extra = rest;
        Some((id, field))
    })
}

/// The name as UTF-8.
pub(super) fn decode_name(raw: &[u8], is_utf8: bool, extra: &[u8]) -> Vec<u8> {
    if let Some(name) = unicode_path(raw, extra) {
        return name.to_vec();
    }
    // Most that write UTF-8 without the mark are on Linux; in no old page are such bytes likely.
    if is_utf8 || std::str::from_utf8(raw).is_ok() {
        return raw.to_vec();
    }
    let high: Vec<char> = CODE_PAGE_437.chars().collect();
    let decoded = raw.iter().map(|byte| match byte.checked_sub(0x80) {
        Some(at) => high.get(usize::from(at)).copied().unwrap_or(char::REPLACEMENT_CHARACTER),
        None => char::from(*byte),
    });
    decoded.collect::<String>().into_bytes()
}

/// The name in the field that some tools add for it, if it belongs to the name in the header.
fn unicode_path<'e>(raw: &[u8], extra: &'e [u8]) -> Option<&'e [u8]> {
    let (_, field) = fields(extra).find(|(id, _)| *id == UNICODE_PATH)?;
    let (head, name) = field.split_first_chunk::<5>()?;
    let crc = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    let is_meant = head[0] == 1 && crc == crc32fast::hash(raw) && std::str::from_utf8(name).is_ok();
    is_meant.then_some(name)
}

/// The modification time as the extra fields have it, in Unix seconds.
fn exact_time(extra: &[u8]) -> Option<i64> {
    fields(extra).find_map(|(id, field)| match id {
        EXTENDED_TIMESTAMP if field.first()? & 1 == 1 => Some(i64::from(int(field.get(1..5)?))),
        OLD_UNIX => Some(i64::from(int(field.get(4..8)?))),
        NTFS => {
            let (_, times) = fields(field.get(4..)?).find(|(id, _)| *id == 1)?;
            let ticks = u64::from_le_bytes(*times.first_chunk::<8>()?);
            i64::try_from(ticks / 10_000_000).ok().map(|seconds| seconds - NTFS_EPOCH_SECONDS)
        }
        _ => None,
    })
}

fn int(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes))
}

/// The modification time. That of DOS has no zone and is taken for UTC.
pub(super) fn modified_at(extra: &[u8], time: u16, date: u16) -> Option<i64> {
    if let Some(seconds) = exact_time(extra) {
        return Some(seconds);
    }
    let part = |value: u16| i8::try_from(value).ok();
    let civil = jiff::civil::DateTime::new(
        i16::try_from(1980 + (date >> 9)).ok()?,
        part(date >> 5 & 15)?,
        part(date & 31)?,
        part(time >> 11)?,
        part(time >> 5 & 63)?,
        part((time & 31) * 2)?,
        0,
    );
    Some(civil.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

/// Windows tools write backslashes, against the format's rules.
pub(super) fn with_slashes(name: Vec<u8>, is_dos: bool) -> Vec<u8> {
    if !is_dos || name.contains(&b'/') {
        return name;
    }
    match String::from_utf8_lossy(&name) {
        Cow::Borrowed(text) => text.replace('\\', "/").into_bytes(),
        Cow::Owned(_) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(id: u16, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).expect("short");
        [&id.to_le_bytes()[..], &length.to_le_bytes(), content].concat()
    }

    #[test]
    fn names_are_read_in_the_page_they_were_written_in() {
        assert_eq!(CODE_PAGE_437.chars().count(), 128);
        for (raw, is_utf8, want) in [
            (&b"plain"[..], false, "plain"),
            ("naïve".as_bytes(), true, "naïve"),
            ("naïve".as_bytes(), false, "naïve"),
            (b"na\x8bve", false, "naïve"),
            (b"\x81bung", false, "übung"),
            (b"\xff", false, "\u{a0}"),
        ] {
            assert_eq!(decode_name(raw, is_utf8, b""), want.as_bytes(), "{raw:?}");
        }
        let path = [&[1][..], &crc32fast::hash(b"?").to_le_bytes(), "日".as_bytes()].concat();
        assert_eq!(decode_name(b"?", false, &field(UNICODE_PATH, &path)), "日".as_bytes());
        assert_eq!(decode_name(b"x", false, &field(UNICODE_PATH, &path)), b"x", "of another name");
    }

    #[test]
    fn times_are_taken_from_the_most_exact_field() {
        let (time, date) = (12 << 11 | 26 << 5 | 20, 40 << 9 | 9 << 5 | 13);
        assert_eq!(modified_at(b"", time, date), Some(1_600_000_000));
        assert_eq!(modified_at(b"", 0, 0), None, "no day");
        let stamp = field(EXTENDED_TIMESTAMP, &[&[1][..], &(-5_i32).to_le_bytes()].concat());
        assert_eq!(modified_at(&stamp, time, date), Some(-5));
        let ticks = (1_600_000_001_u64 + 11_644_473_600) * 10_000_000 + 5;
        let tag = field(1, &[ticks.to_le_bytes(), [0; 8], [0; 8]].concat());
        let ntfs = field(NTFS, &[&[0; 4][..], &tag].concat());
        assert_eq!(modified_at(&ntfs, time, date), Some(1_600_000_001));
        let old = field(OLD_UNIX, &[0, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(modified_at(&old, time, date), Some(7));
        for cut in [&stamp[..5], &ntfs[..9], &old[..7], b"UT"] {
            assert_eq!(modified_at(cut, time, date), Some(1_600_000_000), "{cut:?}");
        }
    }
}
