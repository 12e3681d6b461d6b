//! Pages of lists: how many entries one has, and where it goes on.
//!
//! Every list takes `limit` and `cursor` and says in `next_cursor` what to give as `cursor` for what follows,
//! `null` at the end. A cursor says behind which entry to go on, so that nothing is left out or shown twice
//! when entries come and go meanwhile.

use crate::api::error::ApiError;

/// Entries of a page, where the caller does not say, and at most.
pub(super) const LIST_MAX: usize = 1000;

/// Reads how many entries a page shall have.
pub(super) fn limit(asked: Option<usize>) -> Result<usize, ApiError> {
    limit_within(asked, LIST_MAX, LIST_MAX)
}

/// The same, of a list that has bounds of its own.
pub(super) fn limit_within(
    asked: Option<usize>,
    default: usize,
    most: usize,
) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(default);
    if (1..=most).contains(&limit) {
        Ok(limit)
    } else {
        Err(ApiError::field("?limit", format!("must be between 1 and {most}")))
    }
}

/// Reads where to go on.
pub(super) fn cursor<T>(
    text: Option<&str>,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, ApiError> {
    let not_ours =
        || ApiError::malformed("invalid_cursor", "the cursor is not from an earlier page");
    text.map(|text| read(text).ok_or_else(not_ours)).transpose()
}

/// The first entries, and the cursor for what follows if there is more.
pub(super) fn page<T, C>(
    entries: impl IntoIterator<Item = T>,
    limit: usize,
    cursor_of: impl Fn(&T) -> C,
) -> (Vec<T>, Option<C>) {
    let mut entries = entries.into_iter();
    let page: Vec<T> = entries.by_ref().take(limit).collect();
    let is_more = entries.next().is_some();
    let next = page.last().filter(|_| is_more).map(cursor_of);
    (page, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_cursor_and_the_others_do() {
        let pages = |limit| page(1..=4, limit, |last| last.to_string());
        assert_eq!(pages(3), (vec![1, 2, 3], Some("3".to_owned())));
        assert_eq!(pages(4), (vec![1, 2, 3, 4], None));
        assert_eq!(page(0..0, 3, ToString::to_string), (Vec::<i32>::new(), None));
    }

    #[test]
    fn limits_and_cursors_are_held_to_what_they_can_be() {
        assert_eq!(limit(None).unwrap(), LIST_MAX);
        assert_eq!(limit_within(None, 2, 3).unwrap(), 2);
        for bad in [limit(Some(0)), limit(Some(LIST_MAX + 1)), limit_within(Some(4), 2, 3)] {
            assert_eq!(bad.unwrap_err().code(), "invalid");
        }
        let number = |text: &str| text.parse::<u8>().ok();
        assert_eq!(cursor(Some("7"), number).unwrap(), Some(7));
        assert_eq!(cursor(Some("x"), number).unwrap_err().code(), "invalid_cursor");
    }
}
