//! The grammar of image references, as far as it keeps a name from becoming part of a URL's path:
//! `[host[:port]/]name[/name…][:tag][@algorithm:hex]`.
//! Source: <https://pkg.go.dev/github.com/distribution/reference>

/// Whether a text names an image; the error is meant for the person who wrote it.
pub(crate) fn check_image_reference(text: &str) -> Result<(), &'static str> {
    let (name, digest) =
        text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let last_slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[last_slash..].rfind(':') {
        Some(at) => (&name[..last_slash + at], Some(&name[last_slash + at + 1..])),
        None => (name, None),
    };
    let is_good = (1..=512).contains(&text.len())
        && digest.is_none_or(is_digest)
        && tag.is_none_or(is_tag)
        && is_path(path);
    if is_good {
        Ok(())
    } else {
        Err("must be an image reference, such as debian:12 or host:5000/name@sha256:…")
    }
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b))
            && hex.len() >= 32
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn is_tag(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_path(text: &str) -> bool {
    let looks_like_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    match text.split_once('/') {
        Some((host, rest)) if looks_like_host(host) => {
            is_part(host, true) && rest.split('/').all(|part| is_part(part, false))
        }
        _ => text.split('/').all(|part| is_part(part, false)),
    }
}

fn is_part(text: &str, is_host: bool) -> bool {
    let allowed: &[u8] = if is_host { b".-:" } else { b"._-" };
    let plain =
        |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase() || (is_host && b.is_ascii_uppercase());
    text.bytes().next().is_some_and(plain)
        && text.bytes().next_back().is_some_and(plain)
        && !text.contains("..")
        && text.bytes().all(|b| plain(b) || allowed.contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references_are_held_to_their_grammar() {
        let digest = format!("host:5000/a/b@sha256:{}", "a".repeat(64));
        for good in [
            "debian",
            "debian:12",
            "a/b-c/d_e:1.2-x",
            "localhost:5000/x",
            "Reg.Example:443/x:T",
            &digest,
        ] {
            assert!(check_image_reference(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "A",
            "a b",
            "a/../b",
            "a?x=1",
            "a#b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:zz",
            "a//b",
            "a\nb",
        ] {
            assert!(check_image_reference(bad).is_err(), "{bad}");
        }
    }
}
